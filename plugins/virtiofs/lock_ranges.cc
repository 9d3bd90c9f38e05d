#include "plugins/virtiofs/lock_ranges.h"

#include <algorithm>
#include <array>

namespace virtbay::virtiofs {
namespace {

bool EndsBefore(const LockRange& range, uint64_t start) { return range.end < start; }

bool Joins(const LockRange& left, const LockRange& right) {
  return left.write == right.write && left.end + 1 == right.start;
}

}  // namespace

LockRanges::Span LockRanges::Within(uint64_t start, uint64_t end) const {
  const LockRange* const stop = ranges_.data() + ranges_.size();
  const LockRange* first = std::lower_bound(ranges_.data(), stop, start, &EndsBefore);
  const LockRange* last = std::upper_bound(
      first, stop, end, [](uint64_t value, const LockRange& range) { return value < range.start; });
  return {first, last};
}

const LockRange* LockRanges::Conflict(const LockRange& wanted) const {
  if (!wanted.write && writes_ == 0) return nullptr;
  for (const LockRange& range : Within(wanted.start, wanted.end)) {
    if (wanted.write || range.write) return &range;
  }
  return nullptr;
}

void LockRanges::Replace(uint64_t start, uint64_t end, const LockRange* fresh) {
  const Span old = Within(start, end);
  std::array<LockRange, 3> pieces;
  size_t count = 0;
  if (old.first != old.last && old.first->start < start) {
    pieces[count++] = {old.first->start, start - 1, old.first->write};
  }
  if (fresh != nullptr) pieces[count++] = *fresh;
  if (old.first != old.last && old.last[-1].end > end) {
    pieces[count++] = {end + 1, old.last[-1].end, old.last[-1].write};
  }
  // One range of the neighbours' on each side takes part in the joining.
  auto first = ranges_.begin() + (old.first - ranges_.data());
  auto last = ranges_.begin() + (old.last - ranges_.data());
  std::array<LockRange, 5> joined;
  size_t n = 0;
  if (first != ranges_.begin()) joined[n++] = *--first;
  const auto add = [&](const LockRange& range) {
    if (n > 0 && Joins(joined[n - 1], range)) {
      joined[n - 1].end = range.end;
    } else {
      joined[n++] = range;
    }
  };
  for (size_t i = 0; i < count; ++i) add(pieces[i]);
  if (last != ranges_.end()) add(*last++);
  const auto is_write = [](const LockRange& range) { return range.write; };
  writes_ -= static_cast<size_t>(std::count_if(first, last, is_write));
  writes_ += static_cast<size_t>(
      std::count_if(joined.begin(), joined.begin() + static_cast<std::ptrdiff_t>(n), is_write));
  const auto room = static_cast<size_t>(last - first);
  const auto overwritten = std::copy_n(joined.begin(), std::min(n, room), first);
  if (n > room) {
    ranges_.insert(overwritten, joined.begin() + static_cast<std::ptrdiff_t>(room),
                   joined.begin() + static_cast<std::ptrdiff_t>(n));
  } else {
    ranges_.erase(overwritten, last);
  }
}

}  // namespace virtbay::virtiofs
