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
  std::set<std::filesystem::path> wanted;
  for (const DeviceReport& report : target_->InspectAll()) {
    wanted.insert(report.info.plugin_path.parent_path());
  }
  for (const auto& [descriptor, directory] : directories_) wanted.erase(directory);
  for (const std::filesystem::path& directory : wanted) {
    const int descriptor = inotify_add_watch(events_.get(), directory.c_str(), kChanges);
    if (descriptor < 0) {
      target_->log().Warn(
          absl::StrCat("watch: ", ErrnoStatus(errno, directory.native()).message()));
    }
    // One that cannot be watched is not tried, and told of, each time.
    directories_.emplace(descriptor < 0 ? -1 - static_cast<int>(directories_.size()) : descriptor,
                         directory);
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
      const auto directory = directories_.find(event->wd);
      if ((event->mask & kChanges) == 0 || event->len == 0 || directory == directories_.end()) {
        continue;
      }
      const absl::Time now = absl::Now();
      changes_[directory->second / event->name] = {now + kQuiet, now + kPatience};
    }
  }
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
      // What went well the device says itself.
      const absl::Status status = target_->ReloadDevice(device, "").status();
      if (!status.ok()) target_->log().Error(absl::StrCat("watch: ", status.message()));
    }
    at = changes_.erase(at);
  }
}

}  // namespace virtbay::device_host
