#include "hostif/wsl/net_adapter.h"

#include <arpa/inet.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"
#include "hostif/wsl/option_string.h"

namespace virtbay::wsl {
namespace {

constexpr size_t kMaxNameservers = 16;

absl::Status Wrong(const Option& option, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(
      option.key, ": '", absl::CHexEscape(option.value.value_or("").substr(0, 64)), "' ", reason));
}

absl::StatusOr<in_addr> Ipv4Of(const Option& option) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  in_addr address = {};
  if (::inet_pton(AF_INET, text.c_str(), &address) != 1) {
    return Wrong(option, "is not an IPv4 address");
  }
  return address;
}

absl::StatusOr<in6_addr> Ipv6Of(const Option& option) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  in6_addr address = {};
  if (::inet_pton(AF_INET6, text.c_str(), &address) != 1) {
    return Wrong(option, "is not an IPv6 address");
  }
  return address;
}

std::optional<IpAddress> ParseIp(const std::string& text) {
  in_addr v4 = {};
  if (::inet_pton(AF_INET, text.c_str(), &v4) == 1) return v4;
  in6_addr v6 = {};
  if (::inet_pton(AF_INET6, text.c_str(), &v6) == 1) return v6;
  return std::nullopt;
}

std::string Text(const IpAddress& address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (const auto* v4 = std::get_if<in_addr>(&address)) {
    ::inet_ntop(AF_INET, v4, text, sizeof(text));
  } else {
    ::inet_ntop(AF_INET6, &std::get<in6_addr>(address), text, sizeof(text));
  }
  return text;
}

// Six pairs of hexadecimal digits with ':' or '-' between them.
absl::StatusOr<MacAddress> MacOf(const Option& option) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  const auto wrong = [&] { return Wrong(option, "is not a hardware address, 00:11:22:33:44:55"); };
  if (text.size() != 17) return wrong();
  MacAddress address = {};
  for (size_t i = 0; i < address.size(); ++i) {
    const char* const pair = text.data() + i * 3;
    const auto result = std::from_chars(pair, pair + 2, address[i], 16);
    if (result.ec != std::errc() || result.ptr != pair + 2) return wrong();
    if (i > 0 && (pair[-1] != text[2] || (pair[-1] != ':' && pair[-1] != '-'))) return wrong();
  }
  if ((address[0] & 1) != 0) return Wrong(option, "is a group's address, not a device's");
  if (address == MacAddress{}) return Wrong(option, "is no device's address");
  return address;
}

std::string Text(const MacAddress& mac) {
  return absl::StrJoin(
      mac, ":", [](std::string* out, uint8_t byte) { absl::StrAppendFormat(out, "%02x", byte); });
}

absl::Status SetNetmask(const Option& option, NetAdapter* adapter) {
  VIRTBAY_ASSIGN_OR_RETURN(const in_addr mask, Ipv4Of(option));
  const uint32_t zeros = ~ntohl(mask.s_addr);
  if ((zeros & (zeros + 1)) != 0 || mask.s_addr == 0) {
    return Wrong(option, "is not a mask: ones, then zeros");
  }
  adapter->netmask = mask;
  return absl::OkStatus();
}

absl::Status SetNameservers(const Option& option, NetAdapter* adapter) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const auto address = ParseIp(std::string(part));
    if (!address.has_value()) return Wrong(option, "holds something that is not an address");
    if (adapter->nameservers.size() == kMaxNameservers) {
      return Wrong(option, absl::StrCat("holds more than ", kMaxNameservers, " addresses"));
    }
    adapter->nameservers.push_back(*address);
  }
  return absl::OkStatus();
}

absl::Status SetOption(const Option& option, ParsedNetAdapter* parsed) {
  NetAdapter& adapter = parsed->adapter;
  const std::string& key = option.key;
  VIRTBAY_ASSIGN_OR_RETURN(const bool common, SetDeviceOption(option, &adapter.device));
  if (common) return absl::OkStatus();
  if (key == "client_ip") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.client_ip, Ipv4Of(option));
  } else if (key == "client_ip_ipv6") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.client_ip_ipv6, Ipv6Of(option));
  } else if (key == "client_mac") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.client_mac, MacOf(option));
  } else if (key == "gateway_ip") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.gateway_ip, Ipv4Of(option));
  } else if (key == "gateway_mac") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.gateway_mac, MacOf(option));
  } else if (key == "gateway_mac_ipv6") {
    VIRTBAY_ASSIGN_OR_RETURN(adapter.gateway_mac_ipv6, MacOf(option));
  } else if (key == "netmask") {
    return SetNetmask(option, &adapter);
  } else if (key == "nameservers") {
    return SetNameservers(option, &adapter);
  } else {
    parsed->warnings.push_back(UnknownOption(option));
  }
  return absl::OkStatus();
}

absl::Status SetPortOption(const Option& option, ParsedNetPort* parsed, bool* listens) {
  NetPort& port = parsed->port;
  const std::string& key = option.key;
  if (key == "tag") {
    VIRTBAY_ASSIGN_OR_RETURN(port.tag, TextOf(option));
  } else if (key == "guest_port" || key == "port_number" || key == "host_port") {
    VIRTBAY_ASSIGN_OR_RETURN(const uint32_t number, NumberOf(option, 65535));
    if (number == 0 && key != "host_port") return Wrong(option, "is not a port");
    if (key != "host_port") port.guest_port = static_cast<uint16_t>(number);
    if (key != "guest_port") port.host_port = static_cast<uint16_t>(number);
  } else if (key == "listen_addr") {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
    const auto address = ParseIp(text);
    if (!address.has_value()) return Wrong(option, "is not an address");
    port.listen_addr = *address;
    *listens = true;
  } else if (key == "udp") {
    VIRTBAY_RETURN_IF_ERROR(CheckFlag(option));
    port.udp = true;
  } else if (key == "allocate") {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
    if (text != "true" && text != "false") return Wrong(option, "is neither true nor false");
    port.allocate = text == "true";
  } else if (key == "vm_id") {
    return GuidOf(option).status();
  } else {
    parsed->warnings.push_back(UnknownOption(option));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedNetAdapter> ParseNetAdapter(absl::string_view text) {
  VIRTBAY_ASSIGN_OR_RETURN(OptionString string, ParseOptionString(text));
  ParsedNetAdapter parsed;
  parsed.adapter.name = std::move(string.name);
  for (const Option& option : string.options) {
    VIRTBAY_RETURN_IF_ERROR(SetOption(option, &parsed));
  }
  const NetAdapter& adapter = parsed.adapter;
  if (adapter.gateway_mac_ipv6.value_or(adapter.gateway_mac) != adapter.gateway_mac) {
    parsed.warnings.push_back("gateway_mac_ipv6: is ignored; the gateway has one, gateway_mac");
  }
  if (adapter.netmask && !adapter.client_ip && !adapter.gateway_ip) {
    parsed.warnings.push_back("netmask: is ignored without client_ip and gateway_ip");
  }
  return parsed;
}

std::map<std::string, std::string> PluginOptions(const NetAdapter& adapter) {
  std::map<std::string, std::string> options;
  options["mac"] = Text(adapter.client_mac);
  options["gateway-mac"] = Text(adapter.gateway_mac);
  if (adapter.client_ip) options["guest-address"] = Text(IpAddress(*adapter.client_ip));
  if (adapter.gateway_ip) options["gateway"] = Text(IpAddress(*adapter.gateway_ip));
  // The subnet is that of whichever address there is; 24 bits unless the mask says otherwise.
  if (const std::optional<in_addr> one = adapter.client_ip ? adapter.client_ip : adapter.gateway_ip;
      one.has_value()) {
    const uint32_t mask = adapter.netmask ? ntohl(adapter.netmask->s_addr) : 0xffffff00;
    const in_addr network = {htonl(ntohl(one->s_addr) & mask)};
    options["subnet"] = absl::StrCat(Text(IpAddress(network)), "/", std::popcount(mask));
  }
  if (adapter.client_ip_ipv6) {
    in6_addr prefix = *adapter.client_ip_ipv6;
    std::fill(prefix.s6_addr + 8, prefix.s6_addr + 16, uint8_t{0});
    options["prefix6"] = absl::StrCat(Text(IpAddress(prefix)), "/64");
  }
  if (!adapter.nameservers.empty()) {
    // The plugin tells a guest of eight.
    const size_t count = std::min<size_t>(adapter.nameservers.size(), 8);
    options["guest-dns"] = absl::StrJoin(
        adapter.nameservers.begin(),
        adapter.nameservers.begin() + static_cast<std::ptrdiff_t>(count), ",",
        [](std::string* out, const IpAddress& address) { absl::StrAppend(out, Text(address)); });
  }
  return options;
}

absl::StatusOr<ParsedNetPort> ParseNetPort(absl::string_view text) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<Option> options, ParseOptions(text));
  ParsedNetPort parsed;
  bool listens = false;
  const auto has = [&](absl::string_view key) {
    return std::any_of(options.begin(), options.end(),
                       [&](const Option& option) { return option.key == key; });
  };
  if (has("port_number") && (has("guest_port") || has("host_port"))) {
    return absl::InvalidArgumentError(
        "port_number: stands for both ports, and one is given as well");
  }
  for (const Option& option : options) {
    VIRTBAY_RETURN_IF_ERROR(SetPortOption(option, &parsed, &listens));
  }
  if (parsed.port.tag.empty()) return absl::InvalidArgumentError("tag: is missing");
  if (parsed.port.guest_port == 0) return absl::InvalidArgumentError("guest_port: is missing");
  if (!listens) return absl::InvalidArgumentError("listen_addr: is missing");
  return parsed;
}

}  // namespace virtbay::wsl
