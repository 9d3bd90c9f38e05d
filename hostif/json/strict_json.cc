#include "hostif/json/strict_json.h"

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace virtbay {
namespace {

using nlohmann::json;

// Looked at before parsing, so that depth costs the parser nothing.
bool TooDeep(absl::string_view line) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxJsonDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

}  // namespace

absl::StatusOr<json> ParseStrictJson(absl::string_view line, size_t max_bytes) {
  if (line.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the line is longer than ", max_bytes, " bytes"));
  }
  if (TooDeep(line)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the line is nested deeper than ", kMaxJsonDepth, " levels"));
  }
  // The parser keeps the last of two values with one name, and a reader of the line the first:
  // which of them was meant is nobody's to guess.
  std::vector<std::set<std::string>> objects;  // the names so far in each object that is open
  std::string twice;
  bool found = false;
  const auto look = [&](int /*depth*/, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::object_start) {
      objects.emplace_back();
    } else if (event == json::parse_event_t::object_end) {
      objects.pop_back();
    } else if (event == json::parse_event_t::key && !found) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!objects.back().insert(name).second) {
        twice = name;
        found = true;
      }
    }
    return true;
  };
  json body = json::parse(line.begin(), line.end(), look, /*allow_exceptions=*/false);
  if (body.is_discarded()) return absl::InvalidArgumentError("the line is not JSON");
  if (!body.is_object()) return absl::InvalidArgumentError("the line is not a JSON object");
  if (found) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", absl::CHexEscape(absl::string_view(twice).substr(0, 64)), "': given twice"));
  }
  return body;
}

}  // namespace virtbay
