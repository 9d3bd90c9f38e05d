// LockOwners: record locks of the guest's lock owners on the host, as locks of open file
// descriptions (OFD locks), and what each owner holds.
// Owned by Fs; every function is [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_

#include <fcntl.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/lock_ranges.h"
#include "plugins/virtiofs/wire.h"

namespace virtbay::virtiofs {

class Fs;

// An open file description by which an owner's locks are taken.
struct LockDescription {
  int fd = -1;
  bool readable = false;
  bool writable = false;
  // 0: it is this owner's alone. Else it is the description of that handle, which no other could be
  // opened beside (its mode allows less than it was created with), and other owners may use it too:
  // what these hold is told apart here, because the kernel cannot.
  uint64_t shared_fh = 0;
};

// One lock owner of one inode. Once it is in the inode's list, its description changes under
// op_mu and the stripe's mutex, its ranges under the latter.
struct LockOwner {
  uint64_t owner = 0;
  uint64_t fh = 0;  // the handle that it was made for
  std::atomic<uint32_t> pid{0};
  std::atomic<uint32_t> refs{1};  // one of the inode's list, one per operation at work
  LockOwner* next = nullptr;      // guarded by the stripe
  std::mutex op_mu;               // one operation at a time, so that `ranges` follows the kernel
  bool dropped = false;           // guarded by op_mu: its locks have been given up for good
  LockDescription description;
  LockRanges ranges;
};

class LockOwners {
 public:
  // Wire form to the kernel's; false when the range is no range.
  static bool ToHost(const fuse_file_lock& in, struct flock* out);
  static fuse_file_lock FromHost(const struct flock& in, uint32_t pid);

  // F_OFD_SETLK for that owner: 0 or errno (EAGAIN: somebody else holds it).
  int Set(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& lock);
  // F_OFD_GETLK as that owner: 0 or errno.
  int Get(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& lock, fuse_file_lock* out);
  // Gives up all locks of that owner on the inode. True when it had any state.
  bool Drop(Fs& fs, Inode& inode, uint64_t owner);
  // Gives up all locks of the owners that were made for that handle, which is being released. The
  // guest does so itself for POSIX locks (FLUSH), but not for locks of open file descriptions.
  void DropOf(Fs& fs, Inode& inode, uint64_t fh);
  // Gives up the locks of all owners.
  bool DropAll(Fs& fs, Inode& inode);

  // [control] Takes over what an owner of another generation holds; the description stays the
  // caller's when it is false: too many ranges, or memory is out.
  bool Restore(Inode& inode, uint64_t owner, uint64_t fh, uint32_t pid,
               const LockDescription& description, LockRanges ranges);

  static LockRange RangeOf(const fuse_file_lock& wire) {
    return {wire.start, wire.end, wire.type == F_WRLCK};
  }

 private:
  static constexpr uint32_t kStripes = 16;

 public:
  // While it lives no owner comes, goes or changes what it holds, on any inode: their lists may be
  // read. Not for longer than a look.
  using Still = std::array<std::unique_lock<std::mutex>, kStripes>;
  Still HoldStill() {
    Still still;
    for (uint32_t i = 0; i < kStripes; ++i) still[i] = std::unique_lock(stripes_[i].mu);
    return still;
  }

 private:
  // Ranges of all owners together: each costs the host's kernel memory as well.
  static constexpr uint32_t kMaxRanges = 1u << 18;
  struct alignas(64) Stripe {
    std::mutex mu;        // the lists and what owners hold; no system call under it
    std::mutex group_mu;  // operations on shared descriptions; taken after an owner's op_mu
  };
  Stripe& StripeOf(const Inode& inode) { return stripes_[inode.index % kStripes]; }
  LockOwner* Find(Inode& inode, uint64_t owner);  // with a reference, or nullptr
  LockOwner* FindOrOpen(Fs& fs, Handle& handle, uint64_t owner, int* error);
  static int Open(Fs& fs, Handle& handle, LockDescription* out);
  // Of an owner that holds its op_mu.
  int Apply(Fs& fs, Handle& handle, LockOwner& entry, const struct flock& lock);
  int Widen(Fs& fs, Handle& handle, LockOwner& entry, bool write);
  int Take(Inode& inode, LockOwner& entry, const struct flock& lock, const LockRange& range);
  int GiveUp(Inode& inode, LockOwner& entry, const LockRange& range);
  bool SharedConflict(Inode& inode, const LockOwner& entry, const LockRange& range);
  // Parts of what the entry holds in that range that no (other) owner holds by the shared
  // description. Stripe held.
  std::vector<LockRange> OwnParts(Inode& inode, const LockOwner& entry, uint64_t shared_fh,
                                  const LockRange& range);
  void Record(LockOwner& entry, const LockRange& range, bool held);  // stripe held
  void Retire(Fs& fs, Inode& inode, LockOwner* list);
  void Unref(Fs& fs, LockOwner* owner);

  std::array<Stripe, kStripes> stripes_;
  std::atomic<uint32_t> ranges_{0};
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_
