// OffloadPool: threads for a device's blocking work. They start when work comes and end when none
// has come for a while, so an idle device has none.
// Owned by the device. Run is [any]; work runs on the pool's threads.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_OFFLOAD_POOL_H_
#define VIRTBAY_FRAMEWORK_DEVICE_OFFLOAD_POOL_H_

#include <cstdint>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace virtbay {

class OffloadPool {
 public:
  // A thread that has had no work for idle_life ends.
  OffloadPool(std::string name, uint32_t max_threads, absl::Duration idle_life = absl::Seconds(10));
  // Waits for all work that was accepted.
  ~OffloadPool();
  OffloadPool(const OffloadPool&) = delete;
  OffloadPool& operator=(const OffloadPool&) = delete;

  // Runs it on some thread of the pool, in order of arrival. False: no thread could be started.
  bool Run(absl::AnyInvocable<void()> work);
  // Waits until no work is left or under way; false when `timeout` passes before.
  bool Drain(absl::Duration timeout);
  // Instead of its destruction, with which it would wait: work that was not begun is dropped, and
  // its threads never end, as their exit would run code of a plugin that has crashed. It must stay.
  void LeaveBehind();

 private:
  void ThreadMain();
  bool Quiet() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return work_.empty() && alive_ == idle_;
  }
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !work_.empty() || stopping_;
  }

  const std::string name_;
  const uint32_t max_threads_;
  const absl::Duration idle_life_;
  absl::Mutex mutex_;
  std::deque<absl::AnyInvocable<void()>> work_ ABSL_GUARDED_BY(mutex_);
  uint32_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  uint32_t alive_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stays_ ABSL_GUARDED_BY(mutex_) = false;
  // Threads that have ended wait here to be joined; a detached thread could outlive the pool.
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread::id> ended_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_OFFLOAD_POOL_H_
