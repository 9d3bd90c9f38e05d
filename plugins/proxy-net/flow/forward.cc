#include "plugins/proxy-net/flow/forward.h"

#include <unistd.h>

#include <charconv>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint32_t kMostPorts = 4096;

sdk::Error Bad(std::string_view text, std::string_view why) {
  return sdk::InvalidArgument(
      absl::StrCat("'", std::string(text), "' is no forward: ", std::string(why)));
}

std::optional<uint16_t> ParsePort(std::string_view text) {
  uint16_t port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return port;
}

struct Ports {
  uint16_t first = 0;
  uint16_t last = 0;
};

std::optional<Ports> ParsePorts(std::string_view text) {
  const size_t dash = text.find('-');
  const auto first = ParsePort(text.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : ParsePort(text.substr(dash + 1));
  if (!first.has_value() || !last.has_value() || *last < *first) return std::nullopt;
  return Ports{*first, *last};
}

std::string PortsText(uint32_t first, uint32_t count) {
  if (count == 1) return absl::StrCat(first);
  return absl::StrCat(first, "-", first + count - 1);
}

}  // namespace

sdk::Result<Forward> Forward::Parse(std::string_view text) {
  Forward forward;
  std::string_view rest = text;
  if (rest.starts_with("tcp:")) {
    forward.protocol = kProtocolTcp;
  } else if (rest.starts_with("udp:")) {
    forward.protocol = kProtocolUdp;
  } else {
    return Bad(text, "it begins with neither tcp: nor udp:");
  }
  rest.remove_prefix(4);
  const size_t guest_colon = rest.rfind(':');
  if (guest_colon == std::string_view::npos) return Bad(text, "there is no port of the guest");
  const auto guest = ParsePorts(rest.substr(guest_colon + 1));
  if (!guest.has_value() || guest->first == 0) {
    return Bad(text, "the guest's port is not one from 1 to 65535, or a range of them");
  }
  rest = rest.substr(0, guest_colon);
  std::string_view address = "127.0.0.1";
  if (const size_t colon = rest.rfind(':'); colon != std::string_view::npos) {
    address = rest.substr(0, colon);
    rest = rest.substr(colon + 1);
  }
  const auto host = ParsePorts(rest);
  if (!host.has_value()) {
    return Bad(text, "the host's port is not one from 0 to 65535, or a range of them");
  }
  const bool brackets = address.starts_with('[') && address.ends_with(']');
  const auto parsed = IpAddress::Parse(brackets ? address.substr(1, address.size() - 2) : address);
  if (!parsed.has_value() || parsed->is_v6() != brackets) {
    return Bad(text, "the host's address is not an IPv4 address, or an IPv6 one in brackets");
  }
  forward.address = *parsed;
  forward.host_first = host->first;
  forward.guest_first = guest->first;
  forward.count = uint32_t{guest->last} - guest->first + 1;
  if (uint32_t{host->last} - host->first + 1 != forward.count) {
    return Bad(text, "the two ranges of ports are not equally long");
  }
  if (forward.host_first == 0 && forward.count > 1) {
    return Bad(text, "port 0 is for one port");
  }
  if (forward.count > kMostPorts) return Bad(text, "there are more than 4096 ports");
  return forward;
}

std::string Forward::ToString() const {
  const std::string host =
      address.is_v6() ? absl::StrCat("[", address.ToString(), "]") : address.ToString();
  return absl::StrCat(protocol == kProtocolTcp ? "tcp:" : "udp:", host, ":",
                      PortsText(host_first, count), ":", PortsText(guest_first, count));
}

sdk::Result<std::vector<Forward>> ParseForwards(std::string_view text) {
  std::vector<Forward> forwards;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view piece = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    if (piece.empty()) continue;
    sdk::Result<Forward> forward = Forward::Parse(piece);
    if (!forward.ok()) return forward.error();
    forwards.push_back(*forward);
  }
  return forwards;
}

sdk::Result<BoundForward> Bind(Forward* forward, FlowHost* host) {
  BoundForward bound;
  for (uint32_t i = 0; i < forward->count; ++i) {
    ForwardSpec spec;
    spec.protocol = forward->protocol;
    spec.host = {forward->address, static_cast<uint16_t>(forward->host_first + i)};
    spec.guest_port = static_cast<uint16_t>(forward->guest_first + i);
    spec.forward = forward->number;
    if (!host->TakeDescriptor()) {
      Unbind(&bound, host);
      return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                        absl::StrCat("forward ", forward->ToString(), ": no descriptors are left")};
    }
    sdk::Result<int> fd = ForwardSpec::OpenSocket(&spec, /*shared=*/false);
    if (!fd.ok()) {
      host->GiveDescriptor();
      Unbind(&bound, host);
      return fd.error();
    }
    bound.specs.push_back(spec);
    bound.fds.push_back(*fd);
  }
  forward->host_first = bound.specs[0].host.port;
  return bound;
}

void Unbind(BoundForward* bound, FlowHost* host) {
  for (const int fd : bound->fds) {
    close(fd);
    host->GiveDescriptor();
  }
  bound->fds.clear();
  bound->specs.clear();
}

}  // namespace virtbay::proxy_net
