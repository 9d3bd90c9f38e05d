// LockRanges: the byte ranges that one lock owner holds on one file, kept as the kernel keeps POSIX
// locks: a new lock replaces what the owner held there, neighbours of one kind become one range.
// Owned by a LockOwner, which says what guards it.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LOCK_RANGES_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LOCK_RANGES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace virtbay::virtiofs {

// Bytes [start, end], both at most INT64_MAX.
struct LockRange {
  uint64_t start = 0;
  uint64_t end = 0;
  bool write = false;
  bool operator==(const LockRange&) const = default;
};

class LockRanges {
 public:
  // Most ranges that one Set or Clear adds.
  static constexpr size_t kGrowth = 2;

  void Set(const LockRange& range) { Replace(range.start, range.end, &range); }
  void Clear(uint64_t start, uint64_t end) { Replace(start, end, nullptr); }
  // Makes room, so that the next Set or Clear allocates nothing.
  void Reserve() {
    if (ranges_.capacity() - ranges_.size() < kGrowth) ranges_.reserve(2 * ranges_.size() + 4);
  }

  // The first range that another owner's `wanted` cannot have beside it, or nullptr.
  const LockRange* Conflict(const LockRange& wanted) const;
  // The ranges that have bytes in common with [start, end], whole.
  struct Span {
    const LockRange* first;
    const LockRange* last;
    const LockRange* begin() const { return first; }
    const LockRange* end() const { return last; }
  };
  Span Within(uint64_t start, uint64_t end) const;

  const std::vector<LockRange>& all() const { return ranges_; }
  size_t size() const { return ranges_.size(); }
  bool empty() const { return ranges_.empty(); }

 private:
  void Replace(uint64_t start, uint64_t end, const LockRange* fresh);

  std::vector<LockRange> ranges_;  // by start; no two have a byte in common
  size_t writes_ = 0;              // of them
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LOCK_RANGES_H_
