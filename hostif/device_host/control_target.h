// ControlTarget: what the control socket acts on; the seam between protocol and service.
// Implemented by Service (and by tests); every function is [any] and may block for the time of the
// change it makes.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_TARGET_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_TARGET_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "hostif/device_host/recorder.h"
#include "hostif/device_host/service_config.h"
#include "hostif/shares/shares.h"
#include "hostif/swiotlb/guest_pool.h"
#include "virtbay/host.h"

namespace virtbay::device_host {

// A device as the control plane shows it.
struct DeviceReport {
  DeviceInfo info;
  std::string socket;  // path, or "fd N"
};

class ControlTarget {
 public:
  virtual ~ControlTarget() = default;

  // [any] Makes the device and listens for its front-end; nothing is left behind on an error.
  virtual absl::Status AddDevice(DeviceConfig config) = 0;
  // [any] Ends the device and removes its socket. NotFound.
  virtual absl::Status RemoveDevice(absl::string_view name) = 0;
  // [any] NotFound.
  virtual absl::StatusOr<DeviceReport> InspectDevice(absl::string_view name) const = 0;
  // [any] All devices, by name.
  virtual std::vector<DeviceReport> InspectAll() const = 0;
  // [any] Shares of an aggregate virtiofs device; NotFound for a device that is not there, and the
  // errors of shares::Add, shares::Remove and shares::List.
  virtual absl::StatusOr<shares::AddedShare> AddShare(absl::string_view device,
                                                      const shares::ShareSpec& share) = 0;
  virtual absl::Status RemoveShare(absl::string_view device, absl::string_view name) = 0;
  virtual absl::StatusOr<std::vector<shares::ShareSpec>> ListShares(
      absl::string_view device) const = 0;
  // [any] A command of the device's own and its answer (DeviceHandle::Control): NotFound for a
  // device that is not there, Unimplemented for a command that it does not know.
  virtual absl::StatusOr<std::string> CommandDevice(absl::string_view device,
                                                    const std::string& command,
                                                    absl::string_view text) const = 0;
  // [any] Replaces the plugin of a device; `from` empty: by the file that it came from. See
  // Host::Reload. NotFound for a device that is not there.
  virtual absl::StatusOr<ReloadReport> ReloadDevice(absl::string_view name,
                                                    const std::filesystem::path& from) = 0;
  // [any] Begins to write what happens on the queues of a device, or of all for an empty name, to a
  // file, for so long; returns the recording's number. AlreadyExists while another trace of it goes
  // on, NotFound for a device that is not there, or none at all; what opening the file says.
  virtual absl::StatusOr<uint64_t> StartTrace(absl::string_view name,
                                              const std::filesystem::path& output,
                                              absl::Duration duration) = 0;
  // [any] The same of what a device is sent and answers; `payload`: all bytes of it.
  virtual absl::StatusOr<uint64_t> StartRecord(absl::string_view name,
                                               const std::filesystem::path& output,
                                               absl::Duration duration, bool payload) = 0;
  // [any] Ends the recording of that number, which may have ended already, and says what it has
  // written. NotFound when it has been asked for before, or many others have been since.
  virtual absl::StatusOr<RecordingReport> StopRecording(uint64_t number) = 0;
  // [any] What the guest's kernel reports of its bounce pool; see swiotlb::GuestPool::Apply.
  virtual absl::Status ApplyGuest(const swiotlb::GuestCapabilities& guest) = 0;
  // [any] The log whose level can be read and set.
  virtual const Log& log() const = 0;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_TARGET_H_
