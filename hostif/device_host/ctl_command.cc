// `virtbay ctl`: the control socket from the command line.
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"
#include "hostif/device_host/commands.h"
#include "hostif/device_host/control_client.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/report.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

std::string Text(const json& value) { return value.is_string() ? value.get<std::string>() : ""; }

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

uint64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

const json& Part(const json& object, const char* key) {
  static const json empty = json::object();
  const auto it = object.find(key);
  return it != object.end() && it->is_object() ? *it : empty;
}

std::string Bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrFormat("%d B", bytes)
                   : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

void PrintList(const json& devices) {
  absl::PrintF("%-20s %-12s %-8s %-9s %s\n", "NAME", "TYPE", "STATE", "CONNECTED", "SOCKET");
  for (const json& device : devices) {
    absl::PrintF("%-20s %-12s %-8s %-9s %s\n", Text(device, "name"), Text(device, "type"),
                 Text(device, "state"), device.value("connected", false) ? "yes" : "no",
                 Text(device, "socket"));
  }
}

void PrintStats(const json& devices) {
  absl::PrintF("%-20s %12s %12s %12s %12s %10s %10s %12s %10s %10s\n", "NAME", "REQUESTS", "DIRECT",
               "COPIED IN", "COPIED OUT", "CALLS", "CPU ms", "ARENA PEAK", "SLOT WAITS",
               "WAITED ms");
  for (const json& device : devices) {
    const json& total = Part(device, "total");
    absl::PrintF("%-20s %12d %12s %12s %12s %10d %10d %12s %10d %10d\n", Text(device, "name"),
                 Number(total, "requests"), Bytes(Number(total, "bytes_direct")),
                 Bytes(Number(total, "bytes_copied_in")), Bytes(Number(total, "bytes_copied_out")),
                 Number(total, "calls"), Number(device, "cpu_ns") / 1'000'000,
                 Bytes(Number(Part(device, "arena"), "slots_high_water") * 2048),
                 Number(total, "slot_waits"), Number(total, "slot_wait_ns") / 1'000'000);
  }
}

void PrintShares(const json& shares) {
  absl::PrintF("%-24s %-40s %s\n", "NAME", "PATH", "OPTIONS");
  for (const json& share : shares) {
    std::vector<std::string> options;
    for (const auto& option : Part(share, "options").items()) {
      options.push_back(absl::StrCat(option.key(), "=", Text(option.value())));
    }
    absl::PrintF("%-24s %-40s %s\n", Text(share, "name"), Text(share, "path"),
                 absl::StrJoin(options, ";"));
  }
}

// Of a command of a device's own: nothing, a text, or JSON.
void PrintAnswer(const json& result) {
  const auto answer = result.find("answer");
  if (answer == result.end()) return;
  const std::string text = answer->is_string()
                               ? answer->get<std::string>()
                               : answer->dump(2, ' ', false, json::error_handler_t::replace);
  if (!text.empty()) std::cout << text << "\n";
}

std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.string();
}

std::pair<std::string, std::string> KeyAndValue(const std::string& option,
                                                const std::string& text) {
  std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (parts.first.empty() || parts.first.size() == text.size()) {
    throw CLI::ValidationError(absl::StrCat(option, ": '", text, "' is not KEY=VALUE"),
                               CLI::ExitCodes::ValidationError);
  }
  return parts;
}

json Typed(const std::string& text) {
  int64_t number = 0;
  if (absl::SimpleAtoi(text, &number)) return number;
  if (text == "true") return true;
  if (text == "false") return false;
  return text;
}

class CtlCommand final : public Command {
 public:
  explicit CtlCommand(CLI::App* app)
      : app_(app->add_subcommand("ctl", "Look at and change a running virtbay")) {
    app_->require_subcommand(0, 1);
    // The option may stand before or after the subcommand's name.
    app_->fallthrough();
    app_->add_option("--control-socket", socket_,
                     "Its control socket (default: VIRTBAY_CONTROL_SOCKET, else virtbay.sock in "
                     "XDG_RUNTIME_DIR, else /run/virtbay.sock)");
    app_->add_flag("--json", json_, "The answer as JSON");
    list_ = Sub("list", "The devices");
    inspect_ = Sub("inspect", "Everything about one device");
    inspect_->add_option("name", name_, "Device")->required();
    add_ = Sub("add", "Add a device");
    add_->add_option("plugin", plugin_, "Name or path of the plugin")->required();
    add_->add_option("--name", name_, "Name of the new device; that of --device-string without it");
    add_->add_option("--device-string", device_string_,
                     "The options of the device as WSL writes them: NAME;KEY=VALUE;FLAG");
    add_->add_option("--socket-path", socket_path_, "Socket to listen on")->required();
    add_->add_option("--shared-dir", shared_dir_, "The same as --option shared-dir=DIR");
    add_->add_option("--option", options_, "KEY=VALUE for the plugin")
        ->allow_extra_args(false)
        ->type_name("KEY=VALUE");
    add_->add_option("--set", keys_, "KEY=VALUE of the device, as in a file: arena-size=16M")
        ->allow_extra_args(false)
        ->type_name("KEY=VALUE");
    remove_ = Sub("remove", "End a device");
    remove_->add_option("name", name_, "Device")->required();
    stats_ = Sub("stats", "Counters");
    stats_->add_option("name", name_, "Only this device");
    stats_->add_flag("--prometheus", prometheus_, "Prometheus text format");
    guest_ = Sub("guest", "Report the bounce pool of the guest's kernel");
    guest_->add_option("swiotlb", pool_, "0xBASE,SIZE, or none")->required();
    command_ = Sub("device", "A command of the device's own");
    command_->add_option("device", device_, "Device")->required();
    command_->add_option("command", command_text_, "E.g. link, for a network device")->required();
    command_->add_option("text", text_, "What it takes, e.g. up or down");
    AddShareCommands();
    level_ = Sub("log-level", "Show or set the log level");
    level_->add_option("level", level_text_, "trace, debug, info, warn, error or off");
  }

  bool chosen() const override { return app_->parsed(); }

  absl::Status Run() override {
    if (app_->get_subcommands().empty()) throw CLI::RequiredError("A subcommand");
    const json request = Request();
    if (socket_.empty()) socket_ = DefaultControlSocket();
    VIRTBAY_ASSIGN_OR_RETURN(const json result, CallControl(socket_, request));
    Print(result);
    return absl::OkStatus();
  }

 private:
  CLI::App* Sub(const char* name, const char* help) { return app_->add_subcommand(name, help); }

  void AddShareCommands() {
    share_ = Sub("share", "The shares of a virtiofs device that carries many");
    share_->require_subcommand(1);
    share_add_ = share_->add_subcommand("add", "Add one, and print its name");
    share_add_->add_option("device", device_, "Device")->required();
    share_add_->add_option("path", path_, "Directory")->required();
    share_add_->add_option("--name", name_, "Its name for the guest (default: one is made up)");
    share_add_->add_flag("--readonly", readonly_, "The guest cannot change anything");
    share_add_->add_option("--option", options_, "KEY=VALUE of the share")
        ->allow_extra_args(false)
        ->type_name("KEY=VALUE");
    share_remove_ = share_->add_subcommand("remove", "Remove one; what is open of it goes on");
    share_remove_->add_option("device", device_, "Device")->required();
    share_remove_->add_option("name", name_, "Share")->required();
    share_list_ = share_->add_subcommand("list", "All of them");
    share_list_->add_option("device", device_, "Device")->required();
  }

  json ShareRequest() const {
    if (share_list_->parsed()) return {{"command", "share-list"}, {"device", device_}};
    if (share_remove_->parsed()) {
      return {{"command", "share-remove"}, {"device", device_}, {"name", name_}};
    }
    json share{{"path", Absolute(path_)}};
    if (!name_.empty()) share["name"] = name_;
    if (readonly_) share["readonly"] = true;
    for (const std::string& text : options_) {
      auto [key, value] = KeyAndValue("--option", text);
      share[key] = value;
    }
    return {{"command", "share-add"}, {"device", device_}, {"share", std::move(share)}};
  }

  json Request() const {
    if (list_->parsed()) return {{"command", "list"}};
    if (share_->parsed()) return ShareRequest();
    if (command_->parsed()) {
      return {{"command", "device"}, {"device", device_}, {"do", command_text_}, {"text", text_}};
    }
    if (inspect_->parsed()) return {{"command", "inspect"}, {"name", name_}};
    if (remove_->parsed()) return {{"command", "remove"}, {"name", name_}};
    if (guest_->parsed()) return {{"command", "guest"}, {"swiotlb", pool_}};
    if (level_->parsed()) {
      json request{{"command", "log-level"}};
      if (!level_text_.empty()) request["level"] = level_text_;
      return request;
    }
    if (stats_->parsed()) {
      json request{{"command", "stats"}, {"format", prometheus_ ? "prometheus" : "json"}};
      if (!name_.empty()) request["name"] = name_;
      return request;
    }
    if (name_.empty() && device_string_.empty()) throw CLI::RequiredError("--name");
    json options = json::object();
    for (const std::string& text : options_) {
      auto [key, value] = KeyAndValue("--option", text);
      options[key] = value;
    }
    // The service has a working directory of its own.
    if (!shared_dir_.empty()) options["shared-dir"] = Absolute(shared_dir_);
    json device{{"plugin", plugin_.find('/') == std::string::npos ? plugin_ : Absolute(plugin_)},
                // Left as it is for the service to refuse.
                {"socket", NamesPassedSocket(socket_path_) ? socket_path_ : Absolute(socket_path_)},
                {"options", std::move(options)}};
    if (!name_.empty()) device["name"] = name_;
    if (!device_string_.empty()) device["device-string"] = device_string_;
    for (const std::string& text : keys_) {
      auto [key, value] = KeyAndValue("--set", text);
      device[key] = Typed(value);
    }
    return {{"command", "add"}, {"device", std::move(device)}};
  }

  void Print(const json& result) const {
    if (result.is_string()) {
      std::cout << result.get<std::string>();
    } else if (json_) {
      std::cout << ToLine(result) << "\n";
    } else if (command_->parsed()) {
      PrintAnswer(result);
    } else if (share_list_->parsed()) {
      PrintShares(result);
    } else if (share_add_->parsed()) {
      std::cout << Text(result, "name") << "\n";
    } else if (list_->parsed()) {
      PrintList(result);
    } else if (stats_->parsed()) {
      PrintStats(result);
    } else if (inspect_->parsed()) {
      std::cout << result.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    } else if (level_->parsed()) {
      std::cout << Text(result, "level") << "\n";
    }
  }

  CLI::App* const app_;
  CLI::App* list_ = nullptr;
  CLI::App* inspect_ = nullptr;
  CLI::App* add_ = nullptr;
  CLI::App* remove_ = nullptr;
  CLI::App* stats_ = nullptr;
  CLI::App* level_ = nullptr;
  CLI::App* guest_ = nullptr;
  CLI::App* command_ = nullptr;
  CLI::App* share_ = nullptr;
  CLI::App* share_add_ = nullptr;
  CLI::App* share_remove_ = nullptr;
  CLI::App* share_list_ = nullptr;
  std::string socket_;
  bool json_ = false;
  bool prometheus_ = false;
  std::string name_;
  std::string plugin_;
  std::string socket_path_;
  std::string shared_dir_;
  std::string level_text_;
  std::string pool_;
  std::string device_;
  std::string command_text_;
  std::string text_;
  std::string path_;
  bool readonly_ = false;
  std::string device_string_;
  std::vector<std::string> options_;
  std::vector<std::string> keys_;
};

}  // namespace

std::unique_ptr<Command> AddCtlCommand(CLI::App* app) { return std::make_unique<CtlCommand>(app); }

}  // namespace virtbay::device_host
