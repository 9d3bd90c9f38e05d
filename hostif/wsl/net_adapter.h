// The option strings of a virtio-net device of WSL (the adapter, and the ports that it forwards) as
// typed values, and what they mean to the plugin `proxy-net`.
// Values; [any].
#ifndef VIRTBAY_HOSTIF_WSL_NET_ADAPTER_H_
#define VIRTBAY_HOSTIF_WSL_NET_ADAPTER_H_

#include <netinet/in.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hostif/wsl/device_options.h"

namespace virtbay::wsl {

using MacAddress = std::array<uint8_t, 6>;
using IpAddress = std::variant<in_addr, in6_addr>;

struct NetAdapter {
  std::string name;
  DeviceOptions device;
  std::optional<in_addr> client_ip;
  std::optional<in6_addr> client_ip_ipv6;
  MacAddress client_mac = {0x00, 0x00, 0x00, 0x00, 0x01, 0x00};
  std::optional<in_addr> gateway_ip;
  MacAddress gateway_mac = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55};
  std::optional<MacAddress> gateway_mac_ipv6;  // none: gateway_mac
  std::optional<in_addr> netmask;              // contiguous
  std::vector<IpAddress> nameservers;
};

struct ParsedNetAdapter {
  NetAdapter adapter;
  std::vector<std::string> warnings;  // what was ignored, each by name
};

// [any] `name[;key=value]...` with the keys client_ip, client_ip_ipv6, client_mac, gateway_ip,
// gateway_mac, gateway_mac_ipv6, netmask, nameservers (up to 16, divided by commas), swiotlb,
// vm_id. Other keys give a warning. InvalidArgument, beginning with the key, for a value that is
// not one: also a hardware address that is a group's or zero, and a mask with holes.
absl::StatusOr<ParsedNetAdapter> ParseNetAdapter(absl::string_view text);

// [any] The same as options of the plugin, by the plugin's names.
std::map<std::string, std::string> PluginOptions(const NetAdapter& adapter);

struct NetPort {
  std::string tag;  // the adapter's name
  uint16_t guest_port = 0;
  uint16_t host_port = 0;              // 0: any that is free
  IpAddress listen_addr = in_addr{0};  // of the host
  bool udp = false;                    // else TCP
  bool allocate = true;                // false: the forwarding ends
};

struct ParsedNetPort {
  NetPort port;
  std::vector<std::string> warnings;
};

// [any] `tag=ADAPTER;guest_port=N;listen_addr=A[;host_port=N][;allocate=false][;udp]`, or the older
// `port_number=N` in the place of both ports. InvalidArgument, beginning with the key.
absl::StatusOr<ParsedNetPort> ParseNetPort(absl::string_view text);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_NET_ADAPTER_H_
