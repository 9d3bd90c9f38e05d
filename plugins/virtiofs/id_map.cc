#include "plugins/virtiofs/id_map.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>

namespace virtbay::virtiofs {
namespace {

using sdk::Error;
using sdk::Status;

// (uid_t)-1 means "no user" to the kernel.
constexpr uint64_t kIds = 0xffffffffu;

Error Bad(std::string_view entry, const char* reason) {
  std::string text = "\"";
  text.append(entry).append("\" ").append(reason);
  return sdk::InvalidArgument(std::move(text));
}

bool Number(std::string_view text, uint32_t* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

sdk::Result<IdMap> IdMap::Parse(std::string_view text) {
  IdMap map;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    if (Status status = map.Add(text.substr(0, comma)); !status.ok()) return status.error();
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  return map;
}

Status IdMap::Add(std::string_view entry) {
  std::array<std::string_view, 4> parts;
  size_t count = 0;
  for (std::string_view rest = entry;; ++count) {
    if (count == parts.size()) return Bad(entry, "has too many parts");
    const size_t colon = rest.find(':');
    parts[count] = rest.substr(0, colon);
    if (colon == std::string_view::npos) break;
    rest = rest.substr(colon + 1);
  }
  ++count;
  const std::string_view kind = parts[0];
  const bool forbid = kind == "forbid-guest";
  const bool squash = kind == "squash-guest" || kind == "squash-host";
  const bool both = kind == "map";
  const bool from_guest = kind == "guest" || kind == "squash-guest" || forbid || both;
  if (!from_guest && kind != "host" && kind != "squash-host") {
    return Bad(entry,
               "is not one of guest, host, map, squash-guest, squash-host (:FROM:TO:COUNT) or "
               "forbid-guest (:FROM:COUNT)");
  }
  uint32_t first = 0, target = 0, length = 0;
  const bool complete =
      count == (forbid ? 3u : 4u) && Number(parts[1], &first) &&
      (forbid ? Number(parts[2], &length) : Number(parts[2], &target) && Number(parts[3], &length));
  if (!complete) return Bad(entry, forbid ? "is not KIND:FROM:COUNT" : "is not KIND:FROM:TO:COUNT");
  if (length == 0) return Bad(entry, "is an empty range");
  if (uint64_t{first} + length > kIds || target >= kIds ||
      (!squash && !forbid && uint64_t{target} + length > kIds)) {
    return Bad(entry, "goes beyond 4294967294");
  }
  const Range range{first, first + (length - 1), target, squash, forbid};
  if (!Insert(from_guest ? &to_host_ : &to_guest_, range)) return Bad(entry, "meets another range");
  if (both && !Insert(&to_guest_, {target, target + (length - 1), first, false, false})) {
    return Bad(entry, "meets another range of the host's");
  }
  return {};
}

bool IdMap::Insert(std::vector<Range>* ranges, const Range& range) {
  const auto after = std::upper_bound(ranges->begin(), ranges->end(), range.first,
                                      [](uint32_t id, const Range& r) { return id < r.first; });
  if (after != ranges->end() && after->first <= range.last) return false;
  if (after != ranges->begin() && std::prev(after)->last >= range.first) return false;
  ranges->insert(after, range);
  return true;
}

const IdMap::Range* IdMap::Find(const std::vector<Range>& ranges, uint32_t id) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), id,
                                      [](uint32_t i, const Range& r) { return i < r.first; });
  if (after == ranges.begin() || std::prev(after)->last < id) return nullptr;
  return &*std::prev(after);
}

bool IdMap::ToHost(uint32_t guest, uint32_t* host) const {
  const Range* range = Find(to_host_, guest);
  if (range != nullptr && range->forbid) return false;
  *host = range == nullptr ? guest : Target(*range, guest);
  return true;
}

uint32_t IdMap::ToGuest(uint32_t host) const {
  const Range* range = Find(to_guest_, host);
  return range == nullptr ? host : Target(*range, host);
}

}  // namespace virtbay::virtiofs
