// `virtbay trace` and `virtbay record`: what a running process's devices do and are sent, in a
// file.
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/control_client.h"
#include "hostif/device_host/recorder.h"
#include "hostif/device_host/report.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

class RecordingCommand : public Command {
 public:
  bool chosen() const override { return app_->parsed(); }

 protected:
  RecordingCommand(CLI::App* app, const char* name, const char* help)
      : app_(app->add_subcommand(name, help)), name_(name) {}

  void AddOptions() {
    app_->add_option("--output", output_, "Written by the running process, and overwritten")
        ->required()
        ->type_name("FILE");
    app_->add_option("--duration", seconds_, "For so long (default: 5)")
        ->type_name("SECONDS")
        ->check([](const std::string& text) {
          double seconds = 0;
          if (absl::SimpleAtod(text, &seconds) && seconds > 0 && seconds <= kMostRecordingSeconds) {
            return std::string();
          }
          return absl::StrCat("must be above 0 and at most ", kMostRecordingSeconds);
        });
    app_->add_option("--control-socket", socket_, "Of the process");
    app_->add_flag("--json", json_, "What was written, as one JSON object");
  }

  // Begins, waits and ends; `request` is what begins it but for its output and its time.
  absl::Status Record(json request, const char* events) {
    // The service has a working directory of its own.
    std::error_code error;
    const std::filesystem::path absolute = std::filesystem::absolute(output_, error);
    request["command"] = name_;
    request["output"] = error ? output_ : absolute.string();
    request["seconds"] = seconds_;
    if (socket_.empty()) socket_ = DefaultControlSocket();
    VIRTBAY_ASSIGN_OR_RETURN(ControlConnection connection, ControlConnection::Open(socket_));
    VIRTBAY_ASSIGN_OR_RETURN(const json begun, connection.Call(request));
    // It ends with the connection, so that nothing is left behind by whoever interrupts this.
    connection.Wait(absl::Seconds(seconds_));
    VIRTBAY_ASSIGN_OR_RETURN(const json report,
                             connection.Call({{"command", absl::StrCat(name_, "-stop")},
                                              {name_, begun.value(name_, uint64_t{0})}}));
    if (json_) {
      std::cout << ToLine(report) << "\n";
      return absl::OkStatus();
    }
    const auto number = [&](const char* key) { return report.value(key, uint64_t{0}); };
    std::cout << absl::StreamFormat(
        "%s: %d %s of %d devices, %d bytes%s\n", output_, number("events"), events,
        number("devices"), number("bytes"),
        number("dropped") == 0 ? "" : absl::StrCat("; ", number("dropped"), " were dropped"));
    return absl::OkStatus();
  }

  CLI::App* const app_;
  std::string device_;

 private:
  const char* const name_;
  std::string output_;
  double seconds_ = 5;
  std::string socket_;
  bool json_ = false;
};

class TraceCommand final : public RecordingCommand {
 public:
  explicit TraceCommand(CLI::App* app)
      : RecordingCommand(app, "trace",
                         "Write a timeline of running devices as Chrome trace JSON, for Perfetto") {
    app_->add_option("device", device_, "Only this device")->type_name("DEVICE");
    AddOptions();
  }

  absl::Status Run() override {
    json request = json::object();
    if (!device_.empty()) request["name"] = device_;
    return Record(std::move(request), "events");
  }
};

class RecordCommand final : public RecordingCommand {
 public:
  explicit RecordCommand(CLI::App* app)
      : RecordingCommand(app, "record",
                         "Write every request of a running device to a file, for virtbay replay") {
    app_->add_option("device", device_, "Of the process")->required()->type_name("DEVICE");
    AddOptions();
    app_->add_flag("--payload", payload_,
                   "All bytes of requests and answers, not only the first 256: file data too");
  }

  absl::Status Run() override {
    return Record({{"name", device_}, {"payload", payload_}}, "records");
  }

 private:
  bool payload_ = false;
};

}  // namespace

std::unique_ptr<Command> AddTraceCommand(CLI::App* app) {
  return std::make_unique<TraceCommand>(app);
}

std::unique_ptr<Command> AddRecordCommand(CLI::App* app) {
  return std::make_unique<RecordCommand>(app);
}

}  // namespace virtbay::device_host
