#include "hostif/device_host/service.h"

#include <grp.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/record_source.h"
#include "hostif/device_host/trace_source.h"

namespace virtbay::device_host {
namespace {

// Of recordings that have ended, so many can still be asked about.
constexpr size_t kMostEnded = 64;

absl::StatusOr<gid_t> GroupId(const std::string& name) {
  gid_t number = 0;
  if (absl::SimpleAtoi(name, &number)) return number;
  group entry = {};
  group* found = nullptr;
  std::vector<char> buffer(1024);
  int error = 0;
  while ((error = ::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found)) ==
         ERANGE) {
    buffer.resize(buffer.size() * 2);
  }
  if (error != 0) return ErrnoStatus(error, absl::StrCat("socket-group ", name));
  if (found == nullptr) {
    return absl::NotFoundError(absl::StrCat("socket-group ", name, ": no such group"));
  }
  return found->gr_gid;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Service>> Service::Create(
    std::vector<std::filesystem::path> plugin_dirs, Log log, uint64_t shared_arena_size,
    bool contain) {
  HostOptions options;
  options.log = log;
  options.shared_arena_size = shared_arena_size;
  options.contain_crashes = contain;
  options.plugin_dirs = std::move(plugin_dirs);
  for (std::filesystem::path& place : PluginPlaces()) {
    options.plugin_dirs.push_back(std::move(place));
  }
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Host> host, Host::Create(std::move(options)));
  UniqueFd ended(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!ended) return ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<Service>(new Service(std::move(host), std::move(log), std::move(ended)));
}

Service::~Service() {
  BeginStop();
  std::map<std::string, Entry, std::less<>> entries;
  {
    absl::MutexLock lock(&mutex_);
    entries.swap(entries_);
  }
  entries.clear();
}

void Service::SayFarewell(absl::string_view name, FarewellReason reason) {
  const absl::StatusOr<DeviceHandle> device = host_->Find(name);
  if (device.ok()) device->Farewell(reason).IgnoreError();
}

void Service::BeginStop() {
  std::vector<std::string> names;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) {
      if (!entry.given_away) names.push_back(name);
    }
  }
  for (const std::string& name : names) SayFarewell(name, FarewellReason::kHostEnds);
  absl::MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) {
    if (entry.server != nullptr && !entry.given_away) entry.server->BeginStop();
  }
}

bool Service::AllEnded() const {
  eventfd_t count = 0;
  static_cast<void>(::eventfd_read(ended_.get(), &count));
  absl::MutexLock lock(&mutex_);
  return std::all_of(entries_.begin(), entries_.end(), [](const auto& entry) {
    return entry.second.server != nullptr && entry.second.server->ended();
  });
}

vhost_user::ServerOptions Service::ListenOptions(const DeviceConfig& config) {
  vhost_user::ServerOptions options;
  options.log = log_.Named(config.spec.name);
  options.socket_path = config.socket_path;
  options.socket.reset(config.socket_fd);
  options.stop_patience = config.spec.stop_deadline + absl::Seconds(15);
  options.on_ended = [this] { ::eventfd_write(ended_.get(), 1); };
  options.can_freeze = state_dir_.has_value();
  return options;
}

absl::StatusOr<gid_t> Service::GroupOf(const DeviceConfig& config) {
  if (config.socket_group.empty()) return gid_t{0};
  return GroupId(config.socket_group);
}

absl::Status Service::SetGroup(const DeviceConfig& config, gid_t group) {
  if (::chown(config.socket_path.c_str(), static_cast<uid_t>(-1), group) == 0 &&
      ::chmod(config.socket_path.c_str(), 0660) == 0) {
    return absl::OkStatus();
  }
  return ErrnoStatus(errno,
                     absl::StrCat("socket ", config.socket_path, ": group ", config.socket_group));
}

absl::StatusOr<std::unique_ptr<vhost_user::Server>> Service::Listen(const DeviceConfig& config,
                                                                    DeviceHandle device) {
  VIRTBAY_ASSIGN_OR_RETURN(const gid_t group, GroupOf(config));
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<vhost_user::Server> server,
                           vhost_user::Server::Create(std::move(device), ListenOptions(config)));
  if (!config.socket_group.empty()) VIRTBAY_RETURN_IF_ERROR(SetGroup(config, group));
  return server;
}

absl::Status Service::TakePool(DeviceConfig* config) {
  DeviceSpec& spec = config->spec;
  if (config->guest_pool == PoolUse::kNone) {
    if (spec.aperture.size == 0) return absl::OkStatus();
    return pool_.Claim(spec.name, spec.aperture, config->aperture_shared);
  }
  if (!pool_.available() && spec.rings == RingPlacement::kPool) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", spec.name,
                     ": rings = \"pool\" needs a pool, and the guest has not reported one"));
  }
  if (!pool_.Want(spec.name, config->slice_size)) return absl::OkStatus();
  VIRTBAY_ASSIGN_OR_RETURN(spec.aperture, config->guest_pool == PoolUse::kAll
                                              ? pool_.TakeAll(spec.name)
                                              : pool_.Take(spec.name, config->slice_size));
  spec.dma_mode = DmaMode::kAperture;
  return absl::OkStatus();
}

void Service::Warn(const DeviceConfig& config) const {
  for (const std::string& warning : config.warnings) {
    log_.Warn(absl::StrCat("device ", config.spec.name, ": ", warning));
  }
}

absl::StatusOr<DeviceHandle> Service::MakeDevice(const DeviceConfig& config) {
  DeviceSpec spec = config.spec;
  spec.one_thread = !config.record_file.empty();
  VIRTBAY_ASSIGN_OR_RETURN(DeviceHandle device, host_->Add(std::move(spec)));
  const absl::Status shared = AddShares(config, device);
  if (shared.ok()) return device;
  host_->Remove(config.spec.name).IgnoreError();
  return shared;
}

absl::Status Service::AddShares(const DeviceConfig& config, const DeviceHandle& device) {
  for (const ShareConfig& share : config.shares) {
    const absl::StatusOr<shares::AddedShare> made = shares::Add(device, share.spec);
    if (made.ok()) {
      if (made->name != share.spec.name) {
        log_.Warn(absl::StrCat("device ", config.spec.name, ": share ", share.spec.name,
                               " is the same as ", made->name, ", under which the guest finds it"));
      }
      continue;
    }
    absl::Status added = Annotate(
        made.status(),
        absl::StrCat("share ", share.spec.name.empty() ? share.spec.path : share.spec.name));
    if (!share.origin.empty()) added.SetPayload(kOriginPayload, absl::Cord(share.origin));
    return added;
  }
  return absl::OkStatus();
}

absl::Status Service::CheckDevice(DeviceConfig config) {
  Warn(config);
  if (!config.socket_path.empty() && !NamesPassedSocket(config.socket_path)) {
    VIRTBAY_RETURN_IF_ERROR(vhost_user::CheckSocketPath(config.socket_path));
  }
  if (!config.socket_group.empty()) {
    VIRTBAY_RETURN_IF_ERROR(GroupId(config.socket_group).status());
  }
  VIRTBAY_RETURN_IF_ERROR(TakePool(&config));
  absl::Status added = MakeDevice(config).status();
  if (added.ok()) host_->Remove(config.spec.name).IgnoreError();
  // A range given by hand is kept, so that the next device's is checked against it.
  if (!added.ok() || config.guest_pool != PoolUse::kNone) pool_.Release(config.spec.name);
  return added;
}

absl::Status Service::Record(const DeviceConfig& config, const DeviceHandle& device,
                             std::unique_ptr<Recorder>* recorder) {
  if (config.record_file.empty()) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<RecordSource>> source =
      RecordSource::Start(device, config.record_payload);
  if (!source.ok()) return source.status();
  auto started =
      Recorder::Start(config.record_file, absl::InfiniteDuration(), *std::move(source), log());
  if (!started.ok()) {
    return Annotate(started.status(), absl::StrCat("device ", config.spec.name, ": record"));
  }
  *recorder = *std::move(started);
  return absl::OkStatus();
}

absl::Status Service::AddDevice(DeviceConfig config) {
  const std::string name = config.spec.name;
  {
    absl::MutexLock lock(&mutex_);
    VIRTBAY_RETURN_IF_ERROR(CheckChangeable());
    // Reserves the name, so that the slow part runs without the lock.
    if (!entries_.try_emplace(name).second) {
      return absl::AlreadyExistsError(absl::StrCat("device ", name, ": already exists"));
    }
  }
  Warn(config);
  absl::StatusOr<std::unique_ptr<vhost_user::Server>> server =
      absl::UnknownError("not listening yet");
  absl::Status status = TakePool(&config);
  if (status.ok() && state_dir_.has_value()) {
    const auto dir = state_dir_->ForDevice(name);
    if (dir.ok()) config.spec.state_dir = *dir;
    status = dir.status();
  }
  const absl::StatusOr<DeviceHandle> device =
      status.ok() ? MakeDevice(config) : absl::StatusOr<DeviceHandle>(status);
  status = device.status();
  std::unique_ptr<Recorder> recorder;
  if (status.ok()) {
    status = Record(config, *device, &recorder);
    if (status.ok()) {
      server = Listen(config, *device);
      status = server.status();
    }
    if (!status.ok()) host_->Remove(name).IgnoreError();
  }
  absl::MutexLock lock(&mutex_);
  if (!status.ok()) {
    pool_.Release(name);
    entries_.erase(name);
    return status;
  }
  Entry& entry = entries_[name];
  entry.server = std::move(server).value();
  entry.socket =
      config.socket_path.empty() ? absl::StrCat("fd ", config.socket_fd) : config.socket_path;
  entry.recorder = std::move(recorder);
  entry.ready = true;
  return absl::OkStatus();
}

absl::Status Service::RemoveDevice(absl::string_view name) {
  std::unique_ptr<vhost_user::Server> server;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (it == entries_.end()) {
      return absl::NotFoundError(absl::StrCat("device ", name, ": does not exist"));
    }
    if (!it->second.ready) {
      return absl::UnavailableError(absl::StrCat("device ", name, ": is being added or removed"));
    }
    VIRTBAY_RETURN_IF_ERROR(CheckChangeable());
    it->second.ready = false;
    server = std::move(it->second.server);
  }
  // While the guest's rings run: they stop with the server.
  SayFarewell(name, FarewellReason::kRemoved);
  server.reset();
  absl::Status removed = host_->Remove(name);
  if (absl::IsDeadlineExceeded(removed)) {
    pool_.Abandon(name);
  } else {
    pool_.Release(name);
  }
  absl::MutexLock lock(&mutex_);
  entries_.erase(entries_.find(name));
  return removed;
}

absl::StatusOr<DeviceHandle> Service::Ready(absl::string_view name) const {
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (it == entries_.end() || !it->second.ready) {
      return absl::NotFoundError(absl::StrCat("device ", name, ": does not exist"));
    }
  }
  return host_->Find(name);
}

absl::StatusOr<shares::AddedShare> Service::AddShare(absl::string_view device,
                                                     const shares::ShareSpec& share) {
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Ready(device));
  return shares::Add(handle, share);
}

absl::Status Service::RemoveShare(absl::string_view device, absl::string_view name) {
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Ready(device));
  return shares::Remove(handle, name);
}

absl::StatusOr<std::vector<shares::ShareSpec>> Service::ListShares(absl::string_view device) const {
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Ready(device));
  return shares::List(handle);
}

absl::StatusOr<std::string> Service::CommandDevice(absl::string_view device,
                                                   const std::string& command,
                                                   absl::string_view text) const {
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Ready(device));
  return handle.Control(command, text);
}

absl::StatusOr<ReloadReport> Service::ReloadDevice(absl::string_view name,
                                                   const std::filesystem::path& from) {
  VIRTBAY_RETURN_IF_ERROR(Ready(name).status());
  const auto count = [&](uint32_t change) {
    const auto it = entries_.find(name);
    if (it != entries_.end()) it->second.reloads += change;
  };
  {
    absl::MutexLock lock(&mutex_);
    VIRTBAY_RETURN_IF_ERROR(CheckChangeable());
    count(1);
  }
  ReloadOptions options;
  options.from = from;
  absl::StatusOr<ReloadReport> report = host_->Reload(name, std::move(options));
  absl::MutexLock lock(&mutex_);
  count(-1u);
  return report;
}

absl::StatusOr<uint64_t> Service::Begin(const std::filesystem::path& output,
                                        absl::Duration duration,
                                        std::unique_ptr<RecordingSource> source) {
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Recorder> recorder,
                           Recorder::Start(output, duration, std::move(source), log()));
  absl::MutexLock lock(&recordings_mutex_);
  // Those that nobody has asked about any more, the oldest first.
  for (auto it = recordings_.begin();
       it != recordings_.end() && recordings_.size() >= kMostEnded;) {
    it = it->second->ended() ? recordings_.erase(it) : std::next(it);
  }
  recordings_.emplace(++last_recording_, std::move(recorder));
  return last_recording_;
}

absl::StatusOr<uint64_t> Service::StartTrace(absl::string_view name,
                                             const std::filesystem::path& output,
                                             absl::Duration duration) {
  std::vector<std::string> names;
  if (name.empty()) {
    absl::MutexLock lock(&mutex_);
    for (const auto& [device, entry] : entries_) {
      if (entry.ready) names.push_back(device);
    }
    if (names.empty()) return absl::NotFoundError("there is no device to trace");
  } else {
    names.emplace_back(name);
  }
  auto source = std::make_unique<TraceSource>();
  for (const std::string& device : names) {
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle handle, Ready(device));
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceInfo info, handle.Inspect());
    VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<DeviceTrace> trace, handle.StartTrace());
    source->Add(device, info.type, std::move(trace));
  }
  return Begin(output, duration, std::move(source));
}

absl::StatusOr<uint64_t> Service::StartRecord(absl::string_view name,
                                              const std::filesystem::path& output,
                                              absl::Duration duration, bool payload) {
  VIRTBAY_ASSIGN_OR_RETURN(DeviceHandle handle, Ready(name));
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<RecordSource> source,
                           RecordSource::Start(std::move(handle), payload));
  return Begin(output, duration, std::move(source));
}

absl::StatusOr<RecordingReport> Service::StopRecording(uint64_t number) {
  std::unique_ptr<Recorder> recorder;
  {
    absl::MutexLock lock(&recordings_mutex_);
    const auto found = recordings_.find(number);
    if (found == recordings_.end()) {
      return absl::NotFoundError(absl::StrCat("there is no recording ", number));
    }
    recorder = std::move(found->second);
    recordings_.erase(found);
  }
  return recorder->Stop();
}

absl::StatusOr<DeviceReport> Service::InspectDevice(absl::string_view name) const {
  DeviceReport report;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (it == entries_.end() || !it->second.ready) {
      return absl::NotFoundError(absl::StrCat("device ", name, ": does not exist"));
    }
    report.socket = it->second.socket;
  }
  VIRTBAY_ASSIGN_OR_RETURN(report.info, host_->Inspect(name));
  return report;
}

std::vector<DeviceReport> Service::InspectAll() const {
  std::vector<std::string> names;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) {
      if (entry.ready) names.push_back(name);
    }
  }
  std::vector<DeviceReport> reports;
  for (const std::string& name : names) {
    // A device removed in between is no longer one to report.
    absl::StatusOr<DeviceReport> report = InspectDevice(name);
    if (report.ok()) reports.push_back(std::move(report).value());
  }
  return reports;
}

}  // namespace virtbay::device_host
