#include "hostif/swiotlb/guest_pool.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::swiotlb {
namespace {

// The holes between what is taken, in address order.
std::vector<Aperture> Holes(const Aperture& pool, std::vector<Aperture> taken) {
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
    WarnIfMissed();
    return absl::OkStatus();
  }
  VIRTBAY_RETURN_IF_ERROR(Annotate(CheckAperture({guest.swiotlb_base, guest.swiotlb_size}),
                                   absl::StrCat("the pool ", text(guest))));
  const uint64_t begin = RoundPoolSize(guest.swiotlb_base);
  const uint64_t end = (guest.swiotlb_base + guest.swiotlb_size) / kPoolUnit * kPoolUnit;
  if (begin < guest.swiotlb_base || end <= begin) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pool ", text(guest), " holds no whole unit of 2 MiB"));
  }
  reported_ = guest;
  whole_ = {guest.swiotlb_base, guest.swiotlb_size};
  pool_ = {begin, end - begin};
  log_.Info(absl::StrCat("the guest's bounce pool is ", text(guest)));
  return absl::OkStatus();
}

void GuestPool::WarnIfMissed() {
  if (!requested_ || warned_ || !reported_.has_value() || pool_.size != 0) return;
  warned_ = true;
  log_.Warn(
      "the guest's kernel has no bounce pool for virtio devices (hv_pci_swiotlb): its devices "
      "share the kernel's one pool, and every request's header and reply is copied once more "
      "on the host");
}

void GuestPool::Request() {
  absl::MutexLock lock(&mutex_);
  requested_ = true;
  WarnIfMissed();
}

bool GuestPool::available() const {
  absl::MutexLock lock(&mutex_);
  return pool_.size != 0;
}

absl::Status GuestPool::CheckNew(absl::string_view device) const {
  if (pool_.size == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": the guest has no bounce pool"));
  }
  if (slices_.contains(device) || sharers_.contains(device)) {
    return absl::AlreadyExistsError(
        absl::StrCat("device ", device, ": has room in the guest's pool already"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Aperture> GuestPool::TakeAll(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckNew(device));
  if (!slices_.empty() || !abandoned_.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device ", device, ": cannot have the whole pool of the guest: ",
        slices_.empty() ? "a device that was removed may still write to its slice of it"
                        : absl::StrCat("a slice of it is device ", slices_.begin()->first, "'s")));
  }
  sharers_.emplace(device);
  return whole_;
}

absl::StatusOr<Aperture> GuestPool::Take(absl::string_view device, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckNew(device));
  if (!sharers_.empty() || sharer_abandoned_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device ", device, ": cannot have a slice of the guest's pool: ",
        sharers_.empty() ? "a device that was removed may still write anywhere in it"
                         : absl::StrCat("device ", *sharers_.begin(), " has all of it")));
  }
  const uint64_t share = std::max(kPoolUnit, pool_.size / shares_ / kPoolUnit * kPoolUnit);
  const uint64_t wanted = size == 0 ? share : RoundPoolSize(size);
  uint64_t largest = 0;
  for (const Aperture& hole : Holes(pool_, Taken())) {
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
  const auto sharer = sharers_.find(device);
  if (sharer != sharers_.end()) sharers_.erase(sharer);
}

void GuestPool::Abandon(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  if (const auto sharer = sharers_.find(device); sharer != sharers_.end()) {
    sharers_.erase(sharer);
    sharer_abandoned_ = true;
    log_.Warn(absl::StrCat("device ", device,
                           ": something of it may still write to the guest's bounce pool"));
    return;
  }
  const auto found = slices_.find(device);
  if (found == slices_.end()) return;
  abandoned_.push_back(found->second);
  slices_.erase(found);
  log_.Warn(absl::StrCat("device ", device,
                         ": its slice of the guest's bounce pool is lost, since ",
                         "something of the device may still write there"));
}

std::vector<Aperture> GuestPool::Taken() const {
  std::vector<Aperture> taken = abandoned_;
  for (const auto& [device, slice] : slices_) taken.push_back(slice);
  return taken;
}

uint64_t GuestPool::free_bytes() const {
  absl::MutexLock lock(&mutex_);
  uint64_t free = pool_.size;
  for (const Aperture& slice : Taken()) free -= slice.size;
  return free;
}

}  // namespace virtbay::swiotlb
