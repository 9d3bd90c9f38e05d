#include "hostif/device_host/arguments.h"

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "hostif/device_host/process.h"

namespace virtbay::device_host {
namespace {

std::optional<bool> FlagValue(absl::string_view text) {
  for (const absl::string_view word : {"true", "yes", "on", "1"}) {
    if (absl::EqualsIgnoreCase(text, word)) return true;
  }
  for (const absl::string_view word : {"false", "no", "off", "0"}) {
    if (absl::EqualsIgnoreCase(text, word)) return false;
  }
  return std::nullopt;
}

const CLI::App* Subcommand(const CLI::App& app, const std::string& name) {
  const auto found =
      app.get_subcommands([&name](const CLI::App* sub) { return sub->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

// Whether the subcommand, or one that it is part of, has a flag of that name.
bool IsFlag(const CLI::App* app, const std::string& name) {
  for (; app != nullptr; app = app->get_parent()) {
    const CLI::Option* option = app->get_option_no_throw(name);
    if (option != nullptr) return option->get_items_expected_max() == 0;
  }
  return false;
}

}  // namespace

absl::Status CheckArguments(const CLI::App& app, std::vector<std::string>* arguments) {
  const CLI::App* at = &app;
  for (std::string& argument : *arguments) {
    if (argument == "--") break;
    if (!absl::StartsWith(argument, "-")) {
      if (const CLI::App* sub = Subcommand(*at, argument); sub != nullptr) at = sub;
      continue;
    }
    const size_t equals = argument.find('=');
    if (equals == std::string::npos) continue;
    const std::string name = argument.substr(0, equals);
    const bool is_long = absl::StartsWith(name, "--");
    if (!is_long) {
      if (name.size() == 2 && IsFlag(at, name)) {
        return absl::InvalidArgumentError(absl::StrCat(name, ": takes no value"));
      }
      continue;
    }
    const std::string value = argument.substr(equals + 1);
    // The parser would take the next word for the value, even if that is an option.
    if (value.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": is empty"));
    if (!IsFlag(at, name)) continue;
    const std::optional<bool> flag = FlagValue(value);
    if (!flag.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": '", value, "' is not one of true, false, yes, no, on, off, 1, 0"));
    }
    argument = absl::StrCat(name, *flag ? "=true" : "=false");
  }
  return absl::OkStatus();
}

CLI::Validator FileLimit() {
  return CLI::Validator(
      [](const std::string& text) {
        uint64_t limit = 0;
        if (absl::SimpleAtoi(text, &limit) &&
            (limit == 0 || (limit >= kLeastFileLimit && limit <= kMostFileLimit))) {
          return std::string();
        }
        return absl::StrCat("'", text, "' is neither 0 nor a number from ", kLeastFileLimit, " to ",
                            kMostFileLimit);
      },
      "");
}

CLI::Validator DescriptorNumber() {
  return CLI::Validator(
      [](const std::string& text) {
        int fd = -1;
        if (absl::SimpleAtoi(text, &fd) && fd >= 0) return std::string();
        return absl::StrCat("'", text, "' is not the number of a descriptor");
      },
      "");
}

}  // namespace virtbay::device_host
