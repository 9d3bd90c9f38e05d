#include "plugins/proxy-net/policy/policy.h"

#include <algorithm>
#include <utility>

namespace virtbay::proxy_net {
namespace {

// What is denied unless a rule for just that says otherwise.
struct Default {
  Network network;
  Denial denial;
};

constexpr IpAddress V6(std::array<uint16_t, 8> groups) { return Ipv6Address::Of(groups); }

constexpr Default kDenied[] = {
    {{Ipv4Address::Of(127, 0, 0, 0), 8}, Denial::kLoopback},
    {{Ipv4Address::Of(169, 254, 0, 0), 16}, Denial::kLinkLocal},
    // Metadata services that are not link-local: of Alibaba, of Oracle.
    {{Ipv4Address::Of(100, 100, 100, 200), 32}, Denial::kLinkLocal},
    {{Ipv4Address::Of(192, 0, 0, 192), 32}, Denial::kLinkLocal},
    {{Ipv4Address::Of(224, 0, 0, 0), 4}, Denial::kMulticast},
    {{Ipv4Address::Of(255, 255, 255, 255), 32}, Denial::kBroadcast},
    {{Ipv4Address::Of(240, 0, 0, 0), 4}, Denial::kReserved},
    {{V6({0, 0, 0, 0, 0, 0, 0, 1}), 128}, Denial::kLoopback},
    {{V6({0xfe80, 0, 0, 0, 0, 0, 0, 0}), 10}, Denial::kLinkLocal},
    {{V6({0xfec0, 0, 0, 0, 0, 0, 0, 0}), 10}, Denial::kReserved},
    // Metadata services over IPv6: of AWS, of Google.
    {{V6({0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254}), 128}, Denial::kLinkLocal},
    {{V6({0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254}), 128}, Denial::kLinkLocal},
    {{V6({0xff00, 0, 0, 0, 0, 0, 0, 0}), 8}, Denial::kMulticast},
    {{V6({0x64, 0xff9b, 1, 0, 0, 0, 0, 0}), 48}, Denial::kReserved},
};

const Default* DefaultOf(const IpAddress& address) {
  const auto* found = std::find_if(std::begin(kDenied), std::end(kDenied),
                                   [&](const Default& d) { return d.network.Contains(address); });
  return found == std::end(kDenied) ? nullptr : found;
}

}  // namespace

std::string_view DenialName(Denial denial) {
  switch (denial) {
    case Denial::kNone:
      return "none";
    case Denial::kRule:
      return "rule";
    case Denial::kUnspecified:
      return "unspecified";
    case Denial::kTransition:
      return "transition";
    case Denial::kLoopback:
      return "loopback";
    case Denial::kLinkLocal:
      return "link-local";
    case Denial::kMulticast:
      return "multicast";
    case Denial::kBroadcast:
      return "broadcast";
    case Denial::kReserved:
      return "reserved";
    case Denial::kHostPort:
      return "host-port";
    case Denial::kHostOwn:
      return "host-own";
  }
  return "unknown";
}

void Policy::SetRules(std::vector<Rule> rules) { rules_ = std::move(rules); }

void Policy::SetDeniedHostAddresses(std::vector<IpAddress> addresses) {
  std::sort(addresses.begin(), addresses.end());
  host_addresses_ = std::move(addresses);
}

Denial Policy::JudgeOne(const IpAddress& address, uint16_t port, Protocol protocol) const {
  if (address.is_v4() ? address.v4().IsThisNetwork() : address.IsUnspecified()) {
    return Denial::kUnspecified;
  }
  if (address.is_v6() && address.v6().IsTeredo()) return Denial::kTransition;
  const Default* denied = DefaultOf(address);
  const bool own = std::binary_search(host_addresses_.begin(), host_addresses_.end(), address);
  for (const Rule& rule : rules_) {
    if (!rule.Matches(address, port, protocol)) continue;
    if (!rule.allow) return Denial::kRule;
    const bool within = rule.network.has_value() &&
                        (denied == nullptr || (rule.network->length >= denied->network.length &&
                                               denied->network.Contains(rule.network->address)));
    // The host's own addresses are single ones, and so are the rules that open them.
    const bool single =
        rule.network.has_value() && rule.network->length == (address.is_v4() ? 32 : 128);
    if ((denied == nullptr || within) && (!own || single)) return Denial::kNone;
  }
  if (denied != nullptr) return denied->denial;
  return own ? Denial::kHostOwn : Denial::kNone;
}

Decision Policy::Judge(const IpAddress& destination, uint16_t port, Protocol protocol) const {
  Decision out;
  out.target = destination.Canonical();
  const bool alias = out.target.is_v4() ? alias_.v4.has_value() && *alias_.v4 == out.target.v4()
                                        : alias_.v6.has_value() && *alias_.v6 == out.target.v6();
  if (alias) {
    // What the host's owner opened by port needs no rule as well.
    const bool open =
        !alias_.ports.empty() &&
        (protocol == Protocol::kIcmp ||
         std::any_of(alias_.ports.begin(), alias_.ports.end(), [&](const HostPorts& p) {
           return p.protocol == protocol && p.ports.Contains(port);
         }));
    out.denial = open ? Denial::kNone : Denial::kHostPort;
    out.target = out.target.is_v4() ? IpAddress(Ipv4Address::Of(127, 0, 0, 1))
                                    : V6({0, 0, 0, 0, 0, 0, 0, 1});
    return out;
  }
  out.denial = JudgeOne(out.target, port, protocol);
  if (!out.allowed() || out.target.is_v4()) return out;
  // A translator or a tunnel on the way would deliver it there.
  if (const auto inner = out.target.v6().EmbeddedIpv4()) {
    out.denial = JudgeOne(*inner, port, protocol);
  }
  return out;
}

}  // namespace virtbay::proxy_net
