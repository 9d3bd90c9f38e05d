#include "plugins/virtiofs/share_options.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdio>

#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/option_values.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Status;

constexpr uint32_t kLargestId = 0xfffffffeu;
constexpr size_t kMaxAttributeName = 255;

// Other spellings: short forms, and with '-' as this device's own options have it.
std::string_view Canonical(std::string_view key) {
  if (key == "ro") return "readonly";
  if (key == "default-uid") return "default_uid";
  if (key == "default-gid") return "default_gid";
  if (key == "symlink-root") return "symlinkroot";
  return key;
}

Status ParseId(std::string_view key, const std::string& value, std::optional<uint32_t>* out) {
  uint32_t id = 0;
  Status status = ParseNumber(key, value, 0, kLargestId, &id);
  if (status.ok()) *out = id;
  return status;
}

Status ParseMap(std::string_view key, const std::string& value, IdMap* out, std::string* text) {
  sdk::Result<IdMap> map = IdMap::Parse(value);
  if (!map.ok()) {
    return sdk::InvalidArgument("option " + std::string(key) + ": " + map.error().text);
  }
  *out = std::move(*map);
  *text = value;
  return {};
}

std::string Octal(uint32_t bits) {
  std::array<char, 12> text;
  static_cast<void>(std::snprintf(text.data(), text.size(), "%03o", bits));
  return text.data();
}

}  // namespace

bool ShareOptions::Knows(std::string_view key) {
  static constexpr std::string_view kKeys[] = {
      "readonly",    "metadata",    "case",  "uid",           "gid",
      "mode",        "umask",       "fmask", "dmask",         "default_uid",
      "default_gid", "symlinkroot", "xattr", "translate-uid", "translate-gid"};
  return std::find(std::begin(kKeys), std::end(kKeys), Canonical(key)) != std::end(kKeys);
}

Status ShareOptions::Set(std::string_view key, const std::string& value) {
  const std::string_view name = Canonical(key);
  if (name == "readonly") return ParseBool(key, value, &readonly);
  if (name == "metadata") return ParseBool(key, value, &metadata);
  if (name == "case") {
    // DrvFs takes `force` for `dir`, and here both mean what the host's file system does.
    if (value != "dir" && value != "force" && value != "off") {
      return BadValue(key, value, "one of dir, force, off");
    }
    return fold_case = value == "off", Status();
  }
  if (name == "uid") return ParseId(key, value, &uid);
  if (name == "gid") return ParseId(key, value, &gid);
  if (name == "default_uid") return ParseId(key, value, &default_uid);
  if (name == "default_gid") return ParseId(key, value, &default_gid);
  if (name == "umask") return ParseOctal(key, value, &umask);
  if (name == "fmask") return ParseOctal(key, value, &fmask);
  if (name == "dmask") return ParseOctal(key, value, &dmask);
  if (name == "mode") return ParseOctal(key, value, &mode.emplace());
  if (name == "translate-uid") return ParseMap(key, value, &uid_map, &uid_map_text_);
  if (name == "translate-gid") return ParseMap(key, value, &gid_map, &gid_map_text_);
  if (name == "symlinkroot") {
    if (!value.empty() && value.front() != '/') return BadValue(key, value, "an absolute path");
    symlink_root = value.substr(0, value.find_last_not_of('/') + 1);
    return {};
  }
  if (name == "xattr") {
    if (const std::optional<bool> flag = BoolOf(value); flag.has_value()) {
      xattr = *flag;
      return {};
    }
    const size_t equals = value.find('=');
    const std::string attribute = value.substr(0, equals);
    if (equals == std::string::npos || attribute.find('.') == std::string::npos ||
        attribute.size() > kMaxAttributeName || IsReservedName(attribute) ||
        attribute.rfind("system.", 0) == 0) {
      return BadValue(key, value,
                      "a boolean or NAME.SPACE=VALUE of an attribute that can be shown");
    }
    xattr = true;
    xattr_name = attribute;
    xattr_value = value.substr(equals + 1);
    return {};
  }
  return sdk::InvalidArgument("option " + std::string(key) + ": there is no such option");
}

std::vector<ShareOptions::KeyValue> ShareOptions::List() const {
  std::vector<KeyValue> list;
  const auto number = [&list](const char* key, const std::optional<uint32_t>& value) {
    if (value.has_value()) list.emplace_back(key, std::to_string(*value));
  };
  const auto bits = [&list](const char* key, uint32_t value) {
    if (value != 0) list.emplace_back(key, Octal(value));
  };
  if (fold_case) list.emplace_back("case", "off");
  number("default_gid", default_gid);
  number("default_uid", default_uid);
  bits("dmask", dmask);
  bits("fmask", fmask);
  number("gid", gid);
  if (metadata) list.emplace_back("metadata", "true");
  if (mode.has_value()) list.emplace_back("mode", Octal(*mode));
  if (readonly) list.emplace_back("readonly", "true");
  if (!symlink_root.empty()) list.emplace_back("symlinkroot", symlink_root);
  if (!gid_map_text_.empty()) list.emplace_back("translate-gid", gid_map_text_);
  if (!uid_map_text_.empty()) list.emplace_back("translate-uid", uid_map_text_);
  number("uid", uid);
  bits("umask", umask);
  if (!xattr_name.empty()) {
    list.emplace_back("xattr", xattr_name + "=" + xattr_value);
  } else if (xattr.has_value()) {
    list.emplace_back("xattr", *xattr ? "true" : "false");
  }
  return list;
}

bool ShareOptions::plain() const {
  return !owns_files() && !translates() && !mode.has_value() && (umask | fmask | dmask) == 0 &&
         symlink_root.empty();
}

uint32_t ShareOptions::mask_of(mode_t type_and_mode) const {
  if (S_ISLNK(type_and_mode)) return 0;
  return umask | (S_ISDIR(type_and_mode) ? dmask : fmask);
}

}  // namespace virtbay::virtiofs
