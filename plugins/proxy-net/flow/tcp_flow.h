// TcpFlow: one connection of the guest, spliced to a socket of the host. To the guest it is an
// endpoint of TCP (RFC 9293) without buffers: what was sent and not acknowledged lies in the host's
// socket, where it is peeked at again to be retransmitted. From the guest it has a window, backed
// by memory that is set aside for it, so that no byte inside the window is ever dropped. Plain data
// in a Slab; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_FLOW_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_FLOW_H_

#include <array>
#include <cstdint>

#include "plugins/proxy-net/flow/flow.h"
#include "plugins/proxy-net/flow/spill.h"
#include "plugins/proxy-net/packet/headers.h"

namespace virtbay::proxy_net {

enum class TcpPhase : uint8_t {
  kClosed,
  kConnecting,   // outbound: the other end has not answered, nor have we the guest's SYN
  kSynReceived,  // outbound: our SYN and ACK are on their way
  kSynSent,      // inbound: our SYN is on its way
  kOpen,         // until both ends have closed
  kTimeWait,     // the socket is gone; the guest's last FIN may come again
};

// Why no more goes to the guest, or to the host, right now: for people.
enum class TcpStall : uint8_t { kNone, kNoRxBuffers, kGuestWindow, kRecovery, kHostSocket };

struct TcpFlow : Flow {
  static constexpr uint32_t kMaxRanges = 8;
  static constexpr uint32_t kNoPiece = UINT32_MAX;
  static constexpr uint32_t kUnlimited = 1u << 30;

  struct Range {
    uint32_t left = 0;
    uint32_t right = 0;
  };

  TcpPhase phase = TcpPhase::kClosed;

  bool service = false;  // the socket is one end of a pair within the device

  // What the handshake settled.
  bool scaling = false;
  bool sack = false;
  bool timestamps = false;
  uint8_t send_scale = 0;  // of the windows that the guest sends
  uint16_t mss = 536;      // payload bytes of a segment to the guest
  uint32_t ts_offset = 0;
  uint32_t ts_recent = 0;
  uint32_t last_ack_sent = 0;

  // To the guest. The socket's first byte has the number `discarded`.
  uint32_t iss = 0;
  uint32_t una = 0;   // oldest not acknowledged
  uint32_t next = 0;  // next to send
  uint32_t max = 0;   // one past the highest ever sent
  uint32_t window = 0;
  uint32_t max_window = 0;
  uint32_t window_seq = 0;  // RFC 9293 SND.WL1 and WL2
  uint32_t window_ack = 0;
  uint32_t discarded = 0;
  uint32_t peek_at = 0;  // where the socket's peek offset stands
  bool peek_known = false;
  bool peek_offset = false;  // the socket has one
  bool readable = false;     // the socket may have bytes, or its end
  bool peer_hup = false;     // epoll said that the other end is closed
  bool eof = false;          // it is: our FIN has the number eof_seq
  uint32_t eof_seq = 0;
  uint32_t hint = 4096;  // bytes that the next peek may find

  // Loss and time.
  uint8_t duplicate_acks = 0;
  bool recovering = false;
  uint32_t recover = 0;
  uint32_t retransmitted = 0;     // up to here in this recovery
  uint32_t allowed = kUnlimited;  // bytes in flight, after a time-out
  uint8_t backoff = 0;
  bool timing = false;
  uint32_t timed_seq = 0;
  uint64_t timed_ns = 0;
  uint32_t srtt_us = 0;
  uint32_t rttvar_us = 0;
  uint32_t rto_us = 1'000'000;

  // From the guest. [to_host, received) is held in the spill, and so are the ranges.
  uint32_t irs = 0;
  uint32_t received = 0;    // RCV.NXT
  uint32_t to_host = 0;     // next byte for the host's socket
  uint32_t released = 0;    // chunks before this one were given back
  uint32_t right_edge = 0;  // of the window that the guest knows
  uint32_t receive_window = 0;
  uint32_t reserved = 0;  // chunks
  uint32_t grown_at = 0;  // `received` when the window was last made larger
  bool writable = false;
  bool shut = false;          // the guest's end was passed on
  bool fin_seen = false;      // the guest's FIN has the number fin_seq
  bool fin_received = false;  // and everything before it is here
  bool keepalive = false;     // passed on to the socket
  bool guest_first = false;   // its FIN came before ours had gone
  uint32_t fin_seq = 0;
  uint32_t told_edge = 0;  // the right edge in the last segment that went
  uint8_t range_count = 0;
  uint8_t last_range = 0;                  // the one that grew last: SACK names it first
  std::array<Range, kMaxRanges> ranges{};  // out of order, ascending, apart from each other
  uint32_t first_piece = kNoPiece;
  uint32_t last_piece = kNoPiece;

  // What the end of the burst does.
  bool ack_now = false;
  bool ack_later = false;
  bool interactive = false;  // answers follow at once: an ACK goes with them
  bool drain = false;        // the socket takes bytes again
  bool syn_due = false;      // our SYN found no receive buffer
  uint64_t received_ns = 0;
  uint64_t challenged_ns = 0;

  uint64_t retransmit_at = UINT64_MAX;
  uint64_t ack_at = UINT64_MAX;
  uint64_t life_at = UINT64_MAX;
  uint8_t probes = 0;  // keepalives that were not answered

  TcpStall stall = TcpStall::kNone;
  uint64_t retransmits = 0;
  Spill spill;

  bool fin_acked() const { return eof && una == eof_seq + 1; }
  uint32_t in_flight() const { return next - una; }
  // One past the guest's last byte that is here.
  uint32_t data_end() const { return fin_received ? fin_seq : received; }
};

// [any] The name of RFC 9293 3.3.2 for what a flow is in.
const char* TcpStateName(const TcpFlow& flow);
// [any] A word for a stall, or "" for none.
const char* TcpStallName(TcpStall stall);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_TCP_FLOW_H_
