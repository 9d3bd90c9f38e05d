// Neighbor discovery (RFC 4861) as the gateway needs it: solicitations read, advertisements
// written. Stateless; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_NDP_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_NDP_H_

#include <cstdint>
#include <optional>
#include <span>

#include "plugins/proxy-net/packet/parse.h"

namespace virtbay::proxy_net {

// A message that passed all checks of RFC 4861 6.1 and 7.1.
struct NdpMessage {
  uint8_t type = 0;    // kV6RouterSolicitation, kV6NeighborSolicitation or ...Advertisement
  Ipv6Address source;  // :: when it asks whether an address is free
  Ipv6Address target;  // not of a router solicitation
  std::optional<MacAddress> link_layer;  // of the source, of an advertisement that of the target
};

// [any] The message in a frame, whole; nothing when it is none or breaks a rule. `checksum_given`:
// whether the checksum is in the frame, which with offloads it need not be.
std::optional<NdpMessage> ParseNdp(const Frame& frame, Bytes bytes, bool checksum_given);

// [any] Writes a frame with a neighbor advertisement for `target` at `mac`, a router, in answer to
// a solicitation from `to`; to all nodes when that is ::. Its size in bytes, 0 when it does not
// fit.
size_t WriteNeighborAdvertisement(const MacAddress& mac, const Ipv6Address& target,
                                  const Ipv6Address& to, const MacAddress& to_mac,
                                  std::span<uint8_t> out);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_NDP_H_
