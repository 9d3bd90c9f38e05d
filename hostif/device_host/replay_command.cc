// `virtbay replay`: feeds a record to a plugin, in a process of its own, and says what was
// different.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "framework/plugin/plugin.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/report.h"
#include "hostif/device_host/serve_options.h"
#include "hostif/record/record_file.h"
#include "hostif/testkit/child.h"
#include "virtbay/testkit/replay.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

json ToJson(const testkit::ReplayReport& report) {
  json differences = json::array();
  for (const testkit::ReplayDifference& difference : report.differences) {
    differences.push_back(
        {{"queue", difference.queue}, {"request", difference.request}, {"what", difference.what}});
  }
  return {{"requests", report.requests},
          {"answered", report.answered},
          {"lengths", report.lengths},
          {"contents", report.contents},
          {"unanswered", report.unanswered},
          {"unfilled", report.unfilled},
          {"left_out", report.left_out},
          {"no_queue", report.no_queue},
          {"differences", std::move(differences)},
          {"failure", report.failure},
          {"cut", report.cut},
          {"whole", report.whole}};
}

// By its name alone: a record may come from anybody, who has no say in what file is loaded here.
absl::StatusOr<std::filesystem::path> RecordedPlugin(const std::string& name) {
  absl::StatusOr<std::filesystem::path> found =
      absl::StrContains(name, '/')
          ? absl::InvalidArgumentError("the plugin of the record has a path for a name")
          : FindPlugin(name, PluginSearch::FromEnvironment(PluginPlaces()));
  if (found.ok()) return found;
  return absl::Status(found.status().code(),
                      absl::StrCat(found.status().message(), " (--plugin names its file)"));
}

class ReplayCommand final : public Command {
 public:
  explicit ReplayCommand(CLI::App* app)
      : app_(app->add_subcommand(
            "replay", "Feed what virtbay record has written to a plugin, without a guest")) {
    app_->add_option("file", file_, "The record")->required()->type_name("FILE");
    app_->add_option("--plugin", plugin_,
                     "A path, or a name to look up in the plugin directories (default: the "
                     "recorded name, so that a plugin elsewhere needs its path here)")
        ->type_name("FILE");
    app_->add_option("--type", type_, "Device type (default: as recorded)");
    options_.emplace(app_, "plugin");
    options_->AddOption("");
    app_->add_flag("--recorded-options", recorded_options_,
                   "The device's options as recorded: the requests change what they name");
    app_->add_flag("--strict", strict_, "Answers that are not the recorded ones are a failure");
    app_->add_flag("--packed", packed_, "Packed rings");
    app_->add_option("--patience", patience_, "Seconds that an answer may take (default 5)")
        ->check(CLI::Range(1, 3600));
    app_->add_option("--limit", limit_, "Seconds that all of it may take (default 3600)")
        ->check(CLI::Range(1, 86400));
    app_->add_flag("--here", here_, "In this process, for a debugger: a crash is one of virtbay");
    app_->add_flag("--json", json_, "One JSON object");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    testkit::ReplayOptions options;
    VIRTBAY_RETURN_IF_ERROR(Fill(&options));
    const auto replay = [&options](const std::function<void(std::string_view)>& progress) {
      options.progress = progress;
      auto report = testkit::Replay(options);
      if (!report.ok()) return testkit::Finding{testkit::Verdict::kFail, report.error().text};
      return testkit::Finding{testkit::Verdict::kPass, ToLine(ToJson(report.value()))};
    };
    const testkit::Finding finding =
        here_ ? replay(nullptr)
              : testkit::InChild(absl::Seconds(limit_), [&replay](const testkit::Notes& notes) {
                  return replay([&notes](std::string_view doing) {
                    notes({doing.data(), doing.size()});
                  });
                });
    if (finding.verdict != testkit::Verdict::kPass) {
      const std::string file = absl::StrCat(file_, ": ");
      return absl::InternalError(absl::StrCat(file, absl::StripPrefix(finding.text, file)));
    }
    if (json_) {
      std::cout << finding.text << "\n";
    }
    return Judge(json::parse(finding.text));
  }

 private:
  absl::Status Fill(testkit::ReplayOptions* options) {
    VIRTBAY_ASSIGN_OR_RETURN(const record::RecordHead head, record::ReadHead(file_));
    options->record = file_;
    options->bay.type = type_;
    options->bay.options = options_->options();
    options->bay.packed = packed_;
    options->recorded_options = recorded_options_;
    options->patience = static_cast<uint32_t>(patience_);
    if (!recorded_options_ && options->bay.options.empty() && !head.options.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_, ": was recorded with ", absl::StrJoin(head.options, " ", absl::PairFormatter("=")),
          ": say --option KEY=VALUE for a device that may be changed, or --recorded-options"));
    }
    const auto plugin = plugin_.empty() ? RecordedPlugin(head.plugin) : PluginFile(plugin_);
    VIRTBAY_RETURN_IF_ERROR(plugin.status());
    // The host takes a name without a directory for one to be looked up.
    options->bay.plugin = std::filesystem::absolute(*plugin).string();
    return absl::OkStatus();
  }

  absl::Status Judge(const json& report) const {
    const auto number = [&](const char* key) { return report.value(key, uint64_t{0}); };
    const uint64_t differ = number("lengths") + number("contents");
    if (!json_) {
      std::cout << absl::StreamFormat(
          "%s: %d requests, %d answers as recorded, %d of another length, %d with other bytes, %d "
          "missing\n",
          file_, number("requests"), number("answered") - differ, number("lengths"),
          number("contents"), number("unanswered") - number("unfilled"));
      if (!report.value("whole", true)) {
        std::cout << "the record does not begin with the device's first request\n";
      }
      if (report.value("cut", false)) std::cout << "the record ends within a request\n";
      if (number("unfilled") != 0) {
        std::cout << number("unfilled") << " buffers were filled from outside then\n";
      }
      for (const json& difference : report["differences"]) {
        std::cout << absl::StreamFormat(
            "  queue %d, request %d: %s\n", difference.value("queue", 0),
            difference.value("request", uint64_t{0}), difference.value("what", ""));
      }
    }
    if (const auto failure = report.value("failure", ""); !failure.empty()) {
      return absl::InternalError(absl::StrCat(file_, ": the device fails: ", failure));
    }
    if (number("no_queue") != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat(file_, ": ", number("no_queue"),
                       " requests are of queues that the device does not have"));
    }
    if (number("left_out") != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat(file_, ": ", number("left_out"), " requests had no room on the ring"));
    }
    if (number("unanswered") != number("unfilled")) {
      return absl::DeadlineExceededError(absl::StrCat(
          file_, ": ", number("unanswered") - number("unfilled"), " requests were not answered"));
    }
    if (strict_ && differ != 0) {
      return absl::FailedPreconditionError(absl::StrCat(file_, ": ", differ, " answers differ"));
    }
    return absl::OkStatus();
  }

  CLI::App* const app_;
  std::string file_;
  std::string plugin_;
  std::string type_;
  std::optional<ServeOptions> options_;
  bool recorded_options_ = false;
  bool strict_ = false;
  bool packed_ = false;
  int patience_ = 5;
  int limit_ = 3600;
  bool here_ = false;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> AddReplayCommand(CLI::App* app) {
  return std::make_unique<ReplayCommand>(app);
}

}  // namespace virtbay::device_host
