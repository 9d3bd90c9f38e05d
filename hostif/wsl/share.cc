#include "hostif/wsl/share.h"

#include <algorithm>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "hostif/wsl/option_string.h"

namespace virtbay::wsl {
namespace {

constexpr uint32_t kMaxQueues = 8;
// 2^32 - 1 is nobody to the kernel: "no change" in chown(2).
constexpr uint32_t kMaxId = std::numeric_limits<uint32_t>::max() - 1;

absl::Status SetCase(const Option& option, ParsedShare* parsed) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  if (text == "force") {
    parsed->warnings.push_back("case=force is taken as case=dir");
    parsed->share.case_sensitivity = "dir";
    return absl::OkStatus();
  }
  if (text != "dir" && text != "off") {
    return absl::InvalidArgumentError("case: is none of dir, off, force");
  }
  parsed->share.case_sensitivity = text;
  return absl::OkStatus();
}

// xattr=KEY=VALUE.
absl::Status SetXattr(const Option& option, Share* share) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, TextOf(option));
  const size_t equals = text.find('=');
  if (equals == 0 || equals == std::string::npos) {
    return absl::InvalidArgumentError("xattr: is not of the form xattr=KEY=VALUE");
  }
  share->xattr.emplace(text.substr(0, equals), text.substr(equals + 1));
  return absl::OkStatus();
}

absl::Status SetNumber(const Option& option, uint32_t limit, std::optional<uint32_t>* number) {
  VIRTBAY_ASSIGN_OR_RETURN(*number, NumberOf(option, limit));
  return absl::OkStatus();
}

absl::Status SetPermissions(const Option& option, std::optional<uint32_t>* bits) {
  VIRTBAY_ASSIGN_OR_RETURN(*bits, PermissionsOf(option));
  return absl::OkStatus();
}

absl::Status SetOption(const Option& option, ParsedShare* parsed) {
  Share& share = parsed->share;
  const std::string& key = option.key;
  VIRTBAY_ASSIGN_OR_RETURN(const bool common, SetDeviceOption(option, &share.device));
  if (common) return absl::OkStatus();
  if (key == "ro" || key == "metadata") {
    VIRTBAY_RETURN_IF_ERROR(CheckFlag(option));
    (key == "ro" ? share.readonly : share.metadata) = true;
    return absl::OkStatus();
  }
  if (key == "vcpus") {
    VIRTBAY_ASSIGN_OR_RETURN(const uint32_t queues,
                             NumberOf(option, std::numeric_limits<uint32_t>::max()));
    share.vcpus = std::clamp<uint32_t>(queues, 1, kMaxQueues);
    return absl::OkStatus();
  }
  if (key == "uid") return SetNumber(option, kMaxId, &share.uid);
  if (key == "gid") return SetNumber(option, kMaxId, &share.gid);
  if (key == "default_uid") return SetNumber(option, kMaxId, &share.default_uid);
  if (key == "default_gid") return SetNumber(option, kMaxId, &share.default_gid);
  if (key == "mode") return SetPermissions(option, &share.mode);
  if (key == "umask") return SetPermissions(option, &share.umask);
  if (key == "fmask") return SetPermissions(option, &share.fmask);
  if (key == "dmask") return SetPermissions(option, &share.dmask);
  if (key == "case") return SetCase(option, parsed);
  if (key == "xattr") return SetXattr(option, &share);
  if (key == "symlinkroot") {
    // WSL sends it with nothing behind the `=` when there is no such root.
    share.symlinkroot = option.value.value_or("");
    return absl::OkStatus();
  }
  if (key == "shared-dir") {
    VIRTBAY_ASSIGN_OR_RETURN(share.shared_dir, TextOf(option));
    return absl::OkStatus();
  }
  if (key == "sandbox" || key == "sandbox_disallowed_extensions") {
    return absl::UnimplementedError(
        absl::StrCat(key, ": hides files by attributes of Windows, which a host with Linux lacks"));
  }
  parsed->warnings.push_back(key == "fallback" ? "option 'fallback' is ignored"
                                               : UnknownOption(option));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ParsedShare> ParseShare(absl::string_view text) {
  VIRTBAY_ASSIGN_OR_RETURN(OptionString string, ParseOptionString(text));
  ParsedShare parsed;
  parsed.share.name = std::move(string.name);
  for (const Option& option : string.options) {
    VIRTBAY_RETURN_IF_ERROR(SetOption(option, &parsed));
  }
  return parsed;
}

std::map<std::string, std::string> PluginOptions(const Share& share) {
  std::map<std::string, std::string> options;
  options["tag"] = share.name;
  const auto text = [&](const char* key, const std::string& value) {
    if (!value.empty()) options[key] = value;
  };
  const auto number = [&](const char* key, const std::optional<uint32_t>& value) {
    if (value.has_value()) options[key] = absl::StrCat(*value);
  };
  const auto octal = [&](const char* key, const std::optional<uint32_t>& value) {
    if (value.has_value()) options[key] = absl::StrFormat("%04o", *value);
  };
  text("shared-dir", share.shared_dir);
  if (share.readonly) options["readonly"] = "true";
  if (share.metadata) options["metadata"] = "true";
  number("request-queues", share.vcpus);
  text("case", share.case_sensitivity);
  number("uid", share.uid);
  number("gid", share.gid);
  number("default_uid", share.default_uid);
  number("default_gid", share.default_gid);
  octal("mode", share.mode);
  octal("umask", share.umask);
  octal("fmask", share.fmask);
  octal("dmask", share.dmask);
  text("symlinkroot", share.symlinkroot);
  if (share.xattr.has_value()) {
    options["xattr"] = absl::StrCat(share.xattr->first, "=", share.xattr->second);
  }
  return options;
}

}  // namespace virtbay::wsl
