// LockWaiters: the SETLKW requests of a device that wait for a lock, woken across queues, and the
// search for owners that wait for each other in a circle.
// Owned by Fs. Thread tags are at the functions.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LOCK_WAITERS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LOCK_WAITERS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/inode.h"
#include "plugins/virtiofs/locks.h"
#include "plugins/virtiofs/wire.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::virtiofs {

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

  // Of the search for circles, guarded by LockWaiters.
  uint64_t searched = 0;  // the search that came here last
  LockWaiter* next_visit = nullptr;
};

// The waiters of all queues, so that one thread can wake another's.
class LockWaiters {
 public:
  static constexpr uint32_t kMaxQueues = 9;
  ~LockWaiters();

  // [control] Makes no descriptors yet.
  void Configure(uint32_t limit) { limit_ = limit; }
  enum class Added { kWaits, kTooMany, kDeadlock, kInterrupted };
  // [queue] kTooMany: ENOLCK. kDeadlock: whoever holds what it wants waits, if through others, for
  // a lock of the same owner (EDEADLK). kInterrupted: it was, while it was handed back. Only record
  // locks are searched, as everywhere in Linux, and only those of this device: what the host's
  // processes wait for nobody can tell. The search is exact; it looks once at each owner of an
  // inode that is waited for, and from each waiter that it comes to at those who hold something
  // there and wait themselves.
  Added Add(LockWaiter* waiter, LockOwners& owners);
  // [queue] The same search for one that waits already, because others hold the lock by now. True:
  // it is removed.
  bool RemoveIfDeadlocked(LockWaiter* waiter, LockOwners& owners);
  // [queue] The waiter's own.
  void Remove(LockWaiter* waiter);
  // [any] The request was interrupted; true if it waits. *queue: whose it is.
  bool Interrupt(uint64_t unique, uint32_t own_queue, bool* own);
  // [queue] Removes a waiter whose request is handed back, to be presented again: it can be
  // interrupted until then.
  void HandBack(LockWaiter* waiter);
  // [queue] The request, if it is one of these, has ended without waiting.
  void Ended(uint64_t unique) {
    if (handed_back_count_.load(std::memory_order_acquire) != 0) TakeHandedBack(unique);
  }
  // [control] Requests that were handed back, and those of another generation: of more than may
  // wait here, the first.
  struct Absent {
    uint64_t unique = 0;
    bool interrupted = false;
  };
  std::vector<Absent> handed_back() const;
  void Restore(std::vector<Absent> handed_back);
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
  // An owner that holds something on an inode and that the search may still come to.
  struct Holder {
    const LockOwner* owner = nullptr;
    LockWaiter* waits = nullptr;  // the first of its waiters; none: the one that is searched for
    uint32_t next = 0;            // of the same inode, in holders_
  };
  static constexpr uint32_t kNoHolder = 0xffffffffu;

  void Signal(uint32_t queues);
  void TakeHandedBack(uint64_t unique);
  bool TakeHandedBackLocked(uint64_t unique);                    // mu_ held; whether interrupted
  void RemoveLocked(LockWaiter* waiter);                         // mu_ held
  bool Deadlocks(const LockWaiter& wanted, LockOwners& owners);  // mu_ held
  // Of a search: mu_ and the owners held.
  uint32_t* HoldersOf(const Inode& inode, uint64_t wanted_owner);
  bool Follow(const LockWaiter& waiter, uint64_t wanted_owner, LockWaiter** to_visit);

  uint32_t limit_ = 1024;
  std::atomic<uint32_t> count_{0};
  std::atomic<uint32_t> handed_back_count_{0};
  mutable std::mutex mu_;
  std::vector<Absent> handed_back_;  // guarded by mu_
  // Guarded by mu_, which is taken before the locks of LockOwners.
  std::vector<LockWaiter*> waiters_;   // in order of arrival
  std::vector<LockWaiter*> by_owner_;  // those for record locks, sorted
  uint64_t searches_ = 0;
  std::vector<Holder> holders_;                              // of the search
  std::unordered_map<const Inode*, uint32_t> first_holder_;  // the same
  std::array<std::atomic<int>, kMaxQueues> event_fds_ = {-1, -1, -1, -1, -1, -1, -1, -1, -1};
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LOCK_WAITERS_H_
