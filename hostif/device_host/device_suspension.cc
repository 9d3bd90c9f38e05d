#include "hostif/device_host/device_suspension.h"

#include <pthread.h>

#include <exception>
#include <system_error>

#include "framework/base/clock.h"

namespace virtbay::device_host {

DeviceSuspension::DeviceSuspension(DeviceHandle device, absl::Duration quiesce_deadline,
                                   std::function<void()> on_resumed)
    : device_(std::move(device)), on_resumed_(std::move(on_resumed)), begun_ns_(MonotonicNs()) {
  try {
    thread_ = std::thread([this, quiesce_deadline] {
      pthread_setname_np(pthread_self(), "suspend");
      Run(quiesce_deadline);
    });
  } catch (const std::system_error&) {
    Run(quiesce_deadline);
  }
}

DeviceSuspension::~DeviceSuspension() {
  if (thread_.joinable()) thread_.join();
}

void DeviceSuspension::Run(absl::Duration quiesce_deadline) {
  absl::StatusOr<LeftDevice> left = absl::InternalError("out of memory");
  try {
    left = device_.Suspend(quiesce_deadline);
  } catch (const std::exception& error) {
    left = absl::InternalError(error.what());
  }
  {
    absl::MutexLock lock(&mutex_);
    if (!given_up_) {
      took_ns_ = MonotonicNs() - begun_ns_;
      left_ = std::move(left);
      over_ = true;
      return;
    }
  }
  if (left.ok()) device_.Resume().IgnoreError();
  on_resumed_();
  absl::MutexLock lock(&mutex_);
  over_ = true;
}

absl::StatusOr<LeftDevice> DeviceSuspension::Await(absl::Time deadline) {
  absl::MutexLock lock(&mutex_);
  const auto back = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return left_.has_value(); };
  if (mutex_.AwaitWithDeadline(absl::Condition(&back), deadline)) return *std::move(left_);
  given_up_ = true;
  return absl::DeadlineExceededError("its plugin does not come back from saving its state");
}

bool DeviceSuspension::given_up() const {
  absl::MutexLock lock(&mutex_);
  return given_up_;
}

bool DeviceSuspension::over() const {
  absl::MutexLock lock(&mutex_);
  return over_;
}

}  // namespace virtbay::device_host
