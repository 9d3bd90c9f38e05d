// The state of a device, for another one of its type to go on with (the extension
// virtbay.device.state): what DeviceHandle::Save and Host::Add with a state do.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/device.h"
#include "framework/device/plugin_call.h"
#include "framework/device/saved_state.h"

namespace virtbay {

absl::StatusOr<DeviceState> Device::Save() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckCallable());
  const virtbay_device_state* table = generation_->StateTable();
  if (table == nullptr) {
    return absl::UnimplementedError(absl::StrCat("device ", core_->spec.name, ": devices of type ",
                                                 generation_->type(), " do not save their state"));
  }
  DeviceState state;
  absl::Status status = absl::UnavailableError("the device could not be stopped");
  const auto save = [&] {
    SavedState saved;
    status = saved.Save(generation_.get());
    if (!status.ok()) return;
    state = std::move(saved).Keep();
    generation_->Release();
  };
  if (session_) {
    EndSession(/*forget=*/true, save);
  } else {
    save();
  }
  stopped_ = true;
  if (!stuck_) state_ = "stopped";
  if (attached_) {
    core_->RaiseNeedsReset(status.ok() ? "its state was taken by its host" : "stopped by its host",
                           /*stops=*/true);
  }
  if (!status.ok()) return Annotate(status, absl::StrCat("device ", core_->spec.name));
  state.type = generation_->type();
  saved_ = true;
  return state;
}

absl::Status Device::RestoreState(DeviceState* given) {
  if (given->type != generation_->type()) {
    return absl::FailedPreconditionError(absl::StrCat("the state of a device of type ", given->type,
                                                      " is none of a device of type ",
                                                      generation_->type()));
  }
  VIRTBAY_RETURN_IF_ERROR(CheckStateVersion(generation_.get(), given->version));
  DeviceState state = std::exchange(*given, DeviceState());
  return SavedState(&state).Restore(generation_.get());
}

}  // namespace virtbay
