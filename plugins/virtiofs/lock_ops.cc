#include <poll.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <new>

#include "plugins/virtiofs/lock_waiters.h"
#include "plugins/virtiofs/locks.h"
#include "plugins/virtiofs/ops.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kFirstBackoffNs = 1'000'000;
constexpr uint64_t kLastBackoffNs = 50'000'000;

// flock(2) without waiting: 0 or errno.
int Flock(Handle& handle, uint32_t type) {
  int how = LOCK_UN;
  if (type == F_RDLCK) how = LOCK_SH | LOCK_NB;
  if (type == F_WRLCK) how = LOCK_EX | LOCK_NB;
  if (type != F_RDLCK && type != F_WRLCK && type != F_UNLCK) return EINVAL;
  if (how != LOCK_UN) handle.flocked.store(true, std::memory_order_relaxed);
  if (::flock(handle.fd, how) == 0) return 0;
  return errno == EWOULDBLOCK ? EAGAIN : errno;
}

int TryLock(Fs& fs, Handle& handle, uint64_t owner, const fuse_file_lock& lock, bool flock) {
  return flock ? Flock(handle, lock.type) : fs.lock_owners.Set(fs, handle, owner, lock);
}

void ArmPoll(Fs& fs, Worker& worker) {
  if (worker.poll_armed) return;
  const int fd = fs.lock_waiters.EventFd(worker.queue);
  if (fd < 0) return;  // the timer still finds out
  virtbay_io io = {};
  io.struct_size = sizeof(io);
  io.op = VIRTBAY_IO_POLL;
  io.queue = static_cast<uint16_t>(worker.queue);
  io.fd = fd;
  io.arg = POLLIN;
  io.cookie = kLockPollCookie;
  worker.poll_armed = fs.host->Submit(&io, 1).ok();
}

void ArmTimer(Fs& fs, Worker& worker, uint64_t now) {
  if (worker.parked.empty()) return;
  uint64_t first = UINT64_MAX;
  for (const auto& waiter : worker.parked) first = std::min(first, waiter->next_try_ns);
  const uint64_t delay = first > now ? first - now : 0;
  fs.host->SetTimer(worker.queue, std::chrono::nanoseconds(static_cast<int64_t>(delay)),
                    kLockTimerCookie);
}

void Park(Call& c, HandleRef handle, const fuse_lk_in& in, bool flock) {
  Fs& fs = c.fs;
  Worker& worker = c.worker;
  std::unique_ptr<LockWaiter> waiter(new (std::nothrow) LockWaiter);
  if (waiter == nullptr) return c.Error(ENOLCK);
  waiter->unique = c.unique();
  waiter->owner = in.owner;
  waiter->lock = in.lk;
  waiter->flock = flock;
  waiter->handle = std::move(handle);
  waiter->queue = worker.queue;
  waiter->backoff_ns = kFirstBackoffNs;
  const uint64_t now = fs.host->NowNs();
  waiter->next_try_ns = now + waiter->backoff_ns;
  switch (fs.lock_waiters.Add(waiter.get(), fs.lock_owners)) {
    case LockWaiters::Added::kWaits:
      break;
    case LockWaiters::Added::kTooMany:
      return c.Error(ENOLCK);
    case LockWaiters::Added::kInterrupted:
      return c.Error(EINTR);
    case LockWaiters::Added::kDeadlock:
      sdk::Host::Add(fs.counters.lock_deadlocks);
      return c.Error(EDEADLK);
  }
  if (!c.request().Park()) {
    // The rest of the ring is for those who end the waiting.
    fs.lock_waiters.Remove(waiter.get());
    return c.Error(ENOLCK);
  }
  // Whoever gave the lock up between the try and Add did not see this waiter.
  waiter->poked.store(true, std::memory_order_relaxed);
  waiter->request = c.request().Release();
  worker.parked.push_back(std::move(waiter));
  sdk::Host::Add(fs.counters.parked_locks);
  ArmPoll(fs, worker);
  worker.retry_parked = true;
}

void SetLock(Call& c, bool wait) {
  const auto in = c.Arg<fuse_lk_in>();
  Fs& fs = c.fs;
  HandleRef handle = fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  const bool flock = (in.lk_flags & FUSE_LK_FLOCK) != 0;
  int error = TryLock(fs, *handle, in.owner, in.lk, flock);
  if (error == EAGAIN && wait) return Park(c, std::move(handle), in, flock);
  if (wait) fs.lock_waiters.Ended(c.unique());
  // A write lock made a read lock lets others in as well.
  if (error == 0 && in.lk.type != F_WRLCK && fs.lock_waiters.Poke(*handle->inode, c.worker.queue)) {
    c.worker.retry_parked = true;
  }
  c.Error(error);
}

}  // namespace

void OpGetlk(Call& c) {
  const auto in = c.Arg<fuse_lk_in>();
  const HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  if ((in.lk_flags & FUSE_LK_FLOCK) != 0) return c.Error(EINVAL);
  fuse_lk_out out = {};
  const int error = c.fs.lock_owners.Get(c.fs, *handle, in.owner, in.lk, &out.lk);
  if (error != 0) return c.Error(error);
  c.Reply(out);
}

void OpSetlk(Call& c) { SetLock(c, false); }
void OpSetlkw(Call& c) { SetLock(c, true); }

void OpInterrupt(Call& c) {
  bool own = false;
  c.fs.lock_waiters.Interrupt(c.Arg<fuse_interrupt_in>().unique, c.worker.queue, &own);
  if (own) c.worker.retry_parked = true;
  c.Ok();
}

void RetryParked(Fs& fs, Worker& worker) {
  worker.retry_parked = false;
  if (worker.parked.empty()) return;
  const uint64_t now = fs.host->NowNs();
  std::vector<std::unique_ptr<LockWaiter>>& parked = worker.parked;
  for (size_t i = 0; i < parked.size();) {
    LockWaiter& waiter = *parked[i];
    int result = EAGAIN;
    if (waiter.interrupted.load(std::memory_order_acquire)) {
      result = EINTR;
    } else if (const bool poked = waiter.poked.exchange(false, std::memory_order_acq_rel);
               poked || now >= waiter.next_try_ns) {
      result = TryLock(fs, *waiter.handle, waiter.owner, waiter.lock, waiter.flock);
      // Somebody else was faster, and may wait (on another thread) for what this owner holds.
      if (result == EAGAIN && poked &&
          fs.lock_waiters.RemoveIfDeadlocked(&waiter, fs.lock_owners)) {
        sdk::Host::Add(fs.counters.lock_deadlocks);
        result = EDEADLK;
      }
      waiter.backoff_ns = std::min(waiter.backoff_ns * 2, kLastBackoffNs);
      waiter.next_try_ns = now + waiter.backoff_ns;
    }
    if (result == EAGAIN) {
      ++i;
      continue;
    }
    // Gone before it is answered: it may hold the last reference on a handle with locks.
    fs.lock_waiters.Remove(&waiter);
    sdk::Request request(fs.host, waiter.request);
    const uint64_t unique = waiter.unique;
    parked.erase(parked.begin() + static_cast<std::ptrdiff_t>(i));
    Call::Answer(fs, std::move(request), unique, result, {});
  }
  ArmTimer(fs, worker, now);
}

void OnLockPoll(Fs& fs, Worker& worker) {
  worker.poll_armed = false;
  fs.lock_waiters.Drain(worker.queue);
  if (worker.parked.empty()) return;
  ArmPoll(fs, worker);
  RetryParked(fs, worker);
}

void RequeueParked(Fs& fs, Worker& worker) {
  for (auto& waiter : worker.parked) {
    sdk::Request request(fs.host, waiter->request);
    if (worker.condemned) {
      fs.lock_waiters.Remove(waiter.get());
      // Nobody would take it up again: this queue's ring stops for good.
      Call::Answer(fs, std::move(request), waiter->unique, EIO, {});
    } else {
      fs.lock_waiters.HandBack(waiter.get());
      request.Requeue();
    }
  }
  worker.parked.clear();
  fs.host->CancelTimer(worker.queue, kLockTimerCookie);
  if (worker.poll_armed) fs.host->Cancel(worker.queue, kLockPollCookie);
}

}  // namespace virtbay::virtiofs
