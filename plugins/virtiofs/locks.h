// File locks on the host: open file descriptions that carry a lock owner's POSIX locks (OFD
// locks), and the SETLKW requests that wait for one.
// Owned by Fs. LockOwners is [any]; LockWaiters' thread tags are at the functions.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_

#include <fcntl.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/wire.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::virtiofs {

class Fs;

// One lock owner of one inode: its locks belong to the open file description of `fd`.
struct LockOwner {
  uint64_t owner = 0;
  uint64_t fh = 0;  // the handle that it was made for
  int fd = -1;
  std::atomic<uint32_t> pid{0};
  std::atomic<uint32_t> refs{1};  // one of the inode's list, one per operation at work
  LockOwner* next = nullptr;
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

 private:
  static constexpr uint32_t kStripes = 16;
  struct alignas(64) Stripe {
    std::mutex mu;
  };
  Stripe& StripeOf(const Inode& inode) { return stripes_[inode.index % kStripes]; }
  LockOwner* Find(Inode& inode, uint64_t owner);  // with a reference, or nullptr
  LockOwner* FindOrOpen(Fs& fs, Handle& handle, uint64_t owner, int* error);
  static void Unref(Fs& fs, LockOwner* owner);
  uint32_t PidOfHolder(Fs& fs, Inode& inode, const struct flock& held);

  std::array<Stripe, kStripes> stripes_;
};

// A SETLKW request that waits. Belongs to the queue whose thread may end the request.
struct LockWaiter {
  virtbay_request* request = nullptr;
  uint64_t unique = 0;
  uint64_t owner = 0;
  fuse_file_lock lock = {};
  bool flock = false;
  HandleRef handle;
  uint32_t queue = 0;
  uint64_t backoff_ns = 0;
  uint64_t next_try_ns = 0;
  std::atomic<bool> poked{false};        // a lock on the inode was given up
  std::atomic<bool> interrupted{false};  // INTERRUPT, or the session is over
};

// The waiters of all queues, so that one thread can wake another's.
class LockWaiters {
 public:
  static constexpr uint32_t kMaxQueues = 9;
  ~LockWaiters();

  // [control] Makes no descriptors yet.
  void Configure(uint32_t limit) { limit_ = limit; }
  // [queue] False: too many wait (ENOLCK).
  bool Add(LockWaiter* waiter);
  // [queue] The waiter's own.
  void Remove(LockWaiter* waiter);
  // [any] The request was interrupted; true if it waits. *queue: whose it is.
  bool Interrupt(uint64_t unique, uint32_t own_queue, bool* own);
  // [any] A lock on the inode was given up. True when a waiter of own_queue should try again.
  bool Poke(const Inode& inode, uint32_t own_queue);
  // [any] The session is over: all waiters end with EINTR.
  bool InterruptAll(uint32_t own_queue);

  // [queue] The event descriptor by which others wake this queue; -1 on failure.
  int EventFd(uint32_t queue);
  // [queue] Clears what was signalled.
  void Drain(uint32_t queue);
  uint32_t count() const { return count_.load(std::memory_order_acquire); }
  static constexpr uint32_t kNoQueue = 0xffffffffu;

 private:
  void Signal(uint32_t queues);

  uint32_t limit_ = 1024;
  std::atomic<uint32_t> count_{0};
  std::mutex mu_;
  std::vector<LockWaiter*> waiters_;  // in order of arrival; guarded by mu_
  std::array<std::atomic<int>, kMaxQueues> event_fds_ = {-1, -1, -1, -1, -1, -1, -1, -1, -1};
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LOCKS_H_
