#include "hostif/wsl/device_options.h"

#include "framework/base/status.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::wsl {

absl::StatusOr<bool> SetDeviceOption(const Option& option, DeviceOptions* options) {
  if (option.key == "swiotlb") {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
    if (text == "lowmem") {
      return absl::InvalidArgumentError(
          "swiotlb: 'lowmem' leaves the place of the pool to the guest; give it as 0xBASE,SIZE, as "
          "virtbay-guest tells it");
    }
    const auto range = swiotlb::ParseOption(text);
    if (!range.ok()) return Annotate(range.status(), "swiotlb");
    options->swiotlb = *range;
    return true;
  }
  if (option.key == "vm_id") {
    VIRTBAY_ASSIGN_OR_RETURN(options->vm_id, GuidOf(option));
    return true;
  }
  return false;
}

}  // namespace virtbay::wsl
