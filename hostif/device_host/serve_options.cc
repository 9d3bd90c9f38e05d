#include "hostif/device_host/serve_options.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "hostif/device_host/arguments.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/run_service.h"

namespace virtbay::device_host {

namespace {

// Decimal digits, whether they fit into a type or not.
bool IsNumber(absl::string_view text) {
  if (!absl::ConsumePrefix(&text, "-")) absl::ConsumePrefix(&text, "+");
  return !text.empty() && text.find_first_not_of("0123456789") == absl::string_view::npos;
}

}  // namespace

void Usage(const std::string& message) {
  throw CLI::ValidationError(message, CLI::ExitCodes::ValidationError);
}

ServeOptions::ServeOptions(CLI::App* app, std::string plugin)
    : app_(app), plugin_(std::move(plugin)), name_(plugin_) {}

void ServeOptions::AddSocket() {
  constexpr char kGroup[] = "Socket";
  app_->add_option("--socket-path", socket_path_, "Socket to listen on")->group(kGroup);
  app_->add_option("--fd", fd_, "Inherited listening socket (or socket activation, with neither)")
      ->check(DescriptorNumber())
      ->group(kGroup);
  app_->add_option("--socket-group", socket_group_, "Group that may connect")->group(kGroup);
}

void ServeOptions::AddHost() {
  constexpr char kGroup[] = "Host";
  app_->add_option("--name", name_, "Name of the device in logs and statistics")->group(kGroup);
  app_->add_option("--control-socket", control_socket_, "Socket for virtbay ctl")->group(kGroup);
  app_->add_option(
          "--state-dir", state_dir_,
          "Keep what the guest's session needs there, to go on with after a kill; take the "
          "devices of a process over that serves there")
      ->group(kGroup);
  app_->add_option("--log-level", log_level_, "trace, debug, info, warn, error or off")
      ->group(kGroup);
  app_->add_flag("--syslog", syslog_, "Log to syslog(3) instead of stderr")->group(kGroup);
  app_->add_option("--rlimit-nofile", rlimit_nofile_,
                   "Open files (default: what is allowed, at most 1000000; 0: leave as it is)")
      ->check(FileLimit())
      ->group(kGroup);
  app_->add_option("--plugin-path", plugin_path_, "Directory with plugins")
      ->allow_extra_args(false)
      ->group(kGroup);
  app_->add_flag("--contain", contain_,
                 "A crash of the plugin fails the device, not the process; for development, best "
                 "effort")
      ->group(kGroup);
  app_->add_flag("--watch", watch_, "Reload the device when the file of its plugin changes")
      ->group(kGroup);
  app_->add_option("--ready-fd", ready_fd_, "Gets a newline when front-ends can connect")
      ->check(DescriptorNumber())
      ->group(kGroup);
  app_->add_flag("--access-platform", access_platform_,
                 "Offer VIRTIO_F_ACCESS_PLATFORM (not for user-mode Linux)")
      ->group(kGroup);
  Key("--arena-size", "arena-size", "Private memory of the device (default 64M)");
  Key("--poll-window", "poll-window", "Longest look for more work after work, or off");
  Key("--poll-share", "poll-share", "Percent of a core that looking may cost");
  Key("--swiotlb", "swiotlb",
      "0xBASE,SIZE: the guest's bounce pool for this device; 0xBASE,SIZE,all: for others as well");
  Key("--rings", "rings", "pool: refuse rings outside the pool; or anywhere (default)");
  Key("--queue-size", "queue-size", "Largest ring (default 1024)");
  Key("--stop-deadline", "stop-deadline", "Longest wait for requests in flight");
  Key("--record", "record", "File for every request and answer, for virtbay replay");
  app_->add_flag("--record-payload", keys_.record_payload,
                 "All bytes of them, not only the first 256: file data too")
      ->group(kGroup);
  app_->set_version_flag("--version,-V", "virtbay " VIRTBAY_VERSION);
}

void ServeOptions::AddOption(const char* group) {
  app_->add_option_function<std::string>(
          "--option",
          [this](const std::string& text) {
            const size_t equals = text.find('=');
            if (equals == 0 || equals == std::string::npos) {
              Usage(absl::StrCat("--option: '", text, "' is not KEY=VALUE"));
            }
            const std::string key = text.substr(0, equals);
            if (!given_.insert(key).second) Usage(absl::StrCat("--option ", key, ": given twice"));
            options_[key] = text.substr(equals + 1);
            spelled_[key] = absl::StrCat("--option ", key);
          },
          "KEY=VALUE: any option of the plugin, see docs/usage.md")
      ->type_name("KEY=VALUE")
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw)
      ->trigger_on_parse()
      ->group(group);
}

void ServeOptions::Text(const char* flag, const char* key, const char* help, const char* group) {
  app_->add_option_function<std::vector<std::string>>(
          flag,
          [this, flag, key](const std::vector<std::string>& values) {
            options_[key] = absl::StrJoin(values, ",");
            spelled_[key] = flag;
          },
          help)
      ->allow_extra_args(false)
      ->group(group);
}

void ServeOptions::Key(const char* flag, const char* key, const char* help) {
  app_->add_option_function<std::string>(
          flag,
          [this, flag, key](const std::string& text) {
            KeyValue value(text);
            int64_t number = 0;
            if (absl::SimpleAtoi(text, &number)) {
              value = number;
            } else if (IsNumber(text)) {
              Usage(absl::StrCat(flag, ": ", text, " is out of range"));
            }
            const absl::Status set = SetDeviceKey(key, value, &keys_);
            if (!set.ok()) Usage(absl::StrCat(flag, ": ", set.message()));
          },
          help)
      ->group("Host");
}

void ServeOptions::FillSocket(DeviceConfig* device) const {
  if (!socket_path_.empty() && fd_.has_value()) {
    Usage("--fd: cannot be given together with --socket-path");
  }
  if (!socket_path_.empty()) {
    device->socket_path = socket_path_;
    device->socket_group = socket_group_;
  } else if (fd_.has_value()) {
    device->socket_fd = *fd_;
  } else if (std::getenv("LISTEN_FDS") != nullptr) {
    device->socket_path = "systemd";
  } else {
    throw CLI::RequiredError("--socket-path or --fd");
  }
  if (!socket_group_.empty() && socket_path_.empty()) {
    Usage("--socket-group: needs --socket-path");
  }
}

DeviceConfig ServeOptions::Device() const {
  DeviceConfig device = keys_;
  FillSocket(&device);
  device.spec.plugin = plugin_;
  device.spec.offer_access_platform = access_platform_;
  const absl::Status named = SetDeviceKey("name", KeyValue(name_), &device);
  if (!named.ok()) Usage(absl::StrCat("--name: ", named.message()));
  return device;
}

void ServeOptions::Finish(DeviceConfig* device) {
  const absl::Status finished = FinishDevice(device);
  if (!finished.ok()) Usage(absl::StrCat("--", finished.message()));
  if (device->guest_pool != PoolUse::kNone) {
    Usage(
        "--swiotlb: a pool that the guest reports is for devices that are added after that: "
        "virtbay run and virtbay ctl add");
  }
}

void ServeOptions::Ordered(const char* flag, const char* key, const char* word, const char* help,
                           const char* group) {
  app_->add_option_function<std::string>(
          flag,
          [this, flag, key, word](const std::string& text) {
            std::string& list = options_[key];
            absl::StrAppend(&list, list.empty() ? "" : ",", word, " ", text);
            std::string& spelled = spelled_[key];
            if (spelled.empty()) {
              spelled = flag;
            } else if (!absl::StrContains(spelled, flag)) {
              absl::StrAppend(&spelled, ", ", flag);
            }
          },
          help)
      ->multi_option_policy(CLI::MultiOptionPolicy::Throw)
      ->trigger_on_parse()
      ->group(group);
}

absl::Status ServeOptions::Outcome(absl::Status status) const {
  if (!absl::IsInvalidArgument(status)) return status;
  const std::optional<OptionError> error = OptionErrorOf(status);
  if (!error.has_value()) return status;
  const auto spelled = spelled_.find(error->option);
  Usage(
      absl::StrCat(spelled == spelled_.end() ? absl::StrCat("--", error->option) : spelled->second,
                   ": ", error->reason));
}

ServiceConfig ServeOptions::Service(DeviceConfig device, const std::string& log_level) const {
  ServiceConfig config;
  config.control_socket = control_socket_;
  config.state_dir = state_dir_;
  config.ready_fd = ready_fd_;
  config.watch = watch_;
  config.contain = contain_;
  config.rlimit_nofile = rlimit_nofile_;
  for (const std::string& dir : plugin_path_) config.plugin_dirs.emplace_back(dir);
  const auto level = ParseLogLevel(log_level_.empty() ? log_level : log_level_);
  if (!level.ok()) Usage(absl::StrCat("--log-level: ", level.status().message()));
  config.log_level = *level;
  config.syslog = syslog_;
  config.devices.push_back(std::move(device));
  return config;
}

}  // namespace virtbay::device_host
