#include "plugins/proxy-net/dns/streams.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace virtbay::proxy_net {
namespace {

// Answers that nobody takes: no more is read from a stream that has as much as the largest one.
constexpr size_t kMaxOut = 65537;

}  // namespace

sdk::Status DnsStreams::Open(OnQuery on_query, OnEnd on_end) {
  on_query_ = std::move(on_query);
  on_end_ = std::move(on_end);
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return sdk::Errno(errno, "resolver: epoll_create1");
  return {};
}

bool DnsStreams::Add(int fd, uint64_t now_ns) { return Insert(fd, now_ns).has_value(); }

std::optional<uint32_t> DnsStreams::Insert(int fd, uint64_t now_ns) {
  Fd socket(fd);
  const auto free = std::find_if(streams_.begin(), streams_.end(),
                                 [](const Stream& s) { return !s.socket.valid(); });
  if (free == streams_.end()) return std::nullopt;
  const auto index = static_cast<uint32_t>(free - streams_.begin());
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return std::nullopt;
  Stream& stream = *free;
  ++stream.generation;
  epoll_event event{};
  event.events = stream.armed = EPOLLIN;
  event.data.u64 = IdOf(index);
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return std::nullopt;
  stream.socket = std::move(socket);
  stream.heard_ns = now_ns;
  ++count_;
  next_ns_ = std::min(next_ns_, now_ns + kIdleNs);
  return index;
}

std::vector<DnsStreams::Saved> DnsStreams::Save(const Waiting& waiting) const {
  std::vector<Saved> all;
  for (uint32_t i = 0; i < streams_.size(); ++i) {
    const Stream& stream = streams_[i];
    if (!stream.socket.valid()) continue;
    Saved& saved = all.emplace_back();
    saved.fd = stream.socket.get();
    saved.ended = stream.ended;
    // Whoever goes on asks for them anew.
    waiting(IdOf(i), [&saved](Bytes query) {
      saved.in.push_back(static_cast<uint8_t>(query.size() >> 8));
      saved.in.push_back(static_cast<uint8_t>(query.size()));
      saved.in.insert(saved.in.end(), query.begin(), query.end());
    });
    saved.in.insert(saved.in.end(), stream.in.begin(), stream.in.end());
    saved.out.assign(stream.out.begin() + static_cast<std::ptrdiff_t>(stream.sent),
                     stream.out.end());
  }
  return all;
}

bool DnsStreams::Restore(Saved saved, uint64_t now_ns) {
  const std::optional<uint32_t> index = Insert(saved.fd, now_ns);
  if (!index.has_value()) return false;
  Stream& stream = streams_[*index];
  stream.ended = saved.ended;
  stream.in = std::move(saved.in);
  stream.out = std::move(saved.out);
  return true;
}

void DnsStreams::Resume() {
  for (uint32_t i = 0; i < streams_.size(); ++i) {
    if (streams_[i].socket.valid()) Take(i);
  }
}

DnsStreams::Stream* DnsStreams::Find(uint64_t id) {
  const auto index = static_cast<uint32_t>(id);
  if (index >= streams_.size() || !streams_[index].socket.valid() || IdOf(index) != id) {
    return nullptr;
  }
  return &streams_[index];
}

void DnsStreams::Close(uint32_t index) {
  Stream& stream = streams_[index];
  const uint64_t id = IdOf(index);
  const uint32_t generation = stream.generation + 1;
  stream = Stream();
  stream.generation = generation;
  --count_;
  on_end_(id);
}

void DnsStreams::Rearm(uint32_t index) {
  Stream& stream = streams_[index];
  uint32_t events = 0;
  if (!stream.ended && stream.pending < kMaxPending && stream.out.size() < kMaxOut) {
    events |= EPOLLIN;
  }
  if (!stream.out.empty()) events |= EPOLLOUT;
  if (events == stream.armed) return;
  epoll_event event{};
  event.events = stream.armed = events;
  event.data.u64 = IdOf(index);
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, stream.socket.get(), &event);
}

void DnsStreams::Read(uint32_t index, uint64_t now_ns) {
  const uint64_t id = IdOf(index);
  Stream* stream = Find(id);
  if (stream == nullptr || stream->ended) return;
  // A bounded piece of it: there are other streams.
  const ssize_t n = recv(stream->socket.get(), chunk_.data(), chunk_.size(), 0);
  if (n < 0) {
    if (errno != EAGAIN && errno != EINTR) Close(index);
    return;
  }
  if (n == 0) {
    stream->ended = true;
  } else {
    stream->heard_ns = now_ns;
    stream->in.insert(stream->in.end(), chunk_.begin(), chunk_.begin() + n);
  }
  Take(index);
}

// As many queries as may be under way at once; the others wait in the buffer, and then in the
// socket.
void DnsStreams::Take(uint32_t index) {
  const uint64_t id = IdOf(index);
  Stream* stream = &streams_[index];
  size_t at = 0;
  while (stream->in.size() - at >= 2 && stream->pending < kMaxPending &&
         stream->out.size() < kMaxOut) {
    const size_t size = size_t{stream->in[at]} << 8 | stream->in[at + 1];
    if (stream->in.size() - at - 2 < size) break;
    ++stream->pending;
    // It may be answered at once, which adds to what this stream has to send.
    on_query_(id, Bytes(stream->in).subspan(at + 2, size));
    at += 2 + size;
  }
  stream->in.erase(stream->in.begin(), stream->in.begin() + static_cast<std::ptrdiff_t>(at));
  if (stream->ended && stream->pending == 0 && stream->out.empty()) return Close(index);
  Rearm(index);
}

void DnsStreams::Write(uint32_t index) {
  Stream& stream = streams_[index];
  while (stream.sent < stream.out.size()) {
    const ssize_t n = send(stream.socket.get(), stream.out.data() + stream.sent,
                           stream.out.size() - stream.sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) break;
    if (n < 0) return Close(index);
    stream.sent += static_cast<size_t>(n);
  }
  if (stream.sent == stream.out.size()) {
    stream.out.clear();
    stream.sent = 0;
  }
  Take(index);
}

void DnsStreams::Answer(uint64_t id, Bytes answer) {
  Stream* stream = Find(id);
  if (stream == nullptr || answer.size() > 65535) return;
  if (stream->pending != 0) --stream->pending;
  stream->out.push_back(static_cast<uint8_t>(answer.size() >> 8));
  stream->out.push_back(static_cast<uint8_t>(answer.size()));
  stream->out.insert(stream->out.end(), answer.begin(), answer.end());
  // Written when the socket is looked at next, so that the caller is never inside a closed stream.
  Rearm(static_cast<uint32_t>(id));
}

void DnsStreams::OnReady(uint64_t now_ns) {
  epoll_event events[16];
  const int n = epoll_wait(epoll_.get(), events, 16, 0);
  for (int i = 0; i < n; ++i) {
    const uint64_t id = events[i].data.u64;
    const auto index = static_cast<uint32_t>(id);
    if ((events[i].events & EPOLLOUT) != 0 && Find(id) != nullptr) Write(index);
    if ((events[i].events & EPOLLIN) != 0 && Find(id) != nullptr) Read(index, now_ns);
    // Gone altogether: nobody would take an answer.
    if ((events[i].events & (EPOLLERR | EPOLLHUP)) != 0 && (events[i].events & EPOLLIN) == 0 &&
        Find(id) != nullptr) {
      Close(index);
    }
  }
}

void DnsStreams::OnTime(uint64_t now_ns) {
  if (now_ns < next_ns_) return;
  next_ns_ = UINT64_MAX;
  for (uint32_t i = 0; i < streams_.size(); ++i) {
    if (!streams_[i].socket.valid()) continue;
    const uint64_t until = streams_[i].heard_ns + kIdleNs;
    if (until <= now_ns) {
      Close(i);
    } else {
      next_ns_ = std::min(next_ns_, until);
    }
  }
}

}  // namespace virtbay::proxy_net
