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

bool Meet(const Aperture& a, const Aperture& b) {
  return a.base < b.base + b.size && b.base < a.base + a.size;
}

bool Same(const Aperture& a, const Aperture& b) { return a.base == b.base && a.size == b.size; }

bool Holds(const Aperture& outer, const Aperture& inner) {
  return outer.base <= inner.base && inner.base + inner.size <= outer.base + outer.size;
}

}  // namespace

absl::Status GuestPool::Apply(const GuestCapabilities& guest) {
  const auto text = [](const GuestCapabilities& pool) {
    return absl::StrFormat("0x%x,%d", pool.swiotlb_base, pool.swiotlb_size);
  };
  absl::MutexLock lock(&mutex_);
  if (guest.swiotlb_size == 0 || guest.swiotlb_base == 0) {
    if (reported_.has_value() && !none_reported_) {
      log_.Warn(absl::StrCat("the guest reports no bounce pool after ", text(*reported_),
                             ", which stays"));
    }
    none_reported_ = true;
    WarnIfMissed();
    return absl::OkStatus();
  }
  if (reported_.has_value()) {
    if (*reported_ == guest) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("the guest has reported the pool ",
                                                 text(*reported_), " before, now ", text(guest)));
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
  none_reported_ = false;
  whole_ = {guest.swiotlb_base, guest.swiotlb_size};
  pool_ = {begin, end - begin};
  log_.Info(absl::StrCat("the guest's bounce pool is ", text(guest)));
  if (!Same(whole_, pool_)) {
    log_.Warn(absl::StrCat("slices of the guest's bounce pool come from ", FormatOption(pool_),
                           ", since they are made of whole units of 2 MiB: ",
                           whole_.size - pool_.size, " bytes of it are for \"pool,all\" alone"));
  }
  TellLatecomers();
  return absl::OkStatus();
}

void GuestPool::Warn(absl::string_view what) {
  // Whoever wants to hear it has heard it.
  if (!std::exchange(warned_, true)) log_.Warn(what);
}

void GuestPool::WarnIfMissed() {
  if (!requested_ || !none_reported_ || pool_.size != 0) return;
  Warn(
      "the guest's kernel has no bounce pool for virtio devices (hv_pci_swiotlb): its devices "
      "share the kernel's one pool, and every request's header and reply is copied once more "
      "on the host");
}

bool GuestPool::Want(absl::string_view device, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  requested_ = true;
  WarnIfMissed();
  if (pool_.size != 0) return true;
  without_.insert_or_assign(std::string(device), size);
  Warn(absl::StrCat(
      "device ", device,
      ": wants the guest's bounce pool, and the guest has not reported one (guest-channel, or "
      "virtbay ctl guest): this device, and others until then, reach all of the guest's memory, "
      "and every request's header and reply is copied once more on the host"));
  return false;
}

void GuestPool::TellLatecomers() {
  uint64_t left = 0, largest = 0;
  for (const Aperture& hole : Holes()) {
    left += hole.size;
    largest = std::max(largest, hole.size);
  }
  for (const auto& [device, size] : without_) {
    if (RoundPoolSize(size) > largest) {
      log_.Warn(absl::StrFormat(
          "device %s: does without the guest's bounce pool, in which there are no %d bytes in one "
          "piece; %d are left",
          device, size, left));
    } else {
      log_.Info(absl::StrCat("device ", device,
                             ": was added before the guest's bounce pool was known, and does "
                             "without it until it is removed and added again"));
    }
  }
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
  const auto found = rooms_.find(device);
  if (found == rooms_.end()) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("device ", device,
                                               ": has room in the guest's memory already, ",
                                               FormatOption(found->second.range)));
}

absl::Status GuestPool::CheckPool(absl::string_view device) const {
  if (pool_.size != 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("device ", device, ": the guest has no bounce pool"));
}

absl::Status GuestPool::CheckApart(absl::string_view device, const Room& room) const {
  const auto apart = [&](const Room& other) {
    return !Meet(room.range, other.range) ||
           (room.shared && other.shared && Same(room.range, other.range));
  };
  const auto error = [&](absl::string_view other, const Room& there, absl::string_view why) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": cannot have ", FormatOption(room.range),
                     " of the guest's memory: ", "device ", other, why, FormatOption(there.range)));
  };
  for (const auto& [other, there] : rooms_) {
    if (!apart(there)) return error(other, there, " has ");
  }
  for (const auto& [other, there] : lost_) {
    if (!apart(there)) return error(other, there, ", which was removed, may still write to ");
  }
  return absl::OkStatus();
}

absl::StatusOr<Aperture> GuestPool::TakeAll(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckPool(device));
  VIRTBAY_RETURN_IF_ERROR(CheckNew(device));
  const Room room{whole_, /*shared=*/true};
  VIRTBAY_RETURN_IF_ERROR(CheckApart(device, room));
  rooms_.emplace(device, room);
  return whole_;
}

absl::Status GuestPool::Claim(absl::string_view device, const Aperture& range, bool shared) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckNew(device));
  const Room room{range, shared};
  VIRTBAY_RETURN_IF_ERROR(CheckApart(device, room));
  rooms_.emplace(device, room);
  return absl::OkStatus();
}

absl::StatusOr<Aperture> GuestPool::Take(absl::string_view device, uint64_t size) {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckPool(device));
  VIRTBAY_RETURN_IF_ERROR(CheckNew(device));
  for (const auto& [other, room] : rooms_) {
    if (!room.shared || !Holds(room.range, pool_)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": cannot have a slice of the guest's pool: device ", other,
                     " has all of it"));
  }
  for (const auto& [other, room] : lost_) {
    if (!room.shared || !Holds(room.range, pool_)) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("device ", device, ": cannot have a slice of the guest's pool: device ", other,
                     ", which was removed, may still write anywhere in it"));
  }
  const uint64_t share = std::max(kPoolUnit, pool_.size / shares_ / kPoolUnit * kPoolUnit);
  const uint64_t wanted = size == 0 ? share : RoundPoolSize(size);
  uint64_t left = 0, largest = 0;
  for (const Aperture& hole : Holes()) {
    left += hole.size;
    largest = std::max(largest, hole.size);
    if (wanted == 0 || hole.size < wanted) continue;
    const Aperture slice{hole.base, wanted};
    rooms_.emplace(device, Room{slice});
    return slice;
  }
  return absl::ResourceExhaustedError(absl::StrFormat(
      "device %s: no %d bytes in one piece in the guest's bounce pool; %d are left, at most %d of "
      "them in one piece",
      device, wanted == 0 ? size : wanted, left, largest));
}

void GuestPool::Release(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  if (const auto found = without_.find(device); found != without_.end()) without_.erase(found);
  if (const auto found = rooms_.find(device); found != rooms_.end()) rooms_.erase(found);
}

void GuestPool::Abandon(absl::string_view device) {
  absl::MutexLock lock(&mutex_);
  if (const auto without = without_.find(device); without != without_.end()) {
    without_.erase(without);
  }
  const auto found = rooms_.find(device);
  if (found == rooms_.end()) return;
  const Room& room = found->second;
  log_.Warn(absl::StrCat("device ", device, ": ", FormatOption(room.range),
                         " of the guest's memory is lost",
                         room.shared ? " to devices that do not share it" : "",
                         ", since something of the device may still write there"));
  lost_.emplace_back(found->first, room);
  rooms_.erase(found);
}

std::vector<Aperture> GuestPool::Holes() const {
  std::vector<Aperture> taken;
  for (const auto& [device, room] : rooms_) taken.push_back(room.range);
  for (const auto& [device, room] : lost_) taken.push_back(room.range);
  std::sort(taken.begin(), taken.end(),
            [](const Aperture& a, const Aperture& b) { return a.base < b.base; });
  const uint64_t end = pool_.base + pool_.size;
  taken.push_back({end, 0});
  std::vector<Aperture> holes;
  uint64_t at = pool_.base;
  for (const Aperture& range : taken) {
    // Ranges given by hand begin and end at any page.
    const uint64_t to = std::min(range.base, end) / kPoolUnit * kPoolUnit;
    if (to > at) holes.push_back({at, to - at});
    if (range.base + range.size <= at) continue;
    at = RoundPoolSize(range.base + range.size);
    if (at == 0 || at >= end) break;
  }
  return holes;
}

uint64_t GuestPool::free_bytes() const {
  absl::MutexLock lock(&mutex_);
  uint64_t free = 0;
  for (const Aperture& hole : Holes()) free += hole.size;
  return free;
}

}  // namespace virtbay::swiotlb
