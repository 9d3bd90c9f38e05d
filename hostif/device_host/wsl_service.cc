#include "hostif/device_host/wsl_service.h"

#include <optional>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"
#include "hostif/device_host/aggregate_device.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/text_file.h"
#include "hostif/swiotlb/option.h"
#include "hostif/wsl/wslconfig.h"

namespace virtbay::device_host {
namespace {

constexpr char kSharePlugin[] = "virtiofs";
constexpr char kNetPlugin[] = "proxy-net";
constexpr char kAdapter[] = "eth0";  // the names that WSL gives them
constexpr char kAggregate[] = "drvfs";

absl::Status Wrong(absl::string_view what, absl::string_view text, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(what, " '", text, "': ", reason));
}

// A device with that string; its socket is named after it.
absl::StatusOr<DeviceConfig> Device(const char* plugin, std::string device_string,
                                    const std::string& shared_dir, const std::string& socket_dir) {
  DeviceConfig device;
  device.spec.plugin = plugin;
  device.device_string = std::move(device_string);
  device.socket_path = "later";  // FinishDevice asks for one, and the name comes from there
  if (!shared_dir.empty()) device.spec.options["shared-dir"] = shared_dir;
  VIRTBAY_RETURN_IF_ERROR(FinishDevice(&device));
  device.socket_path = absl::StrCat(socket_dir, "/", device.spec.name, ".sock");
  return device;
}

// virtiofs:STRING or virtio-net:STRING.
absl::StatusOr<DeviceConfig> FromString(const std::string& text, const std::string& socket_dir) {
  absl::string_view string = text;
  const char* plugin = kSharePlugin;
  if (!absl::ConsumePrefix(&string, "virtiofs:")) {
    plugin = kNetPlugin;
    if (!absl::ConsumePrefix(&string, "virtio-net:")) {
      return Wrong("--device-string", text, "begins with neither virtiofs: nor virtio-net:");
    }
  }
  if (string.empty()) return Wrong("--device-string", text, "the option string has no name");
  auto device = Device(plugin, std::string(string), "", socket_dir);
  if (!device.ok()) return Annotate(device.status(), absl::StrCat("--device-string '", text, "'"));
  if (plugin == kSharePlugin && !device->spec.options.contains("shared-dir")) {
    return Wrong("--device-string", text, "shared-dir=DIR is missing");
  }
  return device;
}

absl::Status UniqueNames(const std::vector<DeviceConfig>& devices) {
  std::set<std::string> names;
  for (const DeviceConfig& device : devices) {
    if (!names.insert(device.spec.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("device ", device.spec.name, ": the name is given twice"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DeviceConfig> ShareDevice(const std::string& text, const std::string& socket_dir) {
  const size_t equals = text.find('=');
  const size_t end = text.find(';');
  if (equals == 0 || equals == std::string::npos || equals > end) {
    return Wrong("--share", text, "is not of the form NAME=DIR[;OPTION]...");
  }
  const std::string dir =
      text.substr(equals + 1, end == std::string::npos ? end : end - equals - 1);
  if (dir.empty()) return Wrong("--share", text, "the directory is missing");
  std::string device_string = text.substr(0, equals);
  if (end != std::string::npos) device_string += text.substr(end);
  auto device = Device(kSharePlugin, std::move(device_string), dir, socket_dir);
  if (!device.ok()) return Annotate(device.status(), absl::StrCat("--share '", text, "'"));
  return device;
}

absl::StatusOr<WslService> MakeWslService(const WslRequest& request) {
  std::optional<wsl::WslConfig> wsl;
  if (!request.wslconfig.empty()) {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(request.wslconfig));
    VIRTBAY_ASSIGN_OR_RETURN(wsl, wsl::ParseWslConfig(text, request.wslconfig));
  }
  WslService service;
  std::vector<DeviceConfig> shares;
  std::vector<DeviceConfig> adapters;
  std::vector<DeviceConfig>
      devices;  // shares by their string: of their own, whatever the file says
  for (const std::string& text : request.shares) {
    VIRTBAY_ASSIGN_OR_RETURN(DeviceConfig device, ShareDevice(text, request.socket_dir));
    shares.push_back(std::move(device));
  }
  for (const std::string& text : request.device_strings) {
    VIRTBAY_ASSIGN_OR_RETURN(DeviceConfig device, FromString(text, request.socket_dir));
    (device.spec.plugin == kSharePlugin ? devices : adapters).push_back(std::move(device));
  }
  if (wsl.has_value()) {
    const auto refuse = [&](const DeviceConfig& device, absl::string_view reason) {
      return absl::InvalidArgumentError(absl::StrCat(
          "device ", device.spec.name, ": ", request.wslconfig, " does not ask for it: ", reason));
    };
    if (!wsl->serves_shares() && !(shares.empty() && devices.empty())) {
      return refuse(shares.empty() ? devices[0] : shares[0],
                    wsl->virtio ? "wsl2.virtiofs is not true" : "wsl2.virtio is false");
    }
    if (!wsl->serves_network() && !adapters.empty()) {
      return refuse(adapters[0], wsl->virtio
                                     ? "wsl2.networkingMode is neither consomme nor virtioproxy"
                                     : "wsl2.virtio is false");
    }
    if (wsl->serves_network() && adapters.empty()) {
      VIRTBAY_ASSIGN_OR_RETURN(DeviceConfig device,
                               Device(kNetPlugin, kAdapter, "", request.socket_dir));
      adapters.push_back(std::move(device));
    }
    const bool aggregate = wsl->serves_shares() && wsl->aggregate_shares;
    if (wsl->serves_shares() && !aggregate && shares.empty() && devices.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          request.wslconfig, ": wsl2.virtiofs is true, but no --share says which directories"));
    }
    // Without a share as well: they may come later. A string asks for a device of its own.
    if (aggregate && !(shares.empty() && !devices.empty())) {
      VIRTBAY_RETURN_IF_ERROR(UniqueNames(shares));
      VIRTBAY_ASSIGN_OR_RETURN(DeviceConfig device,
                               Device(kSharePlugin, kAggregate, "", request.socket_dir));
      VIRTBAY_RETURN_IF_ERROR(MakeAggregate(std::move(shares), &device));
      shares.clear();
      shares.push_back(std::move(device));
    }
    const uint64_t pool = wsl::PoolSize(*wsl, request.host_memory);
    const uint64_t memory = wsl::GuestMemory(*wsl, request.host_memory);
    service.kernel_command_line = swiotlb::KernelCommandLine(pool);
    service.config.pool_requested = !service.kernel_command_line.empty();
    service.config.warnings = std::move(wsl->warnings);
    if (pool >= memory && memory != 0) {
      service.config.warnings.push_back(
          absl::StrCat(request.wslconfig, ": experimental.swiotlb: a pool of ", pool,
                       " bytes does not fit into the guest's memory of ", memory,
                       " bytes, so that its kernel will have none"));
    }
  }
  for (auto* some : {&shares, &devices, &adapters}) {
    for (DeviceConfig& device : *some) service.config.devices.push_back(std::move(device));
  }
  VIRTBAY_RETURN_IF_ERROR(UniqueNames(service.config.devices));
  if (service.config.devices.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(request.wslconfig, ": asks for no device that is served here"));
  }
  return service;
}

}  // namespace virtbay::device_host
