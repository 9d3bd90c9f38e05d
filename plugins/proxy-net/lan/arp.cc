#include "plugins/proxy-net/lan/arp.h"

#include <algorithm>

namespace virtbay::proxy_net {

std::optional<ArpPacket> AnswerArp(const LanConfig& config, const Frame& frame, uint64_t now_ns,
                                   NeighborTable* neighbors) {
  const ArpPacket& arp = *frame.arp;
  // Who speaks for another than itself is not believed, nor answered.
  if (arp.sender_mac != frame.ethernet.source || arp.sender_mac.IsMulticast() ||
      arp.sender_mac == config.gateway_mac) {
    return std::nullopt;
  }
  const auto own = [&](Ipv4Address a) {
    return a == config.gateway || std::find(config.aliases.begin(), config.aliases.end(),
                                            IpAddress(a)) != config.aliases.end();
  };
  ArpPacket reply;
  reply.operation = ArpPacket::kReply;
  reply.sender_mac = config.gateway_mac;
  reply.target_mac = arp.sender_mac;
  reply.target = arp.sender;
  // Somebody took an address of the gateway's: it is defended (RFC 5227 2.4).
  if (own(arp.sender)) {
    reply.sender = arp.sender;
    return reply;
  }
  const bool probe = arp.sender.IsUnspecified();
  if (!probe && config.InSubnet(arp.sender)) neighbors->Learn(arp.sender, arp.sender_mac, now_ns);
  if (arp.operation != ArpPacket::kRequest || arp.sender == arp.target) return std::nullopt;
  reply.sender = arp.target;
  if (own(arp.target)) return reply;
  // A probe asks whether an address is free, and all others are.
  if (probe || !config.proxy_neighbors || !config.InSubnet(arp.target) ||
      arp.target == config.SubnetBroadcast() || arp.target == config.guest ||
      (arp.target.value & ~Netmask(config.prefix_length).value) == 0 ||
      neighbors->Find(arp.target).has_value()) {
    return std::nullopt;
  }
  return reply;
}

}  // namespace virtbay::proxy_net
