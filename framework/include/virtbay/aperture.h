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

}  // namespace virtbay

#endif  // VIRTBAY_APERTURE_H_
