// Where the parts of a ring lie here, checked: common to both layouts. Stateless; [control].
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_PLACEMENT_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_PLACEMENT_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "framework/memory/memory_map.h"

namespace virtbay {

struct RingPart {
  const char* name;
  GuestSpan span;
  uint64_t alignment;
  std::byte* data;  // found by PlaceRing
};

// Finds the three parts in the map; InvalidArgument naming one that is misaligned, unmapped, not in
// one region, or overlaps another.
absl::Status PlaceRing(const MemoryMap& map, std::array<RingPart, 3>& parts);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_PLACEMENT_H_
