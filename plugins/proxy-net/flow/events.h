// What a shard counts: why something was dropped, refused or ended. The names are those of the
// device's metrics. Plain data; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_EVENTS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_EVENTS_H_

#include <array>
#include <cstddef>
#include <cstdint>

namespace virtbay::proxy_net {

enum class Event : uint8_t {
  kTcpOpened,
  kUdpOpened,
  kEchoOpened,
  kFlowsClosed,
  kFlowsEvicted,
  kEvictedForFlow,
  kEvictedForHalfOpen,
  kEvictedForDescriptor,
  kEvictedForMemory,
  kEvictedEstablished,
  kPolicyDenied,
  kPolicyCut,
  kTooManyFlows,
  kTooManyHalfOpen,
  kNewFlowRate,
  kNoDescriptor,
  kNoBufferMemory,
  kHostError,
  kTcpRefused,
  kTcpUnreachable,
  kTcpNoFlow,
  kTcpMalformed,
  kTcpOutOfWindow,
  kTcpRepeated,
  kTcpOldTimestamp,
  kTcpChallengeAck,
  kTcpOutOfOrder,
  kTcpOutOfOrderDropped,
  kTcpUrgentIgnored,
  kTcpRetransmits,
  kTcpFastRetransmits,
  kTcpWindowProbes,
  kTcpResetByGuest,
  kTcpResetByHost,
  kTcpTimedOut,
  kTcpSpilled,
  kTcpCopyFailed,
  kUdpHostFull,
  kUdpTooBig,
  kUdpStray,
  kIcmpIgnored,
  kIcmpErrorsPassed,
  kPingForbidden,
  kTtlExceeded,
  kFragments,
  kOtherProtocol,
  kNoReceiveBuffers,
  kForwardNoGuest,
  kForwardNoPort,
  kCount,
};

struct EventName {
  const char* name;
  const char* help;
};

inline constexpr size_t kEvents = static_cast<size_t>(Event::kCount);
inline constexpr std::array<EventName, kEvents> kEventNames = {{
    {"tcp_opened", "TCP flows begun"},
    {"udp_opened", "UDP flows begun"},
    {"echo_opened", "ICMP echo flows begun"},
    {"flows_closed", "flows ended"},
    {"flows_evicted", "flows ended early to make room"},
    {"flows_evicted_table_full", "of these, for a new flow in a full table"},
    {"flows_evicted_half_open", "of these, for a connection beyond those being made"},
    {"flows_evicted_no_descriptor", "of these, for a file descriptor"},
    {"flows_evicted_no_memory", "of these, for buffer memory"},
    {"flows_evicted_established", "of these, TCP connections that stood and were idle"},
    {"drops_policy_denied", "new flows that the rules forbid"},
    {"policy_cut", "flows ended because the rules changed"},
    {"drops_too_many_flows", "new flows dropped, the table was full"},
    {"drops_too_many_half_open", "new flows dropped, too many were half open"},
    {"drops_new_flow_rate", "new flows dropped, more came than allowed in a second"},
    {"drops_no_descriptor", "new flows dropped for want of a file descriptor"},
    {"drops_no_buffer_memory", "new flows dropped for want of buffer memory"},
    {"host_errors", "socket calls of the host that failed unexpectedly"},
    {"tcp_refused", "connections that the other end refused"},
    {"tcp_unreachable", "connections to what could not be reached"},
    {"drops_tcp_no_flow", "TCP segments of no flow"},
    {"drops_tcp_malformed", "TCP segments with impossible flags"},
    {"drops_tcp_out_of_window", "TCP segments with bytes outside the window"},
    {"drops_tcp_repeated", "TCP segments whose bytes had come already"},
    {"drops_tcp_old_timestamp", "TCP segments refused by PAWS"},
    {"tcp_challenge_acks", "challenge ACKs sent"},
    {"tcp_out_of_order", "TCP segments kept out of order"},
    {"drops_tcp_out_of_order", "TCP segments out of order of which there were too many"},
    {"tcp_urgent_ignored", "TCP segments whose urgent pointer was ignored"},
    {"tcp_retransmits", "TCP retransmissions to the guest after a time-out"},
    {"tcp_fast_retransmits", "TCP retransmissions to the guest after duplicate ACKs"},
    {"tcp_window_probes", "TCP zero-window probes"},
    {"tcp_resets_by_guest", "TCP flows that the guest reset"},
    {"tcp_resets_by_host", "TCP flows that the other end reset"},
    {"tcp_timed_out", "TCP flows ended because the guest did not answer"},
    {"tcp_spilled_bytes", "bytes kept because a socket of the host was full"},
    {"drops_tcp_copy_failed", "TCP segments that could not be copied from the guest"},
    {"drops_udp_host_full", "datagrams that the host's socket did not take"},
    {"drops_udp_too_big", "datagrams too large for the guest"},
    {"drops_udp_stray", "datagrams that came from elsewhere than the flow's other end"},
    {"drops_icmp_ignored", "ICMP messages of kinds that are not passed on"},
    {"icmp_errors_passed", "ICMP errors passed to the guest"},
    {"drops_ping_forbidden", "echo requests that the host's ping_group_range forbids"},
    {"drops_ttl_exceeded", "packets whose hop limit ended here"},
    {"drops_fragments", "IP fragments"},
    {"drops_other_protocol", "IP packets of other protocols"},
    {"drops_no_receive_buffers", "packets for which the guest had no receive buffers"},
    {"drops_forward_no_guest", "forwarded connections while the guest had no address"},
    {"drops_forward_no_port", "forwarded connections for which no port was left"},
}};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_EVENTS_H_
