// PluginWatch: reloads devices when the file of their plugin has been written anew (`--watch`), for
// whoever works on a plugin. Waits until the file is quiet and whole, so that a linker may take its
// time.
// Owned by the service's main thread, which makes and ends it [control]; has a thread of its own.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_WATCH_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_WATCH_H_

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/control_target.h"

namespace virtbay::device_host {

class PluginWatch {
 public:
  // [control] Watches the plugins of the devices that there are and of those that come later.
  // `target` must outlive it.
  static absl::StatusOr<std::unique_ptr<PluginWatch>> Start(ControlTarget* target);
  // [control] Waits for a reload that is under way.
  ~PluginWatch();
  PluginWatch(const PluginWatch&) = delete;
  PluginWatch& operator=(const PluginWatch&) = delete;

 private:
  // A file that has changed.
  struct Change {
    absl::Time due;      // to be looked at
    absl::Time give_up;  // when it is still no plugin then, it is said
  };

  PluginWatch(ControlTarget* target, UniqueFd events, UniqueFd stop);
  void Main();
  // Of all plugins that there are now, and of what they are links to. One that has been removed is
  // watched again when it is there again.
  void WatchDirectories();
  void WatchDirectory(const std::filesystem::path& directory);
  // Unless it is another directory's as well.
  void Unwatch(int descriptor);
  void Changed(const std::filesystem::path& file);
  void ReadEvents();
  void Reload();
  void ReloadDevice(const std::string& device);
  // Milliseconds until something is due, for poll.
  int Timeout() const;

  ControlTarget* const target_;
  const UniqueFd events_;
  const UniqueFd stop_;
  std::map<std::filesystem::path, int> directories_;  // their watch descriptors; -1: none
  // Plugins by the files that they are made of: themselves, and what they are links to.
  std::map<std::filesystem::path, std::set<std::filesystem::path>> files_;
  std::map<std::filesystem::path, Change> changes_;  // by plugin
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_WATCH_H_
