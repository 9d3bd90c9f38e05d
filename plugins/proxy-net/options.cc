#include "plugins/proxy-net/options.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "plugins/proxy-net/option_values.h"

namespace virtbay::proxy_net {
namespace {

using sdk::Status;

constexpr uint16_t kDnsPort = 53;
constexpr uint32_t kMinMtu = 576;
constexpr uint32_t kMinMtu6 = 1280;
constexpr uint32_t kMaxMtu = 65520;
constexpr size_t kMaxHostname = 63;

// What is given, where a default depends on something else that is.
struct Given {
  std::optional<Network> subnet;
  std::optional<Ipv4Address> gateway, guest, host4;
  std::optional<Ipv6Address> host6;
  std::optional<uint32_t> pool;
  uint32_t mtu = 1500;
  DomainName host_name = *DomainName::Parse("host.virtbay.internal");
};

// Addresses that mean something else to everybody: no link can have them as its own.
struct Special {
  Network network;
  std::string_view what;
};
constexpr std::array kSpecial = {
    Special{{Ipv4Address::Of(0, 0, 0, 0), 8}, "\"this network\""},
    Special{{Ipv4Address::Of(127, 0, 0, 0), 8}, "loopback"},
    Special{{Ipv4Address::Of(169, 254, 0, 0), 16}, "link-local"},
    Special{{Ipv4Address::Of(224, 0, 0, 0), 4}, "multicast"},
    Special{{Ipv4Address::Of(240, 0, 0, 0), 4}, "reserved"},
    Special{{Ipv6Address::Of({}), 64}, "unspecified, loopback or mapped IPv4"},
    Special{{Ipv6Address::Of({0x64, 0xff9b}), 96}, "those of NAT64"},
    Special{{Ipv6Address::Of({0x64, 0xff9b, 1}), 48}, "those of NAT64"},
    Special{{Ipv6Address::Of({0x2001, 0}), 32}, "those of Teredo"},
    Special{{Ipv6Address::Of({0x2002}), 16}, "those of 6to4"},
    Special{{Ipv6Address::Of({0xfe80}), 10}, "link-local"},
    Special{{Ipv6Address::Of({0xfec0}), 10}, "site-local"},
    Special{{Ipv6Address::Of({0xff00}), 8}, "multicast"},
};

Status RefuseSpecial(std::string_view key, std::string_view value, const Network& network,
                     std::string_view instead) {
  for (const Special& special : kSpecial) {
    if (!special.network.Contains(network.address) && !network.Contains(special.network.address)) {
      continue;
    }
    std::string text = "option ";
    text.append(key).append(": '").append(value).append("' has addresses that are ");
    text.append(special.what).append(" (").append(special.network.address.ToString());
    text.append("/").append(std::to_string(special.network.length)).append("), give one like ");
    return sdk::InvalidArgument(std::move(text.append(instead)));
  }
  return {};
}

template <typename T>
Status Into(std::optional<T>* out, Status (*parse)(std::string_view, std::string_view, T*),
            std::string_view key, std::string_view value) {
  return parse(key, value, &out->emplace());
}

Status ParsePrefix6(std::string_view key, std::string_view value, Ipv6Address* out) {
  auto network = Network::Parse(value);
  if (!network.ok()) return OptionError(key, network.error());
  const IpAddress& a = network->address;
  if (a.is_v4() || network->length != 64) {
    return BadValue(key, value, "an IPv6 prefix of 64 bits");
  }
  *out = a.v6();
  return RefuseSpecial(key, value, *network, "fd00:1:2:3::/64");
}

Status ParseSubnet(std::string_view key, std::string_view value, std::optional<Network>* out) {
  auto network = Network::Parse(value);
  if (!network.ok()) return OptionError(key, network.error());
  const IpAddress& a = network->address;
  if (a.is_v6() || network->length < 8 || network->length > 30) {
    return BadValue(key, value, "an IPv4 network of 8 to 30 bits (10.0.2.0/24)");
  }
  *out = *network;
  return RefuseSpecial(key, value, *network, "10.0.2.0/24");
}

Status ParseHostname(std::string_view key, std::string_view value, std::string* out) {
  const auto name = DomainName::Parse(value);
  if (!name.has_value() || name->IsRoot() || value.size() > kMaxHostname) {
    return BadValue(key, value, "a host's name of at most 63 characters");
  }
  *out = std::string(value);
  return {};
}

Status ParseIpv6Mode(std::string_view key, std::string_view value, Ipv6Mode* out) {
  if (value == "auto") return *out = Ipv6Mode::kAuto, Status();
  bool on = false;
  if (!ParseBool(key, value, &on).ok()) return BadValue(key, value, "one of auto, on, off");
  *out = on ? Ipv6Mode::kOn : Ipv6Mode::kOff;
  return {};
}

Status ParseSearch(std::string_view key, std::string_view value, Options* o) {
  o->search.emplace();
  return ForEach(value, [&](std::string_view piece) -> Status {
    if (o->search->size() == ResolvConf::kMaxSearch) {
      return BadValue(key, value, "a list of at most 32 names");
    }
    return ParseName(key, piece, &o->search->emplace_back());
  });
}

Status ParseServers(std::string_view key, std::string_view value, Options* o) {
  return ForEach(value, [&](std::string_view piece) -> Status {
    if (o->dns.resolver.servers.size() == ResolvConf::kMaxServers) {
      return BadValue(key, value, "a list of at most 8 resolvers");
    }
    return ParseEndpoint(key, piece, kDnsPort, &o->dns.resolver.servers.emplace_back().endpoint);
  });
}

Status ParseGuestDns(std::string_view key, std::string_view value, Options* o) {
  return ForEach(value, [&](std::string_view piece) -> Status {
    const auto address = IpAddress::Parse(piece);
    if (!address.has_value() || address->IsUnspecified() || address->IsMulticast() ||
        o->lan.dns.size() == ResolvConf::kMaxServers) {
      return BadValue(key, value, "a list of at most 8 addresses of resolvers");
    }
    o->lan.dns.push_back(*address);
    return {};
  });
}

Status ParseOne(std::string_view key, const std::string& value, Options* o, Given* g) {
  LanConfig& lan = o->lan;
  // The link.
  if (key == "gateway-mac") return ParseMac(key, value, &lan.gateway_mac);
  if (key == "mac") return Into(&lan.guest_mac, ParseMac, key, value);
  if (key == "mtu") return ParseNumber(key, value, kMinMtu, kMaxMtu, &g->mtu);
  if (key == "ipv4") return ParseBool(key, value, &lan.ipv4);
  if (key == "subnet") return ParseSubnet(key, value, &g->subnet);
  if (key == "gateway") return Into(&g->gateway, ParseIpv4, key, value);
  if (key == "guest-address") return Into(&g->guest, ParseIpv4, key, value);
  if (key == "dhcp") return ParseBool(key, value, &lan.dhcp);
  if (key == "dhcp-pool") {
    return ParseNumber(key, value, 1, LeasePool::kMaxSize, &g->pool.emplace());
  }
  if (key == "lease-time") return ParseNumber(key, value, 60, 315360000, &lan.lease_s);
  if (key == "ipv6") return ParseIpv6Mode(key, value, &o->ipv6);
  if (key == "prefix6") return ParsePrefix6(key, value, &lan.prefix6);
  if (key == "dhcp6") return ParseBool(key, value, &lan.dhcp6);
  if (key == "proxy-neighbors") return ParseBool(key, value, &lan.proxy_neighbors);
  if (key == "hostname") return ParseHostname(key, value, &lan.hostname);
  if (key == "domain") return ParseName(key, value, &lan.domain.emplace());
  if (key == "search") return ParseSearch(key, value, o);
  if (key == "guest-dns") return ParseGuestDns(key, value, o);
  // The resolver.
  if (key == "dns") return ParseServers(key, value, o);
  if (key == "resolv-conf") {
    if (value.empty() || value.front() != '/') return BadValue(key, value, "an absolute path");
    return o->dns.resolv_conf = value, Status();
  }
  if (key == "dns-records") {
    Status status = o->dns.resolver.records.Add(value);
    return status.ok() ? std::move(status) : OptionError(key, status.error());
  }
  if (key == "dns-in-flight") {
    return ParseNumber(key, value, 1, 4096, &o->dns.resolver.max_in_flight);
  }
  // The policy.
  if (key == "rules") {
    auto rules = ParseRules(value);
    if (!rules.ok()) return OptionError(key, rules.error());
    o->rules.insert(o->rules.end(), rules->begin(), rules->end());
    if (o->rules.size() <= Policy::kMaxRules) return {};
    return sdk::InvalidArgument("option rules: has more than 4096 rules");
  }
  if (key == "deny-host-addresses") return ParseBool(key, value, &o->deny_host_addresses);
  if (key == "host-ports") {
    auto ports = ParseHostPorts(value);
    if (!ports.ok()) return OptionError(key, ports.error());
    return o->host.ports = std::move(*ports), Status();
  }
  if (key == "host-address") return Into(&g->host4, ParseIpv4, key, value);
  if (key == "host-address6") return Into(&g->host6, ParseIpv6, key, value);
  if (key == "host-name") return ParseName(key, value, &g->host_name);
  return sdk::InvalidArgument("option " + std::string(key) + ": there is no such option");
}

// Addresses of IPv4 that follow from each other, and whether they fit together.
Status SettleIpv4(const Given& g, Options* o) {
  LanConfig& lan = o->lan;
  if (g.subnet.has_value()) {
    const uint32_t network = g.subnet->address.v4().value;
    lan.prefix_length = g.subnet->length;
    const bool roomy = lan.prefix_length <= 27;
    lan.gateway = {network + (roomy ? 2 : 1)};
    lan.guest = {network + (roomy ? 15 : 2)};
  }
  if (g.gateway.has_value()) lan.gateway = *g.gateway;
  if (g.guest.has_value()) lan.guest = *g.guest;
  const Ipv4Address network{lan.gateway.value & Netmask(lan.prefix_length).value};
  const Ipv4Address broadcast = lan.SubnetBroadcast();
  const auto is_host = [&](Ipv4Address a) {
    return lan.InSubnet(a) && a != network && a != broadcast;
  };
  // The default subnet does not go with a gateway of elsewhere.
  if (g.gateway.has_value() && !g.subnet.has_value() &&
      !Network{Ipv4Address::Of(10, 0, 2, 0), 24}.Contains(lan.gateway)) {
    return BadValue("gateway", lan.gateway.ToString(), "within 10.0.2.0/24; give subnet as well");
  }
  if (!is_host(lan.gateway) || (g.subnet.has_value() && !g.subnet->Contains(lan.gateway))) {
    return BadValue("gateway", lan.gateway.ToString(), "an address of a host in the subnet");
  }
  if (!is_host(lan.guest) || lan.guest == lan.gateway) {
    return BadValue("guest-address", lan.guest.ToString(),
                    "an address of a host in the subnet beside the gateway's");
  }
  if (!o->host.ports.empty()) {
    // The last one, unless a small network has it taken already.
    Ipv4Address host = g.host4.value_or(Ipv4Address{broadcast.value - 1});
    while (!g.host4.has_value() && host != network && (host == lan.gateway || host == lan.guest)) {
      --host.value;
    }
    if (g.host4.has_value() || is_host(host)) o->host.v4 = host;
    if (g.host4.has_value() && (host == lan.gateway || host == lan.guest || !is_host(host))) {
      return BadValue("host-address", host.ToString(),
                      "an address of the subnet that nobody else has");
    }
  }
  // From the guest's address on, up to the end or to what is taken.
  uint32_t room = broadcast.value - lan.guest.value;
  for (const std::optional<Ipv4Address>& taken : {std::optional(lan.gateway), o->host.v4}) {
    if (taken.has_value() && *taken > lan.guest) {
      room = std::min(room, taken->value - lan.guest.value);
    }
  }
  if (g.pool.has_value() && *g.pool > room) {
    return BadValue("dhcp-pool", std::to_string(*g.pool),
                    "at most " + std::to_string(room) + ", which there are from the guest's on");
  }
  lan.pool_size = g.pool.value_or(std::min(lan.pool_size, room));
  return {};
}

}  // namespace

sdk::Result<Options> Options::Parse(const std::vector<KeyValue>& given) {
  Options o;
  Given g;
  for (const auto& [key, value] : given) {
    if (std::string_view(key).substr(0, 5) == "host.") continue;
    Status status = ParseOne(key, value, &o, &g);
    if (!status.ok()) return status.error();
  }
  o.lan.ipv6 = o.ipv6 != Ipv6Mode::kOff;
  if (!o.lan.ipv4 && !o.lan.ipv6) {
    return sdk::InvalidArgument("option ipv4: is off together with ipv6, which leaves nothing");
  }
  if (o.lan.ipv6 && g.mtu < kMinMtu6) {
    return BadValue("mtu", std::to_string(g.mtu), "at least 1280, which IPv6 needs (or ipv6=off)");
  }
  o.lan.mtu = static_cast<uint16_t>(g.mtu);
  if (o.lan.guest_mac == o.lan.gateway_mac) {
    return BadValue("mac", o.lan.gateway_mac.ToString(), "another than the gateway's");
  }
  if ((g.host4.has_value() || g.host6.has_value()) && o.host.ports.empty()) {
    return sdk::InvalidArgument(
        "option host-ports: is missing; the host's virtual address reaches those ports only");
  }
  if (Status status = SettleIpv4(g, &o); !status.ok()) return status.error();
  if (Status s = o.dns.resolver.records.CheckAliases(); !s.ok()) {
    return OptionError("dns-records", s.error());
  }

  // A datagram is not cut into fragments.
  o.dns.resolver.max_datagram = o.lan.mtu - (o.lan.ipv6 ? 48u : 28u);
  o.dns.follow = o.dns.resolver.servers.empty() || !o.search.has_value();
  if (o.search.has_value()) o.lan.search = *o.search;
  if (o.host.ports.empty()) return o;

  if (!o.lan.ipv4) o.host.v4.reset();
  if (o.lan.ipv6) {
    Ipv6Address host = o.lan.prefix6;
    host.bytes[15] = 0xfe;
    if (g.host6.has_value()) host = *g.host6;
    if (!host.InPrefix(o.lan.prefix6, 64) || host == o.lan.gateway6()) {
      return BadValue("host-address6", host.ToString(),
                      "an address of the prefix that nobody else has");
    }
    o.host.v6 = host;
  }
  const auto alias = [&](const IpAddress& address) -> Status {
    o.lan.aliases.push_back(address);
    return o.dns.resolver.records.AddAddress(g.host_name, address);
  };
  if (o.host.v4.has_value()) {
    if (Status s = alias(*o.host.v4); !s.ok()) return OptionError("host-name", s.error());
  }
  if (o.host.v6.has_value()) {
    if (Status s = alias(*o.host.v6); !s.ok()) return OptionError("host-name", s.error());
  }
  return o;
}

}  // namespace virtbay::proxy_net
