// ServeOptions: what every `virtbay serve TYPE` takes beside its device's own options: the socket,
// the host, and how the plugin is given any option by name.
// Owned by a serve command, whose CLI11 subcommand writes to it; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_OPTIONS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_OPTIONS_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// [control] Ends the command line with a usage error (exit status 2).
[[noreturn]] void Usage(const std::string& message);

class ServeOptions {
 public:
  // `plugin`: what the device's plugin is called, and the device unless it is given a name.
  ServeOptions(CLI::App* app, std::string plugin);
  ServeOptions(const ServeOptions&) = delete;
  ServeOptions& operator=(const ServeOptions&) = delete;

  // Adds --socket-path, --fd and --socket-group; the options of the host; --option KEY=VALUE.
  void AddSocket();
  void AddHost();
  void AddOption(const char* group);
  // An option of the plugin with a value; given again, the values are joined to a list.
  void Text(const char* flag, const char* key, const char* help, const char* group);
  // The same, but each value is an item of its own with `word` before it, in the order of all
  // options of that key.
  void Ordered(const char* flag, const char* key, const char* word, const char* help,
               const char* group);
  // A key of the device, checked as in a file.
  void Key(const char* flag, const char* key, const char* help);

  // The plugin's options that were given.
  std::map<std::string, std::string>& options() { return options_; }
  std::string& log_level() { return log_level_; }

  // After parsing: the device with its socket and keys, without the plugin's options.
  DeviceConfig Device() const;
  // Checks the whole device. Both end in a usage error.
  static void Finish(DeviceConfig* device);
  // What serves `device`; `log_level` where none was given.
  ServiceConfig Service(DeviceConfig device, const std::string& log_level) const;
  // What became of it. A value that the plugin does not take is a mistake of usage, which names the
  // option as it was given.
  absl::Status Outcome(absl::Status status) const;

 private:
  void FillSocket(DeviceConfig* device) const;

  CLI::App* const app_;
  const std::string plugin_;
  std::string socket_path_;
  std::optional<int> fd_;
  std::string socket_group_;
  std::string name_;
  std::string control_socket_;
  std::string state_dir_;
  std::string log_level_;  // empty: not given
  bool syslog_ = false;
  std::optional<uint64_t> rlimit_nofile_;
  bool watch_ = false;
  bool contain_ = false;
  int ready_fd_ = -1;
  std::vector<std::string> plugin_path_;
  bool access_platform_ = false;
  std::map<std::string, std::string> options_;
  std::set<std::string> given_;                 // by --option
  std::map<std::string, std::string> spelled_;  // what each of options_ was given by
  DeviceConfig keys_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_SERVE_OPTIONS_H_
