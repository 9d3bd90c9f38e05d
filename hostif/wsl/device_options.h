// The options that the strings of every device may have.
// Values; [any].
#ifndef VIRTBAY_HOSTIF_WSL_DEVICE_OPTIONS_H_
#define VIRTBAY_HOSTIF_WSL_DEVICE_OPTIONS_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "hostif/wsl/option_string.h"
#include "virtbay/host.h"

namespace virtbay::wsl {

struct DeviceOptions {
  // `swiotlb=0xBASE,SIZE`: the range of guest memory that the guest bounces into.
  std::optional<Aperture> swiotlb;
  // `vm_id=GUID`: the virtual machine that the device is for, without braces.
  std::string vm_id;
};

// [any] Takes the option if it is one of these; false for any other. InvalidArgument, beginning
// with the key, for a value that is not one. `swiotlb=lowmem` of old guests names no address and is
// refused, with what to give in its place.
absl::StatusOr<bool> SetDeviceOption(const Option& option, DeviceOptions* options);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_DEVICE_OPTIONS_H_
