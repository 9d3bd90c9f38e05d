// Service: the devices of this process and the sockets that they are served on.
// Owned by the executable; the ControlTarget functions are [any], the rest is [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_

#include <sys/eventfd.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/control_target.h"
#include "hostif/device_host/device_suspension.h"
#include "hostif/device_host/recorder.h"
#include "hostif/device_host/service_config.h"
#include "hostif/device_host/state_directory.h"
#include "hostif/handover/format.h"
#include "hostif/vhost_user/server.h"
#include "virtbay/host.h"

namespace virtbay::device_host {

class Service final : public ControlTarget {
 public:
  // [control] A service without devices. Plugins are looked for in VIRTBAY_PLUGIN_PATH, then
  // `plugin_dirs`, then beside the executable (installed or in a build tree).
  static absl::StatusOr<std::unique_ptr<Service>> Create(
      std::vector<std::filesystem::path> plugin_dirs, Log log,
      uint64_t shared_arena_size = HostOptions().shared_arena_size, bool contain = false);
  // [control] Removes the sockets first, then ends the devices, all at the same time: requests in
  // flight are finished within the stop deadlines.
  ~Service() override;
  // [control] Begins with that: the sockets are gone on return, no device has been waited for.
  void BeginStop();
  // [any] Readable after a device has had its last front-end (one that came as an inherited
  // connection).
  int ended_fd() const { return ended_.get(); }
  // [control] Every device has; ended_fd() is quiet again until the next one.
  bool AllEnded() const;
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  // [any] The guest's kernel was asked for a bounce pool: a report without one is worth a warning.
  void RequestPool() { pool_.Request(); }

  // [control] Before the first device: devices keep their states there, and can be handed over.
  void UseStateDirectory(StateDirectory dir) { state_dir_.emplace(std::move(dir)); }
  // [control] Null when there is none.
  StateDirectory* state_directory() { return state_dir_.has_value() ? &*state_dir_ : nullptr; }
  // [any] ended_fd() becomes readable.
  void WakeEnded() const { ::eventfd_write(ended_.get(), 1); }

  // ---- handing over to another process; one thread at a time
  // [any] What there is to be handed over. From then on nothing is added, removed or reloaded,
  // until Withdraw.
  handover::Offer Offer();
  // [any] Stops these devices where they are, with their front-ends, all at the same time. Errors
  // name the device: NotFound, DeadlineExceeded also for one whose plugin does not save its state
  // within some seconds more.
  absl::StatusOr<std::vector<handover::HandedDevice>> Suspend(const std::vector<std::string>& names,
                                                              absl::Duration quiesce_deadline);
  // [any] All serve on, as does one that was late as soon as its plugin comes back.
  void Withdraw();
  // [any] Another process serves those that were suspended: BeginStop passes them over.
  void GiveAway();
  // [any] After that; returns when all have ended here.
  void LetGo();
  // [control] Waits for plugins that were late, when nothing is handed over any more.
  void AwaitLate() { late_.clear(); }

  // ---- taking over
  // [control] Makes a device ready to go on in the place of one of another process. As AddDevice.
  absl::Status StageDevice(DeviceConfig config, const handover::OfferedDevice& before);
  // [control] What was reported to the other process.
  absl::Status TakePoolReport(const handover::Offer& offer);
  // [control] Has the device of that name go on with what was left; nobody is served before Begin.
  absl::Status AdoptDevice(handover::HandedDevice device);
  // [control] All that were adopted serve. Cannot fail.
  void Begin();

  // [any] Makes the device and ends it again, without a socket: what AddDevice would say of it, as
  // far as that is known before, devices that were checked earlier included.
  absl::Status CheckDevice(DeviceConfig config);
  absl::Status AddDevice(DeviceConfig config) override;
  absl::Status RemoveDevice(absl::string_view name) override;
  absl::StatusOr<shares::AddedShare> AddShare(absl::string_view device,
                                              const shares::ShareSpec& share) override;
  absl::Status RemoveShare(absl::string_view device, absl::string_view name) override;
  absl::StatusOr<std::vector<shares::ShareSpec>> ListShares(
      absl::string_view device) const override;
  absl::StatusOr<std::string> CommandDevice(absl::string_view device, const std::string& command,
                                            absl::string_view text) const override;
  absl::StatusOr<ReloadReport> ReloadDevice(absl::string_view name,
                                            const std::filesystem::path& from) override;
  absl::StatusOr<uint64_t> StartTrace(absl::string_view name, const std::filesystem::path& output,
                                      absl::Duration duration) override;
  absl::StatusOr<uint64_t> StartRecord(absl::string_view name, const std::filesystem::path& output,
                                       absl::Duration duration, bool payload) override;
  absl::StatusOr<RecordingReport> StopRecording(uint64_t number) override;
  absl::Status ApplyGuest(const swiotlb::GuestCapabilities& guest) override {
    return pool_.Apply(guest);
  }
  absl::StatusOr<DeviceReport> InspectDevice(absl::string_view name) const override;
  std::vector<DeviceReport> InspectAll() const override;
  const Log& log() const override { return log_; }

 private:
  // Asks the device of that name for its last words, if there is one.
  void SayFarewell(absl::string_view name, FarewellReason reason);
  struct Staged {
    DeviceConfig config;
    DeviceHandle device;
    gid_t group = 0;  // of its socket
    uint64_t stage_ns = 0;
    // Of what was adopted.
    uint64_t stopped_at_ns = 0;
    uint64_t stop_ns = 0;
    uint64_t adopt_ns = 0;
    bool adopted = false;
  };
  struct Entry {
    std::unique_ptr<vhost_user::Server> server;
    std::string socket;
    std::unique_ptr<Recorder> recorder;  // from the start on
    bool ready = false;                  // false while it is being added or removed
    bool frozen = false;                 // suspended, for another process
    uint64_t late = 0;               // the number of its suspension, whose plugin has not come back
    bool given_away = false;         // another process serves it
    uint32_t reloads = 0;            // under way
    std::unique_ptr<Staged> staged;  // goes on for another process, from Begin on
  };
  // Suspends these, in their order, and says what was left of each.
  absl::Status SuspendDevices(std::vector<handover::HandedDevice>* devices,
                              absl::Duration quiesce_deadline);
  // The device of that name is served again.
  void Thaw(const std::string& name);
  // The same of one that was given up, if it is still there.
  void ThawLate(const std::string& name, uint64_t suspension);
  // Unavailable while devices are being handed over.
  absl::Status CheckChangeable() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  vhost_user::ServerOptions ListenOptions(const DeviceConfig& config);
  // Of its socket; 0 for none.
  static absl::StatusOr<gid_t> GroupOf(const DeviceConfig& config);
  // The owner alone may connect to the socket until the group is set.
  static absl::Status SetGroup(const DeviceConfig& config, gid_t group);
  absl::Status AddShares(const DeviceConfig& config, const DeviceHandle& device);

  Service(std::unique_ptr<Host> host, Log log, UniqueFd ended)
      : host_(std::move(host)),
        log_(std::move(log)),
        ended_(std::move(ended)),
        pool_(log_, /*requested=*/false) {}

  void Warn(const DeviceConfig& config) const;
  // Makes a recorder, if the device is to be recorded from the start on.
  absl::Status Record(const DeviceConfig& config, const DeviceHandle& device,
                      std::unique_ptr<Recorder>* recorder);
  // Of StartTrace and StartRecord.
  absl::StatusOr<uint64_t> Begin(const std::filesystem::path& output, absl::Duration duration,
                                 std::unique_ptr<RecordingSource> source);
  // What the device asks for of the guest's pool, or the range that it is given, if anything.
  absl::Status TakePool(DeviceConfig* config);
  // The device with the shares that it begins with; nothing is left of it on an error.
  absl::StatusOr<DeviceHandle> MakeDevice(const DeviceConfig& config);
  // A device that is there, not just being added or removed.
  absl::StatusOr<DeviceHandle> Ready(absl::string_view name) const;
  absl::StatusOr<std::unique_ptr<vhost_user::Server>> Listen(const DeviceConfig& config,
                                                             DeviceHandle device);

  const std::unique_ptr<Host> host_;
  const Log log_;
  const UniqueFd ended_;
  swiotlb::GuestPool pool_;
  std::optional<StateDirectory> state_dir_;
  absl::Mutex recordings_mutex_;
  std::map<uint64_t, std::unique_ptr<Recorder>> recordings_ ABSL_GUARDED_BY(recordings_mutex_);
  uint64_t last_recording_ ABSL_GUARDED_BY(recordings_mutex_) = 0;
  mutable absl::Mutex mutex_;
  // std::less<>: looked up by string_view.
  std::map<std::string, Entry, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
  bool frozen_ ABSL_GUARDED_BY(mutex_) = false;
  // Of devices that were given up; the thread of handovers alone, and AwaitLate.
  std::vector<std::unique_ptr<DeviceSuspension>> late_;
  uint64_t suspensions_ = 0;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_
