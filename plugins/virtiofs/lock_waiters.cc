#include "plugins/virtiofs/lock_waiters.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace virtbay::virtiofs {
namespace {

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
  if (TakeHandedBackLocked(waiter->unique)) return Added::kInterrupted;
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

void LockWaiters::HandBack(LockWaiter* waiter) {
  const std::lock_guard<std::mutex> lock(mu_);
  RemoveLocked(waiter);
  // Of some nothing is heard again: those of a ring that was not started again.
  if (handed_back_.size() >= limit_) handed_back_.erase(handed_back_.begin());
  handed_back_.push_back({waiter->unique, waiter->interrupted.load(std::memory_order_acquire)});
  handed_back_count_.store(static_cast<uint32_t>(handed_back_.size()), std::memory_order_release);
}

void LockWaiters::TakeHandedBack(uint64_t unique) {
  const std::lock_guard<std::mutex> lock(mu_);
  TakeHandedBackLocked(unique);
}

bool LockWaiters::TakeHandedBackLocked(uint64_t unique) {
  const auto found = std::find_if(handed_back_.begin(), handed_back_.end(),
                                  [&](const Absent& absent) { return absent.unique == unique; });
  if (found == handed_back_.end()) return false;
  const bool interrupted = found->interrupted;
  handed_back_.erase(found);
  handed_back_count_.store(static_cast<uint32_t>(handed_back_.size()), std::memory_order_release);
  return interrupted;
}

std::vector<LockWaiters::Absent> LockWaiters::handed_back() const {
  const std::lock_guard<std::mutex> lock(mu_);
  return handed_back_;
}

void LockWaiters::Restore(std::vector<Absent> handed_back) {
  const std::lock_guard<std::mutex> lock(mu_);
  if (handed_back.size() > limit_) handed_back.resize(limit_);
  handed_back_ = std::move(handed_back);
  handed_back_count_.store(static_cast<uint32_t>(handed_back_.size()), std::memory_order_release);
}

uint32_t* LockWaiters::HoldersOf(const Inode& inode, uint64_t wanted_owner) {
  const auto [at, fresh] = first_holder_.try_emplace(&inode, kNoHolder);
  if (!fresh) return &at->second;
  for (const LockOwner* owner = inode.lock_owners.load(); owner != nullptr; owner = owner->next) {
    if (owner->ranges.empty()) continue;
    Holder holder{owner, nullptr, at->second};
    if (owner->owner != wanted_owner) {
      const auto first = FirstOf(by_owner_, owner->owner);
      if (first == by_owner_.end() || (*first)->searched == searches_) continue;
      holder.waits = *first;
    }
    at->second = static_cast<uint32_t>(holders_.size());
    holders_.push_back(holder);
  }
  return &at->second;
}

// Puts those who hold what the waiter wants on the list; true: the searched one is among them.
bool LockWaiters::Follow(const LockWaiter& waiter, uint64_t wanted_owner, LockWaiter** to_visit) {
  const LockRange range = LockOwners::RangeOf(waiter.lock);
  uint32_t* link = HoldersOf(*waiter.handle->inode, wanted_owner);
  while (*link != kNoHolder) {
    Holder& holder = holders_[*link];
    if (holder.waits == nullptr || holder.waits->searched != searches_) {
      if (holder.owner->owner == waiter.owner || holder.owner->ranges.Conflict(range) == nullptr) {
        link = &holder.next;
        continue;
      }
      if (holder.waits == nullptr) return true;
      holder.waits->searched = searches_;
      holder.waits->next_visit = std::exchange(*to_visit, holder.waits);
    }
    *link = holder.next;  // found: nobody has to look at it again
  }
  return false;
}

bool LockWaiters::Deadlocks(const LockWaiter& wanted, LockOwners& owners) {
  // Depth first from lock to holder to the locks that the holder waits for. Every owner once: the
  // first of its waiters carries the mark and the place in the list of what is to be visited.
  ++searches_;
  holders_.clear();
  first_holder_.clear();
  const LockOwners::Still still = owners.HoldStill();
  LockWaiter* to_visit = nullptr;
  if (Follow(wanted, wanted.owner, &to_visit)) return true;
  while (to_visit != nullptr) {
    LockWaiter* const at = std::exchange(to_visit, to_visit->next_visit);
    for (auto it = FirstOf(by_owner_, at->owner);
         it != by_owner_.end() && (*it)->owner == at->owner; ++it) {
      // One that was interrupted waits no more, though its thread has not come to it.
      if ((*it)->interrupted.load(std::memory_order_acquire)) continue;
      if (Follow(**it, wanted.owner, &to_visit)) return true;
    }
  }
  return false;
}

bool LockWaiters::Interrupt(uint64_t unique, uint32_t own_queue, bool* own) {
  *own = false;
  uint32_t queues = 0;
  bool found = false;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    for (Absent& absent : handed_back_) {
      if (absent.unique == unique) found = absent.interrupted = true;
    }
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
  if (count() == 0 && handed_back_count_.load(std::memory_order_acquire) == 0) return false;
  uint32_t queues = 0;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    // Of those that are not here nobody will ask again.
    handed_back_.clear();
    handed_back_count_.store(0, std::memory_order_release);
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
