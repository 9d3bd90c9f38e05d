// Bytes from the host's socket to the guest: peeked at straight into the guest's buffers, discarded
// when the guest has acknowledged them.
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/tcp.h"
#include "plugins/proxy-net/packet/checksum.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kIpMost = 65535;
constexpr uint32_t kHintMost = 65536;
constexpr uint32_t kHintLeast = 2048;
constexpr uint8_t kMostBackoff = 12;
constexpr uint8_t kMostSynBackoff = 6;
constexpr uint64_t kLongestRtoNs = uint64_t{60'000'000'000};
constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint8_t kMostProbes = 5;
constexpr uint64_t kProbeEvery = 30 * kSecond;

uint32_t HeadersOf(const TcpFlow& flow) {
  return static_cast<uint32_t>(kEthernetSize +
                               (flow.tuple.guest.address.is_v4() ? kIpv4Size : kIpv6Size) +
                               kTcpSize + (flow.timestamps ? 12 : 0));
}

}  // namespace

void Tcp::OnEvents(TcpFlow* flow, uint32_t events) {
  if (flow->phase == TcpPhase::kConnecting) {
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0) return;
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return OnConnectFailed(flow, error);
    OnConnected(flow);
    if ((events & (EPOLLRDHUP | EPOLLHUP)) != 0) flow->peer_hup = true;
    return;
  }
  if ((events & EPOLLERR) != 0) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(flow->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return OnHostError(flow, error);
  }
  if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) != 0) flow->readable = true;
  if ((events & (EPOLLRDHUP | EPOLLHUP)) != 0) flow->peer_hup = true;
  if ((events & EPOLLOUT) != 0) {
    flow->writable = true;
    flow->drain = true;
  }
  core_->MarkDirty(flow);
}

uint32_t Tcp::Flush(TcpFlow* flow, uint32_t frames) {
  flow->dirty = false;
  uint32_t sent = 0;
  if (flow->syn_due) SendSyn(flow);
  if (flow->phase == TcpPhase::kOpen) {
    SendPieces(flow);
    if (flow->phase == TcpPhase::kOpen && flow->drain) DrainSpill(flow);
    if (flow->phase == TcpPhase::kOpen) PassFin(flow);
    if (flow->phase != TcpPhase::kOpen) return 0;
    ReleaseSpill(flow);
    AdvanceWindow(flow);
    Discard(flow);
    if (flow->phase == TcpPhase::kOpen) sent = Pump(flow, frames);
  }
  if (flow->phase == TcpPhase::kClosed || flow->phase == TcpPhase::kConnecting) return sent;
  if (flow->ack_now && flow->phase == TcpPhase::kOpen) {
    if (SendSegment(flow, TcpHeader::kAck, flow->next)) {
      ++sent;
    } else {
      core_->WaitForRx(flow);
    }
  }
  Finish(flow);
  if (flow->phase != TcpPhase::kClosed) Rearm(flow);
  return sent;
}

void Tcp::Discard(TcpFlow* flow) {
  const uint32_t end = flow->fin_acked() ? flow->eof_seq : flow->una;
  while (SeqBefore(flow->discarded, end)) {
    // Only TCP discards without a buffer.
    const uint32_t most = end - flow->discarded;
    const ssize_t n = flow->service
                          ? recv(flow->fd, core_->scratch.data(),
                                 std::min<size_t>(most, core_->scratch.size()), MSG_DONTWAIT)
                          : recv(flow->fd, nullptr, most, MSG_TRUNC | MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return OnHostError(flow, n == 0 ? EPIPE : errno);
    flow->discarded += static_cast<uint32_t>(n);
  }
  // The kernel moves its peek offset along, down to the first byte.
  flow->peek_at = SeqMax(flow->peek_at, flow->discarded);
}

uint32_t Tcp::LargestPayload(const TcpFlow& flow) const {
  const bool v4 = flow.tuple.guest.address.is_v4();
  const bool large = core_->offloads.csum && (v4 ? core_->offloads.tso4 : core_->offloads.tso6);
  if (!large) return flow.mss;
  const auto most = static_cast<uint32_t>(kIpMost - kIpv4Size - kTcpSize - 12);
  return most / flow.mss * flow.mss;
}

uint32_t Tcp::Pump(TcpFlow* flow, uint32_t frames) {
  flow->stall = TcpStall::kNone;
  uint32_t sent = 0;
  const uint32_t largest = LargestPayload(*flow);
  while (true) {
    if (flow->eof && flow->next == flow->eof_seq) {
      SendFin(flow);
      break;
    }
    if (flow->eof && flow->next == flow->eof_seq + 1) break;
    if (flow->next == flow->max && !flow->readable) break;
    uint32_t allowed = std::min(flow->window, flow->allowed);
    if (!flow->peek_offset) allowed = std::min(allowed, static_cast<uint32_t>(skip_.size()));
    const uint32_t flight = flow->in_flight();
    const uint32_t room = allowed > flight ? allowed - flight : 0;
    // RFC 9293 3.8.6.2.1: not in dribs, while an ACK is still to come.
    if (room == 0 || (room < flow->mss && flight > 0 && room < flow->max_window / 2)) {
      flow->stall = allowed < flow->window ? TcpStall::kRecovery : TcpStall::kGuestWindow;
      if (flow->una == flow->max && flow->retransmit_at == UINT64_MAX) {
        flow->retransmit_at = core_->now_ns + Rto(*flow);
      }
      break;
    }
    if (sent == frames) {
      core_->MarkDirty(flow);
      break;
    }
    uint32_t length = std::min({room, largest, std::max(flow->hint, uint32_t{flow->mss})});
    if (flow->eof) length = std::min(length, flow->eof_seq - flow->next);
    uint32_t asked = 0;
    const int64_t n = SendData(flow, flow->next, length, &asked);
    if (n == -ENOBUFS) {
      flow->stall = TcpStall::kNoRxBuffers;
      core_->WaitForRx(flow);
      break;
    }
    if (n == -EAGAIN) {
      flow->readable = false;
      break;
    }
    if (n < 0) {
      OnHostError(flow, static_cast<int>(-n));
      return sent;
    }
    if (n == 0) {
      flow->eof = true;
      flow->eof_seq = flow->next;
      continue;
    }
    ++sent;
    const auto bytes = static_cast<uint32_t>(n);
    flow->next += bytes;
    if (SeqAfter(flow->next, flow->max)) {
      flow->max = flow->next;
      if (!flow->timing && flow->backoff == 0) {
        flow->timing = true;
        flow->timed_seq = flow->next;
        flow->timed_ns = core_->now_ns;
      }
    }
    if (flow->retransmit_at == UINT64_MAX) flow->retransmit_at = core_->now_ns + Rto(*flow);
    if (bytes == length && length == std::max(flow->hint, uint32_t{flow->mss})) {
      flow->hint = std::min(std::max(flow->hint, bytes) * 4, kHintMost);
    } else if (bytes < flow->hint / 4) {
      flow->hint = std::max(flow->hint / 2, kHintLeast);
    }
    // A short count means that the socket is empty, and the next byte raises an event. The end of
    // the other side may have been told already.
    if (bytes < asked && flow->next == flow->max && !flow->peer_hup) {
      flow->readable = false;
      break;
    }
  }
  if (sent > 0 && core_->now_ns - flow->received_ns < 2'000'000) flow->interactive = true;
  return sent;
}

void Tcp::SendFin(TcpFlow* flow) {
  if (!SendSegment(flow, TcpHeader::kFin | TcpHeader::kAck, flow->eof_seq)) {
    flow->stall = TcpStall::kNoRxBuffers;
    return core_->WaitForRx(flow);
  }
  flow->next = flow->eof_seq + 1;
  flow->max = SeqMax(flow->max, flow->next);
  if (flow->retransmit_at == UINT64_MAX) flow->retransmit_at = core_->now_ns + Rto(*flow);
}

int64_t Tcp::Peek(TcpFlow* flow, uint32_t sequence, uint32_t length, sdk::RxFrame* frame) {
  const uint32_t passed = sequence - flow->discarded;
  sdk::ReceiveOptions options;
  options.flags = MSG_PEEK;
  if (flow->peek_offset) {
    if (!flow->peek_known || flow->peek_at != sequence) {
      const int offset = static_cast<int>(passed);
      if (setsockopt(flow->fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof(offset)) != 0) {
        return -errno;
      }
      flow->peek_at = sequence;
      flow->peek_known = true;
    }
  } else {
    if (passed > skip_.size()) return -EAGAIN;
    options.prefix = std::as_writable_bytes(std::span(skip_).first(passed));
  }
  int64_t n = 0;
  if (frame != nullptr) {
    n = frame->Receive(flow->fd, length, &options);
  } else {
    iovec vectors[2] = {{options.prefix.data(), options.prefix.size()},
                        {core_->scratch.data(), length}};
    msghdr message = {};
    message.msg_iov = vectors;
    message.msg_iovlen = 2;
    n = recvmsg(flow->fd, &message, MSG_PEEK | MSG_DONTWAIT);
    if (n < 0) n = -errno;
  }
  if (n == -EINTR) n = -EAGAIN;
  if (n < 0) {
    if (n != -EAGAIN) flow->peek_known = false;
    return n;
  }
  if (flow->peek_offset) {
    flow->peek_at += static_cast<uint32_t>(n);
    return n;
  }
  if (n > passed) return n - passed;
  if (passed == 0) return 0;
  // No byte behind those passed over: is that all there will be?
  int queued = 0;
  const bool all = flow->peer_hup && ioctl(flow->fd, FIONREAD, &queued) == 0 &&
                   static_cast<uint32_t>(queued) <= passed;
  return all ? 0 : -EAGAIN;
}

int64_t Tcp::SendData(TcpFlow* flow, uint32_t sequence, uint32_t length, uint32_t* asked) {
  const uint32_t headers = HeadersOf(*flow);
  sdk::RxFrame frame = core_->link->BeginFrame(core_->pair, headers + length);
  if (!frame || frame.capacity() <= headers) return -ENOBUFS;
  const uint32_t room = frame.capacity() - headers;
  if (room < length) length = room > flow->mss ? room / flow->mss * flow->mss : room;
  *asked = length;
  const std::span<std::byte> header = frame.Header(headers);
  const bool summed = !core_->offloads.csum;
  const int64_t n = Peek(flow, sequence, length, summed ? nullptr : &frame);
  if (n <= 0) return n;
  const auto bytes = static_cast<uint32_t>(n);

  const uint8_t push = bytes < length || flow->next == flow->max ? TcpHeader::kPsh : uint8_t{0};
  TcpHeader tcp = HeaderOf(flow, TcpHeader::kAck | push, sequence);
  const IpAddress& from = flow->tuple.remote.address;
  const IpAddress& to = flow->tuple.guest.address;
  const auto transport = static_cast<uint32_t>(TcpHeaderLength(tcp.options)) + bytes;
  const uint32_t at = headers - static_cast<uint32_t>(TcpHeaderLength(tcp.options));
  sdk::Offload offload;
  if (!summed) {
    tcp.checksum = PseudoHeaderSum(from, to, kProtocolTcp, transport);
    offload.needs_csum = true;
    offload.csum_start = static_cast<uint16_t>(at);
    offload.csum_offset = 16;
    if (bytes > flow->mss) {
      offload.gso = to.is_v4() ? sdk::Gso::kTcp4 : sdk::Gso::kTcp6;
      offload.gso_size = flow->mss;
      offload.hdr_len = static_cast<uint16_t>(headers);
    }
  }
  Writer writer({reinterpret_cast<uint8_t*>(header.data()), header.size()});
  core_->WriteHeaders(from, to, kProtocolTcp, 64, transport, &writer);
  WriteTcp(tcp, &writer);
  if (summed) {
    Checksum sum;
    sum.AddPseudoHeader(from, to, kProtocolTcp, transport);
    sum.Add(writer.written(at));
    sum.Add(std::span(core_->scratch).first(bytes));
    writer.PatchU16(at + 16, sum.Finish());
    if (!frame.Append(std::as_bytes(std::span(core_->scratch).first(bytes)))) return -ENOBUFS;
  }
  if (!writer.ok()) return -EINVAL;
  frame.Commit(offload);
  AckSent(flow);
  return n;
}

// The first hole that the guest reports, or the first segment.
void Tcp::RetransmitHole(TcpFlow* flow, const TcpOptions& options) {
  const uint32_t end = flow->eof ? SeqMin(flow->eof_seq, flow->max) : flow->max;
  uint32_t start = SeqMax(flow->una, flow->retransmitted);
  uint32_t hole_end = start + flow->mss;
  bool known = start == flow->una;
  for (size_t pass = 0; pass < options.sack_count; ++pass) {
    for (size_t i = 0; i < options.sack_count; ++i) {
      const auto& block = options.sack[i];
      if (!SeqAfter(block.left, start) && SeqAfter(block.right, start) &&
          !SeqAfter(block.right, flow->max)) {
        start = block.right;
        known = false;
      }
    }
  }
  uint32_t first_left = end;
  for (size_t i = 0; i < options.sack_count; ++i) {
    const auto& block = options.sack[i];
    if (SeqAfter(block.left, start) && !SeqAfter(block.right, flow->max)) {
      first_left = SeqMin(first_left, block.left);
      known = true;
    }
  }
  if (!known) return;
  if (first_left != end) hole_end = first_left;
  hole_end = SeqMin(hole_end, end);
  flow->timing = false;
  if (flow->eof && start == flow->eof_seq && flow->max == flow->eof_seq + 1) {
    core_->Count(Event::kTcpFastRetransmits);
    SendSegment(flow, TcpHeader::kFin | TcpHeader::kAck, flow->eof_seq);
    return;
  }
  if (!SeqBefore(start, hole_end)) return;
  const uint32_t length = std::min(hole_end - start, LargestPayload(*flow));
  uint32_t asked = 0;
  const int64_t n = SendData(flow, start, length, &asked);
  if (n <= 0) return;  // the timer is armed: it comes back to this
  flow->retransmitted = start + static_cast<uint32_t>(n);
  ++flow->retransmits;
  core_->Count(Event::kTcpFastRetransmits);
}

uint64_t Tcp::Rto(const TcpFlow& flow) const {
  return std::min(uint64_t{flow.rto_us} * 1000 << std::min<uint8_t>(flow.backoff, 10),
                  kLongestRtoNs);
}

void Tcp::Rearm(TcpFlow* flow) {
  const uint64_t next = std::min({flow->retransmit_at, flow->ack_at, flow->life_at});
  if (next != UINT64_MAX) core_->Arm(flow, next);
}

void Tcp::OnTimer(TcpFlow* flow) {
  const uint64_t now = core_->now_ns;
  if (flow->ack_at <= now) {
    flow->ack_at = UINT64_MAX;
    if (flow->ack_later) {
      flow->ack_now = true;
      flow->interactive = false;
      core_->MarkDirty(flow);
    }
  }
  if (flow->retransmit_at <= now) OnRetransmitTimer(flow);
  if (flow->phase == TcpPhase::kClosed) return;
  if (flow->life_at <= now) {
    switch (flow->phase) {
      case TcpPhase::kConnecting:
        core_->Count(Event::kTcpUnreachable);
        return Drop(flow);
      case TcpPhase::kTimeWait:
        return Remove(flow);
      default: {
        const uint64_t idle = core_->limits.tcp_idle_s * kSecond;
        if (now - flow->active_ns < idle) {
          flow->life_at = flow->active_ns + idle;
        } else if (flow->probes == kMostProbes) {
          core_->Count(Event::kTcpTimedOut);
          return Abort(flow);
        } else {
          ++flow->probes;
          SendSegment(flow, TcpHeader::kAck, flow->una - 1);
          flow->life_at = now + kProbeEvery;
        }
      }
    }
  }
  Rearm(flow);
}

void Tcp::OnRetransmitTimer(TcpFlow* flow) {
  flow->retransmit_at = UINT64_MAX;
  if (flow->phase == TcpPhase::kSynReceived || flow->phase == TcpPhase::kSynSent) {
    if (++flow->backoff > kMostSynBackoff) {
      core_->Count(Event::kTcpTimedOut);
      return Abort(flow);
    }
    core_->Count(Event::kTcpRetransmits);
    SendSyn(flow);
    flow->retransmit_at = core_->now_ns + Rto(*flow);
    return;
  }
  if (flow->phase != TcpPhase::kOpen) return;
  const bool waits = flow->una == flow->max;
  if (waits && !flow->readable) return;  // nothing to send after all
  // A guest that answers is alive, however long its window stays shut.
  const bool silent = core_->now_ns - flow->active_ns > 3 * Rto(*flow);
  if (flow->backoff < kMostBackoff) {
    ++flow->backoff;
  } else if (silent) {
    core_->Count(Event::kTcpTimedOut);
    return Abort(flow);
  }
  flow->retransmit_at = core_->now_ns + Rto(*flow);
  if (waits || flow->window == 0) {
    core_->Count(Event::kTcpWindowProbes);
    SendSegment(flow, TcpHeader::kAck, flow->una - 1);
    return;
  }
  core_->Count(Event::kTcpRetransmits);
  ++flow->retransmits;
  flow->recovering = false;
  flow->recover = flow->max;
  flow->duplicate_acks = 0;
  flow->timing = false;
  flow->next = flow->una;
  flow->allowed = 10 * uint32_t{flow->mss};
  core_->MarkDirty(flow);
}

}  // namespace virtbay::proxy_net
