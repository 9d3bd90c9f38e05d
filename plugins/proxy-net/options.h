// Options of one proxy-net device, read once from the host's configuration service.
// A value owned by the device; constant after Init.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_OPTIONS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_OPTIONS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/lan/config.h"
#include "plugins/proxy-net/lan/lease_pool.h"
#include "plugins/proxy-net/policy/policy.h"
#include "virtbay/sdk/plugin.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

// Whether the guest gets IPv6: as long as the host has it, always, or never.
enum class Ipv6Mode : uint8_t { kAuto, kOn, kOff };

// What there is, for hosts whose sources have types; Parse takes text. `mac` (the guest's) and
// `mtu` are those of every network device, and in the list of those.
inline constexpr std::array kOptionList = {
    // The link.
    sdk::MakeOption("gateway-mac", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("ipv4", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("subnet", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("gateway", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("guest-address", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("dhcp", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("dhcp-pool", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("lease-time", VIRTBAY_OPTION_INTEGER),
    sdk::MakeOption("ipv6", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("prefix6", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("dhcp6", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("proxy-neighbors", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("hostname", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("domain", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("search", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("guest-dns", VIRTBAY_OPTION_TEXT),
    // The resolver.
    sdk::MakeOption("dns", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("resolv-conf", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("dns-records", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("dns-in-flight", VIRTBAY_OPTION_INTEGER),
    // The policy.
    sdk::MakeOption("rules", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("deny-host-addresses", VIRTBAY_OPTION_BOOLEAN),
    sdk::MakeOption("host-ports", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("host-address", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("host-address6", VIRTBAY_OPTION_TEXT),
    sdk::MakeOption("host-name", VIRTBAY_OPTION_TEXT),
};

struct Options {
  LanConfig lan;
  Ipv6Mode ipv6 = Ipv6Mode::kAuto;
  DnsConfig dns;  // with the record of the host's virtual address
  // The search list that the guest is told; none: that of resolv.conf.
  std::optional<std::vector<DomainName>> search;
  std::vector<Rule> rules;
  bool deny_host_addresses = false;
  HostAlias host;  // the host's virtual address; without ports there is none

  using KeyValue = std::pair<std::string, std::string>;
  // [control] An Error names the key and the value that is wrong, or the key that is unknown.
  static sdk::Result<Options> Parse(const std::vector<KeyValue>& given);
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_OPTIONS_H_
