#include "hostif/device_host/aggregate_device.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace virtbay::device_host {
namespace {

constexpr char kQueues[] = "request-queues";
constexpr char kXattr[] = "xattr";

// The option's value, which is taken out of the options; empty: not given.
std::string Take(const char* key, std::map<std::string, std::string>* options) {
  auto node = options->extract(key);
  return node.empty() ? std::string() : std::move(node.mapped());
}

// As many queues as the share that asks for most.
void RaiseQueues(const std::string& text, DeviceConfig* aggregate) {
  uint32_t wanted = 0, now = 0;
  if (!absl::SimpleAtoi(text, &wanted)) return;
  std::string& queues = aggregate->spec.options[kQueues];
  if (!absl::SimpleAtoi(queues, &now) || now < wanted) queues = absl::StrCat(wanted);
}

absl::Status TakePool(const DeviceConfig& from, DeviceConfig* to) {
  const DeviceSpec& share = from.spec;
  DeviceSpec& aggregate = to->spec;
  if (share.aperture.size == 0) return absl::OkStatus();
  const bool same = share.aperture.base == aggregate.aperture.base &&
                    share.aperture.size == aggregate.aperture.size;
  if (aggregate.aperture.size != 0 && !same) {
    return absl::InvalidArgumentError(
        absl::StrCat("device ", aggregate.name, ": share ", share.name,
                     ": swiotlb: another share of this device names another pool"));
  }
  // A range that the device was given for itself stays so.
  if (aggregate.aperture.size == 0) to->aperture_shared = from.aperture_shared;
  aggregate.aperture = share.aperture;
  aggregate.dma_mode = share.dma_mode;
  return absl::OkStatus();
}

}  // namespace

absl::Status MakeAggregate(std::vector<DeviceConfig> shares, DeviceConfig* aggregate) {
  DeviceSpec& spec = aggregate->spec;
  spec.options["aggregate"] = "true";
  const bool asked = spec.options.contains(kXattr);
  const bool any = std::any_of(shares.begin(), shares.end(), [](const DeviceConfig& share) {
    return share.spec.options.contains(kXattr);
  });
  if (any && !asked) spec.options[kXattr] = "true";
  for (DeviceConfig& share : shares) {
    std::map<std::string, std::string>& options = share.spec.options;
    if (absl::Status status = TakePool(share, aggregate); !status.ok()) return status;
    RaiseQueues(Take(kQueues, &options), aggregate);
    Take("tag", &options);  // the device has one, and the share a name
    ShareConfig made;
    made.spec.name = share.spec.name;
    made.spec.path = Take("shared-dir", &options);
    // The device has them for the sake of those that ask.
    if (any && !asked) options.emplace(kXattr, "false");
    made.spec.options = std::move(options);
    aggregate->shares.push_back(std::move(made));
    for (const std::string& warning : share.warnings) {
      aggregate->warnings.push_back(absl::StrCat("share ", share.spec.name, ": ", warning));
    }
  }
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
