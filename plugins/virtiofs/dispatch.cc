#include "plugins/virtiofs/dispatch.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "plugins/virtiofs/call.h"
#include "plugins/virtiofs/ops.h"

namespace virtbay::virtiofs {
namespace {

enum Flag : uint8_t {
  kPlain = 0,
  kNoReply = 1,   // the guest waits for no answer
  kModifies = 2,  // EROFS on a read-only share
  kAnytime = 4,   // before INIT as well
  kXattr = 8,     // ENOSYS without the option, so that the guest stops asking
  kData = 16,     // counted by its handler
  kOnce = 32,     // not to be done again by another process after this one
};

struct Entry {
  void (*handler)(Call&) = nullptr;
  uint16_t min_args = 0;   // bytes behind the header
  uint16_t min_reply = 0;  // bytes behind the answer's header
  uint8_t flags = kPlain;
};

constexpr std::array<Entry, kOpcodeCount> MakeTable() {
  std::array<Entry, kOpcodeCount> t = {};
  constexpr uint16_t kEntry = sizeof(fuse_entry_out);
  constexpr uint16_t kAttr = sizeof(fuse_attr_out);
  // A name has at least one byte and its NUL.
  constexpr uint16_t kName = 2;
  t[FUSE_LOOKUP] = {OpLookup, 1, kEntry, kPlain};
  t[FUSE_FORGET] = {OpForget, sizeof(fuse_forget_in), 0, kNoReply | kOnce};
  t[FUSE_GETATTR] = {OpGetattr, sizeof(fuse_getattr_in), kAttr, kPlain};
  t[FUSE_SETATTR] = {OpSetattr, sizeof(fuse_setattr_in), kAttr, kModifies};
  t[FUSE_READLINK] = {OpReadlink, 0, 0, kPlain};
  t[FUSE_SYMLINK] = {OpSymlink, kName, kEntry, kModifies | kOnce};
  t[FUSE_MKNOD] = {OpMknod, sizeof(fuse_mknod_in) + 1, kEntry, kModifies | kOnce};
  t[FUSE_MKDIR] = {OpMkdir, sizeof(fuse_mkdir_in) + 1, kEntry, kModifies | kOnce};
  t[FUSE_UNLINK] = {OpUnlink, 1, 0, kModifies | kOnce};
  t[FUSE_RMDIR] = {OpRmdir, 1, 0, kModifies | kOnce};
  t[FUSE_RENAME] = {OpRename, sizeof(fuse_rename_in) + kName, 0, kModifies | kOnce};
  t[FUSE_LINK] = {OpLink, sizeof(fuse_link_in) + 1, kEntry, kModifies | kOnce};
  t[FUSE_OPEN] = {OpOpen, sizeof(fuse_open_in), sizeof(fuse_open_out), kOnce};
  t[FUSE_READ] = {OpRead, sizeof(fuse_read_in), 0, kData};
  t[FUSE_WRITE] = {OpWrite, sizeof(fuse_write_in), sizeof(fuse_write_out), kModifies | kData};
  t[FUSE_STATFS] = {OpStatfs, 0, sizeof(fuse_statfs_out), kPlain};
  t[FUSE_RELEASE] = {OpRelease, sizeof(fuse_release_in), 0, kOnce};
  t[FUSE_FSYNC] = {OpFsync, sizeof(fuse_fsync_in), 0, kPlain};
  t[FUSE_SETXATTR] = {OpSetxattr, FUSE_COMPAT_SETXATTR_IN_SIZE, 0, kModifies | kXattr | kOnce};
  t[FUSE_GETXATTR] = {OpGetxattr, sizeof(fuse_getxattr_in), 0, kXattr};
  t[FUSE_LISTXATTR] = {OpListxattr, sizeof(fuse_getxattr_in), 0, kXattr};
  t[FUSE_REMOVEXATTR] = {OpRemovexattr, 1, 0, kModifies | kXattr | kOnce};
  t[FUSE_FLUSH] = {OpFlush, sizeof(fuse_flush_in), 0, kPlain};
  t[FUSE_INIT] = {OpInit, 16, sizeof(fuse_init_out), kAnytime};
  t[FUSE_OPENDIR] = {OpOpendir, sizeof(fuse_open_in), sizeof(fuse_open_out), kOnce};
  t[FUSE_READDIR] = {OpReaddir, sizeof(fuse_read_in), 0, kPlain};
  t[FUSE_RELEASEDIR] = {OpReleasedir, sizeof(fuse_release_in), 0, kOnce};
  t[FUSE_FSYNCDIR] = {OpFsyncdir, sizeof(fuse_fsync_in), 0, kPlain};
  t[FUSE_GETLK] = {OpGetlk, sizeof(fuse_lk_in), sizeof(fuse_lk_out), kPlain};
  t[FUSE_SETLK] = {OpSetlk, sizeof(fuse_lk_in), 0, kPlain};
  t[FUSE_SETLKW] = {OpSetlkw, sizeof(fuse_lk_in), 0, kPlain};
  t[FUSE_ACCESS] = {OpAccess, sizeof(fuse_access_in), 0, kPlain};
  t[FUSE_CREATE] = {OpCreate, sizeof(fuse_create_in) + 1, sizeof(CreateOut), kModifies | kOnce};
  t[FUSE_INTERRUPT] = {OpInterrupt, sizeof(fuse_interrupt_in), 0, kNoReply};
  t[FUSE_DESTROY] = {OpDestroy, 0, 0, kPlain};
  t[FUSE_BATCH_FORGET] = {OpBatchForget, sizeof(fuse_batch_forget_in), 0, kNoReply | kOnce};
  t[FUSE_FALLOCATE] = {OpFallocate, sizeof(fuse_fallocate_in), 0, kModifies};
  t[FUSE_READDIRPLUS] = {OpReaddirplus, sizeof(fuse_read_in), 0, kPlain};
  t[FUSE_RENAME2] = {OpRename2, sizeof(fuse_rename2_in) + kName, 0, kModifies | kOnce};
  t[FUSE_LSEEK] = {OpLseek, sizeof(fuse_lseek_in), sizeof(fuse_lseek_out), kPlain};
  t[FUSE_COPY_FILE_RANGE] = {OpCopyFileRange, sizeof(fuse_copy_file_range_in),
                             sizeof(fuse_write_out), kModifies | kOnce};
  t[FUSE_SYNCFS] = {OpSyncfs, sizeof(fuse_syncfs_in), 0, kPlain};
  t[FUSE_TMPFILE] = {OpTmpfile, sizeof(fuse_create_in), sizeof(CreateOut), kModifies | kOnce};
  t[kOpStatx] = {OpStatx, sizeof(StatxIn), sizeof(StatxOut), kPlain};
  t[kOpCopyFileRange64] = {OpCopyFileRange64, sizeof(fuse_copy_file_range_in),
                           sizeof(CopyFileRangeOut), kModifies | kOnce};
  return t;
}

constexpr std::array<Entry, kOpcodeCount> kTable = MakeTable();

// An INIT of a guest with the other byte order: virtio 1.3 5.11.6.1 lets the device find out by the
// opcode. It is told so in its own order.
bool RefuseForeign(Call& c) {
  fuse_in_header header;
  if (!c.request().Read(0, &header) ||
      header.opcode != static_cast<uint32_t>(FUSE_INIT_BSWAP_RESERVED)) {
    return false;
  }
  c.fs.WarnOnce(&c.fs.said_endian, "the guest has the other byte order, which is not served");
  const fuse_out_header out = {
      __builtin_bswap32(kOutHeader),
      static_cast<int32_t>(__builtin_bswap32(static_cast<uint32_t>(-EPROTO))), header.unique};
  sdk::Host::Add(c.fs.counters.errors);
  if (c.request().Write(0, out)) {
    c.request().Complete(kOutHeader);
  } else {
    c.request().Fail();
  }
  return true;
}

}  // namespace

void Dispatch(Fs& fs, Worker& worker, sdk::Request request) {
  Call c(fs, worker, std::move(request));
  if (RefuseForeign(c)) return;
  if (!c.Begin()) return;
  const uint32_t opcode = c.header().opcode;
  const Entry entry = opcode < kOpcodeCount ? kTable[opcode] : Entry();
  if ((entry.flags & kNoReply) != 0) {
    c.set_no_reply();
    sdk::Host::Add(fs.counters.forgets);
  } else {
    if ((entry.flags & kData) == 0) sdk::Host::Add(fs.counters.metadata);
    if (c.request().out_total() < kOutHeader) {
      sdk::Host::Add(fs.counters.malformed);
      c.request().Fail();
      return;
    }
  }
  if (entry.handler == nullptr) return c.Error(ENOSYS);
  if (!fs.ready.load(std::memory_order_acquire) && (entry.flags & kAnytime) == 0) {
    return c.Error(ENOTCONN);
  }
  if (worker.condemned) return c.Error(EIO);
  if ((entry.flags & kXattr) != 0 && !fs.options.xattr) return c.Error(ENOSYS);
  if (c.arg_bytes() < entry.min_args || c.room() < entry.min_reply) {
    sdk::Host::Add(fs.counters.malformed);
    return c.Error(EINVAL);
  }
  if ((entry.flags & kModifies) != 0 && fs.options.readonly) return c.Error(EROFS);
  if ((entry.flags & kOnce) != 0 && fs.keep != nullptr && c.Replay()) return;
  if (fs.aggregate != nullptr && fs.aggregate->Take(c, (entry.flags & kModifies) != 0)) return;
  entry.handler(c);
}

bool MayRepeat(std::span<const std::byte> in) {
  fuse_in_header header;
  if (in.size() < sizeof(header)) return false;
  std::memcpy(&header, in.data(), sizeof(header));
  const std::span<const std::byte> args = in.subspan(sizeof(header));
  switch (header.opcode) {
    case FUSE_OPEN:
    case FUSE_OPENDIR:
      return true;  // the handle that the guest has not heard of went with the other device
    case FUSE_WRITE: {
      fuse_write_in write;
      if (args.size() < sizeof(write)) return false;
      std::memcpy(&write, args.data(), sizeof(write));
      return (write.flags & O_APPEND) == 0;
    }
    case FUSE_FALLOCATE: {
      fuse_fallocate_in change;
      if (args.size() < sizeof(change)) return false;
      std::memcpy(&change, args.data(), sizeof(change));
      return (change.mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) == 0;
    }
    default:
      return header.opcode < kOpcodeCount && kTable[header.opcode].handler != nullptr &&
             (kTable[header.opcode].flags & kOnce) == 0;
  }
}

}  // namespace virtbay::virtiofs
