// MemoryMap: where guest memory lies in this process: an immutable, reference-counted table.
// Made on the control thread; a queue keeps the map that its requests were parsed with, so a new
// map never frees memory under a request. Every function is [any].
#ifndef VIRTBAY_FRAMEWORK_MEMORY_MEMORY_MAP_H_
#define VIRTBAY_FRAMEWORK_MEMORY_MEMORY_MAP_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/memory/mapping_registry.h"

namespace virtbay {

// One mapping of a front-end's memory file; unmapped when the last map that uses it is gone.
class GuestMapping {
 public:
  // Maps `size` bytes of fd at `offset`, shared and writable. InvalidArgument when the range is
  // empty, wraps, or the file is known to be shorter; the fd may be closed afterwards. A memfd that
  // still takes seals is sealed against shrinking.
  static absl::StatusOr<std::shared_ptr<const GuestMapping>> Create(int fd, uint64_t offset,
                                                                    uint64_t size);
  ~GuestMapping();
  GuestMapping(const GuestMapping&) = delete;
  GuestMapping& operator=(const GuestMapping&) = delete;

  std::byte* data() const { return data_; }
  uint64_t size() const { return size_; }

  // True once a page of it was found gone (the front-end truncated its file) and was replaced by
  // zeroes: what was read from it since means nothing. Always false without a SigbusGuard.
  bool poisoned() const { return poisoned_.load(std::memory_order_relaxed); }

 private:
  GuestMapping() = default;
  void* base_ = nullptr;      // page (huge page) aligned start
  uint64_t mapped_size_ = 0;  // from base_
  std::byte* data_ = nullptr;
  uint64_t size_ = 0;
  std::atomic<bool> poisoned_{false};  // set by the SIGBUS handler
  MappingRegistry::Entry registration_;
};

// One region of a map: guest addresses [guest_address, +size), known to a vhost-user front-end as
// user_address, at `host` here.
struct MemoryRegion {
  uint64_t guest_address = 0;
  uint64_t user_address = 0;
  uint64_t size = 0;
  std::shared_ptr<const GuestMapping> mapping;

  std::byte* host() const { return mapping->data(); }
};

class MemoryMap;
using MemoryMapRef = std::shared_ptr<const MemoryMap>;

class MemoryMap {
 public:
  // At most 509 regions (vhost-user CONFIGURE_MEM_SLOTS), no two overlapping in guest or in user
  // addresses, none wrapping; else InvalidArgument naming the region.
  static absl::StatusOr<MemoryMapRef> Create(std::vector<MemoryRegion> regions);

  // The longest run from guest address `address` inside one region, at most len bytes: sets *data
  // and returns its length; 0 when the address is in no region. Adjacent regions are not joined:
  // the caller goes on with the rest.
  uint64_t Translate(uint64_t address, uint64_t len, std::byte** data) const {
    const MemoryRegion* region = Find(address);
    if (region == nullptr) return 0;
    const uint64_t offset = address - region->guest_address;
    *data = region->host() + offset;
    const uint64_t rest = region->size - offset;
    return len < rest ? len : rest;
  }

  // [address, +len) when it lies in one region, else nullptr.
  std::byte* TranslateWhole(uint64_t address, uint64_t len) const {
    std::byte* data = nullptr;
    return len != 0 && Translate(address, len, &data) == len ? data : nullptr;
  }

  // The guest address of a front-end user address, for [user, +len) inside one region; OutOfRange
  // when it is in none.
  absl::StatusOr<uint64_t> UserToGuest(uint64_t user, uint64_t len) const;

  const std::vector<MemoryRegion>& regions() const { return regions_; }
  uint64_t total_size() const;

  // True when a mapping of it is poisoned; rings on this map stop at the next burst boundary.
  bool poisoned() const {
    for (const MemoryRegion& region : regions_) {
      if (region.mapping->poisoned()) return true;
    }
    return false;
  }

 private:
  explicit MemoryMap(std::vector<MemoryRegion> regions) : regions_(std::move(regions)) {}

  // Regions are few and sorted by guest address; binary search keeps 509 of them cheap.
  const MemoryRegion* Find(uint64_t address) const {
    size_t low = 0;
    size_t high = regions_.size();
    while (low < high) {
      const size_t middle = (low + high) / 2;
      const MemoryRegion& region = regions_[middle];
      if (address < region.guest_address) {
        high = middle;
      } else if (address - region.guest_address >= region.size) {
        low = middle + 1;
      } else {
        return &region;
      }
    }
    return nullptr;
  }

  std::vector<MemoryRegion> regions_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_MEMORY_MAP_H_
