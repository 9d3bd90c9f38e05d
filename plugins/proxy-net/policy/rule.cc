#include "plugins/proxy-net/policy/rule.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace virtbay::proxy_net {
namespace {

using sdk::Error;
using sdk::Result;

Error Wrong(std::string_view text, std::string_view why) {
  std::string message = "\"";
  message.append(text).append("\" ").append(why);
  return sdk::InvalidArgument(std::move(message));
}

std::optional<uint32_t> Decimal(std::string_view text, uint32_t most) {
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value > most) return std::nullopt;
  return value;
}

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::string_view NameOf(Protocol protocol) {
  switch (protocol) {
    case Protocol::kTcp:
      return "tcp";
    case Protocol::kUdp:
      return "udp";
    case Protocol::kIcmp:
      break;
  }
  return "icmp";
}

std::optional<Protocol> ProtocolOf(std::string_view name) {
  for (const Protocol p : {Protocol::kTcp, Protocol::kUdp, Protocol::kIcmp}) {
    if (name == NameOf(p)) return p;
  }
  return std::nullopt;
}

std::string Text(const PortRange& ports) {
  std::string text = std::to_string(ports.first);
  if (ports.last != ports.first) text.append("-").append(std::to_string(ports.last));
  return text;
}

template <typename T>
Result<std::vector<T>> ParseList(std::string_view text) {
  std::vector<T> out;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    const std::string_view piece = Trim(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
    if (piece.empty()) continue;
    Result<T> one = T::Parse(piece);
    if (!one.ok()) return one.error();
    out.push_back(*one);
  }
  return out;
}

}  // namespace

Result<Network> Network::Parse(std::string_view text) {
  const size_t slash = text.find('/');
  const std::optional<IpAddress> address = IpAddress::Parse(text.substr(0, slash));
  if (!address.has_value()) {
    return Wrong(text, "does not begin with an IPv4 or IPv6 address without a scope");
  }
  // The guest's packets are judged by what a socket would reach, so that such a rule never matched.
  if (address->Canonical() != *address) return Wrong(text, "is an IPv4 address, write it as one");
  const uint8_t most = address->is_v4() ? 32 : 128;
  Network out{*address, most};
  if (slash != text.npos) {
    const std::optional<uint32_t> bits = Decimal(text.substr(slash + 1), most);
    if (!bits.has_value()) {
      return Wrong(text, "has no prefix length from 0 to " + std::to_string(most));
    }
    out.length = static_cast<uint8_t>(*bits);
  }
  const Bytes bytes = out.address.bytes();
  for (size_t i = out.length; i < most; ++i) {
    if ((bytes[i / 8] >> (7 - i % 8) & 1) != 0) {
      return Wrong(text, "has bits behind its prefix; a single address has no prefix length");
    }
  }
  return out;
}

bool Network::Contains(const IpAddress& other) const {
  if (address.is_v4() != other.is_v4()) return false;
  if (address.is_v6()) return other.v6().InPrefix(address.v6(), length);
  return ((address.v4().value ^ other.v4().value) & Netmask(length).value) == 0;
}

Result<PortRange> PortRange::Parse(std::string_view text) {
  const size_t dash = text.find('-');
  const std::optional<uint32_t> first = Decimal(text.substr(0, dash), 0xffff);
  const std::optional<uint32_t> last =
      dash == text.npos ? first : Decimal(text.substr(dash + 1), 0xffff);
  if (!first || !last || *first == 0 || *last < *first) {
    return Wrong(text, "is no port or range of ports from 1 to 65535");
  }
  return PortRange{static_cast<uint16_t>(*first), static_cast<uint16_t>(*last)};
}

Result<Rule> Rule::Parse(std::string_view text) {
  const std::string_view whole = text;
  Rule out;
  const size_t space = text.find(' ');
  const std::string_view verb = text.substr(0, space);
  if (space == text.npos || (verb != "allow" && verb != "deny")) {
    return Wrong(whole, "does not begin with \"allow \" or \"deny \"");
  }
  out.allow = verb == "allow";
  text = Trim(text.substr(space));

  // The protocol is the one part behind a slash that begins with a letter.
  if (const size_t slash = text.rfind('/'); slash != text.npos && slash + 1 < text.size() &&
                                            text[slash + 1] >= 'a' && text[slash + 1] <= 'z') {
    out.protocol = ProtocolOf(text.substr(slash + 1));
    if (!out.protocol.has_value()) return Wrong(whole, "has a protocol but tcp, udp and icmp");
    text = text.substr(0, slash);
  }
  std::string_view target = text;
  std::string_view behind;
  if (!text.empty() && text.front() == '[') {
    const size_t end = text.find(']');
    if (end == text.npos) return Wrong(whole, "has a bracket that is not closed");
    target = text.substr(1, end - 1);
    behind = text.substr(end + 1);
    if (target.find(':') == target.npos) return Wrong(whole, "has brackets without IPv6 in them");
  } else {
    const size_t colon = text.find(':');
    if (colon != text.npos && text.find(':', colon + 1) != text.npos) {
      return Wrong(whole, "has an IPv6 address without brackets");
    }
    target = text.substr(0, colon);
    if (colon != text.npos) behind = text.substr(colon);
  }
  if (target != "any") {
    Result<Network> network = Network::Parse(target);
    if (!network.ok()) return network.error();
    out.network = *network;
  }
  if (!behind.empty()) {
    if (behind.front() != ':')
      return Wrong(whole, "has something else than a port behind its target");
    Result<PortRange> ports = PortRange::Parse(behind.substr(1));
    if (!ports.ok()) return ports.error();
    out.ports = *ports;
    if (out.protocol == Protocol::kIcmp) return Wrong(whole, "has a port, which icmp has not");
  }
  return out;
}

std::string Rule::ToString() const {
  std::string text = allow ? "allow " : "deny ";
  if (!network.has_value()) {
    text.append("any");
  } else {
    std::string target = network->address.ToString();
    if (network->length != (network->address.is_v4() ? 32 : 128)) {
      target.append("/").append(std::to_string(network->length));
    }
    if (network->address.is_v6()) target.insert(0, 1, '[').push_back(']');
    text.append(target);
  }
  if (ports.has_value()) text.append(":").append(Text(*ports));
  if (protocol.has_value()) text.append("/").append(NameOf(*protocol));
  return text;
}

bool Rule::Matches(const IpAddress& address, uint16_t port, Protocol of) const {
  if (network.has_value() && !network->Contains(address)) return false;
  if (protocol.has_value() && *protocol != of) return false;
  if (ports.has_value() && (of == Protocol::kIcmp || !ports->Contains(port))) return false;
  return true;
}

Result<HostPorts> HostPorts::Parse(std::string_view text) {
  const size_t colon = text.find(':');
  const std::optional<Protocol> protocol = ProtocolOf(text.substr(0, colon));
  if (colon == text.npos || !protocol.has_value() || *protocol == Protocol::kIcmp) {
    return Wrong(text, "is not tcp:PORT[-PORT] or udp:PORT[-PORT]");
  }
  Result<PortRange> ports = PortRange::Parse(text.substr(colon + 1));
  if (!ports.ok()) return ports.error();
  return HostPorts{*protocol, *ports};
}

Result<std::vector<Rule>> ParseRules(std::string_view text) { return ParseList<Rule>(text); }

Result<std::vector<HostPorts>> ParseHostPorts(std::string_view text) {
  return ParseList<HostPorts>(text);
}

}  // namespace virtbay::proxy_net
