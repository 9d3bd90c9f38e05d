#include "hostif/device_host/device_keys.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"
#include "hostif/device_host/device_string.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::device_host {
namespace {

constexpr uint64_t kMaxArena = uint64_t{4} << 30;
constexpr size_t kMaxOptionKey = 64;
constexpr size_t kMaxOptionValue = 4096;
constexpr size_t kMaxOptions = 256;

absl::Status Invalid(absl::string_view reason) { return absl::InvalidArgumentError(reason); }

absl::StatusOr<std::string> AsString(const KeyValue& value) {
  const std::string* text = std::get_if<std::string>(&value);
  if (text == nullptr) return Invalid("must be a string");
  // Names and paths end up in C interfaces, where a NUL would silently cut them.
  if (text->find('\0') != std::string::npos) return Invalid("must not contain a NUL byte");
  return *text;
}

absl::StatusOr<std::string> AsNonEmpty(const KeyValue& value) {
  VIRTBAY_ASSIGN_OR_RETURN(std::string text, AsString(value));
  if (text.empty()) return Invalid("must not be empty");
  return text;
}

absl::StatusOr<bool> AsBool(const KeyValue& value) {
  if (const bool* flag = std::get_if<bool>(&value)) return *flag;
  return Invalid("must be true or false");
}

absl::StatusOr<int64_t> AsInteger(const KeyValue& value, int64_t low, int64_t high) {
  const int64_t* number = std::get_if<int64_t>(&value);
  if (number == nullptr) return Invalid("must be an integer");
  if (*number < low || *number > high) {
    return Invalid(absl::StrCat("must be between ", low, " and ", high));
  }
  return *number;
}

absl::StatusOr<uint64_t> AsSize(const KeyValue& value) {
  if (const int64_t* number = std::get_if<int64_t>(&value)) {
    if (*number < 0) return Invalid("must not be negative");
    return static_cast<uint64_t>(*number);
  }
  if (const std::string* text = std::get_if<std::string>(&value)) return ParseSize(*text);
  return Invalid("must be a size, such as \"64M\"");
}

absl::StatusOr<absl::Duration> AsDuration(const KeyValue& value) {
  if (const int64_t* number = std::get_if<int64_t>(&value)) {
    if (*number == 0) return absl::ZeroDuration();
    return Invalid("needs a unit, such as \"200us\"");
  }
  if (const std::string* text = std::get_if<std::string>(&value)) return ParseDuration(*text);
  return Invalid("must be a duration, such as \"200us\"");
}

bool ValidName(absl::string_view name) {
  if (name.empty() || name.size() > 64) return false;
  for (const char c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') {
      return false;
    }
  }
  return true;
}

bool ValidOptionKey(absl::string_view key) {
  if (key.empty() || key.size() > kMaxOptionKey) return false;
  for (const char c : key) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') {
      return false;
    }
  }
  return true;
}

// "0xBASE,SIZE" is a pool of the device's own, "0xBASE,SIZE,all" one that others have too, "pool"
// or "pool,SIZE" a slice of the guest's, "pool,all" all of that.
absl::Status SetPool(const KeyValue& value, DeviceConfig* config) {
  // Not moved out of its StatusOr: GCC 12 then warns of an uninitialised string.
  const absl::StatusOr<std::string> text = AsNonEmpty(value);
  if (!text.ok()) return text.status();
  const std::string& pool = *text;
  if (pool == "pool" || pool == "pool,all") {
    config->guest_pool = pool == "pool" ? PoolUse::kSlice : PoolUse::kAll;
    return absl::OkStatus();
  }
  if (pool.rfind("pool,", 0) == 0) {
    VIRTBAY_ASSIGN_OR_RETURN(config->slice_size, AsSize(pool.substr(5)));
    if (config->slice_size == 0 || config->slice_size > kMaxArena ||
        config->slice_size % kAperturePage != 0) {
      return Invalid(absl::StrCat("'", pool,
                                  "': a slice has whole 4 KiB pages, at most 4G of them "
                                  "(rounded up to 2M)"));
    }
    config->guest_pool = PoolUse::kSlice;
    return absl::OkStatus();
  }
  absl::string_view range = pool;
  config->aperture_shared = absl::ConsumeSuffix(&range, ",all");
  if (std::count(range.begin(), range.end(), ',') != 1) {
    return Invalid(
        absl::StrCat("'", pool, "' is none of 0xBASE,SIZE[,all] and pool[,SIZE] and pool,all"));
  }
  VIRTBAY_ASSIGN_OR_RETURN(config->spec.aperture, swiotlb::ParseOption(range));
  config->spec.dma_mode = DmaMode::kAperture;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<uint64_t> ParseSize(absl::string_view text) {
  const absl::string_view original = text;
  uint64_t factor = 1;
  absl::string_view digits = text;
  size_t end = 0;
  while (end < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[end]))) ++end;
  digits = text.substr(0, end);
  const absl::string_view unit = text.substr(end);
  if (unit == "K" || unit == "KiB" || unit == "k") {
    factor = uint64_t{1} << 10;
  } else if (unit == "M" || unit == "MiB") {
    factor = uint64_t{1} << 20;
  } else if (unit == "G" || unit == "GiB") {
    factor = uint64_t{1} << 30;
  } else if (unit == "T" || unit == "TiB") {
    factor = uint64_t{1} << 40;
  } else if (!unit.empty() && unit != "B") {
    return Invalid(absl::StrCat("'", original, "' is not a size (use K, M, G or T)"));
  }
  uint64_t number = 0;
  if (!absl::SimpleAtoi(digits, &number) && !digits.empty()) {
    return Invalid(absl::StrCat("'", original, "' is too large"));
  }
  if (digits.empty()) {
    return Invalid(absl::StrCat("'", original, "' is not a size (use K, M, G or T)"));
  }
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(number, factor, &bytes)) {
    return Invalid(absl::StrCat("'", original, "' is too large"));
  }
  return bytes;
}

absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text) {
  if (text == "off") return absl::ZeroDuration();
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration)) {
    return Invalid(absl::StrCat("'", text, "' is not a duration (use ns, us, ms, s or m)"));
  }
  if (duration < absl::ZeroDuration()) return Invalid("must not be negative");
  return duration;
}

absl::StatusOr<uint64_t> AsArenaSize(const KeyValue& value) {
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t size, AsSize(value));
  if (size == 0 || size > kMaxArena) {
    return Invalid("must be between 1 byte and 4G (rounded up to 2M)");
  }
  return size;
}

absl::Status SetDeviceKey(absl::string_view key, const KeyValue& value, DeviceConfig* config) {
  DeviceSpec& spec = config->spec;
  if (key == "name") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.name, AsString(value));
    if (!ValidName(spec.name)) {
      return Invalid("must be 1 to 64 letters, digits, '-', '_' or '.'");
    }
  } else if (key == "plugin") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.plugin, AsNonEmpty(value));
  } else if (key == "type") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.type, AsNonEmpty(value));
  } else if (key == "socket") {
    VIRTBAY_ASSIGN_OR_RETURN(config->socket_path, AsNonEmpty(value));
  } else if (key == "socket-group") {
    VIRTBAY_ASSIGN_OR_RETURN(config->socket_group, AsNonEmpty(value));
  } else if (key == "fd") {
    VIRTBAY_ASSIGN_OR_RETURN(const int64_t fd,
                             AsInteger(value, 3, std::numeric_limits<int32_t>::max()));
    config->socket_fd = static_cast<int>(fd);
  } else if (key == "device-string") {
    VIRTBAY_ASSIGN_OR_RETURN(config->device_string, AsNonEmpty(value));
  } else if (key == "arena-policy") {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string policy, AsString(value));
    if (policy != "private" && policy != "shared") {
      return Invalid(absl::StrCat("'", policy, "' is not one of private, shared"));
    }
    spec.arena_policy = policy == "shared" ? ArenaPolicy::kShared : ArenaPolicy::kPrivate;
  } else if (key == "arena-size" || key == "arena") {
    if (config->arena_given) return Invalid("is given twice, as arena and as arena-size");
    VIRTBAY_ASSIGN_OR_RETURN(spec.arena_size, AsArenaSize(value));
    config->arena_given = true;
  } else if (key == "queue-size") {
    VIRTBAY_ASSIGN_OR_RETURN(const int64_t size, AsInteger(value, 1, 32768));
    if ((size & (size - 1)) != 0) return Invalid("must be a power of two");
    spec.queue_size_max = static_cast<uint16_t>(size);
  } else if (key == "packed-ring") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.offer_packed_ring, AsBool(value));
  } else if (key == "access-platform") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.offer_access_platform, AsBool(value));
  } else if (key == "dma") {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string mode, AsString(value));
    config->dma_given = true;
    if (mode == "bounce") {
      spec.dma_mode = DmaMode::kBounce;
    } else if (mode == "direct") {
      spec.dma_mode = DmaMode::kDirect;
    } else if (mode == "aperture") {
      return Invalid("comes with swiotlb = \"0xBASE,SIZE\"");
    } else {
      return Invalid(absl::StrCat("'", mode, "' is not one of bounce, direct"));
    }
  } else if (key == "swiotlb") {
    VIRTBAY_RETURN_IF_ERROR(SetPool(value, config));
  } else if (key == "rings") {
    // Not moved out of its StatusOr: GCC 12 then warns of an uninitialised string.
    const absl::StatusOr<std::string> where = AsString(value);
    if (!where.ok()) return where.status();
    if (*where != "pool" && *where != "anywhere") {
      return Invalid(absl::StrCat("'", *where, "' is not one of anywhere, pool"));
    }
    spec.rings = *where == "pool" ? RingPlacement::kPool : RingPlacement::kAnywhere;
  } else if (key == "poll-window") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.poll_window_max, AsDuration(value));
    if (spec.poll_window_max > absl::Seconds(1)) return Invalid("must be at most 1s");
  } else if (key == "poll-share") {
    VIRTBAY_ASSIGN_OR_RETURN(const int64_t share, AsInteger(value, 0, 100));
    spec.poll_share_max_percent = static_cast<uint32_t>(share);
  } else if (key == "transfer-helper") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.transfer_helper, AsBool(value));
  } else if (key == "stop-deadline") {
    VIRTBAY_ASSIGN_OR_RETURN(spec.stop_deadline, AsDuration(value));
    if (spec.stop_deadline > absl::Hours(1)) return Invalid("must be at most 1h");
  } else if (key == "record") {
    VIRTBAY_ASSIGN_OR_RETURN(config->record_file, AsNonEmpty(value));
  } else if (key == "record-payload") {
    VIRTBAY_ASSIGN_OR_RETURN(config->record_payload, AsBool(value));
  } else {
    return Invalid("unknown key");
  }
  return absl::OkStatus();
}

namespace {

// The value as the plugin gets it, and how it was spelled.
absl::StatusOr<std::string> OptionText(const KeyValue& value, OptionKind* kind_out) {
  std::string text;
  OptionKind& kind = *kind_out;
  kind = OptionKind::kText;
  if (const auto* string = std::get_if<std::string>(&value)) {
    if (string->find('\0') != std::string::npos) return Invalid("must not contain a NUL byte");
    text = *string;
  } else if (const auto* integer = std::get_if<int64_t>(&value)) {
    text = absl::StrCat(*integer);
    kind = OptionKind::kInteger;
  } else if (const auto* number = std::get_if<double>(&value)) {
    if (!std::isfinite(*number)) return Invalid("must be a finite number");
    text = absl::StrCat(*number);
    kind = OptionKind::kNumber;
  } else {
    text = std::get<bool>(value) ? "true" : "false";
    kind = OptionKind::kBoolean;
  }
  if (text.size() > kMaxOptionValue) {
    return Invalid(absl::StrCat("is longer than ", kMaxOptionValue, " bytes"));
  }
  return text;
}

}  // namespace

absl::Status SetShareKey(absl::string_view key, const KeyValue& value, shares::ShareSpec* share) {
  if (key == "name") {
    VIRTBAY_ASSIGN_OR_RETURN(share->name, AsNonEmpty(value));
    return absl::OkStatus();
  }
  if (key == "path") {
    VIRTBAY_ASSIGN_OR_RETURN(share->path, AsNonEmpty(value));
    return absl::OkStatus();
  }
  if (!ValidOptionKey(key)) return Invalid("is not an option name");
  OptionKind kind = OptionKind::kText;
  VIRTBAY_ASSIGN_OR_RETURN(std::string text, OptionText(value, &kind));
  // As a number, 022 or 0o22 would have become another one by now.
  if (kind != OptionKind::kText &&
      (key == "mode" || key == "umask" || key == "fmask" || key == "dmask")) {
    return Invalid("is octal and must be a string, such as \"022\"");
  }
  if (share->options.size() >= kMaxOptions) return Invalid("too many options");
  share->options.insert_or_assign(std::string(key), std::move(text));
  return absl::OkStatus();
}

absl::Status SetDeviceOption(absl::string_view key, const KeyValue& value, DeviceConfig* config) {
  if (!ValidOptionKey(key)) return Invalid("is not an option name");
  OptionKind kind = OptionKind::kText;
  VIRTBAY_ASSIGN_OR_RETURN(std::string text, OptionText(value, &kind));
  if (config->spec.options.size() >= kMaxOptions) return Invalid("too many options");
  config->spec.options.insert_or_assign(std::string(key), std::move(text));
  if (kind != OptionKind::kText) {
    config->spec.option_kinds.insert_or_assign(std::string(key), kind);
  }
  return absl::OkStatus();
}

bool NamesPassedSocket(absl::string_view socket) {
  return socket == "systemd" || absl::StartsWith(socket, "systemd:");
}

absl::Status FinishDevice(DeviceConfig* config) {
  DeviceSpec& spec = config->spec;
  VIRTBAY_RETURN_IF_ERROR(ApplyDeviceString(config));
  if (!config->shares.empty()) spec.options.emplace("aggregate", "true");
  // Its request memory is the slice then; this process makes none.
  if (config->guest_pool == PoolUse::kAll && config->arena_given) {
    return Invalid("arena-size: cannot be given together with swiotlb = \"pool,all\"");
  }
  if (config->guest_pool == PoolUse::kSlice && config->arena_given) {
    if (config->slice_size != 0) {
      return Invalid(
          "arena-size: cannot be given together with the size in swiotlb = \"pool,SIZE\"");
    }
    config->slice_size = spec.arena_size;
  }
  const bool pooled = spec.aperture.size != 0 || config->guest_pool != PoolUse::kNone;
  if (pooled && config->dma_given) {
    return Invalid("dma: cannot be given together with swiotlb");
  }
  if (pooled && spec.arena_policy == ArenaPolicy::kShared) {
    return Invalid("arena-policy: shared cannot be given together with swiotlb");
  }
  if (!pooled && spec.rings != RingPlacement::kAnywhere) {
    return Invalid("rings: needs swiotlb");
  }
  if (spec.arena_policy == ArenaPolicy::kShared && config->arena_given) {
    return Invalid("arena-size: is the shared arena's, shared-arena-size in [host]");
  }
  if (spec.plugin.empty()) return Invalid("plugin: is missing");
  if (spec.name.empty()) return Invalid("name: is missing");
  if (config->socket_path.empty() && config->socket_fd < 0) {
    return Invalid("socket: is missing (or fd)");
  }
  if (!config->socket_path.empty() && config->socket_fd >= 0) {
    return Invalid("fd: cannot be given together with socket");
  }
  if (config->socket_fd >= 0 && !config->socket_group.empty()) {
    return Invalid("socket-group: needs socket");
  }
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
