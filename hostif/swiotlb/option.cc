#include "hostif/swiotlb/option.h"

#include <charconv>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace virtbay::swiotlb {
namespace {

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kGiB = 1u << 30;

std::optional<uint64_t> Number(absl::string_view text, int radix) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value, radix);
  if (text.empty() || result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

std::optional<uint64_t> Hexadecimal(absl::string_view text) {
  if (!absl::ConsumePrefix(&text, "0x") && !absl::ConsumePrefix(&text, "0X")) return std::nullopt;
  return Number(text, 16);
}

std::optional<uint64_t> Size(absl::string_view text) {
  if (const auto hexadecimal = Hexadecimal(text)) return hexadecimal;
  if (text.empty()) return std::nullopt;
  unsigned shift = 0;
  switch (absl::ascii_tolower(static_cast<unsigned char>(text.back()))) {
    case 'k':
      shift = 10;
      break;
    case 'm':
      shift = 20;
      break;
    case 'g':
      shift = 30;
      break;
    default:
      break;
  }
  if (shift != 0) text.remove_suffix(1);
  const auto value = Number(text, 10);
  if (!value.has_value() || (*value << shift) >> shift != *value) return std::nullopt;
  return *value << shift;
}

}  // namespace

absl::StatusOr<Aperture> ParsePool(absl::string_view text) {
  const auto wrong = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': ", why));
  };
  const size_t comma = text.find(',');
  if (comma == absl::string_view::npos || text.rfind(',') != comma) {
    return wrong("is not of the form 0xBASE,SIZE");
  }
  const auto base = Hexadecimal(text.substr(0, comma));
  if (!base.has_value()) return wrong("the base is not a hexadecimal number, 0x...");
  const auto size = Size(text.substr(comma + 1));
  if (!size.has_value()) return wrong("the size is not a number of bytes");
  const Aperture pool{*base, *size};
  if (const absl::Status status = CheckAperture(pool); !status.ok()) return wrong(status.message());
  return pool;
}

absl::StatusOr<Aperture> ParseOption(absl::string_view text) {
  absl::StatusOr<Aperture> pool = ParsePool(text);
  if (!pool.ok()) return pool;
  const absl::Status status = CheckDeviceAperture(*pool);
  if (!status.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "': ", status.message()));
  }
  return pool;
}

std::string FormatOption(const Aperture& pool) {
  return absl::StrFormat("0x%x,%d", pool.base, pool.size);
}

uint64_t DefaultPoolSize(uint64_t guest_memory) {
  return guest_memory >= kGiB + 64 * kMiB ? 64 * kMiB : 0;
}

uint64_t RoundPoolSize(uint64_t bytes) {
  return bytes > UINT64_MAX - (kPoolUnit - 1) ? 0 : (bytes + kPoolUnit - 1) / kPoolUnit * kPoolUnit;
}

std::string KernelCommandLine(uint64_t bytes) {
  if (bytes == 0) return {};
  return absl::StrCat("swiotlb=force hv_pci_swiotlb=", bytes);
}

}  // namespace virtbay::swiotlb
