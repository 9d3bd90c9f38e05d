#include "hostif/wsl/option_string.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"

namespace virtbay::wsl {
namespace {

constexpr size_t kShown = 64;  // bytes of a text that an error repeats
constexpr uint32_t kMaxPermissions = 0777;

std::string Shown(absl::string_view text) { return absl::CHexEscape(text.substr(0, kShown)); }

absl::Status Wrong(const Option& option, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(Shown(option.key), ": ", reason));
}

absl::Status WrongValue(const Option& option, absl::string_view reason) {
  return Wrong(option, absl::StrCat("'", Shown(option.value.value_or("")), "' ", reason));
}

absl::Status CheckText(absl::string_view text) {
  if (text.size() > kMaxOptionString) {
    return absl::InvalidArgumentError(
        absl::StrCat("the option string is longer than ", kMaxOptionString, " bytes"));
  }
  if (text.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError("the option string contains a NUL");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Option>> ParseOptions(absl::string_view text) {
  VIRTBAY_RETURN_IF_ERROR(CheckText(text));
  std::vector<Option> options;
  for (const absl::string_view part : absl::StrSplit(text, ';', absl::SkipEmpty())) {
    const size_t equals = part.find('=');
    Option option{std::string(part.substr(0, equals)), std::nullopt};
    if (equals != absl::string_view::npos) option.value = std::string(part.substr(equals + 1));
    if (option.key.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("'", Shown(part), "': the key is empty"));
    }
    const bool given = std::any_of(options.begin(), options.end(), [&](const Option& earlier) {
      return earlier.key == option.key;
    });
    if (given) continue;
    if (options.size() == kMaxOptions) {
      return absl::InvalidArgumentError(
          absl::StrCat("the option string has more than ", kMaxOptions, " options"));
    }
    options.push_back(std::move(option));
  }
  return options;
}

absl::StatusOr<OptionString> ParseOptionString(absl::string_view text) {
  VIRTBAY_RETURN_IF_ERROR(CheckText(text));
  const size_t end = text.find(';');
  OptionString string;
  string.name = std::string(text.substr(0, end));
  if (string.name.empty()) return absl::InvalidArgumentError("the option string has no name");
  if (end != absl::string_view::npos) {
    VIRTBAY_ASSIGN_OR_RETURN(string.options, ParseOptions(text.substr(end + 1)));
  }
  return string;
}

absl::Status CheckFlag(const Option& option) {
  return option.value.has_value() ? Wrong(option, "takes no value") : absl::OkStatus();
}

absl::StatusOr<std::string> TextOf(const Option& option) {
  if (!option.value.has_value() || option.value->empty()) return Wrong(option, "needs a value");
  return *option.value;
}

absl::StatusOr<uint32_t> NumberOf(const Option& option, uint32_t limit) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  uint64_t number = 0;
  const bool digits = std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c));
  });
  if (!digits || !absl::SimpleAtoi(text, &number) || number > limit) {
    return WrongValue(option, absl::StrCat("is not a number up to ", limit));
  }
  return static_cast<uint32_t>(number);
}

absl::StatusOr<uint32_t> PermissionsOf(const Option& option) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  uint32_t bits = 0;
  for (const char c : text) {
    if (c < '0' || c > '7') return WrongValue(option, "is not an octal number up to 777");
    bits = bits * 8 + static_cast<uint32_t>(c - '0');
    if (bits > kMaxPermissions) return WrongValue(option, "is not an octal number up to 777");
  }
  return bits;
}

absl::StatusOr<std::string> GuidOf(const Option& option) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  absl::string_view guid = text;
  if (guid.size() == 38 && guid.front() == '{' && guid.back() == '}') guid = guid.substr(1, 36);
  bool valid = guid.size() == 36;
  for (size_t i = 0; valid && i < guid.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    valid = dash ? guid[i] == '-' : absl::ascii_isxdigit(static_cast<unsigned char>(guid[i]));
  }
  if (!valid) return WrongValue(option, "is not a GUID");
  return std::string(guid);
}

std::string UnknownOption(const Option& option) {
  return absl::StrCat("unknown option '", Shown(option.key), "' is ignored");
}

}  // namespace virtbay::wsl
