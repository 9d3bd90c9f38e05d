// SlotPool: an arena and the allocator of its slots. A device has one of its own; devices whose
// policy is to share have one together, as the devices of a guest with a single global SWIOTLB.
// Shared by the devices that use it, and the Host that made a shared one; every function is [any].
#ifndef VIRTBAY_FRAMEWORK_MEMORY_SLOT_POOL_H_
#define VIRTBAY_FRAMEWORK_MEMORY_SLOT_POOL_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/memory/arena.h"
#include "framework/memory/slot_allocator.h"

namespace virtbay {

class SlotPool {
 public:
  // `size` is rounded up to 2 MiB; errors of Arena::Create.
  static absl::StatusOr<std::shared_ptr<SlotPool>> Create(absl::string_view name, uint64_t size);
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  const Arena& arena() const { return arena_; }
  SlotAllocator& slots() { return slots_; }

 private:
  explicit SlotPool(Arena arena) : arena_(std::move(arena)), slots_(arena_) {}

  const Arena arena_;
  SlotAllocator slots_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_SLOT_POOL_H_
