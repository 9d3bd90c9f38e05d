// What a plugin's options say: values as the config service gives them, text, to what they mean.
// Stateless; every function is usable on every thread. Errors begin with "option KEY: ", by which
// a host finds the place where the option was given.
#ifndef VIRTBAY_SDK_OPTION_H_
#define VIRTBAY_SDK_OPTION_H_

#include <charconv>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "virtbay/sdk/host.h"
#include "virtbay/sdk/result.h"

namespace virtbay::sdk {

/// `option KEY: "VALUE" is not EXPECTED`.
inline Error BadValue(std::string_view key, std::string_view value, std::string_view expected) {
  std::string text = "option ";
  text.append(key).append(": \"").append(value).append("\" is not ").append(expected);
  return InvalidArgument(std::move(text));
}

/// The whole text as a number in that base; nothing when it is none, or does not fit.
inline std::optional<uint32_t> NumberOf(std::string_view value, int base = 10) {
  uint32_t number = 0;
  const char* const last = value.data() + value.size();
  const auto [end, error] = std::from_chars(value.data(), last, number, base);
  if (error != std::errc() || end != last) return std::nullopt;
  return number;
}

/// Whether every option that is set is one of these; an Error names the first that is not.
inline Status CheckKnown(const Host& host, std::span<const virtbay_option> known) {
  for (uint32_t i = 0;; ++i) {
    const char* const name = host.OptionName(i);
    if (name == nullptr) return {};
    bool found = false;
    for (const virtbay_option& option : known)
      found = found || std::string_view(option.name) == name;
    if (!found) {
      return InvalidArgument(std::string("option ") + name + ": there is no such option");
    }
  }
}

/// true, yes, on, 1 or nothing at all (an option without a value); false, no, off or 0.
inline std::optional<bool> BoolOf(std::string_view value) {
  if (value.empty() || value == "1" || value == "true" || value == "yes" || value == "on") {
    return true;
  }
  if (value == "0" || value == "false" || value == "no" || value == "off") return false;
  return std::nullopt;
}

/// BoolOf, with an error for anything else.
inline Status ParseBool(std::string_view key, std::string_view value, bool* out) {
  const std::optional<bool> flag = BoolOf(value);
  if (!flag.has_value()) return BadValue(key, value, "a boolean (true or false)");
  *out = *flag;
  return {};
}

/// A decimal number from low to high.
inline Status ParseNumber(std::string_view key, std::string_view value, uint32_t low, uint32_t high,
                          uint32_t* out) {
  const std::optional<uint32_t> number = NumberOf(value);
  if (!number.has_value() || *number < low || *number > high) {
    return BadValue(key, value,
                    "a number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  *out = *number;
  return {};
}

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_OPTION_H_
