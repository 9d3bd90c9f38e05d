#include "framework/virtq/placement.h"

#include "absl/strings/str_cat.h"

namespace virtbay {
namespace {

// By last bytes: the end of a part at the top of memory is not a number.
bool Overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len) {
  return a <= b + (b_len - 1) && b <= a + (a_len - 1);
}

}  // namespace

absl::Status PlaceRing(const MemoryMap& map, std::array<RingPart, 3>& parts) {
  for (RingPart& part : parts) {
    if (part.span.address % part.alignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat(part.name, " at 0x",
                                                     absl::Hex(part.span.address),
                                                     " is not aligned to ", part.alignment));
    }
    part.data = map.TranslateWhole(part.span.address, part.span.size);
    // The host address must be as aligned as the guest's: a region may start anywhere.
    if (part.data == nullptr || reinterpret_cast<uintptr_t>(part.data) % part.alignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          part.name, " at 0x", absl::Hex(part.span.address), " is not in the memory map"));
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    for (size_t j = i + 1; j < parts.size(); ++j) {
      if (Overlap(parts[i].span.address, parts[i].span.size, parts[j].span.address,
                  parts[j].span.size)) {
        return absl::InvalidArgumentError(
            absl::StrCat(parts[i].name, " and ", parts[j].name, " overlap"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace virtbay
