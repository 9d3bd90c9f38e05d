#include "plugins/virtiofs/locks.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <utility>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kOffsetMax = INT64_MAX;

struct flock HostLock(short type, uint64_t start, uint64_t end) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(start);
  lock.l_len = end == kOffsetMax ? 0 : static_cast<off_t>(end - start + 1);
  return lock;
}

// F_OFD_SETLK: 0 or errno.
int SetOn(int fd, const struct flock& lock) {
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
  return errno == EACCES ? EAGAIN : errno;
}

// The description cannot be opened so, but perhaps with less.
bool Refused(int error) {
  return error == EACCES || error == EROFS || error == EPERM || error == ETXTBSY;
}

}  // namespace

bool LockOwners::ToHost(const fuse_file_lock& in, struct flock* out) {
  if (in.start > in.end || in.start > kOffsetMax || in.end > kOffsetMax) return false;
  if (in.type != F_RDLCK && in.type != F_WRLCK && in.type != F_UNLCK) return false;
  *out = HostLock(static_cast<short>(in.type), in.start, in.end);
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

int LockOwners::Open(Fs& fs, Handle& handle, LockDescription* out) {
  // A write lock needs a description open for writing, a read lock one for reading.
  *out = {-1, true, true, 0};
  const auto reopen = [&](int mode) {
    return fs.OpenCounted(FdKind::kFile,
                          [&] { return Reopen(fs.proc_fd, handle.fd, mode | O_NONBLOCK); });
  };
  out->fd = reopen(O_RDWR);
  if (out->fd >= 0 || !Refused(-out->fd)) return -std::min(out->fd, 0);
  out->readable = handle.readable;
  out->writable = handle.writable;
  if (!handle.readable || !handle.writable) {
    out->fd = reopen(handle.writable ? O_WRONLY : O_RDONLY);
    if (out->fd >= 0 || !Refused(-out->fd)) return -std::min(out->fd, 0);
  }
  // It was created with a mode that lets nobody open it so again.
  out->shared_fh = handle.fh();
  out->fd = fs.OpenCounted(FdKind::kFile, [&] {
    const int copy = ::fcntl(handle.fd, F_DUPFD_CLOEXEC, 0);
    return copy < 0 ? -errno : copy;
  });
  return -std::min(out->fd, 0);
}

LockOwner* LockOwners::FindOrOpen(Fs& fs, Handle& handle, uint64_t owner, int* error) {
  Inode& inode = *handle.inode;
  if (LockOwner* found = Find(inode, owner)) return found;
  LockDescription description;
  *error = Open(fs, handle, &description);
  if (*error == ENFILE) *error = ENOLCK;
  if (*error != 0) return nullptr;
  auto* fresh = new (std::nothrow) LockOwner;
  if (fresh == nullptr) {
    fs.budget.Close(description.fd, false);
    *error = ENOLCK;
    return nullptr;
  }
  fresh->owner = owner;
  fresh->fh = handle.fh();
  fresh->description = description;
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
  fs.budget.Close(description.fd, false);
  delete fresh;
  return winner;
}

void LockOwners::Unref(Fs& fs, LockOwner* owner) {
  if (owner->refs.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  fs.budget.Close(owner->description.fd, false);
  ranges_.fetch_sub(static_cast<uint32_t>(owner->ranges.size()), std::memory_order_relaxed);
  delete owner;
}

int LockOwners::Set(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& wire) {
  struct flock lock;
  if (!ToHost(wire, &lock)) return EINVAL;
  // A second time when somebody else has dropped the owner in between.
  for (int tries = 0; tries < 2; ++tries) {
    int error = 0;
    LockOwner* entry =
        lock.l_type == F_UNLCK ? Find(*handle.inode, owner) : FindOrOpen(fs, handle, owner, &error);
    if (entry == nullptr) return error;
    bool dropped = false;
    {
      const std::lock_guard<std::mutex> op(entry->op_mu);
      dropped = entry->dropped;
      if (!dropped) error = Apply(fs, handle, *entry, lock);
    }
    if (!dropped && error == 0 && lock.l_type != F_UNLCK) {
      entry->pid.store(wire.pid, std::memory_order_relaxed);
    }
    Unref(fs, entry);
    if (!dropped) return error;
  }
  return lock.l_type == F_UNLCK ? 0 : ENOLCK;
}

int LockOwners::Apply(Fs& fs, Handle& handle, LockOwner& entry, const struct flock& lock) {
  Inode& inode = *handle.inode;
  const uint64_t start = static_cast<uint64_t>(lock.l_start);
  const uint64_t end = lock.l_len == 0 ? kOffsetMax : start + static_cast<uint64_t>(lock.l_len) - 1;
  const LockRange range = {start, end, lock.l_type == F_WRLCK};
  if (lock.l_type != F_UNLCK) {
    if (ranges_.load(std::memory_order_relaxed) > kMaxRanges - LockRanges::kGrowth) return ENOLCK;
    const LockDescription& have = entry.description;
    if (range.write ? !have.writable : !have.readable) {
      if (const int error = Widen(fs, handle, entry, range.write); error != 0) return error;
    }
  }
  if (entry.description.shared_fh == 0) {
    return lock.l_type == F_UNLCK ? GiveUp(inode, entry, range) : Take(inode, entry, lock, range);
  }
  const std::lock_guard<std::mutex> group(StripeOf(inode).group_mu);
  if (lock.l_type == F_UNLCK) return GiveUp(inode, entry, range);
  if (SharedConflict(inode, entry, range)) return EAGAIN;
  return Take(inode, entry, lock, range);
}

// The owner's description, made for another handle, does not allow what this handle does.
int LockOwners::Widen(Fs& fs, Handle& handle, LockOwner& entry, bool write) {
  if (write ? !handle.writable : !handle.readable) return EBADF;
  const auto& held = entry.ranges.all();
  // Read locks of two descriptions go together, so that nobody can come between when they move.
  // Write locks do not.
  if (std::any_of(held.begin(), held.end(), [](const LockRange& range) { return range.write; })) {
    return ENOLCK;
  }
  LockDescription wider;
  int error = Open(fs, handle, &wider);
  if (error != 0) return error == ENFILE ? ENOLCK : error;
  // A file that allows nobody to read and write it: what is held needs the one, what comes the
  // other, and two descriptions would stand in each other's way.
  if (!held.empty() && !wider.readable) {
    fs.budget.Close(wider.fd, false);
    return ENOLCK;
  }
  Inode& inode = *handle.inode;
  Stripe& stripe = StripeOf(inode);
  const std::lock_guard<std::mutex> group(stripe.group_mu);
  for (size_t i = 0; i < held.size() && error == 0; ++i) {
    error = SetOn(wider.fd, HostLock(F_RDLCK, held[i].start, held[i].end));
  }
  std::vector<LockRange> undone;
  {
    const std::lock_guard<std::mutex> lock(stripe.mu);
    if (error == 0) {
      std::swap(entry.description, wider);
    } else if (wider.shared_fh != 0) {
      undone = OwnParts(inode, entry, wider.shared_fh, {0, kOffsetMax, false});
    }
  }
  for (const LockRange& part : undone) SetOn(wider.fd, HostLock(F_UNLCK, part.start, part.end));
  fs.budget.Close(wider.fd, false);
  return error == EAGAIN ? ENOLCK : error;
}

void LockOwners::Record(LockOwner& entry, const LockRange& range, bool held) {
  const size_t before = entry.ranges.size();
  if (held) {
    entry.ranges.Set(range);
  } else {
    entry.ranges.Clear(range.start, range.end);
  }
  ranges_.fetch_add(static_cast<uint32_t>(entry.ranges.size() - before), std::memory_order_relaxed);
}

int LockOwners::Take(Inode& inode, LockOwner& entry, const struct flock& lock,
                     const LockRange& range) {
  Stripe& stripe = StripeOf(inode);
  {
    const std::lock_guard<std::mutex> guard(stripe.mu);
    entry.ranges.Reserve();
  }
  const int error = SetOn(entry.description.fd, lock);
  if (error != 0) return error;
  const std::lock_guard<std::mutex> guard(stripe.mu);
  Record(entry, range, true);
  return 0;
}

int LockOwners::GiveUp(Inode& inode, LockOwner& entry, const LockRange& range) {
  std::vector<LockRange> parts;
  {
    const std::lock_guard<std::mutex> guard(StripeOf(inode).mu);
    if (entry.description.shared_fh == 0) {
      parts.push_back(range);
    } else {
      parts = OwnParts(inode, entry, entry.description.shared_fh, range);
    }
    // Before the kernel: whoever takes it then must not be seen waiting for this owner.
    Record(entry, range, false);
  }
  int error = 0;
  for (const LockRange& part : parts) {
    const int result = SetOn(entry.description.fd, HostLock(F_UNLCK, part.start, part.end));
    if (error == 0) error = result;
  }
  return error;
}

bool LockOwners::SharedConflict(Inode& inode, const LockOwner& entry, const LockRange& range) {
  const std::lock_guard<std::mutex> guard(StripeOf(inode).mu);
  for (LockOwner* at = inode.lock_owners.load(); at != nullptr; at = at->next) {
    if (at == &entry || at->description.shared_fh != entry.description.shared_fh) continue;
    if (at->ranges.Conflict(range) != nullptr) return true;
  }
  return false;
}

std::vector<LockRange> LockOwners::OwnParts(Inode& inode, const LockOwner& entry,
                                            uint64_t shared_fh, const LockRange& range) {
  LockRanges own;
  for (const LockRange& held : entry.ranges.Within(range.start, range.end)) {
    own.Set({std::max(held.start, range.start), std::min(held.end, range.end), held.write});
  }
  for (LockOwner* at = inode.lock_owners.load(); at != nullptr; at = at->next) {
    if (at == &entry || at->description.shared_fh != shared_fh) continue;
    for (const LockRange& held : at->ranges.Within(range.start, range.end)) {
      own.Clear(held.start, held.end);
    }
  }
  return own.all();
}

int LockOwners::Get(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& wire,
                    fuse_file_lock* out) {
  struct flock lock;
  if (!ToHost(wire, &lock) || lock.l_type == F_UNLCK) return EINVAL;
  Inode& inode = *handle.inode;
  if (inode.lock_owners.load(std::memory_order_acquire) != nullptr) {
    const std::lock_guard<std::mutex> guard(StripeOf(inode).mu);
    for (LockOwner* at = inode.lock_owners.load(); at != nullptr; at = at->next) {
      if (at->owner == owner) continue;
      if (const LockRange* held = at->ranges.Conflict(RangeOf(wire))) {
        const short type = held->write ? F_WRLCK : F_RDLCK;
        *out = FromHost(HostLock(type, held->start, held->end),
                        at->pid.load(std::memory_order_relaxed));
        return 0;
      }
    }
  }
  // What is in the way now is the host's. Without state of its own the owner holds nothing; another
  // owner may share the handle's description, but has just been looked at.
  LockOwner* entry = Find(inode, owner);
  int result = 0;
  if (entry != nullptr) {
    const std::lock_guard<std::mutex> op(entry->op_mu);
    result = ::fcntl(entry->description.fd, F_OFD_GETLK, &lock) == 0 ? 0 : errno;
  } else {
    result = ::fcntl(handle.fd, F_OFD_GETLK, &lock) == 0 ? 0 : errno;
  }
  if (entry != nullptr) Unref(fs, entry);
  if (result == 0) *out = FromHost(lock, 0);
  return result;
}

// Ends the owners of a list that is the inode's no more.
void LockOwners::Retire(Fs& fs, Inode& inode, LockOwner* list) {
  while (list != nullptr) {
    LockOwner* const next = list->next;
    {
      // A description of its own gives everything up when it is closed, which an operation that is
      // about to start may delay; one that is shared lives on with the handle.
      const std::lock_guard<std::mutex> op(list->op_mu);
      list->dropped = true;
      if (fs.shared_with_another()) {
        // Closing is all: another generation holds the locks by the same descriptions.
      } else if (list->description.shared_fh != 0) {
        const std::lock_guard<std::mutex> group(StripeOf(inode).group_mu);
        GiveUp(inode, *list, {0, kOffsetMax, false});
      } else if (list->refs.load(std::memory_order_acquire) > 1 || fs.restores) {
        // The generation before this one may not have closed it yet.
        SetOn(list->description.fd, HostLock(F_UNLCK, 0, kOffsetMax));
      }
    }
    Unref(fs, list);
    list = next;
  }
}

bool LockOwners::Restore(Inode& inode, uint64_t owner, uint64_t fh, uint32_t pid,
                         const LockDescription& description, LockRanges ranges) {
  const auto count = static_cast<uint32_t>(ranges.size());
  if (count > kMaxRanges - std::min(ranges_.load(std::memory_order_relaxed), kMaxRanges)) {
    return false;
  }
  auto* fresh = new (std::nothrow) LockOwner;
  if (fresh == nullptr) return false;
  fresh->owner = owner;
  fresh->fh = fh;
  fresh->pid.store(pid, std::memory_order_relaxed);
  fresh->description = description;
  fresh->ranges = std::move(ranges);
  ranges_.fetch_add(count, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
  fresh->next = inode.lock_owners.load();
  inode.lock_owners.store(fresh, std::memory_order_release);
  return true;
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
    found->next = nullptr;
  }
  Retire(fs, inode, found);
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
  Retire(fs, inode, dropped);
}

bool LockOwners::DropAll(Fs& fs, Inode& inode) {
  if (inode.lock_owners.load(std::memory_order_acquire) == nullptr) return false;
  LockOwner* list = nullptr;
  {
    const std::lock_guard<std::mutex> lock(StripeOf(inode).mu);
    list = inode.lock_owners.exchange(nullptr);
  }
  Retire(fs, inode, list);
  return true;
}

}  // namespace virtbay::virtiofs
