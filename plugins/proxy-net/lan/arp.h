// ARP for the gateway (RFC 826, RFC 5227). Stateless; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_ARP_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_ARP_H_

#include <optional>

#include "plugins/proxy-net/lan/config.h"
#include "plugins/proxy-net/lan/neighbors.h"
#include "plugins/proxy-net/packet/parse.h"

namespace virtbay::proxy_net {

// [queue] Notes who asks, and gives the answer that the gateway has, if any.
std::optional<ArpPacket> AnswerArp(const LanConfig& config, const Frame& frame, uint64_t now_ns,
                                   NeighborTable* neighbors);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_ARP_H_
