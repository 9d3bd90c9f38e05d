// DirStream: entries of an open directory that were read ahead with getdents64.
// Owned by its Handle and guarded by the handle's dir_mu.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_DIR_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_DIR_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace virtbay::virtiofs {

struct DirEntry {
  uint64_t ino = 0;
  uint64_t next = 0;      // offset of what follows, as telldir gives it
  uint8_t type = 0;       // DT_*
  std::string_view name;  // NUL-terminated
};

struct DirStream {
  static constexpr size_t kBuffer = size_t{32} * 1024;

  // The next entry is the one at `offset` (0, or the `next` of an entry): 0 or errno.
  int Seek(int fd, uint64_t offset);
  // Looks at the next entry: 1, 0 at the end, or -errno. Stays there until Skip.
  int Peek(int fd, DirEntry* entry);
  void Skip(const DirEntry& entry);

  // What was read ahead, and where in it the next entry is; and whose offset that entry has.
  struct Place {
    std::span<const char> ahead;
    size_t at = 0;
    uint64_t offset = 0;
    bool fresh = true;
  };
  Place place() const { return {{data_, end_}, at_, offset_, fresh_}; }
  // Goes on where another stream of the same open directory was. False: these are no entries.
  bool Restore(const Place& place);
  // The same without what was read ahead: by the offset that the guest gives.
  void Restart() {
    at_ = end_ = 0;
    offset_ = 0;
    fresh_ = false;
  }

 private:
  size_t at_ = 0;
  size_t end_ = 0;
  size_t step_ = 0;
  uint64_t offset_ = 0;  // of the entry at at_
  bool fresh_ = true;    // nothing was read since the directory was opened
  alignas(8) char data_[kBuffer];
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_DIR_H_
