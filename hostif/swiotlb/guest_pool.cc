#include "hostif/swiotlb/guest_pool.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::swiotlb {
namespace {

constexpr uint64_t kPage = 4096;

// The holes between the slices, in address order.
std::vector<Aperture> Holes(const Aperture& pool,
                            const std::map<std::string, Aperture, std::less<>>& slices) {
  std::vector<Aperture> taken;
  taken.reserve(slices.size());
  for (const auto& [device, slice] : slices) taken.push_back(slice);
  std::sort(taken.begin(), taken.end(),
            [](const Aperture& a, const Aperture& b) { return a.base < b.base; });
  std::vector<Aperture> holes;
  uint64_t at = pool.base;
  for (const Aperture& slice : taken) {
    if (slice.base > at) holes.push_back({at, slice.base - at});
    at = slice.base + slice.size;
  }
  if (at < pool.base + pool.size) holes.push_back({at, pool.base + pool.size - at});
  return holes;
}

}  // namespace

absl::Status GuestPool::Apply(const GuestCapabilities& guest) {
  const auto text = [](const GuestCapabilities& pool) {
    return absl::StrFormat("0x%x,%d", pool.swiotlb_base, pool.swiotlb_size);
  };
  absl::MutexLock lock(&mutex_);
  if (reported_.has_value()) {
    if (*reported_ == guest) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("the guest has reported the pool ",
                                                 text(*reported_), " before, now ", text(guest)));
  }
  if (guest.swiotlb_size == 0 || guest.swiotlb_base == 0) {
    reported_ = guest;
    if (requested_) {
      log_.Warn(
          "the guest's kernel has no bounce pool for virtio devices (hv_pci_swiotlb): its devices "
          "share the kernel's one pool, and every request's header and reply is copied once more "
          "on the host");
    }
    return absl::OkStatus();
  }
  if (guest.swiotlb_base % kPage != 0 || guest.swiotlb_size % kPage != 0 ||
      guest.swiotlb_size - 1 > UINT64_MAX - guest.swiotlb_base) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pool ", text(guest), " is not made of whole pages, or wraps"));
  }
  const uint64_t begin = RoundPoolSize(guest.swiotlb_base);
  const uint64_t end = (guest.swiotlb_base + guest.swiotlb_size) / kPoolUnit * kPoolUnit;
  if (begin < guest.swiotlb_base || end <= begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pool ", text(guest), " holds no whole unit of 2 MiB"));
  }
  reported_ = guest;
  pool_ = {begin, end - begin};
  log_.Info(absl::StrCat("the guest's bounce pool is ", text(guest)));
  return absl::OkStatus();
}

bool GuestPool::available() const {
  absl::MutexLock lock(&mutex_);
  return pool_.size != 0;
}

absl::StatusOr<Aperture> GuestPool::Take(absl::string_view device, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  if (pool_.size == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": the guest has no bounce pool"));
  }
  if (slices_.contains(device)) {
    return absl::AlreadyExistsError(
        absl::StrCat("device ", device, ": has a slice of the guest's pool already"));
  }
  const uint64_t share = std::max(kPoolUnit, pool_.size / shares_ / kPoolUnit * kPoolUnit);
  const uint64_t wanted = size == 0 ? share : RoundPoolSize(size);
  uint64_t largest = 0;
  for (const Aperture& hole : Holes(pool_, slices_)) {
    largest = std::max(largest, hole.size);
    if (wanted == 0 || hole.size < wanted) continue;
    const Aperture slice{hole.base, wanted};
    slices_.emplace(device, slice);
    return slice;
  }
  return absl::ResourceExhaustedError(
      absl::StrFormat("device %s: no %d bytes left in the guest's bounce pool; at most %d", device,
                      wanted == 0 ? size : wanted, largest));
}

void GuestPool::Release(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  const auto found = slices_.find(device);
  if (found != slices_.end()) slices_.erase(found);
}

uint64_t GuestPool::free_bytes() const {
  absl::MutexLock lock(&mutex_);
  uint64_t free = pool_.size;
  for (const auto& [device, slice] : slices_) free -= slice.size;
  return free;
}

}  // namespace virtbay::swiotlb
