#include "framework/device/saved_state.h"

#include <fcntl.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/plugin_call.h"

namespace virtbay {
namespace {

constexpr uint64_t kMaxState = uint64_t{1} << 30;
constexpr uint32_t kMaxFds = 1u << 20;

}  // namespace

absl::Status CheckStateVersion(Generation* generation, uint32_t version) {
  const virtbay_device_state* table = generation->StateTable();
  if (table == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("devices of type ", generation->type(), " take no state"));
  }
  if (version >= table->oldest && version <= table->version) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("a state of version ", version, "; those from ",
                                                    table->oldest, " to ", table->version,
                                                    " can be restored"));
}

SavedState::SavedState(DeviceState* state)
    : version_(state->version), bytes_(state->bytes), fds_(std::move(state->fds)) {}

absl::Status SavedState::Save(Generation* from) {
  const virtbay_device_state* table = from->StateTable();
  if (table == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("devices of type ", from->type(), " do not save their state"));
  }
  virtbay_state saved{};
  saved.struct_size = sizeof(saved);
  VIRTBAY_RETURN_IF_ERROR(CallOnControl(from->host(), "save", [&](virtbay_error* error) {
    return table->save(from->device(), &saved, error);
  }));
  if (saved.size > kMaxState || saved.fd_count > kMaxFds ||
      (saved.size > 0 && saved.bytes == nullptr) || (saved.fd_count > 0 && saved.fds == nullptr)) {
    return absl::InternalError("save: the state's size lies");
  }
  version_ = saved.version;
  bytes_ = {reinterpret_cast<const char*>(saved.bytes), saved.size};
  fds_.clear();
  fds_.reserve(saved.fd_count);
  for (uint32_t i = 0; i < saved.fd_count; ++i) {
    // What the device saved stays its own.
    UniqueFd copy(fcntl(saved.fds[i].fd, F_DUPFD_CLOEXEC, 3));
    if (!copy.valid()) return ErrnoStatus(errno, "save: a descriptor of the state");
    fds_.push_back({saved.fds[i].role, std::move(copy)});
  }
  return absl::OkStatus();
}

absl::Status SavedState::Restore(Generation* to) {
  VIRTBAY_RETURN_IF_ERROR(CheckStateVersion(to, version_));
  const virtbay_device_state* table = to->StateTable();
  std::vector<virtbay_state_fd> fds;
  fds.reserve(fds_.size());
  for (DeviceState::Fd& fd : fds_) fds.push_back({fd.role, fd.fd.release()});
  fds_.clear();
  virtbay_state saved{};
  saved.struct_size = sizeof(saved);
  saved.version = version_;
  saved.bytes = reinterpret_cast<const uint8_t*>(bytes_.data());
  saved.size = bytes_.size();
  saved.fds = fds.data();
  saved.fd_count = static_cast<uint32_t>(fds.size());
  return CallOnControl(to->host(), "restore", [&](virtbay_error* error) {
    return table->restore(to->device(), &saved, error);
  });
}

absl::StatusOr<DeviceState> CopyState(const DeviceState& state) {
  DeviceState copy;
  copy.type = state.type;
  copy.version = state.version;
  copy.bytes = state.bytes;
  copy.fds.reserve(state.fds.size());
  for (const DeviceState::Fd& fd : state.fds) {
    UniqueFd duplicate(fcntl(fd.fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!duplicate.valid()) return ErrnoStatus(errno, "a descriptor of the state");
    copy.fds.push_back({fd.role, std::move(duplicate)});
  }
  return copy;
}

absl::StatusOr<DeviceState> SavedState::Copy() const {
  DeviceState copy;
  copy.version = version_;
  copy.bytes.assign(bytes_.data(), bytes_.size());
  copy.fds.reserve(fds_.size());
  for (const DeviceState::Fd& fd : fds_) {
    UniqueFd duplicate(fcntl(fd.fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!duplicate.valid()) return ErrnoStatus(errno, "a descriptor of the state");
    copy.fds.push_back({fd.role, std::move(duplicate)});
  }
  return copy;
}

DeviceState SavedState::Keep() && {
  DeviceState state;
  state.version = version_;
  state.bytes.assign(bytes_.data(), bytes_.size());
  state.fds = std::move(fds_);
  return state;
}

}  // namespace virtbay
