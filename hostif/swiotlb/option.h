// The texts by which a guest's bounce pool is asked for and told of: the `swiotlb=` option of a
// device, the kernel command line, and the rule for its size. Stateless; every function is [any].
#ifndef VIRTBAY_HOSTIF_SWIOTLB_OPTION_H_
#define VIRTBAY_HOSTIF_SWIOTLB_OPTION_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "virtbay/host.h"

namespace virtbay::swiotlb {

// Pools are made of whole units of this many bytes.
inline constexpr uint64_t kPoolUnit = 2u << 20;

// `0xBASE,SIZE`: base in hexadecimal, size in decimal or hexadecimal bytes, or with a suffix k, m
// or g. InvalidArgument quoting the text and saying what is wrong: not of that form, empty, not
// whole 4 KiB pages, wrapping.
absl::StatusOr<Aperture> ParsePool(absl::string_view text);
// The same for the range that one device is given: InvalidArgument below kLeastAperture as well.
absl::StatusOr<Aperture> ParseOption(absl::string_view text);
// The same, as ParseOption takes it and a device host of WSL writes it: size in decimal bytes.
std::string FormatOption(const Aperture& pool);

// The pool for a guest with so much memory when nobody asked for a size: 64 MiB from 1 GiB + 64 MiB
// on, else none (0): a small guest needs its memory below 4 GiB for other things. Bytes.
uint64_t DefaultPoolSize(uint64_t guest_memory);
// The size that the guest's kernel makes of it: rounded up to kPoolUnit; 0 when that overflows.
uint64_t RoundPoolSize(uint64_t bytes);
// What a guest's kernel has to be started with for a pool of so many bytes; empty for none.
std::string KernelCommandLine(uint64_t bytes);

}  // namespace virtbay::swiotlb

#endif  // VIRTBAY_HOSTIF_SWIOTLB_OPTION_H_
