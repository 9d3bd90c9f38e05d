#include "plugins/virtiofs/dir.h"

#include <dirent.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "plugins/virtiofs/dir_writer.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/ownership.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

// linux_dirent64, which no header gives.
struct RawEntry {
  uint64_t d_ino;
  uint64_t d_off;
  uint16_t d_reclen;
  uint8_t d_type;
};
constexpr size_t kRawName = 19;  // offset of the name

RawEntry ReadRaw(const char* at) {
  RawEntry raw;
  std::memcpy(&raw.d_ino, at, 8);
  std::memcpy(&raw.d_off, at + 8, 8);
  std::memcpy(&raw.d_reclen, at + 16, 2);
  raw.d_type = static_cast<uint8_t>(at[18]);
  return raw;
}

bool IsDots(std::string_view name) { return name == "." || name == ".."; }

// The attributes half of a READDIRPLUS entry. False: the file is gone, leave it out.
bool FillPlus(Call& c, Handle& handle, const DirEntry& entry, uint64_t ino, fuse_entry_out* plus) {
  *plus = {};
  plus->attr.ino = ino;
  plus->attr.mode = static_cast<uint32_t>(entry.type) << 12;
  // The guest counts no lookup for these two, nor for an entry with nodeid 0.
  if (IsDots(entry.name)) return true;
  // Of a share that was removed a directory may still be open, but nothing is looked up.
  if (handle.share->removed.load(std::memory_order_relaxed)) return true;
  struct statx st;
  const int error = StatAt(handle.fd, entry.name.data(), &st);
  if (error == ENOENT) return false;
  if (error != 0) return true;
  sdk::Host::Add(c.fs.counters.lookups);
  EnterInode(c, *handle.inode, {handle.fd, entry.name.data()}, entry.name, st, plus);
  return true;
}

void ReadDirectory(Call& c, bool plus) {
  const auto in = c.Arg<fuse_read_in>();
  const HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  if (!handle->is_dir) return c.Error(ENOTDIR);
  if (const Aggregate* all = handle->share->aggregate; all != nullptr)
    return all->ReadRoot(c, plus);
  DirWriter writer(c, in.size);

  const std::lock_guard<std::mutex> lock(handle->dir_mu);
  if (handle->dir == nullptr) handle->dir.reset(new (std::nothrow) DirStream);
  if (handle->dir == nullptr) return c.Error(ENOMEM);
  DirStream& stream = *handle->dir;
  if (const int error = stream.Seek(handle->fd, in.offset); error != 0) return c.Error(error);
  const Share& share = *handle->share;
  const Inode& dir = *handle->inode;
  const bool root = dir.key == KeyOf(share.root_stat);
  DirEntry entry;
  for (;;) {
    const int state = stream.Peek(handle->fd, &entry);
    if (state < 0 && writer.used() == 0) return c.Error(-state);
    if (state <= 0) break;
    if (!writer.Fits(entry, plus)) {
      if (writer.used() == 0) return c.Error(EINVAL);
      break;
    }
    // Above the root of the share there is nothing that the guest may know of.
    const bool above = root && entry.name == "..";
    const uint64_t top = share.counted() ? InodeTable::kRootId : dir.key.ino;
    const uint64_t ino = above ? top : share.Number(dir.key.dev, entry.ino);
    // A regular file of the host may be something else for the guest, which has to look.
    if (!plus && entry.type == DT_REG && Stamps(share)) entry.type = DT_UNKNOWN;
    fuse_entry_out attributes;
    if (!plus) {
      writer.Put(entry, ino, nullptr);
    } else if (FillPlus(c, *handle, entry, ino, &attributes)) {
      if (Stamps(share)) entry.type = static_cast<uint8_t>(attributes.attr.mode >> 12);
      writer.Put(entry, ino, &attributes);
    }
    stream.Skip(entry);
  }
  c.Finish(writer.used());
}

}  // namespace

int DirStream::Seek(int fd, uint64_t offset) {
  if (offset == offset_ && (offset != 0 || fresh_)) return 0;
  if (offset != 0) {
    // The guest often asks for the part of the last answer again that it had no room for.
    for (size_t at = 0; at < end_;) {
      const RawEntry raw = ReadRaw(data_ + at);
      at += raw.d_reclen;
      if (raw.d_off == offset) {
        at_ = at;
        offset_ = offset;
        return 0;
      }
    }
  }
  if (::lseek(fd, static_cast<off_t>(offset), SEEK_SET) < 0) return errno;
  at_ = end_ = 0;
  offset_ = offset;
  fresh_ = offset == 0;
  return 0;
}

int DirStream::Peek(int fd, DirEntry* entry) {
  if (at_ >= end_) {
    const int64_t n = ::syscall(SYS_getdents64, fd, data_, sizeof(data_));
    if (n < 0) return -errno;
    fresh_ = false;
    at_ = 0;
    end_ = static_cast<size_t>(n);
    if (n == 0) return 0;
  }
  const RawEntry raw = ReadRaw(data_ + at_);
  const char* name = data_ + at_ + kRawName;
  *entry = {raw.d_ino, raw.d_off, raw.d_type, std::string_view(name)};
  step_ = raw.d_reclen;
  return 1;
}

bool DirStream::Restore(const Place& place) {
  if (place.ahead.size() > kBuffer || place.at > place.ahead.size()) return false;
  std::copy(place.ahead.begin(), place.ahead.end(), data_);
  bool entry = place.at == place.ahead.size();
  for (size_t at = 0; at < place.ahead.size();) {
    entry |= at == place.at;
    const size_t left = place.ahead.size() - at;
    if (left <= kRawName) return false;
    const uint16_t length = ReadRaw(data_ + at).d_reclen;
    if (length <= kRawName || length > left) return false;
    // As a directory may have it: of this it is told by name what it is.
    const char* const name = data_ + at + kRawName;
    const size_t size = ::strnlen(name, length - kRawName);
    if (size == 0 || size == length - kRawName || size > kNameMax ||
        std::memchr(name, '/', size) != nullptr) {
      return false;
    }
    at += length;
  }
  at_ = place.at;
  end_ = place.ahead.size();
  offset_ = place.offset;
  fresh_ = place.fresh;
  return entry;
}

void DirStream::Skip(const DirEntry& entry) {
  at_ += step_;
  offset_ = entry.next;
}

void OpReaddir(Call& c) { ReadDirectory(c, false); }
void OpReaddirplus(Call& c) { ReadDirectory(c, true); }

}  // namespace virtbay::virtiofs
