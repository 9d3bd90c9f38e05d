#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "framework/base/status.h"
#include "framework/plugin/plugin.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/report.h"

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

class PluginCommand final : public Command {
 public:
  explicit PluginCommand(CLI::App* app) : app_(app->add_subcommand("plugin", "Look at plugins")) {
    app_->require_subcommand(0, 1);
    inspect_ = app_->add_subcommand("inspect", "Show what a library is, without running it");
    inspect_->add_option("file", file_, "A path, or the name of a plugin to look up")
        ->required()
        ->type_name("FILE");
    inspect_->add_flag("--json", json_, "One JSON object");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    if (!inspect_->parsed()) throw CLI::RequiredError("A subcommand");
    std::filesystem::path path = file_;
    std::error_code ignored;
    if (!std::filesystem::exists(path, ignored) && !path.has_parent_path()) {
      VIRTBAY_ASSIGN_OR_RETURN(path,
                               FindPlugin(file_, PluginSearch::FromEnvironment(PluginPlaces())));
    }
    VIRTBAY_ASSIGN_OR_RETURN(const PluginFileInfo info, InspectPluginFile(path));
    if (json_) {
      PrintJson(info);
    } else {
      PrintText(info);
    }
    return absl::OkStatus();
  }

 private:
  CLI::App* const app_;
  CLI::App* inspect_ = nullptr;
  std::string file_;
  bool json_ = false;
};

}  // namespace

std::unique_ptr<Command> AddPluginCommand(CLI::App* app) {
  return std::make_unique<PluginCommand>(app);
}

}  // namespace virtbay::device_host
