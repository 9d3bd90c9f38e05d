// A device that is stopped where it is, for one of another process to go on with (docs/restart.md):
// the same steps as of a reload, but that the two devices do not share what the framework holds.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "framework/device/device.h"
#include "framework/device/generation.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/device/saved_state.h"

namespace virtbay {
namespace {

constexpr absl::Duration kShapePatience = absl::Milliseconds(500);

}  // namespace

absl::StatusOr<DeviceShape> Device::ShapeLocked() {
  VIRTBAY_RETURN_IF_ERROR(CheckCallable());
  if (stopped_) return absl::FailedPreconditionError("it is stopped by its host");
  if (core_->failed() || core_->needs_reset()) {
    return absl::FailedPreconditionError(absl::StrCat("it needs a reset: ", core_->failure()));
  }
  DeviceShape shape = generation_->Shape(features_);
  if (!shape.has_state) VIRTBAY_RETURN_IF_ERROR(CheckNeedsNoState(generation_->plugin()));
  VIRTBAY_RETURN_IF_ERROR(CheckQueuesWhole());
  return shape;
}

ABSL_NO_THREAD_SAFETY_ANALYSIS absl::StatusOr<DeviceShape> Device::Shape() {
  // A plugin may hang in a call that is under way.
  const absl::Time deadline = absl::Now() + kShapePatience;
  while (!mutex_.TryLock()) {
    if (absl::Now() >= deadline) {
      return absl::UnavailableError("its plugin does not come back from a call");
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
  absl::StatusOr<DeviceShape> shape = ShapeLocked();
  mutex_.Unlock();
  return shape;
}

void Device::Unpause(std::vector<StoppedRing> rings) {
  for (const auto& thread : core_->threads) thread->Continue();
  StartRings(std::move(rings));
}

absl::StatusOr<LeftDevice> Device::Suspend(absl::Duration quiesce_deadline) {
  absl::MutexLock reloading(&reload_mutex_);
  absl::MutexLock lock(&mutex_);
  LeftDevice left;
  VIRTBAY_ASSIGN_OR_RETURN(left.shape, ShapeLocked());
  std::vector<StoppedRing> rings;
  if (session_) {
    VIRTBAY_ASSIGN_OR_RETURN(rings, PauseThreads(absl::Now() + quiesce_deadline, /*next=*/nullptr));
  }
  SavedState saved;
  absl::Status status;
  // It may have failed just now, when it was asked to end what it holds.
  if (core_->failed()) {
    status = absl::InternalError(core_->failure());
  } else if (left.shape.has_state) {
    status = saved.Save(generation_.get());
  }
  if (!status.ok()) {
    if (session_) Unpause(std::move(rings));
    return status;
  }
  if (left.shape.has_state) {
    left.state = std::move(saved).Keep();
    left.state.type = left.shape.type;
  }
  for (const auto& queue : core_->queues) left.rings.push_back(queue->Left(/*runs=*/false));
  for (const StoppedRing& ring : rings) {
    left.rings[ring.queue->index()] = ring.queue->Left(/*runs=*/true);
  }
  left.config = ConfigOf(*generation_);
  suspended_ = std::move(rings);
  return left;
}

void Device::ResumeLocked() {
  std::vector<StoppedRing> rings = *std::exchange(suspended_, std::nullopt);
  if (session_) Unpause(std::move(rings));
}

absl::Status Device::Resume() {
  absl::MutexLock lock(&mutex_);
  if (!suspended_.has_value()) return absl::FailedPreconditionError("the device is not suspended");
  ResumeLocked();
  return absl::OkStatus();
}

absl::Status Device::Release() {
  absl::MutexLock lock(&mutex_);
  if (!suspended_.has_value()) return absl::FailedPreconditionError("the device is not suspended");
  suspended_.reset();
  saved_ = true;
  stopped_ = true;
  generation_->Release();
  if (session_) {
    session_ = false;
    last_state_.reset();
    EndThreads();
    for (const auto& queue : core_->queues) queue->EndSession();
    generation_->Stop();
    generation_->Deactivate();
  }
  state_ = "stopped";
  return absl::OkStatus();
}

absl::Status Device::Restore(LeftDevice left) {
  absl::MutexLock lock(&mutex_);
  if (!staged_.has_value()) {
    return absl::FailedPreconditionError("the device does not wait for anything to go on with");
  }
  const bool has_state = staged_->has_state;
  if (left.rings.size() > core_->queues.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        left.rings.size(), " rings were left; there are ", core_->queues.size(), " queues"));
  }
  if (left.shape.has_state != has_state) {
    return absl::InvalidArgumentError(has_state ? "there is no state to go on with"
                                                : "there is a state that it does not expect");
  }
  // With the features that the driver may have acknowledged since.
  VIRTBAY_RETURN_IF_ERROR(generation_->CheckFollows(left.shape));
  if (has_state) VIRTBAY_RETURN_IF_ERROR(RestoreState(&left.state));
  VIRTBAY_RETURN_IF_ERROR(generation_->EarlyFailure());
  goes_on_ = std::any_of(left.rings.begin(), left.rings.end(),
                         [](const LeftRing& ring) { return ring.size != 0; });
  for (size_t i = 0; i < left.rings.size(); ++i) {
    VIRTBAY_RETURN_IF_ERROR(core_->queues[i]->TakeLeft(std::move(left.rings[i])));
  }
  config_differs_ = ConfigOf(*generation_) != left.config;
  staged_.reset();
  return absl::OkStatus();
}

}  // namespace virtbay
