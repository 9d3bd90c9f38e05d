#include "hostif/shares/shares.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"

namespace virtbay::shares {
namespace {

absl::Status AppendLine(absl::string_view key, absl::string_view value, std::string* text) {
  // A line is what the plugin is told, so nothing may hold the end of one.
  constexpr char kBreaks[] = {'\n', '\0'};
  const absl::string_view breaks(kBreaks, sizeof(kBreaks));
  if (key.empty() || key.find('=') != key.npos || key.find_first_of(breaks) != key.npos) {
    return absl::InvalidArgumentError("a share's option has no usable name");
  }
  if (value.find_first_of(breaks) != value.npos) {
    return absl::InvalidArgumentError(absl::StrCat(key, ": has a line break or NUL"));
  }
  absl::StrAppend(text, key, "=", value, "\n");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<AddedShare> Add(const DeviceHandle& device, const ShareSpec& share) {
  std::string text;
  if (!share.name.empty()) VIRTBAY_RETURN_IF_ERROR(AppendLine("name", share.name, &text));
  VIRTBAY_RETURN_IF_ERROR(AppendLine("path", share.path, &text));
  for (const auto& [key, value] : share.options) {
    if (key == "name" || key == "path") {
      return absl::InvalidArgumentError(absl::StrCat(key, ": is not an option of a share"));
    }
    VIRTBAY_RETURN_IF_ERROR(AppendLine(key, value, &text));
  }
  VIRTBAY_ASSIGN_OR_RETURN(const std::string answer, device.Control("share.add", text));
  AddedShare added;
  for (const absl::string_view line : absl::StrSplit(answer, '\n', absl::SkipEmpty())) {
    const std::pair<absl::string_view, absl::string_view> parts =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    if (parts.first == "name") added.name = std::string(parts.second);
    if (parts.first == "existing") added.existing = parts.second == "true";
  }
  if (added.name.empty()) return absl::InternalError("share.add: the plugin named no share");
  return added;
}

absl::Status Remove(const DeviceHandle& device, absl::string_view name) {
  std::string text;
  VIRTBAY_RETURN_IF_ERROR(AppendLine("name", name, &text));
  return device.Control("share.remove", text).status();
}

absl::StatusOr<std::vector<ShareSpec>> List(const DeviceHandle& device) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string answer, device.Control("share.list", ""));
  std::vector<ShareSpec> shares;
  for (const absl::string_view record : absl::StrSplit(answer, "\n\n", absl::SkipEmpty())) {
    ShareSpec share;
    for (const absl::string_view line : absl::StrSplit(record, '\n', absl::SkipEmpty())) {
      const std::pair<std::string, std::string> parts =
          absl::StrSplit(line, absl::MaxSplits('=', 1));
      if (parts.first == "name") {
        share.name = parts.second;
      } else if (parts.first == "path") {
        share.path = parts.second;
      } else {
        share.options.insert(parts);
      }
    }
    shares.push_back(std::move(share));
  }
  return shares;
}

}  // namespace virtbay::shares
