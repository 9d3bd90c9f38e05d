// TCP sequence numbers: 32 bits that wrap (RFC 9293 3.4). Stateless functions; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SEQUENCE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SEQUENCE_H_

#include <cstdint>

namespace virtbay::proxy_net {

// [any] Whether a comes before (not after) b, which lie less than 2^31 apart.
constexpr bool SeqBefore(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b) < 0; }
constexpr bool SeqAfter(uint32_t a, uint32_t b) { return SeqBefore(b, a); }
constexpr uint32_t SeqMax(uint32_t a, uint32_t b) { return SeqBefore(a, b) ? b : a; }
constexpr uint32_t SeqMin(uint32_t a, uint32_t b) { return SeqBefore(a, b) ? a : b; }

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SEQUENCE_H_
