#include "plugins/proxy-net/flow/datagram.h"

#include <linux/errqueue.h>
#include <linux/in6.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "plugins/proxy-net/flow/icmp_translation.h"
#include "plugins/proxy-net/packet/checksum.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint16_t kDns = 53;
constexpr uint16_t kFirstUnprivileged = 1024;
constexpr uint32_t kMostPayload = 65535 - kIpv4Size - kUdpSize;
constexpr uint32_t kSocketEvents = EPOLLIN | EPOLLERR;

template <typename T>
void SetOption(int fd, int level, int name, T value) {
  setsockopt(fd, level, name, &value, sizeof(value));
}

// A name and a value as control data of a message; `buffer` is aligned.
template <typename T>
std::span<const std::byte> Control(std::span<std::byte> buffer, int level, int type, T value) {
  cmsghdr header = {};
  header.cmsg_len = CMSG_LEN(sizeof(value));
  header.cmsg_level = level;
  header.cmsg_type = type;
  std::memset(buffer.data(), 0, CMSG_SPACE(sizeof(value)));
  std::memcpy(buffer.data(), &header, sizeof(header));
  std::memcpy(buffer.data() + CMSG_LEN(0), &value, sizeof(value));
  return buffer.first(CMSG_SPACE(sizeof(value)));
}

// The value of a control message of that kind, if there is one.
template <typename T>
bool FindControl(std::span<std::byte> control, int level, int type, T* value) {
  msghdr message = {};
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level != level || c->cmsg_type != type || c->cmsg_len < CMSG_LEN(sizeof(T))) {
      continue;
    }
    std::memcpy(value, CMSG_DATA(c), sizeof(T));
    return true;
  }
  return false;
}

// An echo over IPv6 to an address of which a socket would reach the IPv4 one (v4-mapped): it goes
// as ICMP, and its answer comes back as ICMPv6 (RFC 7915 4.2, 5.2).
bool IsTranslatedEcho(const DatagramFlow& flow) {
  return flow.kind == FlowKind::kEcho && flow.host.address.is_v4() &&
         flow.tuple.guest.address.is_v6();
}

}  // namespace

Datagrams::Datagrams(FlowCore* core) : core_(core), flows_(core->limits.datagram_flows) {}

DatagramFlow* Datagrams::Create(const Tuple& tuple) {
  if (!core_->moving && !core_->shared->new_flows.Take(core_->now_ns)) {
    core_->Count(Event::kNewFlowRate);
    return nullptr;
  }
  uint32_t id = core_->TakeId(&core_->datagram_ids);
  if (id == kNoFlow && core_->MakeRoom(Room::kDatagramFlow)) {
    id = core_->TakeId(&core_->datagram_ids);
  }
  if (id == kNoFlow) {
    core_->Count(Event::kTooManyFlows);
    return nullptr;
  }
  const uint32_t hash = core_->index.HashOf(tuple);
  // What made room may have been the last of the bucket.
  if (!core_->moving && !core_->Reclaim(hash)) {
    core_->GiveId(&core_->datagram_ids, id);
    return nullptr;
  }
  DatagramFlow* flow =
      flows_.Make(id - core_->datagram_ids.first, id,
                  tuple.protocol == kProtocolUdp ? FlowKind::kUdp : FlowKind::kEcho);
  flow->tuple = tuple;
  flow->hash = hash;
  flow->created_ns = flow->active_ns = core_->now_ns;
  core_->Enter(*flow);
  core_->Age(flow, AgeList::kDatagram);
  core_->Arm(flow, core_->now_ns + IdleNs(*flow));
  if (!core_->moving) {
    core_->Count(flow->kind == FlowKind::kUdp ? Event::kUdpOpened : Event::kEchoOpened);
  }
  return flow;
}

void Datagrams::Remove(DatagramFlow* flow) {
  if (flow->kind == FlowKind::kNone) return;
  core_->CloseSocket(flow, /*reset=*/false);
  GivePort(flow);
  core_->Unlist(flow);
  core_->Disarm(flow);
  flow->stays = false;
  core_->Leave(*flow);
  flow->kind = FlowKind::kNone;
  ++flow->generation;
  if (!core_->moving) core_->Count(Event::kFlowsClosed);
  core_->GiveId(&core_->datagram_ids, flow->id);
}

uint64_t Datagrams::IdleNs(const DatagramFlow& flow) const {
  if (flow.kind == FlowKind::kEcho) return core_->limits.echo_idle_s * kSecond;
  const bool dns = flow.tuple.remote.port == kDns && !flow.inbound;
  return (dns ? core_->limits.udp_dns_idle_s : core_->limits.udp_idle_s) * kSecond;
}

void Datagrams::OnTimer(DatagramFlow* flow) {
  const uint64_t end = flow->active_ns + IdleNs(*flow);
  if (end <= core_->now_ns) return Remove(flow);
  core_->Arm(flow, end);
}

bool Datagrams::OpenSocket(DatagramFlow* flow, const GuestDatagram& packet) {
  const bool v4 = flow->host.address.is_v4();
  const bool echo = flow->kind == FlowKind::kEcho;
  const int family = v4 ? AF_INET : AF_INET6;
  const int protocol = !echo ? 0 : v4 ? int{IPPROTO_ICMP} : int{IPPROTO_ICMPV6};
  const int fd = core_->OpenSocket(family, SOCK_DGRAM, protocol);
  if (fd < 0) {
    if (echo && (fd == -EACCES || fd == -EPERM)) {
      core_->Count(Event::kPingForbidden);
      if (!noted_ping_) {
        core_->host->Note(
            "the host does not let this user ping: its group is not in "
            "net.ipv4.ping_group_range");
        noted_ping_ = true;
      }
    }
    return false;
  }
  flow->fd = fd;
  SetOption(fd, v4 ? int{SOL_IP} : int{SOL_IPV6}, v4 ? IP_RECVERR : IPV6_RECVERR, 1);
  if (!echo) {
    if (packet.dont_fragment) {
      SetOption(fd, v4 ? int{SOL_IP} : int{SOL_IPV6}, v4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER,
                v4 ? IP_PMTUDISC_DO : IPV6_PMTUDISC_DO);
    }
    if (core_->offloads.csum && (v4 ? core_->offloads.uso4 : core_->offloads.uso6)) {
      SetOption(fd, IPPROTO_UDP, UDP_GRO, 1);
    }
  }
  flow->dont_fragment = packet.dont_fragment;
  if (echo) {
    flow->preserved = BindAsGuest(*flow);
  } else if (flow->tuple.guest.port >= kFirstUnprivileged) {
    PreservePort(flow);
  }
  const SocketAddress to =
      SocketAddress::Of({flow->host.address, echo ? uint16_t{0} : flow->host.port});
  if (connect(fd, to.get(), to.size) != 0) {
    const int error = errno;
    if (error == ENETUNREACH || error == EHOSTUNREACH || error == EACCES) {
      SendUnreachable(packet, error == EACCES);
    } else {
      core_->Count(Event::kHostError);
    }
    return false;
  }
  // Between bind and connect the port was open to all: nothing from then is of this flow.
  if (!echo && flow->preserved) {
    while (recv(fd, nullptr, 0, MSG_DONTWAIT | MSG_TRUNC) >= 0) core_->Count(Event::kUdpStray);
  }
  return core_->Watch(*flow, kSocketEvents);
}

bool Datagrams::BindAsGuest(const DatagramFlow& flow) {
  const bool v4 = flow.host.address.is_v4();
  const IpAddress any = v4 ? IpAddress(Ipv4Address{}) : IpAddress(Ipv6Address{});
  const SocketAddress local = SocketAddress::Of({any, flow.tuple.guest.port});
  return bind(flow.fd, local.get(), local.size) == 0;
}

// Several flows of one source port share it: each is connected, and gets what is its own. The first
// one binds it without sharing, which fails where anybody on the host has it.
void Datagrams::PreservePort(DatagramFlow* flow) {
  const PortClaims::Claim claim = ClaimPort(flow);
  if (claim == PortClaims::Claim::kNone) return;
  if (claim == PortClaims::Claim::kJoined) SetOption(flow->fd, SOL_SOCKET, SO_REUSEPORT, 1);
  flow->preserved = BindAsGuest(*flow);
  if (!flow->preserved) {
    GivePort(flow);
  } else if (claim == PortClaims::Claim::kFirst) {
    SetOption(flow->fd, SOL_SOCKET, SO_REUSEPORT, 1);
  }
}

PortClaims::Claim Datagrams::ClaimPort(DatagramFlow* flow) {
  const Endpoint& guest = flow->tuple.guest;
  // Two of the guest's destinations may be one when it says them in IPv6 and the host in IPv4.
  if (guest.address.is_v4() != flow->host.address.is_v4()) return PortClaims::Claim::kNone;
  const PortClaims::Claim claim = core_->shared->udp_ports.Take(guest.port, guest.address);
  flow->claims = claim != PortClaims::Claim::kNone;
  return claim;
}

void Datagrams::GivePort(DatagramFlow* flow) {
  if (!std::exchange(flow->claims, false)) return;
  core_->shared->udp_ports.Give(flow->tuple.guest.port, flow->tuple.guest.address);
}

void Datagrams::SendUnreachable(const GuestDatagram& packet, bool forbidden) {
  if (packet.tuple.guest.address.is_v4()) {
    core_->SendIcmpError(core_->host->GatewayAddress(false), IcmpHeader::kUnreachable,
                         forbidden ? 13 : 1, 0, packet.packet);
  } else {
    core_->SendIcmpError(core_->host->GatewayAddress(true), IcmpHeader::kV6Unreachable,
                         forbidden ? 1 : 0, 0, packet.packet);
  }
}

DatagramFlow* Datagrams::Open(const GuestDatagram& packet) {
  const Route route = core_->host->RouteOf(packet.tuple.protocol, packet.tuple.remote);
  if (!route.allowed) {
    core_->Count(Event::kPolicyDenied);
    SendUnreachable(packet, /*forbidden=*/true);
    return nullptr;
  }
  DatagramFlow* flow = Create(packet.tuple);
  if (flow == nullptr) return nullptr;
  flow->host = route.host;
  if (OpenSocket(flow, packet)) return flow;
  Remove(flow);
  return nullptr;
}

void Datagrams::SetHopLimit(DatagramFlow* flow, uint8_t hop_limit) {
  if (flow->shared || flow->hop_limit == hop_limit) return;
  flow->hop_limit = hop_limit;
  const bool v4 = flow->host.address.is_v4();
  SetOption(flow->fd, v4 ? int{SOL_IP} : int{SOL_IPV6}, v4 ? IP_TTL : IPV6_UNICAST_HOPS,
            int{hop_limit});
}

void Datagrams::OnPacket(const GuestDatagram& packet) {
  if (packet.hop_limit <= 1) {
    core_->Count(Event::kTtlExceeded);
    const bool v4 = packet.tuple.guest.address.is_v4();
    core_->SendIcmpError(core_->host->GatewayAddress(!v4),
                         v4 ? IcmpHeader::kTimeExceeded : IcmpHeader::kV6TimeExceeded, 0, 0,
                         packet.packet);
    return;
  }
  const uint32_t id = core_->Find(packet.tuple, packet.hash);
  DatagramFlow* flow = id == kNoFlow ? Open(packet) : At(id);
  if (flow == nullptr) return;
  core_->Touch(flow, AgeList::kDatagram);
  // One hop is this one; 64 and what else is usual goes as the host's own does.
  SetHopLimit(flow, static_cast<uint8_t>(packet.hop_limit - 1));
  int64_t sent = Send(flow, packet);
  if (sent < 0 && sent != -EAGAIN && !flow->shared) {
    // An error of an earlier datagram is told by the next call: that one has not gone.
    const bool too_big = sent == -EMSGSIZE;
    ReadErrors(flow);
    if (!too_big) sent = Send(flow, packet);
  }
  if (sent < 0) {
    core_->Count(sent == -EAGAIN || sent == -ENOBUFS ? Event::kUdpHostFull : Event::kHostError);
    return;
  }
  flow->to_host_bytes += packet.length;
}

int64_t Datagrams::Send(DatagramFlow* flow, const GuestDatagram& packet) {
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(uint16_t))> control;
  sdk::SendOptions options;
  SocketAddress name;
  int fd = flow->fd;
  if (flow->shared) {
    fd = core_->At(flow->listener)->fd;
    name = SocketAddress::Of(flow->host);
    options.name = std::as_bytes(std::span(&name.storage, 1)).first(name.size);
  }
  if (packet.segment_size != 0 && packet.length > packet.segment_size) {
    options.control = Control<uint16_t>(control, IPPROTO_UDP, UDP_SEGMENT, packet.segment_size);
  }
  if (IsTranslatedEcho(*flow)) return SendTranslatedEcho(*flow, packet);
  if (packet.length == 0) {
    const ssize_t n = sendto(fd, nullptr, 0, MSG_DONTWAIT | MSG_NOSIGNAL,
                             flow->shared ? name.get() : nullptr, flow->shared ? name.size : 0);
    return n < 0 ? -errno : n;
  }
  return packet.frame->SendTo(fd, packet.offset, packet.length, options);
}

// The kernel fills in the checksum, which covers no addresses here, and its own identifier.
int64_t Datagrams::SendTranslatedEcho(const DatagramFlow& flow, const GuestDatagram& packet) {
  std::array<std::byte, kIcmpSize> header;
  if (packet.length < kIcmpSize || !packet.frame->Copy(packet.offset, header)) return -EAGAIN;
  header[0] = std::byte{IcmpHeader::kEchoRequest};
  header[2] = header[3] = std::byte{0};
  if (packet.length == kIcmpSize) {
    const ssize_t n = send(flow.fd, header.data(), header.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? -errno : n;
  }
  sdk::SendOptions options;
  options.prefix = header;
  constexpr auto kHeader = static_cast<uint32_t>(kIcmpSize);
  return packet.frame->SendTo(flow.fd, packet.offset + kHeader, packet.length - kHeader, options);
}

void Datagrams::OnEvents(DatagramFlow* flow, uint32_t events) {
  if ((events & EPOLLERR) != 0) ReadErrors(flow);
  if (flow->kind == FlowKind::kNone) return;
  if ((events & EPOLLIN) != 0) {
    flow->readable = true;
    core_->MarkDirty(flow);
  }
}

uint32_t Datagrams::Flush(DatagramFlow* flow, uint32_t frames) {
  flow->dirty = false;
  uint32_t sent = 0;
  uint32_t errors = 0;
  for (uint32_t seen = 0; flow->kind != FlowKind::kNone && flow->readable && flow->fd >= 0;
       ++seen) {
    if (seen == frames) {
      core_->MarkDirty(flow);
      break;
    }
    const Outcome outcome =
        flow->kind == FlowKind::kEcho ? PassEcho(flow) : Pass(flow->fd, flow, nullptr, nullptr);
    if (outcome == Outcome::kSent) {
      ++sent;
    } else if (outcome == Outcome::kNoBuffers) {
      core_->WaitForRx(flow);
      break;
    } else if (outcome == Outcome::kEmpty) {
      flow->readable = false;
    } else if (outcome == Outcome::kError && !ReadErrors(flow) && ++errors == kMostErrors) {
      core_->Count(Event::kHostError);
      Remove(flow);
    }
  }
  return sent;
}

Datagrams::Outcome Datagrams::PassInbound(const Flow& listener, const Endpoint& guest) {
  return Pass(listener.fd, nullptr, &listener, &guest);
}

Datagrams::Outcome Datagrams::Pass(int fd, DatagramFlow* flow, const Flow* listener,
                                   const Endpoint* guest) {
  const bool v4 = (flow != nullptr ? flow->tuple.guest : *guest).address.is_v4();
  const auto headers =
      static_cast<uint32_t>(kEthernetSize + (v4 ? kIpv4Size : kIpv6Size) + kUdpSize);
  // The next one's size, or 0 for an empty one and for none.
  int size = 0;
  if (ioctl(fd, FIONREAD, &size) != 0) return Outcome::kError;
  if (size == 0) {
    const ssize_t n = recv(fd, nullptr, 0, MSG_DONTWAIT | MSG_PEEK | MSG_TRUNC);
    if (n < 0) return errno == EAGAIN ? Outcome::kEmpty : Outcome::kError;
    size = static_cast<int>(n);  // one that came in between has a size
  }
  const auto expected = static_cast<uint32_t>(size);
  const bool too_big = expected > kMostPayload;
  sdk::RxFrame frame;
  if (!too_big) {
    frame = core_->link->BeginFrame(core_->pair, headers + expected);
    if (!frame) return Outcome::kNoBuffers;
    core_->largest_frame = std::max(core_->largest_frame, frame.capacity());
    if (frame.capacity() < headers + expected && headers + expected <= core_->largest_frame) {
      return Outcome::kNoBuffers;
    }
  }
  if (too_big || frame.capacity() < headers + expected) {
    if (recv(fd, nullptr, 0, MSG_DONTWAIT | MSG_TRUNC) < 0) {
      return errno == EAGAIN || errno == EINTR ? Outcome::kEmpty : Outcome::kError;
    }
    core_->Count(Event::kUdpTooBig);
    return Outcome::kDropped;
  }

  alignas(cmsghdr) std::array<std::byte, 64> control;
  SocketAddress name;
  sdk::ReceiveOptions options;
  options.flags = MSG_TRUNC;
  options.control = control;
  if (listener != nullptr) options.name = std::as_writable_bytes(std::span(&name.storage, 1));
  const std::span<std::byte> header = frame.Header(headers);
  const bool summed = !core_->offloads.csum;
  int64_t n = 0;
  if (!summed) {
    n = frame.Receive(fd, expected, &options);
    name.size = static_cast<socklen_t>(options.name.size());
  } else {
    iovec vector = {core_->scratch.data(), core_->scratch.size()};
    msghdr message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    message.msg_name = name.get();
    message.msg_namelen = sizeof(name.storage);
    n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0) n = -errno;
    options.control = std::span(control).first(n < 0 ? 0 : message.msg_controllen);
    name.size = message.msg_namelen;
  }
  if (n == -EAGAIN || n == -EINTR) return Outcome::kEmpty;
  if (n < 0) return Outcome::kError;
  const auto bytes = static_cast<uint32_t>(n);
  if (bytes > expected) {
    core_->Count(Event::kUdpTooBig);
    return Outcome::kDropped;
  }
  if (flow == nullptr) {
    std::optional<Endpoint> peer = name.ToEndpoint();
    Tuple tuple;
    uint32_t existing = kNoFlow;
    if (!peer.has_value()) return Outcome::kDropped;
    peer->address = peer->address.Canonical();
    if (!core_->InboundTuple(kProtocolUdp, *guest, *peer, &tuple, &existing)) {
      core_->Count(Event::kForwardNoPort);
      return Outcome::kDropped;
    }
    flow = existing != kNoFlow ? At(existing) : Inbound(tuple, *peer, *listener);
    if (flow == nullptr) return Outcome::kDropped;
  }
  core_->Touch(flow, AgeList::kDatagram);
  flow->to_guest_bytes += bytes;

  const IpAddress& from = flow->tuple.remote.address;
  const IpAddress& to = flow->tuple.guest.address;
  UdpHeader udp;
  udp.source_port = flow->tuple.remote.port;
  udp.destination_port = flow->tuple.guest.port;
  udp.length = static_cast<uint16_t>(kUdpSize + bytes);
  const auto at = static_cast<uint32_t>(headers - kUdpSize);
  sdk::Offload offload;
  if (!summed) {
    int segment = 0;
    udp.checksum = PseudoHeaderSum(from, to, kProtocolUdp, udp.length);
    offload.needs_csum = true;
    offload.csum_start = static_cast<uint16_t>(at);
    offload.csum_offset = 6;
    if (FindControl(options.control, IPPROTO_UDP, UDP_GRO, &segment) && segment > 0 &&
        static_cast<uint32_t>(segment) < bytes) {
      offload.gso = sdk::Gso::kUdp;
      offload.gso_size = static_cast<uint16_t>(segment);
      offload.hdr_len = static_cast<uint16_t>(headers);
    }
  }
  Writer writer({reinterpret_cast<uint8_t*>(header.data()), header.size()});
  core_->WriteHeaders(from, to, kProtocolUdp, 64, udp.length, &writer);
  WriteUdp(udp, &writer);
  if (summed) {
    const std::span<const uint8_t> payload = std::span(core_->scratch).first(bytes);
    Checksum sum;
    sum.AddPseudoHeader(from, to, kProtocolUdp, udp.length);
    sum.Add(writer.written(at));
    sum.Add(payload);
    const uint16_t value = sum.Finish();
    writer.PatchU16(at + 6, value == 0 ? 0xffff : value);
    if (!frame.Append(std::as_bytes(payload))) return Outcome::kDropped;
  }
  frame.Commit(offload);
  return Outcome::kSent;
}

DatagramFlow* Datagrams::Inbound(const Tuple& tuple, const Endpoint& peer, const Flow& listener) {
  DatagramFlow* flow = Create(tuple);
  if (flow == nullptr) {
    core_->Unclaim(core_->index.HashOf(tuple));
    return nullptr;
  }
  flow->host = peer;
  flow->inbound = flow->shared = flow->stays = true;
  flow->listener = listener.id;
  if (core_->shared->sharded()) {
    core_->shared->Pin(SharedFlows::BucketOf(flow->hash), core_->pair, true);
  }
  return flow;
}

DatagramFlow* Datagrams::Adopt(const Tuple& tuple, const Endpoint& peer, int fd,
                               const Flow* listener) {
  DatagramFlow* flow = listener != nullptr ? Inbound(tuple, peer, *listener) : Create(tuple);
  if (flow == nullptr) {
    Flow closing;
    closing.fd = fd;
    core_->CloseSocket(&closing, /*reset=*/false);
    return nullptr;
  }
  flow->host = peer;
  if (listener != nullptr) return flow;
  flow->fd = fd;
  if (!core_->Watch(*flow, kSocketEvents)) {
    Remove(flow);
    return nullptr;
  }
  flow->readable = true;
  core_->MarkDirty(flow);
  return flow;
}

// An answer, with the identifier that the guest asked with.
Datagrams::Outcome Datagrams::PassEcho(DatagramFlow* flow) {
  if (!core_->link->HasRxBuffers(core_->pair)) return Outcome::kNoBuffers;
  std::span<uint8_t> buffer(core_->scratch);
  const ssize_t n = recv(flow->fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EINTR ? Outcome::kEmpty : Outcome::kError;
  const auto size = static_cast<size_t>(n);
  if (size < kIcmpSize) return Outcome::kDropped;
  const std::span<uint8_t> message = buffer.first(size);
  if (IsTranslatedEcho(*flow)) {
    if (message[0] != IcmpHeader::kEchoReply) return Outcome::kDropped;
    message[0] = IcmpHeader::kV6EchoReply;
  }
  message[4] = static_cast<uint8_t>(flow->tuple.guest.port >> 8);
  message[5] = static_cast<uint8_t>(flow->tuple.guest.port);
  core_->Touch(flow, AgeList::kDatagram);
  flow->to_guest_bytes += size;
  const bool v4 = flow->tuple.guest.address.is_v4();
  if (!core_->SendPacket(flow->tuple.remote.address, flow->tuple.guest.address,
                         v4 ? kProtocolIcmp : kProtocolIcmpv6, 64, message)) {
    core_->Count(Event::kNoReceiveBuffers);
    return Outcome::kDropped;
  }
  return Outcome::kSent;
}

// What the network said of datagrams that went: RFC 1122 3.2.2 wants the guest to hear it.
bool Datagrams::ReadErrors(DatagramFlow* flow) {
  if (flow->fd < 0) return false;
  bool any = false;
  const bool v4 = flow->host.address.is_v4();
  const bool guest_v4 = flow->tuple.guest.address.is_v4();
  constexpr int kMost = 16;
  for (int i = 0; i < kMost; ++i) {
    std::array<uint8_t, 576> payload;
    alignas(cmsghdr) std::array<std::byte, 512> control;
    iovec vector = {payload.data(), payload.size()};
    msghdr message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = recvmsg(flow->fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
    if (n < 0) break;
    any = true;
    struct {
      sock_extended_err error;
      sockaddr_storage from;
    } what = {};
    for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
      const bool fits = (c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) ||
                        (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR);
      if (!fits || c->cmsg_len < CMSG_LEN(sizeof(sock_extended_err))) continue;
      std::memcpy(&what, CMSG_DATA(c), std::min(sizeof(what), c->cmsg_len - CMSG_LEN(0)));
    }
    const sock_extended_err& error = what.error;
    IpAddress from = core_->host->GatewayAddress(!guest_v4);
    SocketAddress offender;
    offender.storage = what.from;
    offender.size = v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    if (const auto end = offender.ToEndpoint(); end.has_value()) {
      const IpAddress address = end->address.Canonical();
      if (address == flow->host.address) {
        from = flow->tuple.remote.address;
      } else if (address.is_v4() == guest_v4 && !address.IsLoopback() && !address.IsUnspecified()) {
        from = address;
      }
    }
    const Bytes sent = Bytes(payload).first(static_cast<size_t>(n));
    if (error.ee_origin == SO_EE_ORIGIN_ICMP || error.ee_origin == SO_EE_ORIGIN_ICMP6) {
      PassError(flow, error.ee_type, error.ee_code, error.ee_info, from, sent);
    } else if (error.ee_origin == SO_EE_ORIGIN_LOCAL && error.ee_errno == EMSGSIZE) {
      const IpAddress gateway = core_->host->GatewayAddress(!guest_v4);
      if (v4) {
        PassError(flow, IcmpHeader::kUnreachable, ICMP_FRAG_NEEDED, error.ee_info, gateway, sent);
      } else {
        PassError(flow, IcmpHeader::kV6PacketTooBig, 0, error.ee_info, gateway, sent);
      }
    }
  }
  int pending = 0;
  socklen_t size = sizeof(pending);
  getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &pending, &size);
  return any || pending != 0;
}

void Datagrams::PassError(DatagramFlow* flow, uint8_t type, uint8_t code, uint32_t rest,
                          const IpAddress& from, Bytes payload) {
  const bool v4 = flow->tuple.guest.address.is_v4();
  IcmpError error{type, code, 0};
  // Of the message's second word only an MTU means anything to the guest.
  if (flow->host.address.is_v4() != v4) {
    // Only IPv4 is reached by another kind of address (v4-mapped, NAT64 ...).
    const std::optional<IcmpError> translated = ToIcmpv6({type, code, rest});
    if (!translated.has_value()) return core_->Count(Event::kIcmpIgnored);
    error = *translated;
  } else if (v4 ? type == IcmpHeader::kUnreachable && code == ICMP_FRAG_NEEDED
                : type == IcmpHeader::kV6PacketTooBig) {
    error.rest = rest;
  }
  const bool echo = flow->kind == FlowKind::kEcho;
  std::array<uint8_t, kIpv6Size + kUdpSize + 576> bytes;
  Writer writer(bytes);
  IpHeader ip;
  ip.source = flow->tuple.guest.address;
  ip.destination = flow->tuple.remote.address;
  ip.protocol = flow->tuple.protocol;
  ip.dont_fragment = flow->dont_fragment;
  const size_t header = echo ? 0 : kUdpSize;
  ip.payload_length = static_cast<uint32_t>(header + payload.size());
  WriteIp(ip, &writer);
  const size_t start = writer.position();
  if (!echo) {
    UdpHeader udp;
    udp.source_port = flow->tuple.guest.port;
    udp.destination_port = flow->tuple.remote.port;
    udp.length = static_cast<uint16_t>(ip.payload_length);
    WriteUdp(udp, &writer);
  }
  writer.Put(payload);
  if (echo && payload.size() >= kIcmpSize) {
    writer.PatchU16(start + 4, flow->tuple.guest.port);
    if (IsTranslatedEcho(*flow)) writer.PatchU16(start, IcmpHeader::kV6EchoRequest << 8);
  }
  if (!writer.ok()) return;
  core_->SendIcmpError(from, error.type, error.code, error.rest, writer.written());
}

std::string Datagrams::Describe(const DatagramFlow& flow) const {
  std::string text = flow.kind == FlowKind::kEcho ? "icmp " : "udp ";
  text += flow.tuple.guest.ToString() + " > " + flow.tuple.remote.ToString();
  if (flow.host != flow.tuple.remote) text += " (" + flow.host.ToString() + ")";
  text += flow.inbound ? " in" : " out";
  if (!flow.inbound && !flow.preserved) text += " port-changed";
  text += " to-host=" + std::to_string(flow.to_host_bytes) +
          " to-guest=" + std::to_string(flow.to_guest_bytes) +
          " idle=" + std::to_string((core_->now_ns - flow.active_ns) / kSecond) + "s";
  return text;
}

}  // namespace virtbay::proxy_net
