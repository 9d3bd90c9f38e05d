#include "framework/device/option_check.h"

#include <map>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "framework/base/status.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {
namespace {

// What is wrong with a value of that kind, or null.
const char* Mismatch(uint32_t declared, OptionKind given) {
  switch (declared) {
    case VIRTBAY_OPTION_TEXT:
      return given == OptionKind::kText ? nullptr : "must be a string";
    case VIRTBAY_OPTION_BOOLEAN:
      return given == OptionKind::kBoolean ? nullptr : "must be true or false";
    case VIRTBAY_OPTION_INTEGER:
      return given == OptionKind::kInteger ? nullptr : "must be an integer";
    case VIRTBAY_OPTION_NUMBER:
      return given == OptionKind::kBoolean ? "must be a number" : nullptr;
    default:
      return nullptr;  // a kind of a later minor
  }
}

}  // namespace

absl::Status CheckOptionKinds(const Plugin& plugin, uint32_t type, const DeviceSpec& spec) {
  if (spec.option_kinds.empty()) return absl::OkStatus();
  using Kinds = std::map<std::string, uint32_t>;
  VIRTBAY_ASSIGN_OR_RETURN(const Kinds declared, plugin.OptionKinds(type));
  for (const auto& [name, given] : spec.option_kinds) {
    const auto found = declared.find(name);
    if (found == declared.end()) continue;
    if (const char* wrong = Mismatch(found->second, given); wrong != nullptr) {
      return MarkOption(absl::InvalidArgumentError(absl::StrCat("option ", name, ": ", wrong)));
    }
  }
  return absl::OkStatus();
}

absl::Status MarkOption(absl::Status status) {
  if (status.ok()) return status;
  // Behind "init: ", or whatever else the host has put before the plugin's text.
  absl::string_view text = status.message();
  constexpr absl::string_view kMark = "option ";
  const size_t at = text.find(kMark);
  if (at == text.npos || (at != 0 && !absl::EndsWith(text.substr(0, at), ": "))) return status;
  text.remove_prefix(at + kMark.size());
  const size_t end = text.find(": ");
  if (end == text.npos || end == 0 || text.substr(0, end).find(' ') != text.npos) return status;
  status.SetPayload(kOptionPayload, absl::Cord(text.substr(0, end)));
  return status;
}

}  // namespace virtbay
