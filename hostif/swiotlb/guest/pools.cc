#include "hostif/swiotlb/guest/pools.h"

#include <charconv>
#include <cstdio>

#include "hostif/swiotlb/guest/file.h"

namespace virtbay::guest_tool {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kSlot = 2048;
constexpr uint64_t kFourGiB = uint64_t{1} << 32;
constexpr size_t kMaxNumber = 64;  // bytes of a file that holds one number

Pool None(std::string reason) { return {0, 0, std::move(reason)}; }

std::string_view WithoutNewline(std::string_view text) {
  if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return text;
}

std::optional<uint64_t> Digits(std::string_view text, int radix) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value, radix);
  if (text.empty() || result.ec != std::errc() || result.ptr != end) return std::nullopt;
  return value;
}

std::optional<uint64_t> Hexadecimal(std::string_view text) {
  if (text.substr(0, 2) != "0x" && text.substr(0, 2) != "0X") return std::nullopt;
  return Digits(text.substr(2), 16);
}

// A number of a debugfs file: none when there is no such file, and none with the reason when it
// holds something else, or more than `most`.
std::optional<uint64_t> ReadNumber(const std::string& path, uint64_t most, std::string* reason) {
  const std::string name = path.substr(path.rfind('/') + 1);
  const FileText file = ReadFile(path, kMaxNumber);
  if (file.missing) return std::nullopt;
  if (!file.ok()) {
    *reason = file.why;
    return std::nullopt;
  }
  const auto number = Digits(WithoutNewline(file.text), 10);
  if (!number) {
    *reason = name + ": is not a number";
  } else if (*number > most) {
    *reason = name + ": is above " + std::to_string(most) + ", the slots there can be";
    return std::nullopt;
  }
  return number;
}

std::optional<GlobalPool> ReadGlobalPool(const std::string& debugfs) {
  // As many as there are addresses for.
  constexpr uint64_t kMost = UINT64_MAX / kSlot;
  GlobalPool pool;
  pool.slots = ReadNumber(debugfs + "/swiotlb/io_tlb_nslabs", kMost, &pool.reason);
  if (pool.slots) {
    pool.slots_used = ReadNumber(debugfs + "/swiotlb/io_tlb_used", *pool.slots, &pool.reason);
  } else if (pool.reason.empty()) {
    return std::nullopt;
  }
  return pool;
}

// Linux 6.1 has a pool's directory at the root of debugfs, later ones under swiotlb/.
void ReadSlotsUsed(const std::string& debugfs, RestrictedPool* pool) {
  const std::string name = pool->node.substr(pool->node.rfind('/') + 1);
  const uint64_t slots = pool->pool.size == 0 ? UINT64_MAX : pool->pool.size / kSlot;
  for (const char* place : {"/swiotlb/", "/"}) {
    pool->slots_used =
        ReadNumber(debugfs + place + name + "/io_tlb_used", slots, &pool->slots_used_reason);
    if (pool->slots_used || !pool->slots_used_reason.empty()) return;
  }
}

std::string Hex(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof(text), "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

// Bytes beyond ASCII are not assumed to be UTF-8.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", byte);
      out += escape;
    } else {
      out += c;
    }
  }
  return out + '"';
}

std::string Location(const Pool& pool) {
  if (pool.size == 0) return "none";
  return Hex(pool.base) + "," + std::to_string(pool.size);
}

std::string ToJson(const RestrictedPool& pool) {
  std::string out =
      "{\"node\":" + Quoted(pool.node) + ",\"swiotlb\":" + Quoted(Location(pool.pool));
  if (pool.pool.size == 0) out += ",\"reason\":" + Quoted(pool.pool.reason);
  if (!pool.note.empty()) out += ",\"note\":" + Quoted(pool.note);
  if (pool.slots_used) out += ",\"slots_used\":" + std::to_string(*pool.slots_used);
  if (!pool.slots_used_reason.empty()) {
    out += ",\"slots_used_reason\":" + Quoted(pool.slots_used_reason);
  }
  out += ",\"devices\":[";
  for (const std::string& device : pool.devices) {
    if (out.back() != '[') out += ',';
    out += Quoted(device);
  }
  return out + "]}";
}

std::string ToJson(const GlobalPool& pool) {
  std::string out = "{";
  const auto add = [&](const char* key, const std::string& value) {
    if (out.back() != '{') out += ',';
    out += '"';
    out += key;
    out += "\":";
    out += value;
  };
  if (pool.slots) add("slots", std::to_string(*pool.slots));
  if (pool.slots_used) add("slots_used", std::to_string(*pool.slots_used));
  if (!pool.reason.empty()) add("reason", Quoted(pool.reason));
  return out + '}';
}

std::string ToJson(const Report& report) {
  std::string out = "{\"command\":\"guest\",\"swiotlb\":" + Quoted(Location(report.hv_pci));
  if (report.hv_pci.size == 0) out += ",\"reason\":" + Quoted(report.hv_pci.reason);
  out += ",\"restricted_pools\":[";
  for (const RestrictedPool& pool : report.restricted) {
    if (out.back() != '[') out += ',';
    out += ToJson(pool);
  }
  out += ']';
  if (report.global) out += ",\"global_pool\":" + ToJson(*report.global);
  if (report.truncated) out += ",\"truncated\":true";
  return out + '}';
}

}  // namespace

Pool ParsePool(std::string_view base_text, std::string_view size_text) {
  base_text = WithoutNewline(base_text);
  size_text = WithoutNewline(size_text);
  if (base_text.empty()) return None("swiotlb_base: is empty");
  if (size_text.empty()) return None("swiotlb_size: is empty");
  const auto base = Hexadecimal(base_text);
  if (!base) return None("swiotlb_base: is not a hexadecimal number, 0x...");
  const auto hexadecimal_size = Hexadecimal(size_text);
  const auto size = hexadecimal_size ? hexadecimal_size : Digits(size_text, 10);
  if (!size) return None("swiotlb_size: is not a number of bytes");
  if (*size == 0) return None("swiotlb_size: is 0");
  if (*base == 0) return None("swiotlb_base: is 0");
  if (*base % kPage != 0) return None("swiotlb_base: is not the address of a page");
  if (*size % kPage != 0) return None("swiotlb_size: is not a number of whole pages");
  // The kernel takes the pool from below 4 GiB, so that 32-bit devices reach it.
  if (*size > kFourGiB || *base > kFourGiB - *size) return None("the pool reaches above 4 GiB");
  return {*base, *size, ""};
}

Pool ReadHvPciPool(const std::string& root) {
  const std::string directory = root + "/sys/bus/vmbus/drivers/hv_pci/";
  const FileText base = ReadFile(directory + "swiotlb_base", kMaxNumber);
  const FileText size = ReadFile(directory + "swiotlb_size", kMaxNumber);
  if (base.missing && size.missing) {
    return None("the kernel has set no pool aside for hv_pci devices: there is no " + directory +
                "swiotlb_base");
  }
  if (!base.ok()) return None(base.why);
  if (!size.ok()) return None(size.why);
  return ParsePool(base.text, size.text);
}

Report ReadReport(const std::string& root) {
  Report report;
  report.hv_pci = ReadHvPciPool(root);
  report.restricted =
      ReadRestrictedPools(root + "/sys/firmware/devicetree/base", &report.truncated);
  if (report.restricted.empty() && !report.truncated) {
    report.restricted = ReadRestrictedPools(root + "/proc/device-tree", &report.truncated);
  }
  const std::string debugfs = root + "/sys/kernel/debug";
  for (RestrictedPool& pool : report.restricted) {
    ReadSlotsUsed(debugfs, &pool);
  }
  report.global = ReadGlobalPool(debugfs);
  return report;
}

std::string FormatOption(const Pool& pool) {
  return pool.size == 0 ? "" : "swiotlb=" + Location(pool);
}

std::string FormatJson(Report report) {
  std::string line = ToJson(report);
  while (line.size() > kMaxLine && !report.restricted.empty()) {
    report.restricted.pop_back();
    report.truncated = true;
    line = ToJson(report);
  }
  return line;
}

}  // namespace virtbay::guest_tool
