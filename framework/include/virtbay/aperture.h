// Aperture: the guest's bounce pool for one device, and the one rule for what can be such a pool.
// A value; [any].
#ifndef VIRTBAY_APERTURE_H_
#define VIRTBAY_APERTURE_H_

#include <cstdint>

#include "absl/status/status.h"

namespace virtbay {

// Guest addresses [base, +size).
struct Aperture {
  uint64_t base = 0;
  uint64_t size = 0;  // bytes; base and size are multiples of kAperturePage
};

inline constexpr uint64_t kAperturePage = 4096;  // bytes
// Below that no device is of use: the unit in which a Linux guest manages a pool, and the largest
// piece that it maps at once (IO_TLB_SEGSIZE slots of 2 KiB). Two rings of 1024, a quarter of it,
// fit in besides.
inline constexpr uint64_t kLeastAperture = 256u << 10;  // bytes

// InvalidArgument when it is empty, not made of whole pages, or reaches the last address (so that
// its end is an address as well);
// the text is the rest of a sentence that begins with what it is.
inline absl::Status CheckAperture(const Aperture& aperture) {
  if (aperture.size == 0) return absl::InvalidArgumentError("the size is 0");
  if (aperture.base % kAperturePage != 0 || aperture.size % kAperturePage != 0) {
    return absl::InvalidArgumentError("is not made of whole 4 KiB pages");
  }
  if (aperture.size > UINT64_MAX - aperture.base) {
    return absl::InvalidArgumentError("reaches the last address");
  }
  return absl::OkStatus();
}

// The same of what one device is given: InvalidArgument below kLeastAperture as well.
inline absl::Status CheckDeviceAperture(const Aperture& aperture) {
  absl::Status status = CheckAperture(aperture);
  if (status.ok() && aperture.size < kLeastAperture) {
    status =
        absl::InvalidArgumentError("is smaller than 256 KiB, the least with which a device works");
  }
  return status;
}

}  // namespace virtbay

#endif  // VIRTBAY_APERTURE_H_
