#include "hostif/wsl/wslconfig.h"

#include <algorithm>
#include <array>
#include <map>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/swiotlb/option.h"
#include "hostif/wsl/ini.h"

namespace virtbay::wsl {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kLeastMemory = 256 * kMiB;

absl::Status Wrong(absl::string_view value, absl::string_view reason) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", absl::CHexEscape(value.substr(0, 64)), "' ", reason));
}

absl::Status SetBool(absl::string_view value, bool* flag) {
  if (absl::EqualsIgnoreCase(value, "true") || value == "1") {
    *flag = true;
  } else if (absl::EqualsIgnoreCase(value, "false") || value == "0") {
    *flag = false;
  } else {
    return Wrong(value, "is neither true nor false");
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> Memory(absl::string_view value) {
  const auto bytes = ParseMemory(value);
  if (!bytes.has_value()) return Wrong(value, "is not a size, such as 64M, 4096K or 8GB");
  return *bytes;
}

absl::Status SetVirtio(absl::string_view value, WslConfig* config) {
  return SetBool(value, &config->virtio);
}
absl::Status SetVirtiofs(absl::string_view value, WslConfig* config) {
  return SetBool(value, &config->virtiofs);
}
absl::Status SetAggregate(absl::string_view value, WslConfig* config) {
  return SetBool(value, &config->aggregate_shares);
}

absl::Status SetMemory(absl::string_view value, WslConfig* config) {
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t bytes, Memory(value));
  if (bytes != 0) config->memory = bytes;  // 0 is what WSL takes for not set
  return absl::OkStatus();
}

absl::Status SetSwiotlb(absl::string_view value, WslConfig* config) {
  VIRTBAY_ASSIGN_OR_RETURN(config->swiotlb, Memory(value));
  // The kernel takes the pool from below 4 GiB.
  if (config->swiotlb >= 4096 * kMiB) return Wrong(value, "is 4 GiB or more");
  return absl::OkStatus();
}

absl::Status SetNetwork(absl::string_view value, WslConfig* config) {
  for (const absl::string_view mode : {"none", "nat", "bridged", "mirrored"}) {
    if (absl::EqualsIgnoreCase(value, mode)) return absl::OkStatus();
  }
  config->proxy_network =
      absl::EqualsIgnoreCase(value, "virtioproxy") || absl::EqualsIgnoreCase(value, "consomme");
  if (config->proxy_network) return absl::OkStatus();
  return Wrong(value, "is none of virtioproxy, consomme, nat, mirrored, bridged, none");
}

struct Setting {
  absl::string_view section;
  absl::string_view key;
  absl::Status (*set)(absl::string_view value, WslConfig* config);
};

constexpr Setting kSettings[] = {
    {"wsl2", "virtio", &SetVirtio},
    {"wsl2", "virtiofs", &SetVirtiofs},
    {"wsl2", "memory", &SetMemory},
    {"wsl2", "networkingMode", &SetNetwork},
    // Where it was before; WSL reads both.
    {"experimental", "networkingMode", &SetNetwork},
    {"experimental", "swiotlb", &SetSwiotlb},
    {"experimental", "virtioFsAggregateShares", &SetAggregate},
};

const Setting* FindSetting(const IniEntry& entry) {
  for (const Setting& setting : kSettings) {
    if (entry.section == setting.section && absl::EqualsIgnoreCase(entry.key, setting.key)) {
      return &setting;
    }
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<WslConfig> ParseWslConfig(absl::string_view text, absl::string_view name) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<IniEntry> entries, ParseIni(text, name));
  WslConfig config;
  std::map<absl::Status (*)(absl::string_view, WslConfig*), uint32_t> lines;
  for (const IniEntry& entry : entries) {
    const Setting* setting = FindSetting(entry);
    if (setting == nullptr) continue;
    const std::string where =
        absl::StrCat(name, ":", entry.line, ": ", setting->section, ".", setting->key, ": ");
    const auto [given, first] = lines.emplace(setting->set, entry.line);
    if (!first) {
      config.warnings.push_back(
          absl::StrCat(where, "given before, in line ", given->second, ", which counts"));
      continue;
    }
    if (!entry.malformed.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(where, entry.malformed));
    }
    const absl::Status set = setting->set(entry.value, &config);
    if (!set.ok()) return absl::InvalidArgumentError(absl::StrCat(where, set.message()));
  }
  if (!config.virtio && config.swiotlb != 0) {
    config.swiotlb = 0;
    config.warnings.push_back(
        absl::StrCat(name, ": experimental.swiotlb has no effect: wsl2.virtio is false"));
  }
  return config;
}

std::optional<uint64_t> ParseMemory(absl::string_view text) {
  size_t digits = 0;
  while (digits < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[digits]))) {
    ++digits;
  }
  uint64_t number = 0;
  if (!absl::SimpleAtoi(text.substr(0, digits), &number)) return std::nullopt;
  std::string unit = absl::AsciiStrToUpper(text.substr(digits));
  if (unit.empty() || unit == "B") return number;
  if (unit.size() == 2 && unit[1] == 'B') unit.pop_back();
  const size_t power =
      unit.size() == 1 ? absl::string_view("KMGT").find(unit[0]) : absl::string_view::npos;
  if (power == absl::string_view::npos) return std::nullopt;
  const size_t shift = 10 * (power + 1);
  if ((number << shift) >> shift != number) return std::nullopt;
  return number << shift;
}

uint64_t GuestMemory(const WslConfig& config, uint64_t host_memory) {
  if (!config.memory.has_value()) return host_memory / 2;
  return std::min(std::max(*config.memory, kLeastMemory), host_memory);
}

uint64_t PoolSize(const WslConfig& config, uint64_t host_memory) {
  if (config.swiotlb != 0) return swiotlb::RoundPoolSize(config.swiotlb);
  if (!config.serves_shares() && !config.serves_network()) return 0;
  return swiotlb::DefaultPoolSize(GuestMemory(config, host_memory));
}

}  // namespace virtbay::wsl
