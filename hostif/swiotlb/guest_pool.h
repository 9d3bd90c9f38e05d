// GuestPool: the bounce pool that a guest's kernel has told of, the slices of it that devices have,
// and the ranges that other devices were given by hand: no two meet unless both say that they
// share. The contract is that of WSL's service towards its device host.
// Owned by whoever adds devices for one guest; every function is [any].
#ifndef VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOL_H_
#define VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/log.h"
#include "virtbay/host.h"

namespace virtbay::swiotlb {

// What a guest reports when it has started: the pool that its kernel has set aside, in guest
// addresses and bytes. One of them 0: its kernel has none.
struct GuestCapabilities {
  uint64_t swiotlb_base = 0;
  uint64_t swiotlb_size = 0;

  friend bool operator==(const GuestCapabilities&, const GuestCapabilities&) = default;
};

class GuestPool {
 public:
  // `requested`: as if Request had been called. `shares`: into how many slices of the same size the
  // pool is divided for devices that ask for no size of their own.
  GuestPool(Log log, bool requested, uint32_t shares = 8)
      : log_(std::move(log)), shares_(shares == 0 ? 1 : shares), requested_(requested) {}

  // The guest was started with KernelCommandLine: a kernel without a pool is worth a warning, one.
  void Request();
  // The same, for a device that is to have `size` bytes (0: any) when there is a pool. False when
  // none is known: the device has to do without, which is worth that one warning, and a line in the
  // log when a pool is reported after all (until Release).
  bool Want(absl::string_view device, uint64_t size);

  // What the guest has reported: the first pool counts. The same again is accepted; AlreadyExists
  // for another one, InvalidArgument for a pool that cannot be one (nothing is applied then). That
  // there is none changes nothing, before or after a pool.
  absl::Status Apply(const GuestCapabilities& guest);

  // The pool that counts, if one was reported.
  std::optional<GuestCapabilities> reported() const {
    absl::MutexLock lock(&mutex_);
    return reported_;
  }
  // Whether there is a pool to take slices from.
  bool available() const;

  // A slice for the device, aligned to kPoolUnit: of `size` bytes rounded up to it, or an equal
  // share for 0. FailedPrecondition without a pool, AlreadyExists when the device has room already,
  // ResourceExhausted naming the device, the size asked for, the size left and the most of it in
  // one piece. FailedPrecondition too while a device has the whole pool.
  absl::StatusOr<Aperture> Take(absl::string_view device, uint64_t size);
  // The whole pool, beside other devices that have it too: for a guest that takes room for any of
  // them anywhere in it. FailedPrecondition without a pool or while a device has a part of it,
  // AlreadyExists when the device has room already.
  absl::StatusOr<Aperture> TakeAll(absl::string_view device);
  // The range for the device that it was given by hand, wherever the pool is; slices are taken
  // around it. `shared`: beside other devices that share exactly that range. FailedPrecondition
  // naming both devices and ranges when another one's meets it, AlreadyExists when the device has
  // room already.
  absl::Status Claim(absl::string_view device, const Aperture& range, bool shared);
  // Gives back any of these; a device without one is ignored.
  void Release(absl::string_view device);
  // The device is gone, but may still write to its room (Host::Remove says so): nobody gets that
  // any more, while another device can have this one's name. What it shared with others they keep.
  void Abandon(absl::string_view device);

  uint64_t free_bytes() const;

 private:
  struct Room {
    Aperture range;
    bool shared = false;  // with others of exactly this range
  };

  void Warn(absl::string_view what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of those that have done without so far.
  void TellLatecomers() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WarnIfMissed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckNew(absl::string_view device) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckPool(absl::string_view device) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CheckApart(absl::string_view device, const Room& room) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What slices can be made of, in address order.
  std::vector<Aperture> Holes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Log log_;
  const uint32_t shares_;
  mutable absl::Mutex mutex_;
  bool requested_ ABSL_GUARDED_BY(mutex_);
  bool warned_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<GuestCapabilities> reported_ ABSL_GUARDED_BY(mutex_);  // a pool
  bool none_reported_ ABSL_GUARDED_BY(mutex_) = false;                 // last of all
  Aperture whole_ ABSL_GUARDED_BY(mutex_);                             // as reported
  Aperture pool_ ABSL_GUARDED_BY(mutex_);                              // whole units of it
  // Devices that wanted so many bytes before there was a pool.
  std::map<std::string, uint64_t, std::less<>> without_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, Room, std::less<>> rooms_ ABSL_GUARDED_BY(mutex_);
  // Of devices that are gone and may still write there.
  std::vector<std::pair<std::string, Room>> lost_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay::swiotlb

#endif  // VIRTBAY_HOSTIF_SWIOTLB_GUEST_POOL_H_
