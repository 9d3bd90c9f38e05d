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

// How many slots are out. Written under the lock of an allocator; reading is [any].
class SlotAccount {
 public:
  uint32_t used() const { return used_.load(std::memory_order_relaxed); }
  uint32_t high_water() const { return high_water_.load(std::memory_order_relaxed); }

 private:
  friend class SlotAllocator;
  void Take(uint32_t count) {
    // One writer at a time, so plain arithmetic does.
    const uint32_t used = this->used() + count;
    used_.store(used, std::memory_order_relaxed);
    if (used > high_water()) high_water_.store(used, std::memory_order_relaxed);
  }
  void Give(uint32_t count) { used_.store(used() - count, std::memory_order_relaxed); }

  std::atomic<uint32_t> used_{0};
  std::atomic<uint32_t> high_water_{0};
};

// Functions with an `account` count there as well: the share of one user among several.
class SlotAllocator {
 public:
  explicit SlotAllocator(const Arena& arena);

  // `count` (1..128) contiguous slots inside one 128-slot segment, or nullptr when there are none.
  std::byte* Allocate(uint32_t count, SlotAccount* account = nullptr);
  // Gives back what Allocate gave.
  void Free(std::byte* data, uint32_t count, SlotAccount* account = nullptr);

  // Single slots, as many as there are up to to.size(); returns how many. One lock for all.
  size_t AllocateSingles(std::span<std::byte*> to, SlotAccount* account = nullptr);
  void FreeSingles(std::span<std::byte* const> slots, SlotAccount* account = nullptr);

  uint32_t slots() const { return slots_; }
  // Those in the stock of a SlotCache included; see SlotCache::stocked.
  const SlotAccount& account() const { return account_; }

 private:
  // One bit per slot, set = in use; two words a segment.
  struct Segment {
    uint64_t bits[2] = {0, 0};
  };

  void ClearBits(const std::byte* data, uint32_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::byte* const base_;
  const uint32_t slots_;
  absl::Mutex mutex_;
  std::vector<Segment> segments_ ABSL_GUARDED_BY(mutex_);
  size_t hint_ ABSL_GUARDED_BY(mutex_) = 0;  // the segment where something was last found or freed
  SlotAccount account_;
};

class SlotCache {
 public:
  explicit SlotCache(SlotAllocator* allocator);
  // For a pool that devices share: without a stock, so that every slot goes through the pool's
  // lock, and counted in `account`.
  SlotCache(SlotAllocator* allocator, SlotAccount* account);
  ~SlotCache();  // gives everything back
  SlotCache(const SlotCache&) = delete;
  SlotCache& operator=(const SlotCache&) = delete;

  // As SlotAllocator's; single slots come from the stock, last in first out (warm in the cache).
  std::byte* Allocate(uint32_t count) {
    const uint32_t stocked = this->stocked();
    if (count != 1 || stocked == 0) return AllocateMore(count);
    stocked_.store(stocked - 1, std::memory_order_relaxed);
    return stock_[stocked - 1];
  }
  void Free(std::byte* data, uint32_t count) {
    const uint32_t stocked = this->stocked();
    if (count != 1 || stocked == limit_ || data == nullptr) return FreeMore(data, count);
    stock_[stocked] = data;
    stocked_.store(stocked + 1, std::memory_order_relaxed);
  }
  // Returns the stock to the allocator (an idle queue holds nothing back from the others).
  void Trim();
  // [any] Slots that are in stock: taken from the allocator, in use by nobody.
  uint32_t stocked() const { return stocked_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kStock = 64;
  static constexpr size_t kRefill = 16;  // small: what lies in the stock counts as used

  // What the stock has not got, or has no room for.
  std::byte* AllocateMore(uint32_t count);
  void FreeMore(std::byte* data, uint32_t count);

  SlotAllocator* const allocator_;
  SlotAccount* const account_;        // nullptr: the allocator's own is enough
  const size_t limit_;                // of the stock
  std::atomic<uint32_t> stocked_{0};  // written by the queue's thread
  std::byte* stock_[kStock] = {};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_SLOT_ALLOCATOR_H_
