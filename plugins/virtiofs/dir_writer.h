// DirWriter: the answer of one READDIR or READDIRPLUS as it grows.
// A value on the queue thread's stack.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_DIR_WRITER_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_DIR_WRITER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "plugins/virtiofs/call.h"
#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/wire.h"

namespace virtbay::virtiofs {

class DirWriter {
 public:
  // Space for the answer to a request for `size` bytes.
  DirWriter(Call& c, uint32_t size) {
    const uint32_t wanted = std::min({size, c.room(), VIRTBAY_MAPPING_MAX - kOutHeader});
    at_ = c.Body(wanted);
    room_ = wanted;
    if (at_ != nullptr) return;
    // No slots: a shorter answer is as good, the guest asks again.
    at_ = c.request().out().data() + kOutHeader;
    room_ = std::min(wanted, c.BodySpace());
  }

  bool Fits(const DirEntry& entry, bool plus) const {
    return Aligned((plus ? kPlusHead : kDirentHead) + entry.name.size()) <= room_ - used_;
  }
  void Put(const DirEntry& entry, uint64_t ino, const fuse_entry_out* plus) {
    const uint32_t head = plus != nullptr ? kPlusHead : kDirentHead;
    const uint32_t total = Aligned(head + entry.name.size());
    std::byte* to = at_ + used_;
    if (plus != nullptr) {
      std::memcpy(to, plus, sizeof(*plus));
      to += sizeof(*plus);
    }
    fuse_dirent dirent = {};
    dirent.ino = ino;
    dirent.off = entry.next;
    dirent.namelen = static_cast<uint32_t>(entry.name.size());
    dirent.type = entry.type;
    std::memcpy(to, &dirent, kDirentHead);
    to += kDirentHead;
    std::memcpy(to, entry.name.data(), entry.name.size());
    const uint32_t padding = total - head - static_cast<uint32_t>(entry.name.size());
    std::memset(to + entry.name.size(), 0, padding);
    used_ += total;
  }
  uint32_t used() const { return used_; }

 private:
  static constexpr uint32_t kDirentHead = FUSE_NAME_OFFSET;
  static constexpr uint32_t kPlusHead = FUSE_NAME_OFFSET_DIRENTPLUS;
  static_assert(kDirentHead == 24 && kPlusHead == 152);
  static uint32_t Aligned(size_t n) { return static_cast<uint32_t>((n + 7) & ~size_t{7}); }

  std::byte* at_;
  uint32_t room_;
  uint32_t used_ = 0;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_DIR_WRITER_H_
