#include "framework/device/notifier.h"

#include <sched.h>
#include <unistd.h>

#include <span>
#include <utility>

#include "framework/base/event_fd.h"

namespace virtbay {
namespace {

constexpr uint64_t kOne = 1;
// The front-end may fill an eventfd again before the thread that waits for room has run.
constexpr int kDrains = 1000;

}  // namespace

void Notifier::Set(SharedFd fd) {
  fd_ = fd.get();
  // The flags stay as they are: they are the front-end's too, which may sleep in a read.
  if (fd_ >= 0) kind_ = EventFdKindOf(fd_).value_or(EventFdKind::kEventFd);
  absl::MutexLock lock(&mutex_);
  held_ = std::move(fd);
  dead_.store(false, std::memory_order_relaxed);
}

SharedFd Notifier::fd() const {
  absl::MutexLock lock(&mutex_);
  return held_;
}

void Notifier::Notify() {
  if (fd_ < 0 || dead_.load(std::memory_order_relaxed)) return;
  const std::span one = std::as_bytes(std::span(&kOne, 1));
  if (kind_ != EventFdKind::kEventFd) {
    static_cast<void>(WriteNow(kind_, fd_, one));
    return;
  }
  const uint64_t before = writes_.load(std::memory_order_relaxed);
  writes_.store(before + 1, std::memory_order_relaxed);
  [[maybe_unused]] const ssize_t n = write(fd_, one.data(), one.size());
  writes_.store(before + 2, std::memory_order_relaxed);
}

bool Notifier::Release() {
  const uint64_t writes = writes_.load(std::memory_order_relaxed);
  if (writes % 2 == 0 || std::exchange(seen_, writes) != writes) return false;
  const SharedFd held = fd();
  // One that was only preempted in its write, or has room by now, is held up by nobody.
  if (!held || !IsFull(held.get())) return false;
  bool first = false;
  {
    // With the lock, so that it is not what is set next that dies.
    absl::MutexLock lock(&mutex_);
    if (writes_.load(std::memory_order_relaxed) != writes) return false;
    first = !dead_.exchange(true, std::memory_order_relaxed);
  }
  for (int i = 0; i < kDrains && writes_.load(std::memory_order_relaxed) == writes; ++i) {
    DrainEventFd(held.get());
    sched_yield();
  }
  return first;
}

}  // namespace virtbay
