// What the guest asks of the root of an aggregate.
#include <dirent.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "plugins/virtiofs/aggregate.h"
#include "plugins/virtiofs/dir_writer.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

// Whatever the cache policy: a share may go at any time.
void ShortenTimeout(fuse_entry_out* entry) {
  if (entry->entry_valid < 1) return;
  entry->entry_valid = 1;
  entry->entry_valid_nsec = 0;
}

}  // namespace

bool Aggregate::Take(Call& c, bool modifies) const {
  const fuse_in_header& header = c.header();
  if (header.nodeid == InodeTable::kRootId) {
    switch (header.opcode) {
      case FUSE_LOOKUP:
        return Lookup(c), true;
      case FUSE_STATFS: {
        fuse_statfs_out out = {};
        out.st.bsize = out.st.frsize = 512;
        out.st.namelen = kNameMax;
        return c.Reply(out), true;
      }
      case FUSE_GETXATTR:
        return c.Error(ENODATA), true;
      case FUSE_LISTXATTR: {
        const auto in = c.Arg<fuse_getxattr_in>();
        if (in.size != 0) return c.Ok(), true;
        if (c.room() < sizeof(fuse_getxattr_out)) return c.Error(EINVAL), true;
        return c.Reply(fuse_getxattr_out{}), true;
      }
      default:
        if (modifies) c.Error(EROFS);
        return modifies;
    }
  }
  // Handles for writing do not exist on a read-only share; and a copy names its source here.
  if (!modifies || header.opcode == FUSE_WRITE || header.opcode == FUSE_COPY_FILE_RANGE ||
      header.opcode == kOpCopyFileRange64) {
    return false;
  }
  const InodeRef inode = c.Find(header.nodeid);
  if (!inode || !inode->share->options.readonly) return false;
  c.Error(EROFS);
  return true;
}

int Aggregate::EnterShare(Call& c, Share& share, fuse_entry_out* entry) {
  struct statx st;
  if (const int error = StatFd(share.root_fd, &st); error != 0) return error;
  const InodeRef inode = c.fs.inodes.LookupRoot(share, st);
  if (!inode) {
    c.fs.WarnOnce(&c.fs.said_inodes, "the guest knows as many inodes as max-inodes allows");
    return ENOMEM;
  }
  if (share.removed.load(std::memory_order_seq_cst)) {
    c.fs.inodes.Forget(*inode, 1);
    return ENOENT;
  }
  PresentTo(c, share, {share.root_fd}, &st);
  FillEntry(c.fs, *inode, c.fs.inodes.root(), st, entry);
  ShortenTimeout(entry);
  return 0;
}

void Aggregate::Lookup(Call& c) const {
  sdk::Host::Add(c.fs.counters.lookups);
  std::string_view name;
  if (const int error = c.Name(0, &name); error != 0) return c.Error(error);
  const ShareRef share = Find(name);
  // Its absence is not remembered, whatever the options: it may be added at any time.
  if (!share) return c.Error(ENOENT);
  fuse_entry_out entry = {};
  if (const int error = EnterShare(c, *share, &entry); error != 0) return c.Error(error);
  c.Reply(entry);
}

void Aggregate::ReadRoot(Call& c, bool plus) const {
  const auto in = c.Arg<fuse_read_in>();
  DirWriter writer(c, in.size);
  uint64_t cookie = in.offset;
  bool full = false;
  const auto put = [&](const DirEntry& entry, uint64_t ino, const fuse_entry_out* attributes) {
    writer.Put(entry, ino, attributes);
    cookie = entry.next;
  };
  for (const auto& [next, name] : {std::pair{kDot, "."}, {kDotDot, ".."}}) {
    if (cookie >= next || full) continue;
    const DirEntry entry{InodeTable::kRootId, next, DT_DIR, name};
    full = !writer.Fits(entry, plus);
    if (full) break;
    fuse_entry_out attributes = {};
    attributes.attr.ino = InodeTable::kRootId;
    attributes.attr.mode = S_IFDIR;
    put(entry, InodeTable::kRootId, plus ? &attributes : nullptr);
  }
  std::array<ShareRef, 32> some;
  for (size_t n = 0; !full && (n = Next(cookie, some)) != 0;) {
    for (size_t i = 0; i < n; ++i) {
      Share& share = *some[i];
      const DirEntry entry{0, share.cookie, DT_DIR, share.name};
      full = !writer.Fits(entry, plus);
      if (full) break;
      const uint64_t ino = share.Number(KeyOf(share.root_stat).dev, share.root_stat.stx_ino);
      fuse_entry_out attributes = {};
      const int error = plus ? EnterShare(c, share, &attributes) : 0;
      if (error == ENOENT) {
        // It went in this moment.
        cookie = share.cookie;
        continue;
      }
      if (error != 0) {
        // Named all the same, and not looked up.
        attributes = {};
        attributes.attr.ino = ino;
        attributes.attr.mode = S_IFDIR;
      }
      put(entry, ino, plus ? &attributes : nullptr);
    }
  }
  if (full && writer.used() == 0) return c.Error(EINVAL);
  c.Finish(writer.used());
}

}  // namespace virtbay::virtiofs
