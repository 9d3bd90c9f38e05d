#include "plugins/virtiofs/locks.h"

#include <sys/eventfd.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kOffsetMax = INT64_MAX;
constexpr size_t kMaxOwnersAsked = 16;

}  // namespace

bool LockOwners::ToHost(const fuse_file_lock& in, struct flock* out) {
  if (in.start > in.end || in.start > kOffsetMax || in.end > kOffsetMax) return false;
  if (in.type != F_RDLCK && in.type != F_WRLCK && in.type != F_UNLCK) return false;
  *out = {};
  out->l_type = static_cast<short>(in.type);
  out->l_whence = SEEK_SET;
  out->l_start = static_cast<off_t>(in.start);
  out->l_len = in.end == kOffsetMax ? 0 : static_cast<off_t>(in.end - in.start + 1);
  return true;
}

fuse_file_lock LockOwners::FromHost(const struct flock& in, uint32_t pid) {
  fuse_file_lock out = {};
  out.type = static_cast<uint32_t>(in.l_type);
  if (in.l_type == F_UNLCK) return out;
  out.start = static_cast<uint64_t>(in.l_start);
  out.end = in.l_len == 0 ? kOffsetMax : static_cast<uint64_t>(in.l_start + in.l_len - 1);
  out.pid = pid;
  return out;
}

LockOwner* LockOwners::Find(Inode& inode, uint64_t owner) {
  if (inode.lock_owners.load(std::memory_order_acquire) == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
  for (LockOwner* at = inode.lock_owners.load(); at != nullptr; at = at->next) {
    if (at->owner != owner) continue;
    at->refs.fetch_add(1, std::memory_order_relaxed);
    return at;
  }
  return nullptr;
}

LockOwner* LockOwners::FindOrOpen(Fs& fs, Handle& handle, uint64_t owner, int* error) {
  Inode& inode = *handle.inode;
  if (LockOwner* found = Find(inode, owner)) return found;
  // A write lock needs a description open for writing, a read lock one for reading.
  int fd =
      fs.OpenCounted(false, [&] { return Reopen(fs.proc_fd, handle.fd, O_RDWR | O_NONBLOCK); });
  if (fd == -EACCES || fd == -EROFS || fd == -EPERM || fd == -ETXTBSY) {
    const int mode = handle.writable ? O_WRONLY : O_RDONLY;
    fd = fs.OpenCounted(false, [&] { return Reopen(fs.proc_fd, handle.fd, mode | O_NONBLOCK); });
  }
  if (fd < 0) {
    *error = fd == -ENFILE ? ENOLCK : -fd;
    return nullptr;
  }
  auto* fresh = new (std::nothrow) LockOwner;
  if (fresh == nullptr) {
    fs.budget.Close(fd, false);
    *error = ENOLCK;
    return nullptr;
  }
  fresh->owner = owner;
  fresh->fh = handle.fh();
  fresh->fd = fd;
  fresh->refs.store(2, std::memory_order_relaxed);
  LockOwner* winner = nullptr;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    for (LockOwner* at = inode.lock_owners.load(); at != nullptr; at = at->next) {
      if (at->owner == owner) winner = at;
    }
    if (winner == nullptr) {
      fresh->next = inode.lock_owners.load();
      inode.lock_owners.store(fresh, std::memory_order_release);
      return fresh;
    }
    winner->refs.fetch_add(1, std::memory_order_relaxed);
  }
  fs.budget.Close(fd, false);
  delete fresh;
  return winner;
}

void LockOwners::Unref(Fs& fs, LockOwner* owner) {
  if (owner->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  fs.budget.Close(owner->fd, false);
  delete owner;
}

int LockOwners::Set(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& wire) {
  struct flock lock;
  if (!ToHost(wire, &lock)) return EINVAL;
  LockOwner* entry = nullptr;
  if (lock.l_type == F_UNLCK) {
    entry = Find(*handle.inode, owner);
    if (entry == nullptr) return 0;
  } else {
    int error = 0;
    entry = FindOrOpen(fs, handle, owner, &error);
    if (entry == nullptr) return error;
    entry->pid.store(wire.pid, std::memory_order_relaxed);
  }
  int result = ::fcntl(entry->fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
  if (result == EACCES) result = EAGAIN;
  Unref(fs, entry);
  return result;
}

uint32_t LockOwners::PidOfHolder(Fs& fs, Inode& inode, const struct flock& held) {
  // The kernel does not say whose open file description it is. An owner is never in conflict with
  // itself, so the one that sees no conflict over the held range holds it.
  std::array<LockOwner*, kMaxOwnersAsked> owners;
  size_t count = 0;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    LockOwner* at = inode.lock_owners.load();
    for (; at != nullptr && count < owners.size(); at = at->next) {
      at->refs.fetch_add(1, std::memory_order_relaxed);
      owners[count++] = at;
    }
  }
  uint32_t pid = 0;
  for (size_t i = 0; i < count; ++i) {
    struct flock probe = held;
    probe.l_type = F_WRLCK;
    probe.l_pid = 0;
    if (pid == 0 && ::fcntl(owners[i]->fd, F_OFD_GETLK, &probe) == 0 && probe.l_type == F_UNLCK) {
      pid = owners[i]->pid.load(std::memory_order_relaxed);
    }
    Unref(fs, owners[i]);
  }
  return pid;
}

int LockOwners::Get(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& wire,
                    fuse_file_lock* out) {
  struct flock lock;
  if (!ToHost(wire, &lock) || lock.l_type == F_UNLCK) return EINVAL;
  // Without state of its own the owner holds nothing, and the handle's description, on which no
  // such lock is ever set, sees the same conflicts.
  LockOwner* entry = Find(*handle.inode, owner);
  const int fd = entry != nullptr ? entry->fd : handle.fd;
  const int result = ::fcntl(fd, F_OFD_GETLK, &lock) == 0 ? 0 : errno;
  if (entry != nullptr) Unref(fs, entry);
  if (result != 0) return result;
  const uint32_t pid = lock.l_type == F_UNLCK ? 0 : PidOfHolder(fs, *handle.inode, lock);
  *out = FromHost(lock, pid);
  return 0;
}

bool LockOwners::Drop(Fs& fs, Inode& inode, uint64_t owner) {
  if (inode.lock_owners.load(std::memory_order_acquire) == nullptr) return false;
  LockOwner* found = nullptr;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    LockOwner* previous = nullptr;
    LockOwner* at = inode.lock_owners.load();
    for (; at != nullptr && at->owner != owner; at = at->next) previous = at;
    if (at == nullptr) return false;
    if (previous != nullptr) {
      previous->next = at->next;
    } else {
      inode.lock_owners.store(at->next, std::memory_order_release);
    }
    found = at;
  }
  Unref(fs, found);
  return true;
}

void LockOwners::DropOf(Fs& fs, Inode& inode, uint64_t fh) {
  if (inode.lock_owners.load(std::memory_order_acquire) == nullptr) return;
  LockOwner* dropped = nullptr;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    LockOwner* kept = nullptr;
    for (LockOwner* at = inode.lock_owners.load(); at != nullptr;) {
      LockOwner* const next = at->next;
      LockOwner*& list = at->fh == fh ? dropped : kept;
      at->next = list;
      list = at;
      at = next;
    }
    inode.lock_owners.store(kept, std::memory_order_release);
  }
  while (dropped != nullptr) {
    LockOwner* const next = dropped->next;
    Unref(fs, dropped);
    dropped = next;
  }
}

bool LockOwners::DropAll(Fs& fs, Inode& inode) {
  if (inode.lock_owners.load(std::memory_order_acquire) == nullptr) return false;
  LockOwner* list = nullptr;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    list = inode.lock_owners.exchange(nullptr);
  }
  while (list != nullptr) {
    LockOwner* next = list->next;
    Unref(fs, list);
    list = next;
  }
  return true;
}

// ---- waiters ------------------------------------------------------------------------------------

LockWaiters::~LockWaiters() {
  for (auto& fd : event_fds_) {
    if (fd.load() >= 0) ::close(fd.load());
  }
}

bool LockWaiters::Add(LockWaiter* waiter) {
  const std::lock_guard<std::mutex> lock(mu_);
  if (waiters_.size() >= limit_) return false;
  waiters_.push_back(waiter);
  count_.store(static_cast<uint32_t>(waiters_.size()), std::memory_order_release);
  return true;
}

void LockWaiters::Remove(LockWaiter* waiter) {
  const std::lock_guard<std::mutex> lock(mu_);
  waiters_.erase(std::remove(waiters_.begin(), waiters_.end(), waiter), waiters_.end());
  count_.store(static_cast<uint32_t>(waiters_.size()), std::memory_order_release);
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
