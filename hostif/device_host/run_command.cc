#include <memory>
#include <string>
#include <utility>

#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/config_file.h"
#include "hostif/device_host/guest_address.h"
#include "hostif/device_host/run_service.h"

namespace virtbay::device_host {
namespace {

class RunCommand final : public Command {
 public:
  explicit RunCommand(CLI::App* app)
      : app_(app->add_subcommand("run", "Serve the devices of a TOML file from one process")) {
    app_->add_option("file", file_, "The file; docs/usage.md lists its keys")
        ->required()
        ->type_name("FILE");
    app_->add_option("--log-level", log_level_, "Overrides the file's log-level");
    app_->add_option("--control-socket", control_socket_, "Overrides the file's control-socket");
    app_->add_option("--guest-channel", guest_channel_,
                     "Overrides the file's guest-channel: unix:PATH, vsock:[CID:]PORT or "
                     "tcp:ADDRESS:PORT, where virtbay-guest reports");
    app_->add_option("--ready-fd", ready_fd_, "Gets a newline when front-ends can connect");
    app_->add_flag("--check", check_, "Only check the file, its plugins and their options");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    VIRTBAY_ASSIGN_OR_RETURN(ServiceConfig config, ReadConfigFile(file_));
    if (!log_level_.empty()) {
      VIRTBAY_ASSIGN_OR_RETURN(config.log_level, ParseLogLevel(log_level_));
    }
    if (!control_socket_.empty()) config.control_socket = control_socket_;
    if (!guest_channel_.empty()) {
      const auto address = ParseGuestAddress(guest_channel_);
      if (!address.ok()) return Annotate(address.status(), "--guest-channel");
      config.guest_channel = *address;
    }
    config.ready_fd = ready_fd_;
    if (check_) return CheckService(config);
    return RunService(std::move(config));
  }

 private:
  CLI::App* const app_;
  std::string file_;
  std::string log_level_;
  std::string control_socket_;
  std::string guest_channel_;
  int ready_fd_ = -1;
  bool check_ = false;
};

}  // namespace

std::unique_ptr<Command> AddRunCommand(CLI::App* app) { return std::make_unique<RunCommand>(app); }

}  // namespace virtbay::device_host
