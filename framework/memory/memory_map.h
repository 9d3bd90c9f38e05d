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
#include "framework/base/export.h"
#include "framework/base/unique_fd.h"
#include "framework/memory/mapping_registry.h"

namespace virtbay {

// One mapping of a front-end's memory file; unmapped when the last map that uses it is gone.
class VIRTBAY_EXPORT GuestMapping {
 public:
  // Maps `size` bytes of fd at `offset`, shared and writable. InvalidArgument when the range is
  // empty, wraps, or the file is known to be shorter, ResourceExhausted when a SigbusGuard has no
  // place left for it; the fd may be closed afterwards. A memfd that
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

// A piece of a front-end's memory file that is not mapped as a whole: a device that may reach only
// its aperture maps no more than that. Keeps the file open.
class VIRTBAY_EXPORT GuestFile {
 public:
  // Takes the fd over. InvalidArgument as GuestMapping::Create.
  static absl::StatusOr<std::shared_ptr<const GuestFile>> Create(UniqueFd fd, uint64_t offset,
                                                                 uint64_t size);

  // Maps bytes [at, at + len) of the piece, and the rest of the pages at its ends.
  absl::StatusOr<std::shared_ptr<const GuestMapping>> Map(uint64_t at, uint64_t len) const;
  uint64_t size() const { return size_; }

 private:
  GuestFile(UniqueFd fd, uint64_t offset, uint64_t size)
      : fd_(std::move(fd)), offset_(offset), size_(size) {}
  UniqueFd fd_;
  uint64_t offset_;
  uint64_t size_;
};

// One region of a map: guest addresses [guest_address, +size), known to a vhost-user front-end as
// user_address, at `host` here. A region with a file and no mapping is known, but cannot be reached
// through the map.
struct MemoryRegion {
  uint64_t guest_address = 0;
  uint64_t user_address = 0;
  uint64_t size = 0;
  std::shared_ptr<const GuestMapping> mapping;
  uint64_t mapping_offset = 0;  // of the region's first byte in the mapping
  std::shared_ptr<const GuestFile> file = nullptr;

  std::byte* host() const { return mapping->data() + mapping_offset; }
};

// Guest addresses [address, +size).
struct GuestSpan {
  uint64_t address = 0;
  uint64_t size = 0;

  // Whether [at, at + len) lies in it.
  bool Contains(uint64_t at, uint64_t len) const {
    return at >= address && len <= size && at - address <= size - len;
  }
};

class MemoryMap;
using MemoryMapRef = std::shared_ptr<const MemoryMap>;

class VIRTBAY_EXPORT MemoryMap {
 public:
  // At most 509 regions (vhost-user CONFIGURE_MEM_SLOTS), no two overlapping in guest or in user
  // addresses, none wrapping; else InvalidArgument naming the region.
  static absl::StatusOr<MemoryMapRef> Create(std::vector<MemoryRegion> regions);

  // A map of nothing but these spans of this one, whichever regions they lie in; what this map only
  // knows as files is mapped for it. FailedPrecondition naming the range where there is no memory,
  // InvalidArgument when spans overlap, wrap or are empty.
  absl::StatusOr<MemoryMapRef> Window(const std::vector<GuestSpan>& spans) const;

  // The longest run from guest address `address` inside one region, at most len bytes: sets *data
  // and returns its length; 0 when the address is in no region. Adjacent regions are not joined:
  // the caller goes on with the rest.
  uint64_t Translate(uint64_t address, uint64_t len, std::byte** data) const {
    const MemoryRegion* region = Find(address);
    if (region == nullptr || region->mapping == nullptr) return 0;
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
      if (region.mapping != nullptr && region.mapping->poisoned()) return true;
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
