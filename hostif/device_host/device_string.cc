#include "hostif/device_host/device_string.h"

#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/wsl/net_adapter.h"
#include "hostif/wsl/share.h"

namespace virtbay::device_host {
namespace {

struct Parsed {
  std::string name;
  wsl::DeviceOptions device;
  std::map<std::string, std::string> options;
  std::vector<std::string> warnings;
};

absl::StatusOr<Parsed> Parse(absl::string_view plugin, const std::string& text) {
  Parsed parsed;
  if (plugin == "virtiofs") {
    VIRTBAY_ASSIGN_OR_RETURN(wsl::ParsedShare share, wsl::ParseShare(text));
    parsed = {share.share.name, share.share.device, wsl::PluginOptions(share.share),
              std::move(share.warnings)};
  } else if (plugin == "proxy-net") {
    VIRTBAY_ASSIGN_OR_RETURN(wsl::ParsedNetAdapter net, wsl::ParseNetAdapter(text));
    parsed = {net.adapter.name, net.adapter.device, wsl::PluginOptions(net.adapter),
              std::move(net.warnings)};
  } else {
    return absl::InvalidArgumentError("is for the plugins virtiofs and proxy-net");
  }
  return parsed;
}

// What a plugin is called, when it is given by its path.
absl::string_view Stem(absl::string_view plugin) {
  plugin = plugin.substr(plugin.rfind('/') + 1);
  absl::ConsumeSuffix(&plugin, ".so");
  return plugin;
}

absl::Status Apply(DeviceConfig* config) {
  DeviceSpec& spec = config->spec;
  VIRTBAY_ASSIGN_OR_RETURN(Parsed parsed, Parse(Stem(spec.plugin), config->device_string));
  if (spec.name.empty()) {
    const absl::Status named = SetDeviceKey("name", KeyValue(parsed.name), config);
    if (!named.ok()) return Annotate(named, "its name");
  }
  for (auto& [key, value] : parsed.options) {
    if (spec.options.contains(key)) continue;
    const absl::Status set = SetDeviceOption(key, KeyValue(std::move(value)), config);
    if (!set.ok()) return Annotate(set, key);
  }
  if (parsed.device.swiotlb.has_value() && spec.aperture.size == 0 &&
      config->guest_pool == PoolUse::kNone) {
    spec.aperture = *parsed.device.swiotlb;
    spec.dma_mode = DmaMode::kAperture;
    config->aperture_shared = true;
  }
  config->warnings.insert(config->warnings.end(), std::make_move_iterator(parsed.warnings.begin()),
                          std::make_move_iterator(parsed.warnings.end()));
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyDeviceString(DeviceConfig* config) {
  if (config->device_string.empty()) return absl::OkStatus();
  if (config->spec.plugin.empty()) return absl::InvalidArgumentError("plugin: is missing");
  return Annotate(Apply(config), "device-string");
}

}  // namespace virtbay::device_host
