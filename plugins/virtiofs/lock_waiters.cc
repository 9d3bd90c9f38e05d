#include "plugins/virtiofs/lock_waiters.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace virtbay::virtiofs {
namespace {

// Holders, ranges and waiters that one search looks at. A guest that makes up more than that waits
// without being told.
constexpr uint32_t kMaxSteps = 16384;

bool OwnerLess(const LockWaiter* a, const LockWaiter* b) { return a->owner < b->owner; }

// The first waiter of that owner, or the end.
std::vector<LockWaiter*>::const_iterator FirstOf(const std::vector<LockWaiter*>& sorted,
                                                 uint64_t owner) {
  const auto at =
      std::lower_bound(sorted.begin(), sorted.end(), owner,
                       [](const LockWaiter* w, uint64_t value) { return w->owner < value; });
  return at != sorted.end() && (*at)->owner == owner ? at : sorted.end();
}

}  // namespace

LockWaiters::~LockWaiters() {
  for (auto& fd : event_fds_) {
    if (fd.load() >= 0) ::close(fd.load());
  }
}

LockWaiters::Added LockWaiters::Add(LockWaiter* waiter, LockOwners& owners) {
  const std::lock_guard<std::mutex> lock(mu_);
  if (waiters_.size() >= limit_) return Added::kTooMany;
  // Under one lock with the entry: of two that close the same circle, one is told.
  if (!waiter->flock) {
    if (Deadlocks(*waiter, owners)) return Added::kDeadlock;
    by_owner_.insert(std::upper_bound(by_owner_.begin(), by_owner_.end(), waiter, &OwnerLess),
                     waiter);
  }
  waiters_.push_back(waiter);
  count_.store(static_cast<uint32_t>(waiters_.size()), std::memory_order_release);
  return Added::kWaits;
}

bool LockWaiters::RemoveIfDeadlocked(LockWaiter* waiter, LockOwners& owners) {
  if (waiter->flock) return false;
  const std::lock_guard<std::mutex> lock(mu_);
  if (!Deadlocks(*waiter, owners)) return false;
  RemoveLocked(waiter);
  return true;
}

void LockWaiters::Remove(LockWaiter* waiter) {
  const std::lock_guard<std::mutex> lock(mu_);
  RemoveLocked(waiter);
}

void LockWaiters::RemoveLocked(LockWaiter* waiter) {
  std::erase(waiters_, waiter);
  std::erase(by_owner_, waiter);
  count_.store(static_cast<uint32_t>(waiters_.size()), std::memory_order_release);
}

bool LockWaiters::Deadlocks(const LockWaiter& wanted, LockOwners& owners) {
  // Depth first from lock to holder to the locks that the holder waits for. Every owner once: the
  // first of its waiters carries the mark and the place in the list of what is to be visited.
  uint32_t steps = kMaxSteps;
  const uint64_t search = ++searches_;
  LockWaiter* to_visit = nullptr;
  const auto reaches = [&](const LockWaiter& waiter) {
    return owners.AnyHolder(*waiter.handle->inode, waiter.owner, waiter.lock, &steps,
                            [&](uint64_t holder) {
                              if (holder == wanted.owner) return true;
                              const auto first = FirstOf(by_owner_, holder);
                              if (first != by_owner_.end() && (*first)->searched != search) {
                                (*first)->searched = search;
                                (*first)->next_visit = std::exchange(to_visit, *first);
                              }
                              return false;
                            });
  };
  if (reaches(wanted)) return true;
  while (to_visit != nullptr) {
    LockWaiter* const at = std::exchange(to_visit, to_visit->next_visit);
    for (auto it = FirstOf(by_owner_, at->owner);
         it != by_owner_.end() && (*it)->owner == at->owner; ++it) {
      // One that was interrupted waits no more, though its thread has not come to it.
      if ((*it)->interrupted.load(std::memory_order_acquire)) continue;
      if (steps == 0) return false;
      --steps;
      if (reaches(**it)) return true;
    }
  }
  return false;
}

bool LockWaiters::Interrupt(uint64_t unique, uint32_t own_queue, bool* own) {
  *own = false;
  if (count() == 0) return false;
  uint32_t queues = 0;
  bool found = false;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    for (LockWaiter* waiter : waiters_) {
      if (waiter->unique != unique) continue;
      found = true;
      waiter->interrupted.store(true, std::memory_order_release);
      if (waiter->queue == own_queue) {
        *own = true;
      } else {
        queues |= 1u << waiter->queue;
      }
    }
  }
  Signal(queues);
  return found;
}

bool LockWaiters::Poke(const Inode& inode, uint32_t own_queue) {
  if (count() == 0) return false;
  uint32_t queues = 0;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    for (LockWaiter* waiter : waiters_) {
      if (waiter->handle->inode != &inode) continue;
      waiter->poked.store(true, std::memory_order_release);
      queues |= 1u << waiter->queue;
    }
  }
  const uint32_t own = own_queue < kMaxQueues ? 1u << own_queue : 0;
  Signal(queues & ~own);
  return (queues & own) != 0;
}

bool LockWaiters::InterruptAll(uint32_t own_queue) {
  if (count() == 0) return false;
  uint32_t queues = 0;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    for (LockWaiter* waiter : waiters_) {
      waiter->interrupted.store(true, std::memory_order_release);
      queues |= 1u << waiter->queue;
    }
  }
  const uint32_t own = own_queue < kMaxQueues ? 1u << own_queue : 0;
  Signal(queues & ~own);
  return (queues & own) != 0;
}

int LockWaiters::EventFd(uint32_t queue) {
  std::atomic<int>& slot = event_fds_[queue];
  int fd = slot.load(std::memory_order_acquire);
  if (fd >= 0) return fd;
  fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  slot.store(fd, std::memory_order_release);
  return fd;
}

void LockWaiters::Drain(uint32_t queue) {
  uint64_t value = 0;
  const int fd = event_fds_[queue].load(std::memory_order_acquire);
  if (fd >= 0) [[maybe_unused]]
    const auto n = ::read(fd, &value, sizeof(value));
}

void LockWaiters::Signal(uint32_t queues) {
  for (uint32_t queue = 0; queues != 0; ++queue, queues >>= 1) {
    if ((queues & 1) == 0) continue;
    const int fd = event_fds_[queue].load(std::memory_order_acquire);
    const uint64_t one = 1;
    // A full counter is a signal already.
    if (fd >= 0) [[maybe_unused]]
      const auto n = ::write(fd, &one, sizeof(one));
  }
}

}  // namespace virtbay::virtiofs
