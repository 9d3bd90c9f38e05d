#include "plugins/proxy-net/flow/listener.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>

#include "plugins/proxy-net/packet/socket_address.h"

namespace virtbay::proxy_net {
namespace {

constexpr int kBacklog = 4096;  // cut by net.core.somaxconn
constexpr uint64_t kRetryNs = 20'000'000;

}  // namespace

sdk::Result<int> ForwardSpec::OpenSocket(ForwardSpec* spec, bool shared) {
  const bool v4 = spec->host.address.is_v4();
  const bool tcp = spec->protocol == kProtocolTcp;
  const std::string what =
      std::string("forward ") + (tcp ? "tcp " : "udp ") + spec->host.ToString();
  const int fd = socket(v4 ? AF_INET : AF_INET6,
                        (tcp ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return sdk::Errno(errno, what);
  const int one = 1;
  if (!v4) setsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &one, sizeof(one));
  if (tcp) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (shared) setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one));
  SocketAddress local = SocketAddress::Of(spec->host);
  if (bind(fd, local.get(), local.size) != 0 || (tcp && listen(fd, kBacklog) != 0) ||
      getsockname(fd, local.get(), &(local.size = sizeof(local.storage))) != 0) {
    const int error = errno;
    close(fd);
    return sdk::Errno(error, what);
  }
  if (const auto bound = local.ToEndpoint(); bound.has_value()) spec->host.port = bound->port;
  return fd;
}

Listeners::Listeners(FlowCore* core, Tcp* tcp, Datagrams* datagrams)
    : core_(core), tcp_(tcp), datagrams_(datagrams), listeners_(core->limits.listeners) {
  ids_.reserve(core->limits.listeners);
}

bool Listeners::Add(const ForwardSpec& spec, int fd) {
  const uint32_t id = core_->TakeId(&core_->listener_ids);
  if (id == kNoFlow) {
    close(fd);
    core_->host->GiveDescriptor();
    return false;
  }
  Listener* listener = listeners_.Make(id - core_->listener_ids.first, id, FlowKind::kListener);
  listener->fd = fd;
  listener->protocol = spec.protocol;
  listener->host = spec.host;
  listener->guest_port = spec.guest_port;
  listener->forward = spec.forward;
  listener->created_ns = core_->now_ns;
  ids_.push_back(id);
  if (core_->Watch(*listener, EPOLLIN)) return true;
  Close(listener);
  ids_.pop_back();
  return false;
}

void Listeners::Close(Listener* listener) {
  // UDP flows that came by it have no other socket.
  if (listener->protocol == kProtocolUdp) {
    for (uint32_t i = 0; i < core_->datagram_ids.fresh; ++i) {
      DatagramFlow* flow = datagrams_->At(core_->datagram_ids.first + i);
      if (flow->kind != FlowKind::kNone && flow->shared && flow->listener == listener->id) {
        datagrams_->Remove(flow);
      }
    }
  }
  core_->CloseSocket(listener, /*reset=*/false);
  core_->Disarm(listener);
  listener->kind = FlowKind::kNone;
  ++listener->generation;
  core_->GiveId(&core_->listener_ids, listener->id);
}

uint32_t Listeners::Remove(uint32_t forward) {
  const size_t before = ids_.size();
  std::erase_if(ids_, [&](uint32_t id) {
    if (At(id)->forward != forward) return false;
    Close(At(id));
    return true;
  });
  return static_cast<uint32_t>(before - ids_.size());
}

void Listeners::RemoveAll() {
  for (const uint32_t id : ids_) Close(At(id));
  ids_.clear();
}

void Listeners::OnEvents(Listener* listener, uint32_t events) {
  if ((events & EPOLLERR) != 0) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(listener->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  }
  listener->readable = true;
  core_->MarkDirty(listener);
}

void Listeners::OnTimer(Listener* listener) {
  listener->readable = true;
  core_->MarkDirty(listener);
}

uint32_t Listeners::Flush(Listener* listener, uint32_t frames) {
  listener->dirty = false;
  if (listener->kind != FlowKind::kListener || !listener->readable) return 0;
  return listener->protocol == kProtocolTcp ? AcceptBatch(listener, frames)
                                            : PassDatagrams(listener, frames);
}

uint32_t Listeners::AcceptBatch(Listener* listener, uint32_t most) {
  uint32_t accepted = 0;
  while (accepted < most) {
    if (core_->HalfOpen() >= core_->limits.half_open || !core_->host->TakeDescriptor()) {
      // Other flows end for a connection that is there only.
      pollfd pending = {listener->fd, POLLIN, 0};
      if (poll(&pending, 1, 0) == 0) {
        listener->readable = false;
        return accepted;
      }
      // What finds no room stays in the kernel's backlog until there is some.
      const bool full =
          core_->HalfOpen() >= core_->limits.half_open && !core_->MakeRoom(Room::kHalfOpen);
      if (full || !core_->TakeDescriptor()) {
        core_->Arm(listener, core_->now_ns + kRetryNs);
        return accepted;
      }
    }
    SocketAddress name;
    const int fd = accept4(listener->fd, name.get(), &name.size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      const int error = errno;
      core_->host->GiveDescriptor();
      if (error == EINTR || error == ECONNABORTED) continue;
      listener->readable = false;
      if (error != EAGAIN) {
        core_->Count(Event::kHostError);
        // What is no listening socket does not become one.
        if (error == EBADF || error == EINVAL || error == ENOTSOCK || error == EOPNOTSUPP) {
          return accepted;
        }
        if (error == EMFILE || error == ENFILE) core_->MakeRoom(Room::kDescriptor);
        core_->Arm(listener, core_->now_ns + kRetryNs);
      }
      return accepted;
    }
    ++accepted;
    Flow closing;
    closing.fd = fd;
    std::optional<Endpoint> peer = name.ToEndpoint();
    const bool v6 = listener->host.address.is_v6();
    const std::optional<IpAddress> guest = core_->host->GuestAddress(v6);
    if (!peer.has_value() || !guest.has_value()) {
      core_->Count(Event::kForwardNoGuest);
      core_->CloseSocket(&closing, /*reset=*/true);
      continue;
    }
    Tuple tuple;
    uint32_t existing = kNoFlow;
    if (!core_->InboundTuple(kProtocolTcp, {*guest, listener->guest_port}, *peer, &tuple,
                             &existing)) {
      core_->Count(Event::kForwardNoPort);
      core_->CloseSocket(&closing, /*reset=*/true);
      continue;
    }
    tcp_->Accept(fd, tuple, *peer, listener->id);
  }
  core_->MarkDirty(listener);
  return accepted;
}

uint32_t Listeners::PassDatagrams(Listener* listener, uint32_t frames) {
  uint32_t sent = 0;
  uint32_t errors = 0;
  for (uint32_t seen = 0;; ++seen) {
    if (seen == frames) {
      core_->MarkDirty(listener);
      return sent;
    }
    const std::optional<IpAddress> guest =
        core_->host->GuestAddress(listener->host.address.is_v6());
    if (!guest.has_value()) {
      if (recv(listener->fd, nullptr, 0, MSG_DONTWAIT | MSG_TRUNC) < 0) {
        listener->readable = false;
        return sent;
      }
      core_->Count(Event::kForwardNoGuest);
      continue;
    }
    switch (datagrams_->PassInbound(*listener, {*guest, listener->guest_port})) {
      case Datagrams::Outcome::kSent:
        ++sent;
        break;
      case Datagrams::Outcome::kNoBuffers:
        core_->WaitForRx(listener);
        return sent;
      case Datagrams::Outcome::kEmpty:
        listener->readable = false;
        return sent;
      case Datagrams::Outcome::kError: {
        int error = 0;
        socklen_t size = sizeof(error);
        getsockopt(listener->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error == 0 && ++errors == Datagrams::kMostErrors) {
          core_->Count(Event::kHostError);
          listener->readable = false;
          return sent;
        }
        break;
      }
      case Datagrams::Outcome::kDropped:
        break;
    }
  }
}

}  // namespace virtbay::proxy_net
