// Arena: a device's private SWIOTLB memory: a memfd mapping with a guard page on each side.
// Owned by the device; lives as long as it. The memory itself is used on the queue threads.
#ifndef VIRTBAY_FRAMEWORK_MEMORY_ARENA_H_
#define VIRTBAY_FRAMEWORK_MEMORY_ARENA_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace virtbay {

inline constexpr uint32_t kSlotSize = 2048;                            // IO_TLB_SIZE
inline constexpr uint32_t kSlotsPerSegment = 128;                      // IO_TLB_SEGSIZE
inline constexpr uint32_t kMappingMax = kSlotSize * kSlotsPerSegment;  // 256 KiB

// How many slots hold so many bytes.
constexpr uint32_t SlotsFor(uint64_t bytes) {
  return static_cast<uint32_t>((bytes + kSlotSize - 1) / kSlotSize);
}

class Arena {
 public:
  // `size` is rounded up to a whole segment (256 KiB); 0 and more than 4 GiB are InvalidArgument.
  // Pages are not touched until slots are used. `name` shows in /proc/PID/maps. [control]
  static absl::StatusOr<Arena> Create(absl::string_view name, uint64_t size);
  Arena(Arena&& other) noexcept;
  Arena& operator=(Arena&& other) noexcept;
  ~Arena();

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }
  uint32_t slots() const { return static_cast<uint32_t>(size_ / kSlotSize); }

 private:
  Arena() = default;
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_ARENA_H_
