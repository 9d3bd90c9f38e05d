#include "plugins/proxy-net/option_values.h"

#include <algorithm>
#include <string>
#include <utility>

namespace virtbay::proxy_net {

sdk::Error OptionError(std::string_view key, const sdk::Error& error) {
  std::string text = "option ";
  text.append(key).append(": ").append(error.text);
  return sdk::InvalidArgument(std::move(text));
}

sdk::Status ParseIpv4(std::string_view key, std::string_view value, Ipv4Address* out) {
  const auto address = Ipv4Address::Parse(value);
  if (!address.has_value()) return BadValue(key, value, "an IPv4 address");
  *out = *address;
  return {};
}

sdk::Status ParseIpv6(std::string_view key, std::string_view value, Ipv6Address* out) {
  const auto address = Ipv6Address::Parse(value);
  if (!address.has_value()) return BadValue(key, value, "an IPv6 address without a scope");
  *out = *address;
  return {};
}

sdk::Status ParseMac(std::string_view key, std::string_view value, MacAddress* out) {
  const auto mac = MacAddress::Parse(value);
  if (!mac.has_value() || mac->IsMulticast() || mac->IsZero()) {
    return BadValue(key, value, "a MAC address of one host (02:00:00:00:00:01)");
  }
  *out = *mac;
  return {};
}

sdk::Status ParseName(std::string_view key, std::string_view value, DomainName* out) {
  const auto name = DomainName::Parse(value);
  if (!name.has_value() || name->IsRoot()) return BadValue(key, value, "a domain name");
  *out = *name;
  return {};
}

sdk::Status ParseEndpoint(std::string_view key, std::string_view value, uint16_t port,
                          Endpoint* out) {
  std::string_view address = value;
  std::string_view port_text;
  if (!value.empty() && value.front() == '[') {
    const size_t end = value.find(']');
    if (end != value.npos && (end + 1 == value.size() || value[end + 1] == ':')) {
      address = value.substr(1, end - 1);
      port_text = value.substr(std::min(end + 2, value.size()));
    }
  } else if (const size_t colon = value.find(':');
             colon != value.npos && value.find(':', colon + 1) == value.npos) {
    address = value.substr(0, colon);
    port_text = value.substr(colon + 1);
    if (port_text.empty()) address = {};
  }
  const auto parsed = IpAddress::Parse(address);
  uint32_t number = port;
  if (!port_text.empty() && !ParseNumber(key, port_text, 1, 65535, &number).ok()) {
    return BadValue(key, value, "an address with a port from 1 to 65535");
  }
  if (!parsed.has_value()) {
    return BadValue(key, value, "an address, IPV4:PORT or [IPV6]:PORT");
  }
  *out = {*parsed, static_cast<uint16_t>(number)};
  return {};
}

sdk::Status ForEach(std::string_view list,
                    const std::function<sdk::Status(std::string_view)>& one) {
  while (!list.empty()) {
    const size_t comma = std::min(list.find(','), list.size());
    std::string_view piece = list.substr(0, comma);
    list.remove_prefix(std::min(comma + 1, list.size()));
    while (!piece.empty() && piece.front() == ' ') piece.remove_prefix(1);
    while (!piece.empty() && piece.back() == ' ') piece.remove_suffix(1);
    if (piece.empty()) continue;
    if (sdk::Status status = one(piece); !status.ok()) return status;
  }
  return {};
}

}  // namespace virtbay::proxy_net
