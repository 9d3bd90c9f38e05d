// StartGuard: hears signals while devices are made, when a plugin may hang in a call that nothing
// ends.
// Owned by the main thread for that time; what it does it does on a thread of its own.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_START_GUARD_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_START_GUARD_H_

#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/process.h"

namespace virtbay::device_host {

class StartGuard {
 public:
  // [control] Until its end nobody else looks at `signals`, which outlives it. When a signal has
  // come and the guard has not ended `patience` later, the process exits with a line that says so,
  // and status 1; with a second signal it ends at once. ResourceExhausted without a thread.
  static absl::StatusOr<std::unique_ptr<StartGuard>> Begin(StopSignals* signals,
                                                           absl::Duration patience, Log log);
  // [control] What has come is to be had from `signals` again.
  ~StartGuard();
  StartGuard(const StartGuard&) = delete;
  StartGuard& operator=(const StartGuard&) = delete;

  // [control] What is being made, for that line.
  void Making(const std::string& device);
  // [any] The number of a signal that has come before this call; 0: none has.
  int Signal();

 private:
  StartGuard(StopSignals* signals, absl::Duration patience, Log log, UniqueFd end)
      : signals_(signals), patience_(patience), log_(std::move(log)), end_(std::move(end)) {}
  void Watch();

  StopSignals* const signals_;
  const absl::Duration patience_;
  const Log log_;
  const UniqueFd end_;
  absl::Mutex mutex_;  // also for signals_
  std::string making_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_START_GUARD_H_
