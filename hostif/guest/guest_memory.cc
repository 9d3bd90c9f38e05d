#include "hostif/guest/guest_memory.h"

#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

constexpr uint64_t kPage = 4096;

absl::Status CheckSpec(const GuestRegionSpec& spec) {
  const auto refuse = [&spec](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrFormat("guest region 0x%x, %d bytes: %s", spec.address, spec.size, why));
  };
  if (spec.size == 0) return refuse("is empty");
  if ((spec.size | spec.address | spec.file_offset) % kPage != 0) {
    return refuse("is not a multiple of 4096");
  }
  uint64_t end = 0;
  if (__builtin_add_overflow(spec.address, spec.size, &end)) return refuse("wraps");
  if (__builtin_add_overflow(spec.file_offset, spec.size, &end) || end > INT64_MAX) {
    return refuse("is too large for a file");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(uint64_t size, uint64_t address) {
  return Create({GuestRegionSpec{.address = address, .size = size, .file_offset = 0}});
}

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Create(
    const std::vector<GuestRegionSpec>& regions) {
  std::unique_ptr<GuestMemory> memory(new GuestMemory());
  for (const GuestRegionSpec& spec : regions) {
    VIRTBAY_RETURN_IF_ERROR(memory->AddRegion(spec));
  }
  return memory;
}

GuestMemory::~GuestMemory() {
  for (const Region& region : regions_) ::munmap(region.host, region.size);
}

absl::Status GuestMemory::AddRegion(const GuestRegionSpec& spec) {
  VIRTBAY_RETURN_IF_ERROR(CheckSpec(spec));
  for (const Region& other : regions_) {
    if (spec.address < other.address + other.size && other.address < spec.address + spec.size) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "guest region 0x%x overlaps the one at 0x%x", spec.address, other.address));
    }
  }
  UniqueFd fd(::memfd_create("virtbay-guest", MFD_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(spec.file_offset + spec.size)) != 0) {
    return ErrnoStatus(errno, "sizing guest memory");
  }
  void* const at = ::mmap(nullptr, spec.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(),
                          static_cast<off_t>(spec.file_offset));
  if (at == MAP_FAILED) return ErrnoStatus(errno, "mapping guest memory");
  regions_.push_back(Region{.address = spec.address,
                            .size = spec.size,
                            .file_offset = spec.file_offset,
                            .host = static_cast<std::byte*>(at),
                            .fd = std::move(fd)});
  absl::MutexLock lock(&mutex_);
  holes_[spec.address] = Holes{{spec.address, spec.size}};
  return absl::OkStatus();
}

absl::Status GuestMemory::RemoveRegion(uint64_t address) {
  for (auto region = regions_.begin(); region != regions_.end(); ++region) {
    if (region->address != address) continue;
    absl::MutexLock lock(&mutex_);
    const auto used = allocations_.lower_bound(address);
    if (used != allocations_.end() && used->first < address + region->size) {
      return absl::FailedPreconditionError(
          absl::StrFormat("guest region 0x%x is in use at 0x%x", address, used->first));
    }
    ::munmap(region->host, region->size);
    regions_.erase(region);
    holes_.erase(address);
    return absl::OkStatus();
  }
  return absl::NotFoundError(absl::StrFormat("no guest region starts at 0x%x", address));
}

absl::StatusOr<GuestRange> GuestMemory::AllocateLocked(const Region& region, uint64_t size,
                                                       uint64_t alignment) {
  Holes& holes = holes_[region.address];
  for (auto hole = holes.begin(); hole != holes.end(); ++hole) {
    const uint64_t start = hole->first;
    const uint64_t end = start + hole->second;
    const uint64_t pad = (alignment - start % alignment) % alignment;
    if (hole->second < pad || hole->second - pad < size) continue;
    const uint64_t address = start + pad;
    holes.erase(hole);
    if (pad != 0) holes.emplace(start, pad);
    if (address + size != end) holes.emplace(address + size, end - address - size);
    allocations_.emplace(address, size);
    return GuestRange{
        .address = address, .size = size, .host = region.host + (address - region.address)};
  }
  return absl::ResourceExhaustedError(
      absl::StrFormat("no %d free bytes in the guest region 0x%x", size, region.address));
}

absl::StatusOr<GuestRange> GuestMemory::Allocate(uint64_t size, uint64_t alignment) {
  if (size == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
    return absl::InvalidArgumentError("a guest range needs a size and a power-of-two alignment");
  }
  absl::MutexLock lock(&mutex_);
  for (const Region& region : regions_) {
    absl::StatusOr<GuestRange> range = AllocateLocked(region, size, alignment);
    if (range.ok()) return range;
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("guest memory has no ", size, " contiguous free bytes"));
}

absl::StatusOr<GuestRange> GuestMemory::AllocateIn(uint64_t region_address, uint64_t size,
                                                   uint64_t alignment) {
  if (size == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
    return absl::InvalidArgumentError("a guest range needs a size and a power-of-two alignment");
  }
  absl::MutexLock lock(&mutex_);
  for (const Region& region : regions_) {
    if (region.address == region_address) return AllocateLocked(region, size, alignment);
  }
  return absl::NotFoundError(absl::StrFormat("no guest region starts at 0x%x", region_address));
}

void GuestMemory::Free(const GuestRange& range) {
  absl::MutexLock lock(&mutex_);
  const auto allocation = allocations_.find(range.address);
  if (allocation == allocations_.end()) return;
  uint64_t start = allocation->first;
  uint64_t size = allocation->second;
  allocations_.erase(allocation);
  for (auto& [address, holes] : holes_) {
    const auto region_end = holes_.upper_bound(address);
    if (start < address || (region_end != holes_.end() && start >= region_end->first)) continue;
    const auto next = holes.lower_bound(start);
    if (next != holes.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == start) {
        start = before->first;
        size += before->second;
        holes.erase(before);
      }
    }
    if (next != holes.end() && start + size == next->first) {
      size += next->second;
      holes.erase(next);
    }
    holes.emplace(start, size);
    return;
  }
}

uint64_t GuestMemory::allocated() const {
  absl::MutexLock lock(&mutex_);
  uint64_t sum = 0;
  for (const auto& [address, size] : allocations_) sum += size;
  return sum;
}

std::byte* GuestMemory::Translate(uint64_t address, uint64_t len) const {
  for (const Region& region : regions_) {
    if (address < region.address || address - region.address >= region.size) continue;
    const uint64_t offset = address - region.address;
    return len <= region.size - offset ? region.host + offset : nullptr;
  }
  return nullptr;
}

absl::StatusOr<MemoryMapRef> GuestMemory::ToMemoryMap(bool as_files) const {
  std::vector<MemoryRegion> map;
  for (const Region& region : regions_) {
    MemoryRegion& known = map.emplace_back();
    known.guest_address = region.address;
    known.user_address = region.user_address();
    known.size = region.size;
    if (as_files) {
      UniqueFd fd = region.fd.Duplicate();
      if (!fd) return ErrnoStatus(errno, "guest memory");
      VIRTBAY_ASSIGN_OR_RETURN(known.file,
                               GuestFile::Create(std::move(fd), region.file_offset, region.size));
    } else {
      VIRTBAY_ASSIGN_OR_RETURN(
          known.mapping, GuestMapping::Create(region.fd.get(), region.file_offset, region.size));
    }
  }
  return MemoryMap::Create(std::move(map));
}

}  // namespace virtbay::guest
