// Rules of the destination policy and lists of ports, with their text forms.
//
//   RULE    := ("allow" | "deny") " " TARGET [":" PORT ["-" PORT]] ["/" PROTOCOL]
//   TARGET  := "any" | IPV4 ["/" BITS] | "[" IPV6 ["/" BITS] "]"
//   PROTOCOL:= "tcp" | "udp" | "icmp"
//   PORTS   := ("tcp" | "udp") ":" PORT ["-" PORT], several with commas
//
// A rule with ports is of TCP and UDP unless it names one of them; one without ports and protocol
// is of all three. Plain values; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_POLICY_RULE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_POLICY_RULE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/packet/address.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

enum class Protocol : uint8_t { kTcp, kUdp, kIcmp };  // kIcmp is ICMPv6 as well

// The addresses whose first `length` bits are those of `address`.
struct Network {
  IpAddress address;
  uint8_t length = 0;

  // [any] "ADDRESS" or "ADDRESS/BITS" without brackets; an Error says what is wrong with it.
  static sdk::Result<Network> Parse(std::string_view text);
  bool Contains(const IpAddress& other) const;
  bool operator==(const Network&) const = default;
};

// Ports from `first` to `last`, both among them.
struct PortRange {
  uint16_t first = 0;
  uint16_t last = 0xffff;

  // [any] "PORT" or "PORT-PORT" from 1 to 65535.
  static sdk::Result<PortRange> Parse(std::string_view text);
  bool Contains(uint16_t port) const { return first <= port && port <= last; }
  bool operator==(const PortRange&) const = default;
};

struct Rule {
  bool allow = false;
  std::optional<Network> network;  // none: any
  std::optional<PortRange> ports;
  std::optional<Protocol> protocol;

  // [any] The grammar above; an Error quotes the text and says what is wrong.
  static sdk::Result<Rule> Parse(std::string_view text);
  // [any] In the same grammar.
  std::string ToString() const;
  bool Matches(const IpAddress& address, uint16_t port, Protocol of) const;
  bool operator==(const Rule&) const = default;
};

// A port that the guest may reach on the host.
struct HostPorts {
  Protocol protocol = Protocol::kTcp;
  PortRange ports;

  // [any] PORTS of the grammar above, one of them.
  static sdk::Result<HostPorts> Parse(std::string_view text);
  bool operator==(const HostPorts&) const = default;
};

// [any] Several with commas; empty pieces are none.
sdk::Result<std::vector<Rule>> ParseRules(std::string_view text);
sdk::Result<std::vector<HostPorts>> ParseHostPorts(std::string_view text);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_POLICY_RULE_H_
