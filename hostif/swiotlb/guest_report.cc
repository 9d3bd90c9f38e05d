#include "hostif/swiotlb/guest_report.h"

#include <exception>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/json/strict_json.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::swiotlb {
namespace {

using nlohmann::json;

constexpr size_t kMaxText = 256;
constexpr size_t kMaxPools = 256;
constexpr size_t kMaxDevices = 64;
constexpr uint64_t kMaxPool = uint64_t{1} << 32;

absl::Status Invalid(absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat("guest report: ", text));
}

std::string Printable(absl::string_view text) {
  std::string out(text.substr(0, kMaxText));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return out;
}

// A text; empty when there is no such key.
absl::StatusOr<std::string> Text(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return std::string();
  if (!it->is_string()) return Invalid(absl::StrCat(key, ": must be a string"));
  return Printable(it->get_ref<const std::string&>());
}

absl::StatusOr<std::optional<uint64_t>> Number(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return std::optional<uint64_t>();
  if (!it->is_number_unsigned()) return Invalid(absl::StrCat(key, ": must be a number"));
  return std::optional<uint64_t>(it->get<uint64_t>());
}

// "0xBASE,SIZE", or "none".
absl::StatusOr<std::optional<Aperture>> Location(const json& object) {
  const auto it = object.find("swiotlb");
  if (it == object.end() || !it->is_string()) return Invalid("swiotlb: must be a string");
  const std::string text = Printable(it->get_ref<const std::string&>());
  if (text == "none") return std::optional<Aperture>();
  const absl::StatusOr<Aperture> pool = ParsePool(text);
  if (!pool.ok()) return Invalid(absl::StrCat("swiotlb: ", pool.status().message()));
  if (pool->size > kMaxPool) {
    return Invalid(absl::StrCat("swiotlb: '", text, "': the size is above 4 GiB"));
  }
  return std::optional<Aperture>(*pool);
}

absl::StatusOr<RestrictedPool> Restricted(const json& entry) {
  if (!entry.is_object()) return Invalid("restricted_pools: must hold objects");
  RestrictedPool pool;
  VIRTBAY_ASSIGN_OR_RETURN(pool.node, Text(entry, "node"));
  VIRTBAY_ASSIGN_OR_RETURN(pool.pool, Location(entry));
  const auto devices = entry.find("devices");
  if (devices == entry.end()) return pool;
  if (!devices->is_array() || devices->size() > kMaxDevices) {
    return Invalid(absl::StrCat("devices: must be at most ", kMaxDevices, " strings"));
  }
  for (const json& device : *devices) {
    if (!device.is_string()) return Invalid("devices: must hold strings");
    pool.devices.push_back(Printable(device.get_ref<const std::string&>()));
  }
  return pool;
}

absl::StatusOr<GuestReport> Parse(absl::string_view line) {
  absl::StatusOr<json> parsed = ParseStrictJson(line, kMaxReportLine);
  if (!parsed.ok()) return Invalid(parsed.status().message());
  const json& body = *parsed;
  const auto command = body.find("command");
  if (command == body.end() || *command != "guest") return Invalid("command: must be \"guest\"");

  GuestReport report;
  VIRTBAY_ASSIGN_OR_RETURN(const std::optional<Aperture> pool, Location(body));
  if (pool.has_value()) report.capabilities = {pool->base, pool->size};
  VIRTBAY_ASSIGN_OR_RETURN(report.reason, Text(body, "reason"));
  if (const auto pools = body.find("restricted_pools"); pools != body.end()) {
    if (!pools->is_array() || pools->size() > kMaxPools) {
      return Invalid(absl::StrCat("restricted_pools: must be at most ", kMaxPools, " objects"));
    }
    for (const json& entry : *pools) {
      VIRTBAY_ASSIGN_OR_RETURN(RestrictedPool restricted, Restricted(entry));
      report.restricted.push_back(std::move(restricted));
    }
  }
  if (const auto global = body.find("global_pool"); global != body.end()) {
    if (!global->is_object()) return Invalid("global_pool: must be an object");
    VIRTBAY_ASSIGN_OR_RETURN(report.global_slots, Number(*global, "slots"));
    VIRTBAY_ASSIGN_OR_RETURN(report.global_slots_used, Number(*global, "slots_used"));
  }
  return report;
}

}  // namespace

absl::StatusOr<GuestReport> ParseGuestReport(absl::string_view line) noexcept {
  try {
    return Parse(line);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

}  // namespace virtbay::swiotlb
