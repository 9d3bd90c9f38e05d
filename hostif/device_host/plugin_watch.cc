#include "hostif/device_host/plugin_watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "framework/base/signals.h"
#include "framework/base/status.h"
#include "framework/plugin/plugin.h"

namespace virtbay::device_host {
namespace {

// A linker writes in pieces; what has not changed for so long is looked at.
constexpr absl::Duration kQuiet = absl::Milliseconds(100);
constexpr absl::Duration kPatience = absl::Seconds(10);
constexpr int kLookForDevicesMs = 1000;
constexpr uint32_t kChanges = IN_CLOSE_WRITE | IN_MOVED_TO;
constexpr uint32_t kWatched = kChanges | IN_CREATE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR;

// The file and, if it is a symbolic link, what it leads to, by way of what: whatever of these is
// written anew makes another plugin. Each with its directory.
std::vector<std::filesystem::path> LinksOf(std::filesystem::path file) {
  constexpr size_t kMostLinks = 40;  // as many as the kernel follows
  std::vector<std::filesystem::path> links;
  for (;;) {
    if (!file.has_parent_path()) file = std::filesystem::path(".") / file;
    links.push_back(file);
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(file, error);
    if (error || links.size() > kMostLinks) return links;
    file = file.parent_path() / target;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<PluginWatch>> PluginWatch::Start(ControlTarget* target) {
  UniqueFd events(inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!events.valid()) return ErrnoStatus(errno, "watch: inotify");
  UniqueFd stop(eventfd(0, EFD_CLOEXEC));
  if (!stop.valid()) return ErrnoStatus(errno, "watch: eventfd");
  std::unique_ptr<PluginWatch> watch(new PluginWatch(target, std::move(events), std::move(stop)));
  watch->WatchDirectories();
  try {
    watch->thread_ = std::thread([raw = watch.get()] { raw->Main(); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("watch: no thread: ", e.what()));
  }
  return watch;
}

PluginWatch::PluginWatch(ControlTarget* target, UniqueFd events, UniqueFd stop)
    : target_(target), events_(std::move(events)), stop_(std::move(stop)) {}

PluginWatch::~PluginWatch() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(stop_.get(), &one, sizeof(one));
  if (thread_.joinable()) thread_.join();
}

void PluginWatch::Main() {
  const sigset_t blocked = SignalsToBlock();
  pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
  for (;;) {
    std::array<pollfd, 2> fds = {{{events_.get(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
    if (poll(fds.data(), fds.size(), Timeout()) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    WatchDirectories();
    ReadEvents();
    Reload();
  }
}

int PluginWatch::Timeout() const {
  int timeout = kLookForDevicesMs;
  for (const auto& [path, change] : changes_) {
    const int64_t left = absl::ToInt64Milliseconds(change.due - absl::Now()) + 1;
    timeout = std::min(timeout, static_cast<int>(std::max<int64_t>(left, 0)));
  }
  return timeout;
}

void PluginWatch::WatchDirectories() {
  files_.clear();
  for (const DeviceReport& report : target_->InspectAll()) {
    for (const std::filesystem::path& file : LinksOf(report.info.plugin_path)) {
      files_[file].insert(report.info.plugin_path);
    }
  }
  std::set<std::filesystem::path> wanted;
  for (const auto& [file, plugins] : files_) wanted.insert(file.parent_path());
  for (auto at = directories_.begin(); at != directories_.end();) {
    if (wanted.contains(at->first)) {
      ++at;
      continue;
    }
    const int descriptor = at->second;
    at = directories_.erase(at);
    Unwatch(descriptor);
  }
  for (const std::filesystem::path& directory : wanted) WatchDirectory(directory);
}

void PluginWatch::WatchDirectory(const std::filesystem::path& directory) {
  // The same descriptor as long as the same directory has the name.
  const int descriptor = inotify_add_watch(events_.get(), directory.c_str(), kWatched);
  const int error = errno;
  const auto [at, first] = directories_.try_emplace(directory, -1);
  const int before = std::exchange(at->second, std::max(descriptor, -1));
  if (descriptor < 0) {
    if (first || before >= 0) {
      target_->log().Warn(absl::StrCat("watch: ", ErrnoStatus(error, directory.native()).message(),
                                       "; it is tried again each second"));
    }
    Unwatch(before);
    return;
  }
  if (first || descriptor == before) return;
  Unwatch(before);
  // What was written since it was made has not been seen.
  for (const auto& [file, plugins] : files_) {
    std::error_code ignored;
    if (file.parent_path() == directory && std::filesystem::exists(file, ignored)) Changed(file);
  }
}

void PluginWatch::Unwatch(int descriptor) {
  const bool used = std::any_of(directories_.begin(), directories_.end(),
                                [&](const auto& one) { return one.second == descriptor; });
  // One that has been removed has taken its watch with it.
  if (descriptor >= 0 && !used) {
    static_cast<void>(inotify_rm_watch(events_.get(), descriptor));
  }
}

void PluginWatch::Changed(const std::filesystem::path& file) {
  const auto found = files_.find(file);
  if (found == files_.end()) return;
  const absl::Time now = absl::Now();
  for (const std::filesystem::path& plugin : found->second) {
    changes_[plugin] = {now + kQuiet, now + kPatience};
  }
}

void PluginWatch::ReadEvents() {
  alignas(inotify_event) std::array<char, 16384> buffer;
  for (;;) {
    const ssize_t n = ::read(events_.get(), buffer.data(), buffer.size());
    if (n <= 0) return;
    for (ssize_t at = 0; at < n;) {
      const auto* event = reinterpret_cast<const inotify_event*>(buffer.data() + at);
      at += static_cast<ssize_t>(sizeof(*event) + event->len);
      if (event->len == 0) continue;
      for (const auto& [directory, descriptor] : directories_) {
        if (descriptor != event->wd) continue;
        const std::filesystem::path file = directory / event->name;
        std::error_code ignored;
        // A file that is made is still to be written; a link is not.
        if ((event->mask & kChanges) != 0 || std::filesystem::is_symlink(file, ignored)) {
          Changed(file);
        }
      }
    }
  }
}

// What went well the device says itself.
void PluginWatch::ReloadDevice(const std::string& device) {
  const auto crashes = [&] {
    const absl::StatusOr<DeviceReport> report = target_->InspectDevice(device);
    return report.ok() ? report->info.crashes : 0;
  };
  const uint32_t before = crashes();
  absl::Status status = target_->ReloadDevice(device, "").status();
  if (status.ok()) return;
  target_->log().Error(absl::StrCat("watch: ", status.message()));
  // What crashed was the build before, in its last call: the file was not at fault.
  if (crashes() == before) return;
  status = target_->ReloadDevice(device, "").status();
  if (!status.ok()) target_->log().Error(absl::StrCat("watch: ", status.message()));
}

void PluginWatch::Reload() {
  for (auto at = changes_.begin(); at != changes_.end();) {
    auto& [path, change] = *at;
    if (absl::Now() < change.due) {
      ++at;
      continue;
    }
    std::set<std::string> devices;
    for (const DeviceReport& report : target_->InspectAll()) {
      if (report.info.plugin_path == path) devices.insert(report.info.name);
    }
    if (devices.empty()) {
      at = changes_.erase(at);
      continue;
    }
    if (const absl::Status whole = InspectPluginFile(path).status(); !whole.ok()) {
      if (absl::Now() < change.give_up) {
        change.due = absl::Now() + kQuiet;
        ++at;
        continue;
      }
      target_->log().Error(absl::StrCat("watch: ", whole.message()));
      at = changes_.erase(at);
      continue;
    }
    for (const std::string& device : devices) {
      ReloadDevice(device);
    }
    at = changes_.erase(at);
  }
}

}  // namespace virtbay::device_host
