// The state of a device, for another one of its type to go on with (the extension
// virtbay.device.state): what DeviceHandle::Save and Host::Add with a state do.
#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/device.h"
#include "framework/device/plugin_call.h"

namespace virtbay {
namespace {

constexpr uint64_t kMaxState = uint64_t{1} << 30;
constexpr uint32_t kMaxFds = 1u << 20;

// Descriptors of its own: what the device saved stays its.
absl::Status Copy(const virtbay_state& saved, DeviceState* state) {
  if (saved.size > kMaxState || saved.fd_count > kMaxFds ||
      (saved.size > 0 && saved.bytes == nullptr) || (saved.fd_count > 0 && saved.fds == nullptr)) {
    return absl::InternalError("save: the state's size lies");
  }
  state->version = saved.version;
  state->bytes.assign(reinterpret_cast<const char*>(saved.bytes), saved.size);
  for (uint32_t i = 0; i < saved.fd_count; ++i) {
    UniqueFd copy(fcntl(saved.fds[i].fd, F_DUPFD_CLOEXEC, 3));
    if (!copy.valid()) return ErrnoStatus(errno, "save: a descriptor of the state");
    state->fds.push_back({saved.fds[i].role, std::move(copy)});
  }
  return absl::OkStatus();
}

}  // namespace

const virtbay_device_state* Device::StateTable() {
  const auto* table = static_cast<const virtbay_device_state*>(Extension(VIRTBAY_EXTENSION_STATE));
  const bool whole = table != nullptr && table->struct_size >= sizeof(*table) &&
                     table->save != nullptr && table->restore != nullptr &&
                     table->release != nullptr;
  return whole ? table : nullptr;
}

absl::StatusOr<DeviceState> Device::Save() {
  absl::MutexLock lock(&mutex_);
  VIRTBAY_RETURN_IF_ERROR(CheckServing());
  const virtbay_device_state* table = StateTable();
  if (table == nullptr) {
    return absl::UnimplementedError(absl::StrCat("device ", core_->spec.name, ": devices of type ",
                                                 type_, " do not save their state"));
  }
  DeviceState state;
  state.type = type_;
  absl::Status status = absl::UnavailableError("the device could not be stopped");
  const auto save = [&] {
    virtbay_state saved{};
    saved.struct_size = sizeof(saved);
    status = CallOnControl(core_.get(), "save", [&](virtbay_error* error) {
      return table->save(core_->device, &saved, error);
    });
    if (status.ok()) status = Copy(saved, &state);
    if (!status.ok()) return;
    CallOnControl(core_.get(), "release", [&](virtbay_error*) {
      table->release(core_->device);
      return VIRTBAY_OK;
    }).IgnoreError();
  };
  if (session_) {
    EndSession(/*forget=*/true, save);
  } else {
    save();
  }
  stopped_ = true;
  if (!stuck_) state_ = "stopped";
  if (attached_) core_->RaiseNeedsReset("its state was taken by its host", /*stops=*/true);
  if (!status.ok()) return Annotate(status, absl::StrCat("device ", core_->spec.name));
  return state;
}

absl::Status Device::Restore(DeviceState state) {
  const virtbay_device_state* table = StateTable();
  if (table == nullptr || state.type != type_) {
    return absl::FailedPreconditionError(absl::StrCat("the state of a device of type ", state.type,
                                                      " is none of a device of type ", type_));
  }
  if (state.version < table->oldest || state.version > table->version) {
    return absl::FailedPreconditionError(absl::StrCat("a state of version ", state.version,
                                                      "; those from ", table->oldest, " to ",
                                                      table->version, " can be restored"));
  }
  std::vector<virtbay_state_fd> fds;
  for (DeviceState::Fd& fd : state.fds) fds.push_back({fd.role, fd.fd.release()});
  virtbay_state saved{};
  saved.struct_size = sizeof(saved);
  saved.version = state.version;
  saved.bytes = reinterpret_cast<const uint8_t*>(state.bytes.data());
  saved.size = state.bytes.size();
  saved.fds = fds.data();
  saved.fd_count = static_cast<uint32_t>(fds.size());
  return CallOnControl(core_.get(), "restore", [&](virtbay_error* error) {
    return table->restore(core_->device, &saved, error);
  });
}

}  // namespace virtbay
