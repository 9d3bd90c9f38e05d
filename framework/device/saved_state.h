// SavedState: the state of one generation on its way to another: the saving one's bytes, and
// duplicates of its descriptors (the extension virtbay.device.state).
// A value of the control plane; [control].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_SAVED_STATE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_SAVED_STATE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/device/generation.h"
#include "virtbay/host.h"

namespace virtbay {

// FailedPrecondition unless devices of this generation go on with a state of that version.
absl::Status CheckStateVersion(Generation* generation, uint32_t version);

// A copy with descriptors of its own.
absl::StatusOr<DeviceState> CopyState(const DeviceState& state);

class SavedState {
 public:
  SavedState() = default;
  // Of `state`, which must outlive it and loses its descriptors.
  explicit SavedState(DeviceState* state);

  // Has the device save. The bytes stay its own until it saves again or ends.
  absl::Status Save(Generation* from);
  // Has the device, which has served nobody yet, go on with the state; uses up the descriptors,
  // also when it fails.
  absl::Status Restore(Generation* to);
  // Bytes and descriptors that outlive the device.
  DeviceState Keep() &&;
  // The same, with this one left as it is. Fails where no more descriptors can be had.
  absl::StatusOr<DeviceState> Copy() const;

  uint64_t size() const { return bytes_.size(); }
  uint32_t fds() const { return static_cast<uint32_t>(fds_.size()); }

 private:
  uint32_t version_ = 0;
  std::span<const char> bytes_;
  std::vector<DeviceState::Fd> fds_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_SAVED_STATE_H_
