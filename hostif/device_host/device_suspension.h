// DeviceSuspension: a device that is stopped where it is for another process (DeviceHandle::
// Suspend), on a thread of its own, so that neither devices wait for each other nor anybody for
// ever: a plugin may hang. Owned by the Service; [any], one thread at a time.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_SUSPENSION_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_SUSPENSION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "virtbay/host.h"

namespace virtbay::device_host {

class DeviceSuspension {
 public:
  // Begins. `on_resumed` is called on its thread when a device that was given up serves again.
  DeviceSuspension(DeviceHandle device, absl::Duration quiesce_deadline,
                   std::function<void()> on_resumed);
  // Waits for the plugin.
  ~DeviceSuspension();
  DeviceSuspension(const DeviceSuspension&) = delete;
  DeviceSuspension& operator=(const DeviceSuspension&) = delete;

  // What Suspend returned; DeadlineExceeded when it has not by then: it is given up, and the device
  // serves on as soon as its plugin comes back. Once.
  absl::StatusOr<LeftDevice> Await(absl::Time deadline);
  bool given_up() const;
  // Its thread is through with it.
  bool over() const;

  uint64_t begun_ns() const { return begun_ns_; }
  // After Await, unless it was given up: what Suspend took.
  uint64_t took_ns() const { return took_ns_; }

 private:
  void Run(absl::Duration quiesce_deadline);

  const DeviceHandle device_;
  const std::function<void()> on_resumed_;
  const uint64_t begun_ns_;
  uint64_t took_ns_ = 0;
  mutable absl::Mutex mutex_;
  std::optional<absl::StatusOr<LeftDevice>> left_ ABSL_GUARDED_BY(mutex_);
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_SUSPENSION_H_
