// Gate: counts work that has begun, refuses new work once closed, and waits for the old to end.
// Owned by whoever hands out the work; [any].
#ifndef VIRTBAY_FRAMEWORK_BASE_GATE_H_
#define VIRTBAY_FRAMEWORK_BASE_GATE_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace virtbay {

class Gate {
 public:
  // Enters; false once closed. Each true needs one Leave.
  bool Enter() {
    absl::MutexLock lock(&mutex_);
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void Leave() {
    absl::MutexLock lock(&mutex_);
    --inside_;
  }
  // Closes the gate and waits until everyone has left; false when the timeout passed first.
  bool CloseAndWait(absl::Duration timeout = absl::InfiniteDuration()) {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
    return mutex_.AwaitWithTimeout(absl::Condition(this, &Gate::Empty), timeout);
  }
  void Open() {
    absl::MutexLock lock(&mutex_);
    closed_ = false;
  }

 private:
  bool Empty() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return inside_ == 0; }

  absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t inside_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_GATE_H_
