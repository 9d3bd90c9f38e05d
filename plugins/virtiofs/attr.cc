#include <fcntl.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>

#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/ownership.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/view.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;

// The handle that a request names if the guest says that it does, else the inode.
struct AttrTarget {
  HandleRef handle;
  InodeRef inode;
  const Share& share() const { return handle ? *handle->share : *inode->share; }
};

int Resolve(Call& c, bool use_handle, uint64_t fh, AttrTarget* target) {
  if (use_handle) {
    target->handle = c.fs.handles.Find(fh, c.header().nodeid);
    return target->handle ? 0 : EBADF;
  }
  target->inode = c.Find(c.header().nodeid);
  return target->inode ? 0 : ESTALE;
}

int StatTarget(Call& c, const AttrTarget& target, struct statx* st, uint32_t mask = 0,
               int sync_flags = 0) {
  if (!target.handle) return StatPresented(c, *target.inode, st, mask, sync_flags);
  const Handle& handle = *target.handle;
  const int error = StatFd(handle.fd, st, kStatMask | mask, sync_flags);
  if (error == 0) PresentTo(c, *handle.share, {handle.fd}, st);
  return error;
}

// The root of an aggregate changes without the guest, whatever the policy.
uint64_t Timeout(const Call& c, const Share& share) {
  const uint64_t policy = c.fs.options.attr_timeout_ns;
  return share.aggregate == nullptr ? policy : std::min(policy, kSecond);
}

void ReplyAttr(Call& c, const Share& share, const struct statx& st) {
  const uint64_t timeout = Timeout(c, share);
  fuse_attr_out out = {};
  out.attr_valid = timeout / kSecond;
  out.attr_valid_nsec = static_cast<uint32_t>(timeout % kSecond);
  FillAttr(st, &out.attr);
  c.Reply(out);
}

int SetSize(Call& c, const FdUse& use, const Inode& inode, uint64_t size, bool kill) {
  if (size > INT64_MAX) return EFBIG;
  if (!inode.is_regular()) return inode.is_dir() ? EISDIR : EINVAL;
  const WithoutFsetid guard(c.fs, c.worker, kill);
  if (use.handle && use.handle->writable) {
    return ::ftruncate(use.handle->fd, static_cast<off_t>(size)) == 0 ? 0 : errno;
  }
  const int fd = c.fs.OpenCounted(FdKind::kShort, [&] {
    return Reopen(c.fs.proc_fd, use.fd(), O_WRONLY | O_NONBLOCK | O_NOCTTY);
  });
  if (fd < 0) return -fd;
  const int result = ::ftruncate(fd, static_cast<off_t>(size)) == 0 ? 0 : errno;
  c.fs.budget.Close(fd, false);
  return result;
}

int SetTimes(const fuse_setattr_in& in, int fd) {
  auto one = [](bool set, bool now, uint64_t seconds, uint32_t nanoseconds) {
    struct timespec t = {0, UTIME_OMIT};
    if (now) t.tv_nsec = UTIME_NOW;
    if (set && !now) t = {static_cast<time_t>(seconds), static_cast<long>(nanoseconds)};
    return t;
  };
  if (in.atimensec >= kSecond || in.mtimensec >= kSecond) return EINVAL;
  const struct timespec times[2] = {
      one((in.valid & FATTR_ATIME) != 0, (in.valid & FATTR_ATIME_NOW) != 0, in.atime, in.atimensec),
      one((in.valid & FATTR_MTIME) != 0, (in.valid & FATTR_MTIME_NOW) != 0, in.mtime,
          in.mtimensec)};
  return ::utimensat(fd, "", times, AT_EMPTY_PATH) == 0 ? 0 : errno;
}

int Apply(Call& c, fuse_setattr_in in, const Inode& inode, const FdUse& use) {
  const int fd = use.fd();
  constexpr uint32_t kOwnership = FATTR_MODE | FATTR_UID | FATTR_GID;
  if ((in.valid & kOwnership) != 0 && !inode.share->plain) {
    if (const int error = ChangeOwnership(c, inode, fd, &in); error != 0) return error;
  }
  if ((in.valid & FATTR_MODE) != 0) {
    const mode_t mode = in.mode & 07777;
    if (inode.is_symlink()) return EOPNOTSUPP;
    const int result =
        use.handle ? ::fchmod(fd, mode) : ::fchmodat(c.fs.proc_fd, FdName(fd).c_str(), mode, 0);
    if (result != 0) return errno;
  }
  if ((in.valid & (FATTR_UID | FATTR_GID)) != 0) {
    const uid_t uid = (in.valid & FATTR_UID) != 0 ? in.uid : static_cast<uid_t>(-1);
    const gid_t gid = (in.valid & FATTR_GID) != 0 ? in.gid : static_cast<gid_t>(-1);
    if (::fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return errno;
  }
  if ((in.valid & FATTR_SIZE) != 0) {
    const bool kill = (in.valid & FATTR_KILL_SUIDGID) != 0;
    if (const int error = SetSize(c, use, inode, in.size, kill); error != 0) return error;
    if (kill && Stamps(*inode.share)) DropPrivilegeBits(c, inode, fd);
  }
  if ((in.valid & (FATTR_ATIME | FATTR_MTIME | FATTR_ATIME_NOW | FATTR_MTIME_NOW)) != 0) {
    return SetTimes(in, fd);
  }
  return 0;
}

}  // namespace

void PresentTo(Call& c, const Share& share, const FileAt& file, struct statx* st) {
  if (share.plain) return;
  Present(c.worker.identity, share, file, st);
  if (share.garbled.load(std::memory_order_relaxed)) {
    c.fs.WarnOnce(&share.said_garbled,
                  "a file carries metadata that is not of the right form, and is shown without");
  }
}

int StatPresented(Call& c, Inode& inode, struct statx* st, uint32_t extra_mask, int sync_flags) {
  if (!inode.share->looks) {
    const int error = c.fs.Stat(inode, st, extra_mask, sync_flags);
    if (error == 0) PresentTo(c, *inode.share, {}, st);
    return error;
  }
  FdUse use;
  int error = c.fs.AnyFd(inode, &use);
  if (error == 0) error = StatFd(use.fd(), st, kStatMask | extra_mask, sync_flags);
  if (error == 0) PresentTo(c, *inode.share, {use.fd()}, st);
  return error;
}

void FillAttr(const struct statx& st, fuse_attr* attr) {
  *attr = {};
  attr->ino = st.stx_ino;
  attr->size = st.stx_size;
  attr->blocks = st.stx_blocks;
  attr->atime = static_cast<uint64_t>(st.stx_atime.tv_sec);
  attr->mtime = static_cast<uint64_t>(st.stx_mtime.tv_sec);
  attr->ctime = static_cast<uint64_t>(st.stx_ctime.tv_sec);
  attr->atimensec = st.stx_atime.tv_nsec;
  attr->mtimensec = st.stx_mtime.tv_nsec;
  attr->ctimensec = st.stx_ctime.tv_nsec;
  attr->mode = st.stx_mode;
  attr->nlink = st.stx_nlink;
  attr->uid = st.stx_uid;
  attr->gid = st.stx_gid;
  attr->rdev = EncodeDev(st.stx_rdev_major, st.stx_rdev_minor);
  attr->blksize = st.stx_blksize;
}

void FillEntry(const Fs& fs, const Inode& inode, const Inode& parent, const struct statx& st,
               fuse_entry_out* entry) {
  const Options& o = fs.options;
  entry->nodeid = inode.nodeid();
  // A nodeid is never given to another inode, so it needs no generation beside it.
  entry->generation = 0;
  entry->entry_valid = o.entry_timeout_ns / kSecond;
  entry->entry_valid_nsec = static_cast<uint32_t>(o.entry_timeout_ns % kSecond);
  entry->attr_valid = o.attr_timeout_ns / kSecond;
  entry->attr_valid_nsec = static_cast<uint32_t>(o.attr_timeout_ns % kSecond);
  FillAttr(st, &entry->attr);
  if (inode.is_dir() && fs.has(FUSE_SUBMOUNTS) &&
      (inode.key.mnt_id != parent.key.mnt_id || inode.key.dev != parent.key.dev) &&
      // The shares of an aggregate are one file system to the guest: it could not unmount the
      // whole while one of them is a mount of its own.
      inode.share == parent.share) {
    entry->attr.flags |= FUSE_ATTR_SUBMOUNT;
  }
}

void OpGetattr(Call& c) {
  const auto in = c.Arg<fuse_getattr_in>();
  AttrTarget target;
  struct statx st;
  int error = Resolve(c, (in.getattr_flags & FUSE_GETATTR_FH) != 0, in.fh, &target);
  if (error == 0) error = StatTarget(c, target, &st);
  if (error != 0) return c.Error(error);
  ReplyAttr(c, target.share(), st);
}

void OpSetattr(Call& c) {
  const auto in = c.Arg<fuse_setattr_in>();
  const InodeRef inode = c.Target();
  if (!inode) return;
  FdUse use;
  if ((in.valid & FATTR_FH) != 0) {
    use.handle = c.fs.handles.Find(in.fh, c.header().nodeid);
    if (!use.handle) return c.Error(EBADF);
  } else if (const int error = c.fs.AnyFd(*inode, &use); error != 0) {
    return c.Error(error);
  }
  struct statx st;
  int error = Apply(c, in, *inode, use);
  if (c.worker.condemned) return c.Error(EIO);
  if (error == 0) error = StatFd(use.fd(), &st);
  if (error != 0) return c.Error(error);
  PresentTo(c, *inode->share, {use.fd()}, &st);
  ReplyAttr(c, *inode->share, st);
}

void OpStatx(Call& c) {
  const auto in = c.Arg<StatxIn>();
  AttrTarget target;
  struct statx st;
  const int sync = static_cast<int>(in.sx_flags & AT_STATX_SYNC_TYPE);
  const uint32_t mask = in.sx_mask & static_cast<uint32_t>(STATX_BASIC_STATS | STATX_BTIME);
  int error = Resolve(c, (in.getattr_flags & FUSE_GETATTR_FH) != 0, in.fh, &target);
  if (error == 0) error = StatTarget(c, target, &st, mask, sync);
  if (error != 0) return c.Error(error);
  auto time = [](const struct statx_timestamp& t) { return SxTime{t.tv_sec, t.tv_nsec, 0}; };
  StatxOut out = {};
  const uint64_t timeout = Timeout(c, target.share());
  out.attr_valid = timeout / kSecond;
  out.attr_valid_nsec = static_cast<uint32_t>(timeout % kSecond);
  FuseStatx& s = out.stat;
  s.mask = st.stx_mask & static_cast<uint32_t>(STATX_BASIC_STATS | STATX_BTIME);
  s.blksize = st.stx_blksize;
  s.attributes = st.stx_attributes;
  s.nlink = st.stx_nlink;
  s.uid = st.stx_uid;
  s.gid = st.stx_gid;
  s.mode = st.stx_mode;
  s.ino = st.stx_ino;
  s.size = st.stx_size;
  s.blocks = st.stx_blocks;
  s.attributes_mask = st.stx_attributes_mask;
  s.atime = time(st.stx_atime);
  s.btime = time(st.stx_btime);
  s.ctime = time(st.stx_ctime);
  s.mtime = time(st.stx_mtime);
  s.rdev_major = st.stx_rdev_major;
  s.rdev_minor = st.stx_rdev_minor;
  s.dev_major = st.stx_dev_major;
  s.dev_minor = st.stx_dev_minor;
  c.Reply(out);
}

// The guest mounts with default_permissions and asks only for what it cannot see itself; mode bits
// are what can be told for a user of the guest.
void OpAccess(Call& c) {
  const uint32_t mask = c.Arg<fuse_access_in>().mask;
  const InodeRef inode = c.Target();
  if (!inode) return;
  if ((mask & ~static_cast<uint32_t>(R_OK | W_OK | X_OK)) != 0) return c.Error(EINVAL);
  struct statx st;
  if (const int error = StatPresented(c, *inode, &st); error != 0) {
    return c.Error(error);
  }
  if ((mask & W_OK) != 0 && inode->share->options.readonly) return c.Error(EROFS);
  const fuse_in_header& h = c.header();
  uint32_t granted = st.stx_mode & 7u;
  if (h.uid == st.stx_uid) {
    granted = (st.stx_mode >> 6) & 7u;
  } else if (h.gid == st.stx_gid) {
    granted = (st.stx_mode >> 3) & 7u;
  }
  if (h.uid == 0) {
    granted = R_OK | W_OK;
    if (inode->is_dir() || (st.stx_mode & 0111) != 0) granted |= X_OK;
  }
  c.Error((mask & ~granted) != 0 ? EACCES : 0);
}

void OpStatfs(Call& c) {
  const InodeRef inode = c.Target();
  if (!inode) return;
  struct statfs info = {};
  int error = 0;
  const Share& share = *inode->share;
  if (inode->key.mnt_id == share.root_mnt_id) {
    error = ::fstatfs(share.root_fd, &info) == 0 ? 0 : errno;
  } else {
    FdUse use;
    error = c.fs.AnyFd(*inode, &use);
    if (error == 0) error = ::fstatfs(use.fd(), &info) == 0 ? 0 : errno;
  }
  if (error != 0) return c.Error(error);
  fuse_statfs_out out = {};
  out.st.blocks = info.f_blocks;
  out.st.bfree = info.f_bfree;
  out.st.bavail = info.f_bavail;
  out.st.files = info.f_files;
  out.st.ffree = info.f_ffree;
  out.st.bsize = static_cast<uint32_t>(info.f_bsize);
  out.st.namelen = static_cast<uint32_t>(info.f_namelen);
  out.st.frsize = static_cast<uint32_t>(info.f_frsize != 0 ? info.f_frsize : info.f_bsize);
  c.Reply(out);
}

}  // namespace virtbay::virtiofs
