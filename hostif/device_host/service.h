// Service: the devices of this process and the sockets that they are served on.
// Owned by the executable; the ControlTarget functions are [any], the rest is [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/log.h"
#include "hostif/device_host/control_target.h"
#include "hostif/device_host/service_config.h"
#include "hostif/vhost_user/server.h"
#include "virtbay/host.h"

namespace virtbay::device_host {

class Service final : public ControlTarget {
 public:
  // [control] A service without devices. Plugins are looked for in VIRTBAY_PLUGIN_PATH, then
  // `plugin_dirs`, then beside the executable (installed or in a build tree).
  static absl::StatusOr<std::unique_ptr<Service>> Create(
      std::vector<std::filesystem::path> plugin_dirs, Log log);
  // [control] Removes the sockets first, then ends the devices: requests in flight are finished,
  // each device within its stop deadline.
  ~Service() override;
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  absl::Status AddDevice(DeviceConfig config) override;
  absl::Status RemoveDevice(absl::string_view name) override;
  absl::StatusOr<DeviceReport> InspectDevice(absl::string_view name) const override;
  std::vector<DeviceReport> InspectAll() const override;
  const Log& log() const override { return log_; }

 private:
  struct Entry {
    std::unique_ptr<vhost_user::Server> server;
    std::string socket;
    bool ready = false;  // false while it is being added or removed
  };

  Service(std::unique_ptr<Host> host, Log log) : host_(std::move(host)), log_(std::move(log)) {}

  absl::StatusOr<std::unique_ptr<vhost_user::Server>> Listen(const DeviceConfig& config,
                                                             DeviceHandle device);

  const std::unique_ptr<Host> host_;
  const Log log_;
  mutable absl::Mutex mutex_;
  // std::less<>: looked up by string_view.
  std::map<std::string, Entry, std::less<>> entries_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVICE_H_
