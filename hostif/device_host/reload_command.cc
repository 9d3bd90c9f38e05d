// `virtbay reload`: another build of a plugin takes the place of the one that serves, in a running
// process.
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/control_client.h"
#include "hostif/device_host/report.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

void PrintReport(const json& report) {
  const auto text = [&](const char* key) { return report.value(key, std::string()); };
  const auto ms = [&](const char* key) {
    return report.contains("ms") ? report["ms"].value(key, 0.0) : 0.0;
  };
  std::cout << absl::StreamFormat(
      "%s: generation %d, version %s -> %s (%s), %s; %d requests handed over\n"
      "  pause %.3f ms: quiesce %.3f, save %.3f, restore %.3f, commit %.3f\n"
      "  before and after: stage %.3f, trial %.3f, retire %.3f%s\n",
      text("device"), report.value("generation", 0), text("version_before"), text("version_after"),
      text("build_after"),
      report.value("state_restored", false)
          ? absl::StrFormat("state of %d bytes and %d descriptors", report.value("state_bytes", 0),
                            report.value("state_fds", 0))
          : "begun afresh",
      report.value("requests_handed_over", 0), ms("pause"), ms("quiesce"), ms("save"),
      ms("restore"), ms("commit"), ms("stage"), ms("trial"), ms("retire"),
      report.value("image_unloaded", false) ? "" : "; the old image is still in use");
}

class ReloadCommand final : public Command {
 public:
  explicit ReloadCommand(CLI::App* app)
      : app_(app->add_subcommand("reload",
                                 "Replace the plugin of running devices, under their drivers")) {
    app_->add_option("name", name_, "A device, or a plugin: all of its devices")
        ->required()
        ->type_name("DEVICE|PLUGIN");
    app_->add_option("--from", from_, "The new file (default: the one that it came from)")
        ->type_name("FILE");
    app_->add_option("--control-socket", socket_, "Of the process");
    app_->add_flag("--json", json_, "One JSON object");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    json request{{"command", "reload"}, {"name", name_}};
    if (!from_.empty()) {
      // The service has a working directory of its own.
      std::error_code error;
      const std::filesystem::path absolute = std::filesystem::absolute(from_, error);
      request["from"] = error ? from_ : absolute.string();
    }
    if (socket_.empty()) socket_ = DefaultControlSocket();
    VIRTBAY_ASSIGN_OR_RETURN(const json result, CallControl(socket_, request));
    if (json_) {
      std::cout << ToLine(result) << "\n";
    } else {
      for (const json& report : result) PrintReport(report);
    }
    return absl::OkStatus();
  }

 private:
  CLI::App* const app_;
  std::string name_;
  std::string from_;
  std::string socket_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> AddReloadCommand(CLI::App* app) {
  return std::make_unique<ReloadCommand>(app);
}

}  // namespace virtbay::device_host
