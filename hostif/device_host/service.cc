#include "hostif/device_host/service.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/unix_socket.h"

namespace virtbay::device_host {

absl::StatusOr<std::unique_ptr<Service>> Service::Create(
    std::vector<std::filesystem::path> plugin_dirs, Log log) {
  HostOptions options;
  options.log = log;
  options.plugin_dirs = std::move(plugin_dirs);
  for (std::filesystem::path& place : PluginPlaces()) {
    options.plugin_dirs.push_back(std::move(place));
  }
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<Host> host, Host::Create(std::move(options)));
  return std::unique_ptr<Service>(new Service(std::move(host), std::move(log)));
}

Service::~Service() {
  std::map<std::string, Entry, std::less<>> entries;
  {
    absl::MutexLock lock(&mutex_);
    entries.swap(entries_);
  }
  // Every socket goes before the first device is waited for, so that a second signal in the middle
  // of a long wait leaves none behind.
  entries.clear();
}

absl::StatusOr<std::unique_ptr<vhost_user::Server>> Service::Listen(const DeviceConfig& config,
                                                                    DeviceHandle device) {
  vhost_user::ServerOptions options;
  options.log = log_.Named(config.spec.name);
  return vhost_user::Server::Create(std::move(device), std::move(options));
}

absl::Status Service::AddDevice(DeviceConfig config) {
  const std::string name = config.spec.name;
  UniqueFd inherited;
  if (config.socket_fd >= 0) {
    VIRTBAY_RETURN_IF_ERROR(CheckListeningFd(config.socket_fd));
  }
  {
    absl::MutexLock lock(&mutex_);
    // Reserves the name, so that the slow part runs without the lock.
    if (!entries_.try_emplace(name).second) {
      return absl::AlreadyExistsError(absl::StrCat("device ", name, ": already exists"));
    }
  }
  absl::StatusOr<std::unique_ptr<vhost_user::Server>> server =
      absl::UnknownError("not listening yet");
  const absl::StatusOr<DeviceHandle> device = host_->Add(config.spec);
  absl::Status status = device.status();
  if (status.ok()) {
    server = Listen(config, *device);
    status = server.status();
    if (!status.ok()) host_->Remove(name).IgnoreError();
  }
  absl::MutexLock lock(&mutex_);
  if (!status.ok()) {
    entries_.erase(name);
    return status;
  }
  Entry& entry = entries_[name];
  entry.server = std::move(server).value();
  entry.socket =
      config.socket_path.empty() ? absl::StrCat("fd ", config.socket_fd) : config.socket_path;
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
    it->second.ready = false;
    server = std::move(it->second.server);
  }
  server.reset();
  const absl::Status removed = host_->Remove(name);
  absl::MutexLock lock(&mutex_);
  entries_.erase(entries_.find(name));
  return removed;
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
