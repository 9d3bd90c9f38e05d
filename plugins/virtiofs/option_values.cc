#include "plugins/virtiofs/option_values.h"

#include <charconv>
#include <string>

namespace virtbay::virtiofs {
namespace {

bool Whole(std::string_view value, int base, uint32_t* out) {
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), *out, base);
  return error == std::errc() && end == value.data() + value.size();
}

}  // namespace

sdk::Error BadValue(std::string_view key, std::string_view value, std::string_view expected) {
  std::string text = "option ";
  text.append(key).append(": \"").append(value).append("\" is not ").append(expected);
  return sdk::InvalidArgument(std::move(text));
}

std::optional<bool> BoolOf(std::string_view value) {
  if (value.empty() || value == "1" || value == "true" || value == "yes" || value == "on") {
    return true;
  }
  if (value == "0" || value == "false" || value == "no" || value == "off") return false;
  return std::nullopt;
}

sdk::Status ParseBool(std::string_view key, std::string_view value, bool* out) {
  const std::optional<bool> flag = BoolOf(value);
  if (!flag.has_value()) return BadValue(key, value, "a boolean (true or false)");
  *out = *flag;
  return {};
}

sdk::Status ParseNumber(std::string_view key, std::string_view value, uint32_t low, uint32_t high,
                        uint32_t* out) {
  uint32_t number = 0;
  if (!Whole(value, 10, &number) || number < low || number > high) {
    return BadValue(key, value,
                    "a number from " + std::to_string(low) + " to " + std::to_string(high));
  }
  *out = number;
  return {};
}

sdk::Status ParseOctal(std::string_view key, std::string_view value, uint32_t* out) {
  uint32_t bits = 0;
  if (!Whole(value, 8, &bits) || bits > 0777) {
    return BadValue(key, value, "an octal number from 000 to 777");
  }
  *out = bits;
  return {};
}

}  // namespace virtbay::virtiofs
