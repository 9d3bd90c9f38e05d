// InoSpace: one space of inode numbers for the files of many shares, so that a guest with a single
// file system of them never sees a number twice.
// Owned by Fs; functions are [any]. A short lock, for what is not on a share's own file system.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_INO_SPACE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_INO_SPACE_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace virtbay::virtiofs {

// A number has the low bits of the host's, and above them a prefix that stands for the share, the
// device, and the host's high bits. File systems number their files from below (or have a few
// fixed patterns above), so a share needs a prefix or two.
class InoSpace {
 public:
  static constexpr uint32_t kLowBits = 42;
  static constexpr uint64_t kLowMask = (uint64_t{1} << kLowBits) - 1;
  // Numbers below this are not given out: the synthetic root has one.
  static constexpr uint64_t kFirst = uint64_t{1} << kLowBits;

  // The prefix, shifted to its place, for the numbers of that device that have these high bits.
  uint64_t Prefix(uint32_t share, uint64_t dev, uint64_t ino);
  // Its prefixes are free again: the guest knows no file of the share any more.
  void Release(uint32_t share);
  size_t used() const;

  struct Entry {
    uint32_t share = 0;
    uint32_t prefix = 0;  // not shifted
    uint64_t dev = 0;
    uint64_t high = 0;
  };
  // What is given out, for another space that goes on with it. next(): every prefix that was ever
  // given out is below.
  std::vector<Entry> Entries() const;
  uint32_t next() const;
  // Before any other use. False: the same twice, or beyond `next`.
  bool Restore(const std::vector<Entry>& entries, uint32_t next);

 private:
  static constexpr uint32_t kPrefixes = 1u << (64 - kLowBits);
  struct Key {
    uint32_t share = 0;
    uint64_t dev = 0;
    uint64_t high = 0;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };

  mutable std::mutex mu_;
  std::unordered_map<Key, uint32_t, Hash> prefixes_;  // guarded by mu_
  std::vector<uint32_t> free_;                        // guarded by mu_
  uint32_t next_ = 1;                                 // guarded by mu_
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_INO_SPACE_H_
