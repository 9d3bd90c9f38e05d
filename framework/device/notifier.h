// Notifier: tells the front-end something by its descriptors (call, error) and is not held up
// by it for ever: the front-end shares the open file and can fill it and make it blocking.
// Owned by a Queue; Set and Notify are its thread's, Release is the watchdog's.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_NOTIFIER_H_
#define VIRTBAY_FRAMEWORK_DEVICE_NOTIFIER_H_

#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/event_fd.h"
#include "framework/base/shared_fd.h"

namespace virtbay {

class Notifier {
 public:
  // From now on by `fd`; an empty one ends it. [queue]
  void Set(SharedFd fd);
  bool valid() const { return fd_ >= 0; }
  // What was set. [queue]
  SharedFd fd() const;
  // What was not read yet stands for this one too; a front-end that is gone is not told. [queue]
  void Notify();

  // A Notify that has waited for room since the last call of this function: makes room, and has
  // this one and all that follow do nothing more, until the next Set. True when it was found so.
  // [one thread]
  bool Release();
  // A Notify is going on. [any]
  bool writing() const { return writes_.load(std::memory_order_relaxed) % 2 != 0; }

 private:
  int fd_ = -1;
  EventFdKind kind_ = EventFdKind::kEventFd;
  uint64_t seen_ = 0;  // writes_ at the last Release
  std::atomic<bool> dead_{false};
  std::atomic<uint64_t> writes_{0};  // odd: in one
  mutable absl::Mutex mutex_;        // never held in a write
  SharedFd held_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_NOTIFIER_H_
