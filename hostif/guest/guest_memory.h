// GuestMemory: the guest-physical memory of a user-space driver: memfd regions mapped here, handed
// to a device through a Transport, and an allocator of ranges in them.
// Owned by the driver's creator and must outlive every queue in it. Allocate and Free take a lock
// [any]; Translate and At are [any] as long as no region is added or removed meanwhile [control].
#ifndef VIRTBAY_HOSTIF_GUEST_GUEST_MEMORY_H_
#define VIRTBAY_HOSTIF_GUEST_GUEST_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/unique_fd.h"
#include "framework/memory/memory_map.h"

namespace virtbay::guest {

// Guest-physical [address, +size), mapped at `host` here.
struct GuestRange {
  uint64_t address = 0;
  uint64_t size = 0;
  std::byte* host = nullptr;
};

// A region to be made. A non-zero file_offset leaves that many bytes of the memfd before the
// region, as front-ends do whose memory is one file.
struct GuestRegionSpec {
  uint64_t address = 0;
  uint64_t size = 0;  // bytes, a multiple of 4096
  uint64_t file_offset = 0;
};

class GuestMemory {
 public:
  // One region as a device is told of it; user_address is where it is mapped here.
  struct Region {
    uint64_t address = 0;
    uint64_t size = 0;
    uint64_t file_offset = 0;
    std::byte* host = nullptr;
    UniqueFd fd;

    uint64_t user_address() const { return reinterpret_cast<uint64_t>(host); }
  };

  // Default start of guest memory: above 4 GiB, so that a 32-bit slip in a device shows.
  static constexpr uint64_t kDefaultAddress = 0x1'4000'0000;

  // One region of `size` bytes. InvalidArgument for an empty, unaligned or wrapping region, or the
  // errno of memfd_create, ftruncate or mmap. [control]
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(uint64_t size,
                                                             uint64_t address = kDefaultAddress);
  // Several regions; InvalidArgument also when two overlap. [control]
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Create(
      const std::vector<GuestRegionSpec>& regions);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  // Memory hot plug: adds a region; the device learns of it by the next Transport::SetMemory.
  absl::Status AddRegion(const GuestRegionSpec& spec);
  // Unmaps the region that starts at `address`; NotFound, or FailedPrecondition while a range in it
  // is allocated. [control]
  absl::Status RemoveRegion(uint64_t address);

  // First fit in region order, `alignment` a power of two in guest addresses. The bytes are zero
  // only if never used before. ResourceExhausted when no region has room. [any]
  absl::StatusOr<GuestRange> Allocate(uint64_t size, uint64_t alignment = 16);
  // The same, in the region that starts at `region_address` only. [any]
  absl::StatusOr<GuestRange> AllocateIn(uint64_t region_address, uint64_t size,
                                        uint64_t alignment = 16);
  // Gives back a range from Allocate; a range that is not allocated is ignored. [any]
  void Free(const GuestRange& range);
  // Bytes allocated now. [any]
  uint64_t allocated() const;

  // Where guest [address, +len) lies here, or nullptr when it is not inside one region. [any]
  std::byte* Translate(uint64_t address, uint64_t len) const;

  const std::vector<Region>& regions() const { return regions_; }
  // The map for a virtbay::DevicePort: mapped a second time, as another process would, or
  // `as_files` for a port that wants those. [control]
  absl::StatusOr<MemoryMapRef> ToMemoryMap(bool as_files = false) const;

 private:
  using Holes = std::map<uint64_t, uint64_t>;  // address -> size of free ranges, merged

  GuestMemory() = default;
  absl::StatusOr<GuestRange> AllocateLocked(const Region& region, uint64_t size, uint64_t alignment)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  std::vector<Region> regions_;
  mutable absl::Mutex mutex_;
  std::map<uint64_t, Holes> holes_ ABSL_GUARDED_BY(mutex_);  // by region address
  std::map<uint64_t, uint64_t> allocations_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_GUEST_MEMORY_H_
