#include "framework/memory/memory_map.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"

namespace virtbay {
namespace {

constexpr size_t kMaxRegions = 509;

// The unit in which the file can be mapped: hugetlbfs takes nothing smaller than its own pages.
uint64_t MappingUnit(int fd) {
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  // Of file systems the kernel's own for memory alone take seals, and answer at once.
  if (fcntl(fd, F_GET_SEALS) < 0) return page;
  struct statfs fs {};
  if (fstatfs(fd, &fs) != 0 || static_cast<uint64_t>(fs.f_type) != HUGETLBFS_MAGIC) return page;
  const uint64_t huge = static_cast<uint64_t>(fs.f_bsize);
  return huge > page && (huge & (huge - 1)) == 0 ? huge : page;
}

// A front-end that can shrink its file later can make every access here fault; where the file takes
// seals, that is settled now. Failure leaves the SIGBUS guard as the remedy.
void SealAgainstShrinking(int fd) {
  const int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & (F_SEAL_SEAL | F_SEAL_SHRINK)) != 0) return;
  static_cast<void>(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
}

std::string Describe(const MemoryRegion& region) {
  return absl::StrFormat("region at guest address %#x, user address %#x, size %#x",
                         region.guest_address, region.user_address, region.size);
}

absl::Status CheckRegion(const MemoryRegion& region) {
  if (region.size == 0) return absl::InvalidArgumentError(Describe(region) + ": empty");
  const uint64_t last = region.size - 1;
  if (last > UINT64_MAX - region.guest_address || last > UINT64_MAX - region.user_address) {
    return absl::InvalidArgumentError(Describe(region) + ": wraps round");
  }
  const uint64_t there = region.mapping != nullptr ? region.mapping->size()
                         : region.file != nullptr  ? region.file->size()
                                                   : 0;
  if (region.mapping_offset > there || region.size > there - region.mapping_offset) {
    return absl::InvalidArgumentError(Describe(region) + ": larger than its mapping");
  }
  return absl::OkStatus();
}

// Regions sorted by `address` that share a byte, as an error.
template <typename Address>
absl::Status CheckOverlap(const std::vector<const MemoryRegion*>& sorted, Address address,
                          absl::string_view what) {
  for (size_t i = 1; i < sorted.size(); ++i) {
    const MemoryRegion& before = *sorted[i - 1];
    // Sizes are not 0 here and nothing wraps: CheckRegion ran.
    if (address(before) + (before.size - 1) >= address(*sorted[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat(Describe(*sorted[i]), ": overlaps the ", Describe(before), " in ", what));
    }
  }
  return absl::OkStatus();
}

// [offset, +size) is a range of the file, and stays one where the file takes seals.
absl::Status CheckFile(int fd, uint64_t offset, uint64_t size) {
  uint64_t end = 0;
  if (size == 0 || __builtin_add_overflow(offset, size, &end) ||
      end > static_cast<uint64_t>(INT64_MAX)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "memory region: offset %#x, size %#x is not a range of a file", offset, size));
  }
  // Sealed first, so that the length seen below stays true.
  SealAgainstShrinking(fd);
  // Asks no file system, which may never answer.
  struct statx st {};
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_SIZE, &st) != 0) {
    return ErrnoStatus(errno, "memory region: statx");
  }
  if (S_ISREG(st.stx_mode) && end > st.stx_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("memory region: offset %#x, size %#x reaches beyond its file of %#x bytes",
                        offset, size, uint64_t{st.stx_size}));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const GuestMapping>> GuestMapping::Create(int fd, uint64_t offset,
                                                                         uint64_t size) {
  VIRTBAY_RETURN_IF_ERROR(CheckFile(fd, offset, size));
  const uint64_t end = offset + size;
  const uint64_t unit = MappingUnit(fd);
  const uint64_t start = offset & ~(unit - 1);
  uint64_t length = end - start;
  if (__builtin_add_overflow(length, unit - 1, &length)) {
    return absl::InvalidArgumentError("memory region: too large");
  }
  length &= ~(unit - 1);
  void* const base =
      mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(start));
  if (base == MAP_FAILED) {
    return ErrnoStatus(errno, absl::StrFormat("memory region: mmap of %#x bytes", length));
  }
  // A core file of the device host is not the place for the guest's memory.
  static_cast<void>(madvise(base, length, MADV_DONTDUMP));

  // The constructor is private, so no make_shared.
  std::shared_ptr<GuestMapping> mapping(new GuestMapping());
  mapping->base_ = base;
  mapping->mapped_size_ = length;
  mapping->data_ = static_cast<std::byte*>(base) + (offset - start);
  mapping->size_ = size;
  if (MappingRegistry* registry = MappingRegistry::Current(); registry != nullptr) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(base);
    mapping->registration_ =
        registry->Add({begin, begin + length, static_cast<size_t>(unit), &mapping->poisoned_});
    if (!mapping->registration_) {
      return absl::ResourceExhaustedError(absl::StrCat("memory region: all ",
                                                       MappingRegistry::kCapacity,
                                                       " places for guarded mappings are taken"));
    }
  }
  return mapping;
}

GuestMapping::~GuestMapping() {
  registration_.Release();
  if (base_ != nullptr) munmap(base_, mapped_size_);
}

absl::StatusOr<std::shared_ptr<const GuestFile>> GuestFile::Create(UniqueFd fd, uint64_t offset,
                                                                   uint64_t size) {
  VIRTBAY_RETURN_IF_ERROR(CheckFile(fd.get(), offset, size));
  // The constructor is private, so no make_shared.
  return std::shared_ptr<const GuestFile>(new GuestFile(std::move(fd), offset, size));
}

absl::StatusOr<std::shared_ptr<const GuestMapping>> GuestFile::Map(uint64_t at,
                                                                   uint64_t len) const {
  if (at > size_ || len > size_ - at) {
    return absl::OutOfRangeError(
        absl::StrFormat("memory region: %#x bytes at %#x of %#x", len, at, size_));
  }
  return GuestMapping::Create(fd_.get(), offset_ + at, len);
}

absl::StatusOr<MemoryMapRef> MemoryMap::Create(std::vector<MemoryRegion> regions) {
  if (regions.size() > kMaxRegions) {
    return absl::InvalidArgumentError(
        absl::StrCat("memory map of ", regions.size(), " regions; at most ", kMaxRegions));
  }
  for (const MemoryRegion& region : regions) VIRTBAY_RETURN_IF_ERROR(CheckRegion(region));

  const auto guest = [](const MemoryRegion& region) { return region.guest_address; };
  const auto user = [](const MemoryRegion& region) { return region.user_address; };
  std::sort(regions.begin(), regions.end(),
            [&](const MemoryRegion& a, const MemoryRegion& b) { return guest(a) < guest(b); });
  std::vector<const MemoryRegion*> sorted;
  sorted.reserve(regions.size());
  for (const MemoryRegion& region : regions) sorted.push_back(&region);
  VIRTBAY_RETURN_IF_ERROR(CheckOverlap(sorted, guest, "guest addresses"));
  std::sort(sorted.begin(), sorted.end(),
            [&](const MemoryRegion* a, const MemoryRegion* b) { return user(*a) < user(*b); });
  VIRTBAY_RETURN_IF_ERROR(CheckOverlap(sorted, user, "user addresses"));
  return MemoryMapRef(new MemoryMap(std::move(regions)));
}

absl::StatusOr<MemoryMapRef> MemoryMap::Window(const std::vector<GuestSpan>& spans) const {
  std::vector<MemoryRegion> pieces;
  for (const GuestSpan& span : spans) {
    if (span.size == 0 || span.size - 1 > UINT64_MAX - span.address) {
      return absl::InvalidArgumentError(
          absl::StrFormat("guest range %#x, size %#x is empty or wraps", span.address, span.size));
    }
    uint64_t done = 0;
    while (done < span.size) {
      const uint64_t address = span.address + done;
      const MemoryRegion* region = Find(address);
      if (region == nullptr) {
        return absl::FailedPreconditionError(absl::StrFormat(
            "guest range %#x, size %#x: no memory at %#x", span.address, span.size, address));
      }
      const uint64_t offset = address - region->guest_address;
      MemoryRegion piece;
      piece.guest_address = address;
      piece.user_address = region->user_address + offset;
      piece.size = std::min(span.size - done, region->size - offset);
      if (region->mapping != nullptr) {
        piece.mapping = region->mapping;
        piece.mapping_offset = region->mapping_offset + offset;
      } else {
        VIRTBAY_ASSIGN_OR_RETURN(piece.mapping,
                                 region->file->Map(region->mapping_offset + offset, piece.size));
      }
      done += piece.size;
      pieces.push_back(std::move(piece));
    }
  }
  return Create(std::move(pieces));
}

absl::StatusOr<uint64_t> MemoryMap::UserToGuest(uint64_t user, uint64_t len) const {
  for (const MemoryRegion& region : regions_) {
    if (user < region.user_address) continue;
    const uint64_t offset = user - region.user_address;
    if (offset >= region.size || len > region.size - offset) continue;
    return region.guest_address + offset;
  }
  return absl::OutOfRangeError(
      absl::StrFormat("front-end address %#x, length %#x is in no memory region", user, len));
}

uint64_t MemoryMap::total_size() const {
  uint64_t total = 0;
  for (const MemoryRegion& region : regions_) total += region.size;
  return total;
}

}  // namespace virtbay
