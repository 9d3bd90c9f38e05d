#include "hostif/device_host/run_service.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "framework/isolation/crash_guard.h"
#include "framework/isolation/sigbus_guard.h"
#include "hostif/device_host/control_server.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/end_in_time.h"
#include "hostif/device_host/guest_channel.h"
#include "hostif/device_host/handover_server.h"
#include "hostif/device_host/plugin_watch.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/service.h"
#include "hostif/device_host/start_guard.h"
#include "hostif/device_host/state_directory.h"
#include "hostif/device_host/takeover.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::device_host {
namespace {

// For the process before to end.
constexpr absl::Duration kLockPatience = absl::Seconds(10);
// From its end on, for its sockets.
constexpr absl::Duration kSocketPatience = absl::Seconds(2);
// Of processes in a row that end while they hand over.
constexpr int kAttempts = 3;
// For a change of the control plane that is going on at the end, beyond the stop deadline.
constexpr absl::Duration kEndPatience = absl::Seconds(5);

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

// What others can connect to, besides front-ends.
struct Sockets {
  std::unique_ptr<ControlServer> control;
  std::unique_ptr<GuestChannel> guest;

  // What is there already stays.
  absl::Status Open(const ServiceConfig& config, Service* service) {
    if (!config.control_socket.empty() && control == nullptr) {
      VIRTBAY_ASSIGN_OR_RETURN(control, ControlServer::Create(config.control_socket, service));
    }
    if (config.guest_channel.has_value()) {
      VIRTBAY_ASSIGN_OR_RETURN(guest, GuestChannel::Create(*config.guest_channel, service));
    }
    return absl::OkStatus();
  }
};

// A process that was killed lets go of the lock some moments before its sockets.
absl::Status OnceSocketsAreFree(absl::Time deadline, absl::FunctionRef<absl::Status()> open) {
  for (;;) {
    absl::Status opened = open();
    if (!absl::IsAlreadyExists(opened) || absl::Now() >= deadline) return opened;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

// Whom the devices are to be taken over from; null: nobody, and the lock is this process's. One
// that does not answer may be about to end, or about to listen.
absl::StatusOr<std::unique_ptr<Takeover>> AskOrLock(StateDirectory* state) {
  const absl::Time deadline = absl::Now() + kLockPatience;
  for (;;) {
    VIRTBAY_ASSIGN_OR_RETURN(const bool free, state->TryLock());
    if (free) return nullptr;
    VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Takeover> takeover, Takeover::Begin(*state));
    if (takeover != nullptr) return takeover;
    // The last attempt says what is the matter.
    if (absl::Now() >= deadline) {
      VIRTBAY_RETURN_IF_ERROR(state->Lock(absl::ZeroDuration()));
      return nullptr;
    }
    absl::SleepFor(absl::Milliseconds(5));
  }
}

// Makes the devices; those that another process has go on from there, all at the same time, unless
// this one is told to stop before.
absl::Status MakeDevices(std::vector<DeviceConfig> devices,
                         const std::vector<vhost_user::ActivationSocket>& passed,
                         Takeover* takeover, absl::Time sockets_free, StartGuard* guard,
                         Service* service) {
  const auto may_go_on = [guard] {
    const int signal = guard->Signal();
    return signal == 0 ? absl::OkStatus()
                       : absl::CancelledError(absl::StrCat("stopping on signal ", signal));
  };

  std::vector<std::string> names;
  if (takeover != nullptr) {
    VIRTBAY_RETURN_IF_ERROR(service->TakePoolReport(takeover->offer()));
  }
  for (DeviceConfig& device : devices) {
    const DeviceConfig where = device;
    const absl::Status resolved = ResolveActivation(passed, &device);
    if (!resolved.ok()) return AtOrigin(where, resolved);
    const handover::OfferedDevice* const before =
        takeover == nullptr ? nullptr : takeover->Find(device.spec.name);
    if (before != nullptr) names.push_back(device.spec.name);
    guard->Making(device.spec.name);
    const absl::Status added =
        before == nullptr
            ? OnceSocketsAreFree(sockets_free, [&] { return service->AddDevice(device); })
            : service->StageDevice(std::move(device), *before);
    if (!added.ok()) return AtOrigin(where, added);
    if (takeover != nullptr) VIRTBAY_RETURN_IF_ERROR(may_go_on());
  }
  return takeover == nullptr ? absl::OkStatus() : takeover->Take(names, may_go_on, service);
}

// A descriptor that was passed is used up by the first attempt.
bool CanBeMadeAgain(const std::vector<DeviceConfig>& devices) {
  return std::none_of(devices.begin(), devices.end(), [](const DeviceConfig& device) {
    return device.socket_fd >= 0 || NamesPassedSocket(device.socket_path);
  });
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
  GrowDescriptorTable();
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

  absl::Duration patience = kEndPatience;
  if (config.devices.empty()) patience += DeviceSpec{}.stop_deadline;
  for (const DeviceConfig& device : config.devices) {
    patience = std::max(patience, kEndPatience + device.spec.stop_deadline);
  }
  for (const std::string& warning : config.warnings) log.Warn(warning);
  std::unique_ptr<Service> service;
  std::unique_ptr<Takeover> takeover;
  Sockets sockets;
  for (int attempts = kAttempts;;) {
    VIRTBAY_ASSIGN_OR_RETURN(service, Service::Create(config.plugin_dirs, log,
                                                      config.shared_arena_size, config.contain));
    // First of all: the process before has to end, with its sockets, or to hand its devices over.
    absl::Time sockets_free = absl::InfinitePast();
    if (!config.state_dir.empty()) {
      VIRTBAY_ASSIGN_OR_RETURN(StateDirectory state,
                               StateDirectory::OpenUnlocked(config.state_dir));
      VIRTBAY_ASSIGN_OR_RETURN(takeover, AskOrLock(&state));
      service->UseStateDirectory(std::move(state));
      sockets_free = absl::Now() + kSocketPatience;
    }
    // Before the devices: a second process with the same file stops here, not half-way. Who
    // connects already is answered when the devices are there. In a handover the other process has
    // them still.
    if (takeover == nullptr) {
      VIRTBAY_RETURN_IF_ERROR(
          OnceSocketsAreFree(sockets_free, [&] { return sockets.Open(config, service.get()); }));
    }
    if (config.pool_requested) service->RequestPool();
    absl::Status made;
    {
      VIRTBAY_ASSIGN_OR_RETURN(const auto guard, StartGuard::Begin(&signals, patience, log));
      made = MakeDevices(config.devices, passed, takeover.get(), sockets_free, guard.get(),
                         service.get());
    }
    if (made.ok()) break;
    if (takeover == nullptr) return made;
    if (!takeover->OtherEnds() || --attempts == 0 || !CanBeMadeAgain(config.devices)) {
      takeover->Refuse(made);
      return Annotate(made, absl::StrCat("handover from process ", takeover->peer(),
                                         takeover->OtherEnds() ? "" : ", which serves on"));
    }
    log.Warn(absl::StrCat("process ", takeover->peer(),
                          " has ended before it had handed over; going on as after a kill"));
    takeover.reset();
    service.reset();
  }
  const size_t count = config.devices.size();
  bool replaces = false;
  if (takeover != nullptr) {
    for (const handover::OfferedDevice& device : takeover->offer().devices) {
      if (service->InspectDevice(device.name).ok()) continue;
      log.Warn(absl::StrCat("device ", device.name, " has ended with process ", takeover->peer(),
                            ": it is not among those of this one"));
    }
    takeover->AwaitOther();
    takeover.reset();
    replaces = true;
    // The guest is served, which matters more than these.
    const absl::Status opened = sockets.Open(config, service.get());
    if (!opened.ok()) log.Error(opened.message());
  }
  std::unique_ptr<ControlServer>& control = sockets.control;
  std::unique_ptr<GuestChannel>& guest = sockets.guest;
  std::unique_ptr<HandoverServer> handover;
  if (StateDirectory* const state = service->state_directory(); state != nullptr) {
    auto listens = HandoverServer::Create(state->fd(), state->lock(), service.get(),
                                          [raw = service.get()] { raw->WakeEnded(); });
    if (listens.ok()) {
      handover = *std::move(listens);
    } else {
      log.Warn(absl::StrCat("devices cannot be handed over: ", listens.status().message()));
    }
  }
  log.Info(absl::StrCat("serving ", count, " device", count == 1 ? "" : "s"));
  if (control != nullptr) control->Start();
  std::unique_ptr<PluginWatch> watch;
  if (config.watch) {
    VIRTBAY_ASSIGN_OR_RETURN(watch, PluginWatch::Start(service.get()));
  }
  // Nobody to tell is no reason to stop: the variable may be another service's, inherited.
  const absl::Status announced = AnnounceReady(config.ready_fd, replaces);
  if (!announced.ok()) log.Warn(announced.message());
  // A process that can still be given devices, or that others can connect to, waits for a signal.
  int signal = 0;
  bool taken = false;
  bool all_ended = false;
  do {
    signal = signals.Wait(service->ended_fd());
    all_ended = service->AllEnded() && control == nullptr;
    taken = handover != nullptr && handover->taken();
  } while (signal == 0 && !all_ended && !taken);
  // Whoever asks a second time does not want to wait, not even for a handover. What is being handed
  // over is nobody's to stop otherwise; after that it may be another process's.
  if (!taken) signals.LetThrough();
  if (handover != nullptr) taken = handover->Settle();
  if (taken) {
    const absl::Status told = AnnounceSuccessor(handover->successor());
    if (!told.ok()) log.Warn(told.message());
    signals.LetThrough();
  }
  log.Info(taken         ? "stopping: another process has the devices"
           : signal == 0 ? "stopping: the last front-end has gone and no other can come"
                         : absl::StrCat("stopping on signal ", signal));
  if (control != nullptr) control->RemoveSocket();
  if (guest != nullptr) guest->RemoveSocket();
  EndInTime(service.get(), patience, [&] {
    // Whoever has taken the devices over waits for the end of the handover.
    if (!taken) service->BeginStop();
    watch.reset();
    guest.reset();
    control.reset();
    handover.reset();
    if (taken) service->BeginStop();
    service->AwaitLate();
  });
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
