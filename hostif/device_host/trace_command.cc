// `virtbay trace`: a timeline of the queues of a running process's devices, for a trace viewer.
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/control_client.h"
#include "hostif/device_host/report.h"
#include "hostif/device_host/trace_recorder.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

class TraceCommand final : public Command {
 public:
  explicit TraceCommand(CLI::App* app)
      : app_(app->add_subcommand(
            "trace", "Write a timeline of running devices as Chrome trace JSON, for Perfetto")) {
    app_->add_option("device", device_, "Only this device")->type_name("DEVICE");
    app_->add_option("--output", output_, "Written by the running process, and overwritten")
        ->required()
        ->type_name("FILE");
    app_->add_option("--duration", seconds_, "For so long (default: 5)")
        ->type_name("SECONDS")
        ->check(CLI::PositiveNumber)
        ->check(CLI::Range(0.0, double{kMostTraceSeconds}));
    app_->add_option("--control-socket", socket_, "Of the process");
    app_->add_flag("--json", json_, "What was written, as one JSON object");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    // The service has a working directory of its own.
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(output_, error);
    json request{{"command", "trace"},
                 {"output", error ? output_ : absolute.string()},
                 {"seconds", seconds_}};
    if (!device_.empty()) request["name"] = device_;
    if (socket_.empty()) socket_ = DefaultControlSocket();
    VIRTBAY_ASSIGN_OR_RETURN(const json begun, CallControl(socket_, request));
    // The trace ends by itself, so that nothing is left behind by whoever interrupts this.
    absl::SleepFor(absl::Seconds(seconds_));
    VIRTBAY_ASSIGN_OR_RETURN(
        const json report,
        CallControl(socket_, {{"command", "trace-stop"}, {"trace", begun.value("trace", 0)}}));
    if (json_) {
      std::cout << ToLine(report) << "\n";
      return absl::OkStatus();
    }
    const auto number = [&](const char* key) { return report.value(key, uint64_t{0}); };
    std::cout << absl::StreamFormat(
        "%s: %d events of %d devices, %d bytes%s\n", output_, number("events"), number("devices"),
        number("bytes"),
        number("dropped") == 0 ? "" : absl::StrCat("; ", number("dropped"), " were dropped"));
    return absl::OkStatus();
  }

 private:
  CLI::App* const app_;
  std::string device_;
  std::string output_;
  double seconds_ = 5;
  std::string socket_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> AddTraceCommand(CLI::App* app) {
  return std::make_unique<TraceCommand>(app);
}

}  // namespace virtbay::device_host
