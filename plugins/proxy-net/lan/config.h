// LanConfig: the guest's link as its owner wants it. A plain value, checked by the options that
// fill it in; constant while the link is up, but for what LinkUpdate changes.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_CONFIG_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/packet/domain_name.h"

namespace virtbay::proxy_net {

inline constexpr uint64_t kSecondNs = 1'000'000'000;
inline constexpr uint64_t kNever = ~uint64_t{0};

struct LanConfig {
  MacAddress gateway_mac{{0x52, 0x55, 0x0a, 0x00, 0x02, 0x02}};
  std::optional<MacAddress> guest_mac;  // told: known before the guest sent anything

  bool ipv4 = true;
  Ipv4Address gateway = Ipv4Address::Of(10, 0, 2, 2);
  uint8_t prefix_length = 24;
  Ipv4Address guest = Ipv4Address::Of(10, 0, 2, 15);  // the first that DHCP gives
  uint32_t pool_size = 16;                            // addresses from `guest` on
  bool dhcp = true;

  // Whether the guest may have IPv6 at all; whether it has now is Lan::SetIpv6.
  bool ipv6 = true;
  Ipv6Address prefix6 =
      Ipv6Address::Of({0xfd76, 0x6972, 0x7462, 0x6179, 0, 0, 0, 0});  // of 64 bits
  bool dhcp6 = true;

  // Answered for beside the gateway: the virtual address of the host.
  std::vector<IpAddress> aliases;
  // Whether the gateway answers for every address of the link that is not known to be a guest's, so
  // that a guest which shares its network with hosts outside reaches them.
  bool proxy_neighbors = true;

  uint16_t mtu = 1500;
  // Resolvers that the guest is told; the gateway's own addresses when empty.
  std::vector<IpAddress> dns;
  std::optional<DomainName> domain;
  std::vector<DomainName> search;
  std::string hostname;
  uint32_t lease_s = 86400;
  uint64_t seed = 0;  // of the times between router advertisements

  Ipv6Address gateway_link_local() const { return Ipv6Address::LinkLocalOf(gateway_mac); }
  // The gateway within the prefix: the interface identifier 2.
  Ipv6Address gateway6() const {
    Ipv6Address a = prefix6;
    a.bytes[15] = 2;
    return a;
  }
  // The first that DHCPv6 gives: the interface identifier 0x1:0.
  Ipv6Address guest6() const {
    Ipv6Address a = prefix6;
    a.bytes[13] = 1;
    return a;
  }
  bool InSubnet(Ipv4Address a) const {
    return ((a.value ^ gateway.value) & Netmask(prefix_length).value) == 0;
  }
  Ipv4Address SubnetBroadcast() const { return {gateway.value | ~Netmask(prefix_length).value}; }
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_CONFIG_H_
