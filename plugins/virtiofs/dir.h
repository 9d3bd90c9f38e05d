// DirStream: entries of an open directory that were read ahead with getdents64.
// Owned by its Handle and guarded by the handle's dir_mu.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_DIR_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_DIR_H_

#include <cstddef>
#include <cstdint>
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
