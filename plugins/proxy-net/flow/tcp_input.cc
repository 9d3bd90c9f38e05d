// What a segment from the guest means (RFC 9293 3.10.7, RFC 5961, RFC 7323).
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/tcp.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;
constexpr uint64_t kDelayedAck = 8 * kMillisecond;
// RFC 5961 7, per flow: a limit that all flows share would tell one of another.
constexpr uint64_t kChallengeEvery = 100 * kMillisecond;
constexpr uint32_t kMinRtoUs = 200'000;
constexpr uint32_t kMaxRtoUs = 60'000'000;

// RFC 9293 3.8.4: one number back, with a byte that is nobody's or without.
bool IsKeepalive(const TcpFlow& flow, const TcpSegment& segment) {
  return segment.header.sequence + 1 == flow.received && segment.payload_length <= 1 &&
         (segment.header.flags & (TcpHeader::kSyn | TcpHeader::kFin | TcpHeader::kRst)) == 0;
}

// A guest sends again what it has not heard an acknowledgement of, which lies within a window of
// what has come; what lies further back is none of that.
bool IsRepeated(const TcpFlow& flow, const TcpSegment& segment) {
  return flow.received - segment.header.sequence <= Tcp::kLargestWindow;
}

}  // namespace

void Tcp::OnSegment(const TcpSegment& segment) {
  const TcpHeader& header = segment.header;
  if (header.has(TcpHeader::kUrg)) core_->Count(Event::kTcpUrgentIgnored);
  const bool syn = header.has(TcpHeader::kSyn);
  const bool rst = header.has(TcpHeader::kRst);
  const bool ack = header.has(TcpHeader::kAck);
  const bool fin = header.has(TcpHeader::kFin);
  if ((syn && (fin || rst)) || (!syn && !rst && !ack)) {
    return core_->Count(Event::kTcpMalformed);
  }
  const uint32_t id = core_->Find(segment.tuple, segment.hash);
  if (id == kNoFlow) {
    if (rst) return;
    if (syn && !ack) return Open(segment);
    core_->Count(Event::kTcpNoFlow);
    return SendResetFor(segment);
  }
  TcpFlow* flow = At(id);
  flow->active_ns = core_->now_ns;
  flow->probes = 0;
  if (flow->phase == TcpPhase::kOpen) core_->Touch(flow, ListOf(*flow));
  switch (flow->phase) {
    case TcpPhase::kConnecting:
      if (rst) {
        if (header.sequence == flow->irs + 1) {
          core_->Count(Event::kTcpResetByGuest);
          Drop(flow);
        }
      } else if (syn && !ack && header.sequence != flow->irs) {
        // The guest has given up the first try and begun another one.
        Drop(flow);
        Open(segment);
      }
      return;
    case TcpPhase::kSynSent:
      return OnSynSent(flow, segment);
    case TcpPhase::kTimeWait:
      if (OnTimeWait(flow, segment)) Open(segment);
      return;
    default:
      return OnOpenSegment(flow, segment);
  }
}

void Tcp::OnSynSent(TcpFlow* flow, const TcpSegment& segment) {
  const TcpHeader& header = segment.header;
  const bool acknowledged = header.has(TcpHeader::kAck);
  if (acknowledged && header.acknowledgement != flow->iss + 1) {
    if (!header.has(TcpHeader::kRst)) SendResetFor(segment);
    return;
  }
  if (header.has(TcpHeader::kRst)) {
    if (!acknowledged) return;
    core_->Count(Event::kTcpResetByGuest);
    return Drop(flow);
  }
  // Its own SYN without an ACK (simultaneous open) finds no one who could mean it: ours goes again.
  if (!header.has(TcpHeader::kSyn) || !acknowledged) return;
  Settle(flow, header);
  flow->una = header.acknowledgement;
  flow->window = flow->max_window = header.window;
  flow->window_seq = header.sequence;
  flow->window_ack = header.acknowledgement;
  flow->phase = TcpPhase::kOpen;
  flow->backoff = 0;
  flow->retransmit_at = UINT64_MAX;
  flow->life_at = core_->now_ns + core_->limits.tcp_idle_s * uint64_t{1'000'000'000};
  flow->syn_due = false;
  flow->ack_now = true;
  core_->Touch(flow, ListOf(*flow));
  core_->MarkDirty(flow);
}

// True: the segment opens a new connection of the same tuple, and the flow is gone.
bool Tcp::OnTimeWait(TcpFlow* flow, const TcpSegment& segment) {
  const TcpHeader& header = segment.header;
  if (header.has(TcpHeader::kRst)) return false;  // RFC 1337
  if (header.has(TcpHeader::kSyn)) {
    const auto& stamp = header.options.timestamps;
    const bool newer =
        flow->timestamps && stamp.has_value() && SeqAfter(stamp->value, flow->ts_recent);
    if (!header.has(TcpHeader::kAck) && (newer || SeqAfter(header.sequence, flow->received))) {
      Remove(flow);
      return true;
    }
  }
  SendSegment(flow, TcpHeader::kAck, flow->next);
  return false;
}

void Tcp::Challenge(TcpFlow* flow) {
  if (flow->challenged_ns != 0 && core_->now_ns - flow->challenged_ns < kChallengeEvery) return;
  flow->challenged_ns = core_->now_ns;
  core_->Count(Event::kTcpChallengeAck);
  SendSegment(flow, TcpHeader::kAck, flow->next);
}

void Tcp::OnOpenSegment(TcpFlow* flow, const TcpSegment& segment) {
  const TcpHeader& header = segment.header;
  const bool syn = header.has(TcpHeader::kSyn);
  const bool rst = header.has(TcpHeader::kRst);
  core_->MarkDirty(flow);
  if (flow->phase == TcpPhase::kSynReceived && syn && !header.has(TcpHeader::kAck) &&
      header.sequence == flow->irs) {
    return SendSyn(flow);
  }

  const auto& stamp = header.options.timestamps;
  if (flow->timestamps && stamp.has_value() && !rst && SeqBefore(stamp->value, flow->ts_recent)) {
    core_->Count(Event::kTcpOldTimestamp);
    flow->ack_now = true;
    return;
  }

  const bool keepalive = IsKeepalive(*flow, segment);
  if (keepalive && !flow->keepalive && flow->phase == TcpPhase::kOpen) {
    // The host's socket is to ask as well.
    const int one = 1;
    setsockopt(flow->fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    flow->keepalive = true;
  }
  const uint32_t length = segment.payload_length + (header.has(TcpHeader::kFin) ? 1 : 0);
  const uint32_t end = header.sequence + length;
  if (SeqAfter(header.sequence, flow->right_edge) || SeqBefore(end, flow->received)) {
    if (rst) return;
    if (syn) return Challenge(flow);
    if (!keepalive) {
      core_->Count(IsRepeated(*flow, segment) ? Event::kTcpRepeated : Event::kTcpOutOfWindow);
    }
    flow->ack_now = true;
    return;
  }
  if (rst) {
    if (header.sequence != flow->received) return Challenge(flow);
    core_->Count(Event::kTcpResetByGuest);
    return Drop(flow);
  }
  if (syn) return Challenge(flow);
  if (flow->timestamps && stamp.has_value() && !SeqAfter(header.sequence, flow->last_ack_sent)) {
    flow->ts_recent = stamp->value;
  }

  if (flow->phase == TcpPhase::kSynReceived) {
    if (header.acknowledgement != flow->iss + 1) return SendResetFor(segment);
    flow->una = header.acknowledgement;
    flow->window_seq = header.sequence - 1;  // so that this segment's window counts
    flow->phase = TcpPhase::kOpen;
    flow->backoff = 0;
    flow->rto_us = 1'000'000;
    flow->retransmit_at = UINT64_MAX;
    flow->syn_due = false;
    flow->life_at = core_->now_ns + core_->limits.tcp_idle_s * uint64_t{1'000'000'000};
    core_->Touch(flow, ListOf(*flow));
  }
  if (!OnAck(flow, segment)) return;
  // Before the bytes: those that it brings may make what was kept behind its number the next.
  if (header.has(TcpHeader::kFin)) NoteFin(flow, header.sequence + segment.payload_length);
  if (segment.payload_length > 0) OnData(flow, segment);
  if (flow->fin_seen && !flow->fin_received && flow->received == flow->fin_seq) OnFin(flow);
}

// RFC 6298, by one segment at a time (Karn).
void Tcp::Measure(TcpFlow* flow, uint32_t acknowledged) {
  if (!flow->timing || SeqBefore(acknowledged, flow->timed_seq)) return;
  flow->timing = false;
  const auto us =
      static_cast<uint32_t>(std::min<uint64_t>((core_->now_ns - flow->timed_ns) / 1000, kMaxRtoUs));
  if (flow->srtt_us == 0) {
    flow->srtt_us = std::max<uint32_t>(us, 1);
    flow->rttvar_us = us / 2;
  } else {
    const uint32_t off = flow->srtt_us > us ? flow->srtt_us - us : us - flow->srtt_us;
    flow->rttvar_us = (3 * flow->rttvar_us + off) / 4;
    flow->srtt_us = (7 * flow->srtt_us + us) / 8;
  }
  flow->rto_us = std::clamp(flow->srtt_us + 4 * flow->rttvar_us, kMinRtoUs, kMaxRtoUs);
}

// False: the segment is not to be looked at any further.
bool Tcp::OnAck(TcpFlow* flow, const TcpSegment& segment) {
  const TcpHeader& header = segment.header;
  const uint32_t ack = header.acknowledgement;
  // RFC 5961 5: what was never sent, or lies further back than any window, proves a stranger.
  if (SeqAfter(ack, flow->max) ||
      SeqBefore(ack, flow->una - std::max<uint32_t>(flow->max_window, 65535))) {
    Challenge(flow);
    return false;
  }
  const uint32_t window = uint32_t{header.window} << (flow->scaling ? flow->send_scale : 0);
  if (SeqAfter(ack, flow->una)) {
    const uint32_t acknowledged = ack - flow->una;
    Measure(flow, ack);
    flow->una = ack;
    if (SeqBefore(flow->next, ack)) flow->next = ack;
    flow->to_guest_bytes += acknowledged;
    flow->duplicate_acks = 0;
    flow->backoff = 0;
    if (flow->allowed < TcpFlow::kUnlimited) {
      flow->allowed += std::min(acknowledged, flow->allowed);  // slow start
      if (flow->allowed >= (4u << 20)) flow->allowed = TcpFlow::kUnlimited;
    }
    if (flow->recovering) {
      if (SeqBefore(ack, flow->recover)) {
        RetransmitHole(flow, header.options);
      } else {
        flow->recovering = false;
      }
    }
    if (!flow->recovering && SeqAfter(ack, flow->recover)) flow->recover = ack;
    flow->retransmit_at = flow->una == flow->max ? UINT64_MAX : core_->now_ns + Rto(*flow);
  } else if (ack == flow->una && flow->una != flow->max && segment.payload_length == 0 &&
             !header.has(TcpHeader::kFin) &&
             (window == flow->window || header.options.sack_count > 0)) {
    if (flow->duplicate_acks < 255) ++flow->duplicate_acks;
    bool lost = flow->duplicate_acks == 3;
    for (size_t i = 0; i < header.options.sack_count; ++i) {
      // RFC 6675: more than three segments beyond the first that is missing.
      const auto& block = header.options.sack[i];
      if (SeqAfter(block.left, flow->una) && !SeqAfter(block.right, flow->max) &&
          block.right - flow->una > 3 * uint32_t{flow->mss}) {
        lost = true;
      }
    }
    if (flow->recovering) {
      if (header.options.sack_count > 0) RetransmitHole(flow, header.options);
    } else if (lost && !SeqAfter(flow->recover, flow->una)) {
      flow->recovering = true;
      flow->recover = flow->max;
      flow->retransmitted = flow->una;
      RetransmitHole(flow, header.options);
    }
  }
  if (flow->phase == TcpPhase::kClosed) return false;
  if (SeqBefore(flow->window_seq, header.sequence) ||
      (flow->window_seq == header.sequence && !SeqAfter(flow->window_ack, ack))) {
    if (flow->window == 0 && window > 0) {
      flow->backoff = 0;
      if (flow->una == flow->max) flow->retransmit_at = UINT64_MAX;
    }
    flow->window = window;
    flow->max_window = std::max(flow->max_window, window);
    flow->window_seq = header.sequence;
    flow->window_ack = ack;
  }
  return true;
}

void Tcp::OnData(TcpFlow* flow, const TcpSegment& segment) {
  uint32_t sequence = segment.header.sequence;
  uint32_t offset = segment.payload_offset;
  uint32_t length = segment.payload_length;
  if (!SeqAfter(sequence + length, flow->data_end())) {
    if (!IsKeepalive(*flow, segment)) core_->Count(Event::kTcpRepeated);
    flow->ack_now = true;
    return;
  }
  if (flow->fin_received) {
    flow->ack_now = true;
    return;
  }
  if (SeqBefore(sequence, flow->received)) {
    const uint32_t old = flow->received - sequence;
    sequence += old;
    offset += old;
    length -= old;
    flow->ack_now = true;
  }
  if (SeqAfter(sequence + length, flow->right_edge)) {
    core_->Count(Event::kTcpOutOfWindow);
    flow->ack_now = true;
    length = flow->right_edge - sequence;
    if (length == 0) return;
  }
  if (flow->fin_seen && SeqAfter(sequence + length, flow->fin_seq)) {
    length = SeqBefore(sequence, flow->fin_seq) ? flow->fin_seq - sequence : 0;
    if (length == 0) return;
  }
  if (sequence != flow->received) {
    KeepOutOfOrder(flow, segment, sequence, offset, length);
    return;
  }
  const auto index = static_cast<uint32_t>(pieces_.size());
  pieces_.push_back({segment.frame, offset, length, sequence, TcpFlow::kNoPiece});
  if (flow->last_piece == TcpFlow::kNoPiece) {
    flow->first_piece = index;
  } else {
    pieces_[flow->last_piece].next = index;
  }
  flow->last_piece = index;
  flow->received += length;
  flow->received_ns = core_->now_ns;
  MergeRanges(flow);
  if (!flow->interactive || flow->received - flow->last_ack_sent >= 2 * uint32_t{flow->mss}) {
    flow->ack_now = true;
  } else if (!flow->ack_later) {
    flow->ack_later = true;
    flow->ack_at = core_->now_ns + kDelayedAck;
  }
}

// Keeps bytes beyond a gap. They have memory: they lie inside the window.
void Tcp::KeepOutOfOrder(TcpFlow* flow, const TcpSegment& segment, uint32_t sequence,
                         uint32_t offset, uint32_t length) {
  flow->ack_now = true;
  auto& ranges = flow->ranges;
  uint32_t at = 0;
  while (at < flow->range_count && SeqBefore(ranges[at].right, sequence)) ++at;
  const bool joins = at < flow->range_count && !SeqBefore(sequence + length, ranges[at].left);
  if (!joins && flow->range_count == TcpFlow::kMaxRanges) {
    core_->Count(Event::kTcpOutOfOrderDropped);
    return;
  }
  if (!CopyToSpill(flow, {segment.frame, offset, length, sequence, TcpFlow::kNoPiece}, 0)) return;
  core_->Count(Event::kTcpOutOfOrder);
  if (!joins) {
    for (uint32_t i = flow->range_count; i > at; --i) ranges[i] = ranges[i - 1];
    ranges[at] = {sequence, sequence + length};
    ++flow->range_count;
  } else {
    ranges[at].left = SeqMin(ranges[at].left, sequence);
    ranges[at].right = SeqMax(ranges[at].right, sequence + length);
    uint32_t after = at + 1;
    while (after < flow->range_count && !SeqBefore(ranges[at].right, ranges[after].left)) {
      ranges[at].right = SeqMax(ranges[at].right, ranges[after].right);
      ++after;
    }
    const uint32_t gone = after - at - 1;
    for (uint32_t i = after; i < flow->range_count; ++i) ranges[i - gone] = ranges[i];
    flow->range_count = static_cast<uint8_t>(flow->range_count - gone);
  }
  flow->last_range = static_cast<uint8_t>(at);
}

// A gap may have closed: what lay behind it is in order now.
void Tcp::MergeRanges(TcpFlow* flow) {
  while (flow->range_count > 0 && !SeqAfter(flow->ranges[0].left, flow->received)) {
    flow->received = SeqMax(flow->received, flow->ranges[0].right);
    for (uint32_t i = 1; i < flow->range_count; ++i) flow->ranges[i - 1] = flow->ranges[i];
    --flow->range_count;
    flow->last_range = 0;
    flow->ack_now = true;
    flow->drain = true;
  }
}

void Tcp::NoteFin(TcpFlow* flow, uint32_t fin) {
  flow->ack_now = true;
  if (flow->fin_seen || SeqAfter(fin, flow->right_edge) || SeqBefore(fin, flow->received)) return;
  flow->fin_seen = true;
  flow->fin_seq = fin;
  // What was kept behind the guest's end is none of its bytes.
  auto& ranges = flow->ranges;
  while (flow->range_count > 0 && !SeqBefore(ranges[flow->range_count - 1].left, fin)) {
    --flow->range_count;
  }
  if (flow->range_count == 0) return;
  auto& last = ranges[flow->range_count - 1];
  last.right = SeqMin(last.right, fin);
}

void Tcp::OnFin(TcpFlow* flow) {
  flow->fin_received = true;
  flow->received = flow->fin_seq + 1;
  flow->range_count = 0;
  flow->ack_now = true;
  flow->guest_first = !(flow->eof && flow->max == flow->eof_seq + 1);
  core_->Touch(flow, ListOf(*flow));
}

}  // namespace virtbay::proxy_net
