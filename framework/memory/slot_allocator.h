// SlotAllocator: hands out runs of 2 KiB slots of an arena; SlotCache: one queue's stock of single
// slots, so that the path of a request takes no lock.
// The allocator belongs to the device and is [any]; a cache belongs to one queue thread.
#ifndef VIRTBAY_FRAMEWORK_MEMORY_SLOT_ALLOCATOR_H_
#define VIRTBAY_FRAMEWORK_MEMORY_SLOT_ALLOCATOR_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "framework/memory/arena.h"

namespace virtbay {

class SlotAllocator {
 public:
  explicit SlotAllocator(const Arena& arena);

  // `count` (1..128) contiguous slots inside one 128-slot segment, or nullptr when there are none.
  std::byte* Allocate(uint32_t count);
  // Gives back what Allocate gave.
  void Free(std::byte* data, uint32_t count);

  // Single slots, as many as there are up to to.size(); returns how many. One lock for all.
  size_t AllocateSingles(std::span<std::byte*> to);
  void FreeSingles(std::span<std::byte* const> slots);

  uint32_t slots() const { return slots_; }
  // Slots that are out, those in the stock of a SlotCache included.
  uint32_t used() const { return used_.load(std::memory_order_relaxed); }
  uint32_t high_water() const { return high_water_.load(std::memory_order_relaxed); }

 private:
  // One bit per slot, set = in use; two words a segment.
  struct Segment {
    uint64_t bits[2] = {0, 0};
  };

  void Account(uint32_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ClearBits(const std::byte* data, uint32_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::byte* const base_;
  const uint32_t slots_;
  absl::Mutex mutex_;
  std::vector<Segment> segments_ ABSL_GUARDED_BY(mutex_);
  size_t hint_ ABSL_GUARDED_BY(mutex_) = 0;  // the segment where something was last found or freed
  std::atomic<uint32_t> used_{0};
  std::atomic<uint32_t> high_water_{0};
};

class SlotCache {
 public:
  explicit SlotCache(SlotAllocator* allocator);
  ~SlotCache();  // gives everything back
  SlotCache(const SlotCache&) = delete;
  SlotCache& operator=(const SlotCache&) = delete;

  // As SlotAllocator's; single slots come from the stock, last in first out (warm in the cache).
  std::byte* Allocate(uint32_t count);
  void Free(std::byte* data, uint32_t count);
  // Returns the stock to the allocator (an idle queue holds nothing back from the others).
  void Trim();

 private:
  static constexpr uint32_t kStock = 64;
  static constexpr uint32_t kRefill = 16;  // small: what lies in the stock counts as used
  SlotAllocator* const allocator_;
  size_t stocked_ = 0;
  std::byte* stock_[kStock] = {};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_SLOT_ALLOCATOR_H_
