#include <filesystem>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "framework/base/status.h"
#include "framework/plugin/plugin.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/plugin_new.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/report.h"
#include "hostif/device_host/serve_options.h"
#include "hostif/testkit/check.h"

namespace virtbay::device_host {
namespace {

void PrintText(const PluginFileInfo& info) {
  const auto list = [](const std::vector<std::string>& names) {
    return names.empty() ? std::string("none") : absl::StrJoin(names, " ");
  };
  std::cout << "file:        " << info.path.string() << "\n"
            << "plugin:      " << info.name << " " << info.version << "\n"
            << "build:       " << info.build << "\n"
            << "ABI:         " << info.abi_major << "." << info.abi_minor
            << (info.abi_major == VIRTBAY_ABI_MAJOR ? "" : " (not of this host)") << "\n"
            << "devices:     " << info.device_types << "\n"
            << "hot reload:  " << ((info.flags & VIRTBAY_PLUGIN_HOT_RELOADABLE) != 0 ? "yes" : "no")
            << "\n"
            << "exports:     " << list(info.exports) << "\n"
            << "unique:      " << list(info.unique)
            << (info.unique.empty() ? "" : " (these prevent unloading)") << "\n"
            << "needs:       " << list(info.needed) << "\n";
}

void PrintJson(const PluginFileInfo& info) {
  std::cout << ToLine({{"path", info.path.string()},
                       {"name", info.name},
                       {"version", info.version},
                       {"build", info.build},
                       {"abi_major", info.abi_major},
                       {"abi_minor", info.abi_minor},
                       {"device_types", info.device_types},
                       {"hot_reloadable", (info.flags & VIRTBAY_PLUGIN_HOT_RELOADABLE) != 0},
                       {"exports", info.exports},
                       {"unique", info.unique},
                       {"needed", info.needed}})
            << "\n";
}

const char* Word(testkit::Verdict verdict) {
  switch (verdict) {
    case testkit::Verdict::kPass:
      return "pass";
    case testkit::Verdict::kSkip:
      return "skip";
    default:
      return "FAIL";
  }
}

void PrintResult(const testkit::ClauseResult& result) {
  std::cout << absl::StrFormat("%s  %-12s %s", Word(result.verdict), result.clause, result.what);
  if (!result.text.empty()) {
    std::cout << (result.verdict == testkit::Verdict::kFail ? "\n      " : ": ") << result.text;
  }
  std::cout << std::endl;
}

void PrintResults(const std::vector<testkit::ClauseResult>& results) {
  nlohmann::json list = nlohmann::json::array();
  for (const testkit::ClauseResult& result : results) {
    list.push_back({{"clause", result.clause},
                    {"what", result.what},
                    {"verdict", absl::AsciiStrToLower(Word(result.verdict))},
                    {"text", result.text},
                    {"ms", absl::ToInt64Milliseconds(result.took)}});
  }
  std::cout << ToLine({{"clauses", std::move(list)}}) << "\n";
}

class PluginCommand final : public Command {
 public:
  explicit PluginCommand(CLI::App* app)
      : app_(app->add_subcommand("plugin", "Look at plugins, and begin one")) {
    app_->require_subcommand(0, 1);
    inspect_ = app_->add_subcommand("inspect", "Show what a library is, without running it");
    inspect_->add_option("file", file_, "A path, or the name of a plugin to look up")
        ->required()
        ->type_name("FILE");
    inspect_->add_flag("--json", json_, "One JSON object");
    AddCheck();
    AddNew();
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    if (check_->parsed()) return Check();
    if (new_->parsed()) return New();
    if (!inspect_->parsed()) throw CLI::RequiredError("A subcommand");
    VIRTBAY_ASSIGN_OR_RETURN(const std::filesystem::path path, PluginFile(file_));
    VIRTBAY_ASSIGN_OR_RETURN(const PluginFileInfo info, InspectPluginFile(path));
    if (json_) {
      PrintJson(info);
    } else {
      PrintText(info);
    }
    return absl::OkStatus();
  }

 private:
  void AddCheck() {
    check_ = app_->add_subcommand(
        "check",
        "Put a plugin through the contract: each clause in a process of its own. Its "
        "device gets requests of every kind: give it files that may be changed");
    check_->add_option("file", file_, "A path, or the name of a plugin to look up")
        ->required()
        ->type_name("FILE");
    check_->add_option("--type", type_, "Device type, when the plugin has several");
    check_options_.emplace(check_, "plugin");
    check_options_->AddOption("");
    check_->add_option("--limit", limit_, "Seconds that one clause may take (default 60)")
        ->check(CLI::Range(1, 3600));
    std::vector<std::string> clauses;
    for (const testkit::ClauseResult& clause : testkit::Clauses()) clauses.push_back(clause.clause);
    check_->add_option("--clause", clauses_, "This clause only; may be given again")
        ->allow_extra_args(false)
        ->check(CLI::IsMember(clauses));
    check_->add_flag("--json", json_, "One JSON object");
  }

  void AddNew() {
    new_ = app_->add_subcommand("new", "Write the project of a new plugin, with a test");
    new_->add_option("name", name_, "Of the plugin and its device type")
        ->required()
        ->type_name("NAME");
    new_->add_option("--type", kind_, "generic (default), fs or net")
        ->check(CLI::IsMember(NewPluginTypes()));
    new_->add_option("--dir", directory_, "Directory to make (default: NAME)")->type_name("DIR");
  }

  absl::Status New() {
    const std::filesystem::path directory = directory_.empty() ? name_ : directory_;
    VIRTBAY_RETURN_IF_ERROR(NewPlugin(name_, kind_, directory));
    std::cout << directory.native() << ": see README.md in it\n";
    return absl::OkStatus();
  }

  absl::Status Check() {
    testkit::CheckOptions options;
    VIRTBAY_ASSIGN_OR_RETURN(options.file, PluginFile(file_));
    options.type = type_;
    options.options = check_options_->options();
    options.limit = absl::Seconds(limit_);
    options.only = clauses_;
    // The host takes a name without a directory for one to be looked up.
    options.file = std::filesystem::absolute(options.file);
    const auto results = testkit::CheckPlugin(
        options, json_ ? nullptr : std::function<void(const testkit::ClauseResult&)>(PrintResult));
    if (json_) PrintResults(results);
    int failed = 0;
    for (const testkit::ClauseResult& result : results) {
      if (result.verdict == testkit::Verdict::kFail) ++failed;
    }
    if (failed == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat(options.file.native(), ": ", failed, " clauses of the contract fail"));
  }

  CLI::App* const app_;
  CLI::App* inspect_ = nullptr;
  CLI::App* check_ = nullptr;
  CLI::App* new_ = nullptr;
  std::string name_;
  std::string kind_ = "generic";
  std::string directory_;
  std::string type_;
  std::optional<ServeOptions> check_options_;
  int limit_ = 60;
  std::vector<std::string> clauses_;
  std::string file_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> AddPluginCommand(CLI::App* app) {
  return std::make_unique<PluginCommand>(app);
}

}  // namespace virtbay::device_host
