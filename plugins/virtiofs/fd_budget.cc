#include "plugins/virtiofs/fd_budget.h"

#include <unistd.h>

#include <algorithm>
#include <array>

#include "plugins/virtiofs/file_handle.h"
#include "plugins/virtiofs/inode_table.h"

namespace virtbay::virtiofs {
namespace {

constexpr size_t kMaxSweep = 4096;
constexpr uint32_t kBatch = 64;  // closed at a time
constexpr uint32_t kTries = 8;   // others may take what was closed

}  // namespace

void FdBudget::Configure(InodeTable* table, uint32_t paths, uint32_t total) {
  table_ = table;
  max_paths_ = paths;
  max_total_ = total;
}

PathFd FdBudget::Install(Inode& inode, int fd) {
  uint64_t expected = inode.fd_word.load(std::memory_order_acquire);
  const uint64_t mine = (static_cast<uint64_t>(fd) + 1) << 32;
  for (;;) {
    if ((expected >> 32) != 0) {
      PathFd other = Acquire(inode);
      if (other) {
        Close(fd, true);
        return other;
      }
      expected = inode.fd_word.load(std::memory_order_acquire);
      continue;
    }
    // Users of a descriptor that was taken away do not exist (it goes only at 0 users), so the low
    // half is 0 here.
    if (inode.fd_word.compare_exchange_weak(expected, mine | 1, std::memory_order_acq_rel)) break;
  }
  inode.fd_used.store(true, std::memory_order_relaxed);
  const std::lock_guard<std::mutex> lock(mu_);
  if (inode.ring_at == 0) {
    ring_.push_back(&inode);
    inode.ring_at = static_cast<uint32_t>(ring_.size());
  }
  return PathFd(&inode, fd);
}

void FdBudget::RemoveFromRing(Inode& inode) {
  if (inode.ring_at == 0) return;
  const size_t at = inode.ring_at - 1;
  ring_[at] = ring_.back();
  ring_[at]->ring_at = static_cast<uint32_t>(at + 1);
  ring_.pop_back();
  inode.ring_at = 0;
}

int FdBudget::Remove(Inode& inode) {
  const std::lock_guard<std::mutex> lock(mu_);
  RemoveFromRing(inode);
  const uint64_t w = inode.fd_word.exchange(0, std::memory_order_acq_rel);
  return static_cast<int>(w >> 32) - 1;
}

bool FdBudget::KeepSpares(const sdk::Host* host, uint32_t count, uint32_t for_paths, bool later) {
  host_ = host;
  uint32_t kept = 0;
  // More than the least only of its own: there may be a thousand of such devices.
  while (kept < count && TakeUnit(kept < kLeastSpares ? 0 : VIRTBAY_DESCRIPTOR_OWN)) ++kept;
  spares_.store(kept);
  Keep(static_cast<int32_t>(kept));
  const uint32_t wanted = later ? count : kept;
  spares_wanted_.store(wanted);
  spares_for_paths_ = std::min(for_paths, wanted / 2);
  if (later) return true;
  // A share of which no file can be opened is of no use.
  if (!TakeUnit(0)) return false;
  GiveUnit();
  return kept >= std::min(count, kLeastSpares);
}

bool FdBudget::KeepForFiles() {
  while (spares_for_files_.load(std::memory_order_relaxed) < kFilesOfShares) {
    if (!TakeUnit(0)) return false;
    spares_.fetch_add(1, std::memory_order_relaxed);
    spares_wanted_.fetch_add(1, std::memory_order_relaxed);
    spares_for_files_.fetch_add(1, std::memory_order_relaxed);
    Keep(1);
  }
  return true;
}

void FdBudget::CountOpen() {
  open_.fetch_add(1, std::memory_order_relaxed);
  if (gauge_ != nullptr) __atomic_fetch_add(gauge_, 1, __ATOMIC_RELAXED);
}

void FdBudget::Adopt(bool path) {
  if (path) paths_.fetch_add(1, std::memory_order_relaxed);
  CountOpen();
  if (owed() != 0 || !TakeUnit(0)) owed_.fetch_add(1, std::memory_order_relaxed);
}

bool FdBudget::AdoptCached() {
  if (paths_.load(std::memory_order_relaxed) >= max_paths_ ||
      !TakeUnit(VIRTBAY_DESCRIPTOR_CACHED)) {
    return false;
  }
  paths_.fetch_add(1, std::memory_order_relaxed);
  CountOpen();
  return true;
}

void FdBudget::Settle() {
  while (PayOff()) {
    if (CountUnit(0)) continue;
    owed_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
}

bool FdBudget::PayOff() {
  uint32_t owed = owed_.load(std::memory_order_relaxed);
  do {
    if (owed == 0) return false;
  } while (!owed_.compare_exchange_weak(owed, owed - 1, std::memory_order_relaxed));
  return true;
}

bool FdBudget::TakeUnit(uint32_t flags) {
  if (owed() != 0) {
    Settle();
    if (owed() != 0) return false;
  }
  return CountUnit(flags);
}

bool FdBudget::CountUnit(uint32_t flags) {
  uint32_t units = units_.load(std::memory_order_relaxed);
  do {
    if (units >= max_total_) return false;
  } while (!units_.compare_exchange_weak(units, units + 1, std::memory_order_relaxed));
  if (host_ == nullptr || host_->TakeDescriptor(flags)) {
    return true;
  }
  units_.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

void FdBudget::GiveUnit() {
  units_.fetch_sub(1, std::memory_order_relaxed);
  if (host_ != nullptr) host_->GiveDescriptor();
}

// The caller has a unit for it. False: there are enough.
bool FdBudget::AddSpare() {
  uint32_t spares = spares_.load(std::memory_order_relaxed);
  do {
    if (spares >= spares_wanted_.load(std::memory_order_relaxed)) return false;
  } while (!spares_.compare_exchange_weak(spares, spares + 1, std::memory_order_relaxed));
  Keep(1);
  return true;
}

// The caller has the spare one's unit then.
bool FdBudget::UseSpare(FdKind kind) {
  const uint32_t others =
      paths_.load(std::memory_order_relaxed) + roots_.load(std::memory_order_relaxed);
  const uint32_t few = std::max(kFewFiles, spares_for_files_.load(std::memory_order_relaxed));
  if (kind == FdKind::kFile && open_.load(std::memory_order_relaxed) >= others + few) return false;
  const uint32_t kept = KeptFrom(kind);
  uint32_t spares = spares_.load(std::memory_order_relaxed);
  do {
    if (spares <= kept) return false;
  } while (!spares_.compare_exchange_weak(spares, spares - 1, std::memory_order_relaxed));
  Keep(-1);
  return true;
}

bool FdBudget::TakeFor(FdKind kind) {
  const bool path = kind == FdKind::kPath;
  if (TakeUnit(path ? VIRTBAY_DESCRIPTOR_CACHED : 0)) return true;
  for (uint32_t tries = 0; tries < kTries; ++tries) {
    // A path is kept open for comfort: for another one, one is closed.
    if (Evict(path ? std::clamp(max_paths_ / 16, 1u, kBatch) : kBatch) == 0) break;
    if (TakeUnit(path ? VIRTBAY_DESCRIPTOR_CACHED : 0)) return true;
  }
  if (path && TakeUnit(0)) return true;
  if (kind == FdKind::kRoot) return false;
  if (UseSpare(kind)) return true;
  if (kind == FdKind::kFile) return false;
  // Rather some inodes lost, whose names the guest itself has removed, than all of them. What is
  // closed becomes spare ones first.
  return Evict(KeptFrom(kind) + 1, true) != 0 && (TakeUnit(0) || UseSpare(kind));
}

bool FdBudget::Reserve(FdKind kind) {
  const bool path = kind == FdKind::kPath;
  // A few at once, so that a walk over a tree larger than the budget does not sweep for each step.
  if (path && paths_.fetch_add(1, std::memory_order_relaxed) >= max_paths_) {
    Evict(std::clamp(max_paths_ / 16, 1u, kBatch));
  }
  if (TakeFor(kind)) {
    CountOpen();
    return true;
  }
  if (path) paths_.fetch_sub(1, std::memory_order_relaxed);
  return false;
}

bool FdBudget::ReserveRoot() {
  if (!KeepForFiles() || !Reserve(FdKind::kRoot)) return false;
  roots_.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void FdBudget::UnreserveRoot() {
  roots_.fetch_sub(1, std::memory_order_relaxed);
  Unreserve(false);
}

void FdBudget::Unreserve(bool path) {
  open_.fetch_sub(1, std::memory_order_relaxed);
  if (gauge_ != nullptr) __atomic_fetch_sub(gauge_, 1, __ATOMIC_RELAXED);
  if (path) paths_.fetch_sub(1, std::memory_order_relaxed);
  if (PayOff() || AddSpare()) return;
  GiveUnit();
}

void FdBudget::Close(int fd, bool path) {
  ::close(fd);
  Unreserve(path);
}

bool FdBudget::MakeRoom() { return Evict(kBatch) != 0; }

void FdBudget::KeepHandle(Inode& inode, int fd) {
  if (!inode.share->keep_handles || inode.key.mnt_id != inode.share->root_mnt_id) return;
  if (inode.file_handle.load(std::memory_order_acquire) != nullptr) return;
  FileHandle* handle = FileHandle::Of(fd);
  FileHandle* none = nullptr;
  if (handle != nullptr && !inode.file_handle.compare_exchange_strong(none, handle)) {
    FileHandle::Free(handle);
  }
}

uint32_t FdBudget::Evict(uint32_t n, bool nameless) {
  struct Victim {
    InodeRef inode;
    int fd = -1;
  };
  std::array<Victim, kBatch> victims;
  uint32_t found = 0;
  n = std::min<uint32_t>(n, static_cast<uint32_t>(victims.size()));
  {
    const std::lock_guard<std::mutex> lock(mu_);
    // Twice round: the first pass may only take the second chances away. Not much further at a
    // time, because the guest can fill the clock with inodes that must keep theirs.
    for (size_t steps = std::min<size_t>(ring_.size() * 2, kMaxSweep);
         steps > 0 && found < n && !ring_.empty(); --steps) {
      if (hand_ >= ring_.size()) hand_ = 0;
      Inode& inode = *ring_[hand_];
      if ((!nameless && inode.keep_fd.load(std::memory_order_relaxed)) ||
          inode.fd_used.exchange(false, std::memory_order_relaxed)) {
        ++hand_;
        continue;
      }
      uint64_t w = inode.fd_word.load(std::memory_order_acquire);
      InodeRef ref;
      if ((w & Inode::kRefMask) == 0 && (w >> 32) != 0) ref = table_->TryRef(inode);
      if (!ref || !inode.fd_word.compare_exchange_strong(w, 0, std::memory_order_acq_rel)) {
        // Destroying needs mu_, so a reference that may be the last one goes after the lock.
        if (ref) victims[found++].inode = std::move(ref);
        ++hand_;
        continue;
      }
      RemoveFromRing(inode);
      victims[found].inode = std::move(ref);
      victims[found++].fd = static_cast<int>(w >> 32) - 1;
    }
  }
  uint32_t closed = 0;
  for (uint32_t i = 0; i < found; ++i) {
    if (victims[i].fd < 0) continue;
    KeepHandle(*victims[i].inode, victims[i].fd);
    Close(victims[i].fd, true);
    ++closed;
  }
  if (evicted_ != nullptr) __atomic_fetch_add(evicted_, closed, __ATOMIC_RELAXED);
  return closed;
}

}  // namespace virtbay::virtiofs
