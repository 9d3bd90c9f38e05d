#include "hostif/device_host/run_service.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "framework/isolation/crash_guard.h"
#include "framework/isolation/sigbus_guard.h"
#include "hostif/device_host/control_server.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/guest_channel.h"
#include "hostif/device_host/plugin_watch.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/service.h"
#include "hostif/device_host/state_directory.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::device_host {
namespace {

// The error with the place in the file that it is about: of the option, if it is about one.
absl::Status AtOrigin(const DeviceConfig& device, const absl::Status& status) {
  if (status.ok() || device.origin.empty()) return status;
  if (const auto origin = status.GetPayload(kOriginPayload); origin.has_value()) {
    return Annotate(status, std::string(*origin));
  }
  const std::optional<OptionError> error = OptionErrorOf(status);
  if (!error.has_value()) return Annotate(status, device.origin);
  const auto given = device.option_origins.find(error->option);
  return absl::Status(
      status.code(),
      absl::StrCat(given == device.option_origins.end() ? device.origin : given->second,
                   ": options.", error->option, ": ", error->reason));
}

// "systemd" is the only socket passed, "systemd:NAME" the one with that FileDescriptorName.
absl::Status ResolveActivation(const std::vector<vhost_user::ActivationSocket>& sockets,
                               DeviceConfig* device) {
  if (!NamesPassedSocket(device->socket_path)) return absl::OkStatus();
  absl::string_view name = device->socket_path;
  absl::ConsumePrefix(&name, "systemd:");
  const vhost_user::ActivationSocket* found = nullptr;
  for (const vhost_user::ActivationSocket& socket : sockets) {
    if (device->socket_path != "systemd" && socket.name != name) continue;
    if (found != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("socket ", device->socket_path, ": more than one such socket was passed"));
    }
    found = &socket;
  }
  if (found == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("socket ", device->socket_path, ": no such socket was passed (LISTEN_FDS)"));
  }
  device->socket_path.clear();
  device->socket_fd = found->fd;
  return absl::OkStatus();
}

// Looks at the inherited descriptors while nothing else is open: later a wrong number may be one of
// this process's own.
absl::Status CheckInherited(const std::vector<DeviceConfig>& devices, int ready_fd) {
  if (ready_fd >= 0 && ::fcntl(ready_fd, F_GETFD) < 0) {
    return ErrnoStatus(errno, absl::StrCat("ready-fd ", ready_fd));
  }
  for (const DeviceConfig& device : devices) {
    if (device.socket_fd < 0) continue;
    UniqueFd fd(device.socket_fd);
    const absl::Status inspected = vhost_user::InspectSocket(fd).status();
    fd.release();
    if (!inspected.ok()) return AtOrigin(device, inspected);
  }
  return absl::OkStatus();
}

}  // namespace

std::optional<OptionError> OptionErrorOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kOptionPayload);
  if (!payload.has_value()) return std::nullopt;
  OptionError error;
  error.option = std::string(*payload);
  const std::string mark = absl::StrCat("option ", error.option, ": ");
  absl::string_view reason = status.message();
  if (const size_t at = reason.find(mark); at != reason.npos) {
    reason = reason.substr(at + mark.size());
  }
  error.reason = std::string(reason);
  return error;
}

absl::Status CheckService(const ServiceConfig& config) {
  VIRTBAY_RETURN_IF_ERROR(RaiseFileLimit(config.rlimit_nofile));
  if (!config.control_socket.empty()) {
    VIRTBAY_RETURN_IF_ERROR(
        Annotate(vhost_user::CheckSocketPath(config.control_socket), "control-socket"));
  }
  if (config.guest_channel.has_value() && config.guest_channel->kind == GuestAddress::Kind::kUnix) {
    VIRTBAY_RETURN_IF_ERROR(
        Annotate(vhost_user::CheckSocketPath(config.guest_channel->name), "guest-channel"));
  }
  // What a device says of itself while it is made is not asked for.
  const Log log = Log::ToStderr(std::max(config.log_level, LogLevel::kWarn));
  VIRTBAY_ASSIGN_OR_RETURN(const std::unique_ptr<Service> service,
                           Service::Create(config.plugin_dirs, log));
  for (const std::string& warning : config.warnings) log.Warn(warning);
  for (const DeviceConfig& device : config.devices) {
    VIRTBAY_RETURN_IF_ERROR(AtOrigin(device, service->CheckDevice(device)));
  }
  return absl::OkStatus();
}

absl::Status RunService(ServiceConfig config) {
  VIRTBAY_RETURN_IF_ERROR(CheckInherited(config.devices, config.ready_fd));
  VIRTBAY_ASSIGN_OR_RETURN(StopSignals signals, StopSignals::Create());
  VIRTBAY_RETURN_IF_ERROR(RaiseFileLimit(config.rlimit_nofile));
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<vhost_user::ActivationSocket> passed,
                           TakeActivationSockets());
  const Log log =
      config.syslog ? Log::ToSyslog("virtbay", config.log_level) : Log::ToStderr(config.log_level);
  // Not contained, a crash is at least reported.
  if (const absl::Status guarded = InstallCrashGuard(); !guarded.ok()) {
    if (config.contain) log.Warn(absl::StrCat("--contain has no effect: ", guarded.message()));
    config.contain = false;
  }
  if (config.sigbus_guard) VIRTBAY_RETURN_IF_ERROR(InstallSigbusGuard());

  VIRTBAY_ASSIGN_OR_RETURN(
      const std::unique_ptr<Service> service,
      Service::Create(config.plugin_dirs, log, config.shared_arena_size, config.contain));
  // First of all: the process before may have to end, with its sockets.
  if (!config.state_dir.empty()) {
    VIRTBAY_ASSIGN_OR_RETURN(StateDirectory state, StateDirectory::Open(config.state_dir));
    service->UseStateDirectory(std::move(state));
  }
  // Before the devices: a second process with the same file stops here, not half-way. Who connects
  // already is answered when the devices are there.
  std::unique_ptr<ControlServer> control;
  if (!config.control_socket.empty()) {
    VIRTBAY_ASSIGN_OR_RETURN(control, ControlServer::Create(config.control_socket, service.get()));
  }
  if (config.pool_requested) service->RequestPool();
  std::unique_ptr<GuestChannel> guest;
  if (config.guest_channel.has_value()) {
    VIRTBAY_ASSIGN_OR_RETURN(guest, GuestChannel::Create(*config.guest_channel, service.get()));
  }
  for (const std::string& warning : config.warnings) log.Warn(warning);
  for (DeviceConfig& device : config.devices) {
    const DeviceConfig where = device;
    const absl::Status resolved = ResolveActivation(passed, &device);
    if (!resolved.ok()) return AtOrigin(where, resolved);
    const absl::Status added = service->AddDevice(std::move(device));
    if (!added.ok()) return AtOrigin(where, added);
  }
  log.Info(absl::StrCat("serving ", config.devices.size(), " device",
                        config.devices.size() == 1 ? "" : "s"));
  if (control != nullptr) control->Start();
  std::unique_ptr<PluginWatch> watch;
  if (config.watch) {
    VIRTBAY_ASSIGN_OR_RETURN(watch, PluginWatch::Start(service.get()));
  }
  // Nobody to tell is no reason to stop: the variable may be another service's, inherited.
  const absl::Status announced = AnnounceReady(config.ready_fd);
  if (!announced.ok()) log.Warn(announced.message());
  // A process that can still be given devices, or that others can connect to, waits for a signal.
  const int ended = control == nullptr ? service->ended_fd() : -1;
  int signal = 0;
  do {
    signal = signals.Wait(ended);
  } while (signal == 0 && !service->AllEnded());
  log.Info(signal == 0 ? "stopping: the last front-end has gone and no other can come"
                       : absl::StrCat("stopping on signal ", signal));
  if (control != nullptr) control->RemoveSocket();
  if (guest != nullptr) guest->RemoveSocket();
  service->BeginStop();
  StopSignals::LetThrough();
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
