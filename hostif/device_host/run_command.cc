#include <unistd.h>

#include <cstdint>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/device_host/arguments.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/config_file.h"
#include "hostif/device_host/guest_address.h"
#include "hostif/device_host/run_service.h"
#include "hostif/device_host/serve_options.h"
#include "hostif/device_host/wsl_service.h"

namespace virtbay::device_host {
namespace {

uint64_t HostMemory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long size = ::sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(size) : 0;
}

class RunCommand final : public Command {
 public:
  explicit RunCommand(CLI::App* app)
      : app_(app->add_subcommand("run", "Serve many devices from one process")) {
    CLI::Option* file =
        app_->add_option("file", file_, "A TOML file of devices; docs/usage.md lists its keys")
            ->type_name("FILE");
    constexpr char kGroup[] = "Instead of a file";
    CLI::Option* instead[] = {
        app_->add_option("--share", request_.shares,
                         "A virtiofs device: its name, its directory, options as WSL writes them")
            ->type_name("NAME=DIR[;OPTION]..."),
        app_->add_option("--device-string", request_.device_strings,
                         "A device by its option string; TYPE is virtiofs or virtio-net")
            ->type_name("TYPE:STRING"),
        app_->add_option("--wslconfig", request_.wslconfig,
                         "A .wslconfig, which says what is served of these; prints what the "
                         "guest's kernel has to be started with")
            ->type_name("FILE"),
        app_->add_option("--socket-dir", request_.socket_dir, "The device NAME is at DIR/NAME.sock")
            ->type_name("DIR"),
        app_->add_option("--plugin-path", plugin_path_, "Directory with plugins")
            ->type_name("DIR")};
    for (CLI::Option* option : instead) {
      option->excludes(file)->allow_extra_args(false)->group(kGroup);
    }
    app_->add_option("--log-level", log_level_, "Overrides the file's log-level");
    app_->add_option(
        "--control-socket", control_socket_,
        "Overrides the file's control-socket; enough by itself, for devices that are added "
        "later");
    app_->add_option("--guest-channel", guest_channel_,
                     "Overrides the file's guest-channel: unix:PATH, vsock:[CID:]PORT or "
                     "tcp:ADDRESS:PORT, where virtbay-guest reports");
    app_->add_option("--state-dir", state_dir_,
                     "Overrides the file's state-dir: what a guest's session needs is kept there, "
                     "and goes on when this process was killed and is started again; of a process "
                     "that serves there the devices are taken over")
        ->type_name("DIR");
    app_->add_option("--rlimit-nofile", rlimit_nofile_,
                     "Overrides the file's rlimit-nofile: open files (0: leave as it is)")
        ->check(FileLimit());
    app_->add_option("--ready-fd", ready_fd_, "Gets a newline when front-ends can connect")
        ->check(DescriptorNumber());
    app_->add_flag("--contain", contain_,
                   "A crash of a plugin fails its device only; for development, best effort");
    app_->add_flag("--watch", watch_, "Reload devices when the file of their plugin changes");
    app_->add_flag("--check", check_, "Only check the file, its plugins and their options");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    std::optional<LogLevel> log_level;
    std::optional<GuestAddress> guest_channel;
    if (!log_level_.empty()) {
      const auto level = ParseLogLevel(log_level_);
      if (!level.ok()) Usage(absl::StrCat("--log-level: ", level.status().message()));
      log_level = *level;
    }
    if (!guest_channel_.empty()) {
      const auto address = ParseGuestAddress(guest_channel_);
      if (!address.ok()) Usage(absl::StrCat("--guest-channel: ", address.status().message()));
      guest_channel = *address;
    }
    ServiceConfig config;
    if (!file_.empty()) {
      VIRTBAY_ASSIGN_OR_RETURN(config, ReadConfigFile(file_));
    } else {
      VIRTBAY_ASSIGN_OR_RETURN(config, FromCommandLine());
    }
    if (log_level.has_value()) config.log_level = *log_level;
    if (!control_socket_.empty()) config.control_socket = control_socket_;
    if (!state_dir_.empty()) config.state_dir = state_dir_;
    if (guest_channel.has_value()) config.guest_channel = guest_channel;
    if (rlimit_nofile_.has_value()) config.rlimit_nofile = rlimit_nofile_;
    config.ready_fd = ready_fd_;
    config.watch |= watch_;
    config.contain |= contain_;
    if (config.devices.empty() && config.control_socket.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_, ": there is no [[device]], and without a control-socket none can be added"));
    }
    if (check_) return CheckService(config);
    return RunService(std::move(config));
  }

 private:
  absl::StatusOr<ServiceConfig> FromCommandLine() {
    if (request_.shares.empty() && request_.device_strings.empty() && request_.wslconfig.empty()) {
      if (control_socket_.empty()) {
        throw CLI::RequiredError("file, --share, --device-string, --wslconfig or --control-socket");
      }
      ServiceConfig none;  // devices are added later
      for (const std::string& dir : plugin_path_) none.plugin_dirs.emplace_back(dir);
      return none;
    }
    if (request_.socket_dir.empty()) throw CLI::RequiredError("--socket-dir");
    request_.host_memory = HostMemory();
    VIRTBAY_ASSIGN_OR_RETURN(WslService service, MakeWslService(request_));
    for (const std::string& dir : plugin_path_) service.config.plugin_dirs.emplace_back(dir);
    if (!service.kernel_command_line.empty()) {
      std::cout << service.kernel_command_line << std::endl;
    }
    return std::move(service.config);
  }

  CLI::App* const app_;
  std::string file_;
  WslRequest request_;
  std::vector<std::string> plugin_path_;
  std::string log_level_;
  std::string control_socket_;
  std::string state_dir_;
  std::string guest_channel_;
  std::optional<uint64_t> rlimit_nofile_;
  int ready_fd_ = -1;
  bool watch_ = false;
  bool contain_ = false;
  bool check_ = false;
};

}  // namespace

std::unique_ptr<Command> AddRunCommand(CLI::App* app) { return std::make_unique<RunCommand>(app); }

}  // namespace virtbay::device_host
