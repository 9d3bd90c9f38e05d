// ICMP errors about a packet that a guest sent as IPv6 and the host as IPv4, in ICMPv6's terms
// (RFC 7915 4.2).
// A function; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_ICMP_TRANSLATION_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_ICMP_TRANSLATION_H_

#include <cstdint>
#include <optional>

namespace virtbay::proxy_net {

struct IcmpError {
  uint8_t type = 0;
  uint8_t code = 0;
  uint32_t rest = 0;  // the message's second word: the MTU of a packet too big, a pointer, or 0

  bool operator==(const IcmpError&) const = default;
};

// What the sender of an IPv6 packet is to be told; nothing for what has no meaning there. [any]
std::optional<IcmpError> ToIcmpv6(const IcmpError& error);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_ICMP_TRANSLATION_H_
