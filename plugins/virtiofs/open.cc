#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "plugins/virtiofs/keep/replay.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/ownership.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

// FMODE_EXEC and O_LARGEFILE of the guest mean nothing here. O_APPEND is a matter of each WRITE:
// the guest may clear it later, and pages of a shared mapping have their own place.
constexpr int kPassedFlags = O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME;

// The guest's open flags as the host may see them, or -1.
int HostFlags(const Fs& fs, uint32_t guest) {
  int flags = static_cast<int>(guest) & kPassedFlags;
  if ((flags & O_ACCMODE) == O_ACCMODE) return -1;
  if (fs.options.allow_direct_io) flags |= static_cast<int>(guest) & O_DIRECT;
  if (fs.has(FUSE_WRITEBACK_CACHE)) {
    // The guest fills a page before it writes a part of it.
    if ((flags & O_ACCMODE) == O_WRONLY) flags = (flags & ~O_ACCMODE) | O_RDWR;
  }
  return flags;
}

bool Modifies(uint32_t guest_flags) {
  return (guest_flags & O_ACCMODE) != O_RDONLY || (guest_flags & O_TRUNC) != 0;
}

uint32_t ReplyFlags(const Fs& fs, uint32_t guest_flags, bool dir) {
  const CachePolicy cache = fs.options.cache;
  uint32_t flags = 0;
  if (dir) {
    if (cache == CachePolicy::kAlways || cache == CachePolicy::kMetadata) {
      flags |= FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE;
    }
    return flags;
  }
  if (cache == CachePolicy::kAlways) flags |= FOPEN_KEEP_CACHE;
  if ((cache == CachePolicy::kNever || cache == CachePolicy::kMetadata) &&
      fs.has(kInitDirectIoAllowMmap)) {
    // Otherwise the guest could not map the file shared; its page cache is then checked by GETATTR
    // on every access.
    flags |= FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
  }
  // FLUSH is what releases a process's POSIX locks, on descriptors for reading as well.
  if ((guest_flags & O_ACCMODE) == O_RDONLY && !fs.has(FUSE_POSIX_LOCKS)) flags |= FOPEN_NOFLUSH;
  return flags;
}

// Makes the handle, and fills the answer. 0 or errno; the descriptor is closed on error.
int MakeHandle(Call& c, InodeRef inode, int fd, int flags, uint32_t guest_flags,
               fuse_open_out* out) {
  Fs& fs = c.fs;
  const bool dir = inode->is_dir();
  const bool root = inode->share->aggregate != nullptr;
  HandleTraits traits;
  traits.fd = fd;
  traits.readable = (flags & O_ACCMODE) != O_WRONLY;
  traits.writable = (flags & O_ACCMODE) != O_RDONLY;
  traits.direct = (flags & O_DIRECT) != 0 && !dir;
  traits.no_nowait = inode->share->no_nowait_writes.load(std::memory_order_relaxed);
  const HandleRef handle = fs.handles.Open(&inode, traits);
  if (!handle) {
    fs.budget.Close(fd, false);
    fs.WarnOnce(&fs.said_files, "the guest has as many files open as the limit allows");
    return ENFILE;
  }
  if (fs.keep != nullptr) {
    c.IntendHandle(handle->fh());
    fs.keep->Opened(handle->index, handle->fh(), handle->nodeid, flags);
  }
  *out = {};
  out->fh = handle->fh();
  // The names of an aggregate's root change without the guest.
  out->open_flags = root ? 0 : ReplyFlags(fs, guest_flags, dir);
  return 0;
}

// Opens an inode that the guest knows. 0 or errno.
int OpenInode(Call& c, InodeRef inode, uint32_t guest_flags, bool dir, bool kill,
              fuse_open_out* out) {
  Fs& fs = c.fs;
  if (inode->share->options.readonly && Modifies(guest_flags)) return EROFS;
  int flags = HostFlags(fs, guest_flags);
  if (flags < 0) return EINVAL;
  if (dir) {
    if (Modifies(guest_flags)) return EISDIR;
    flags = O_RDONLY | O_DIRECTORY;
  }
  int fd = -1;
  {
    const WithoutFsetid guard(fs, c.worker, kill && (flags & O_TRUNC) != 0);
    fd = fs.OpenForIo(*inode, flags);
    if (fd == -EPERM && (guest_flags & O_APPEND) != 0) {
      // A file that can only be appended to (chattr +a).
      flags |= O_APPEND;
      fd = fs.OpenForIo(*inode, flags);
    }
    if (fd == -EPERM && (flags & O_NOATIME) != 0) {
      // Only the owner may ask for that, and the owner is somebody else here.
      flags &= ~O_NOATIME;
      fd = fs.OpenForIo(*inode, flags);
    }
    if (fd == -EACCES && (guest_flags & O_ACCMODE) == O_WRONLY && (flags & O_ACCMODE) == O_RDWR) {
      flags = (flags & ~O_ACCMODE) | O_WRONLY;
      fd = fs.OpenForIo(*inode, flags);
    }
  }
  if (c.worker.condemned) {
    if (fd >= 0) fs.budget.Close(fd, false);
    return EIO;
  }
  if (fd == -ENFILE) {
    fs.WarnOnce(&fs.said_files, "the guest has as many files open as the limit allows");
  }
  if (fd < 0) return -fd;
  if (kill && (flags & O_TRUNC) != 0 && Stamps(*inode->share)) DropPrivilegeBits(c, *inode, fd);
  return MakeHandle(c, std::move(inode), fd, flags, guest_flags, out);
}

void Open(Call& c, bool dir) {
  const auto in = c.Arg<fuse_open_in>();
  InodeRef inode = c.Target();
  if (!inode) return;
  fuse_open_out out;
  const bool kill = (in.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0;
  const int error = OpenInode(c, std::move(inode), in.flags, dir, kill, &out);
  if (error != 0) return c.Error(error);
  c.Reply(out);
}

// The name was there already: opens what it leads to, if that is a file.
int OpenExisting(Call& c, Inode& parent, int parent_fd, std::string_view name,
                 const fuse_create_in& in, CreateOut* out) {
  if (const int error = MakeEntry(c, parent, parent_fd, name, &out->entry); error != 0) {
    return error;
  }
  InodeRef inode = c.Find(out->entry.nodeid);
  const bool kill = (in.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0;
  int error = inode ? 0 : ESTALE;
  if (error == 0 && !inode->is_regular()) error = inode->is_dir() ? EISDIR : ELOOP;
  struct statx st;
  if (error == 0) {
    error = OpenInode(c, c.fs.inodes.Ref(*inode), in.flags, false, kill, &out->open);
    if (error == 0 && (in.flags & O_TRUNC) != 0 && StatPresented(c, *inode, &st) == 0) {
      FillAttr(st, &out->entry.attr);
    }
  }
  // The guest does not hear of the lookup when the open fails.
  if (error != 0) c.fs.inodes.Forget(out->entry.nodeid, 1);
  return error;
}

// The process's umask is the embedder's; where the thread cannot have its own, undo it.
void UndoUmask(const Call& c, int fd, mode_t mode) {
  if (c.worker.identity.own_umask() || c.fs.has(FUSE_POSIX_ACL)) return;
  if (::fchmod(fd, mode) != 0) {
    c.fs.host->Log(VIRTBAY_LOG_DEBUG, "cannot undo the umask: errno %d", errno);
  }
}

void ReplyCreated(Call& c, InodeRef inode, const CreateOut& out, int error) {
  if (error != 0) {
    if (inode) c.fs.inodes.Forget(*inode, 1);
    return c.Error(error);
  }
  c.Reply(out);
}

void Release(Call& c) {
  const auto in = c.Arg<fuse_release_in>();
  HandleRef handle = c.fs.handles.Find(in.fh, c.header().nodeid);
  // Closed by the process before, which had not come to say so.
  if (!handle) return c.Error(c.repeated() ? 0 : EBADF);
  Fs& fs = c.fs;
  InodeRef inode = fs.inodes.Ref(*handle->inode);
  // At once, not when the last reference goes: an operation under way may keep the handle.
  if (handle->flocked.load(std::memory_order_relaxed)) ::flock(handle->fd, LOCK_UN);
  if ((in.release_flags & FUSE_RELEASE_FLUSH) != 0) {
    fs.lock_owners.Drop(fs, *inode, in.lock_owner);
  }
  fs.lock_owners.DropOf(fs, *inode, handle->fh());
  fs.handles.Release(*handle);
  // Closed before the answer: the guest may count on it. The inode as well, which may be the last
  // of a share that is gone, and keep its file system from being unmounted.
  handle.Reset();
  if (fs.lock_waiters.Poke(*inode, c.worker.queue)) c.worker.retry_parked = true;
  inode.Reset();
  c.Ok();
}

}  // namespace

void OpOpen(Call& c) { Open(c, false); }
void OpOpendir(Call& c) { Open(c, true); }

void OpCreate(Call& c) {
  const auto in = c.Arg<fuse_create_in>();
  std::string_view name;
  if (const int error = c.Name(sizeof(in), &name); error != 0) return c.Error(error);
  Fs& fs = c.fs;
  const InodeRef parent = c.Target();
  if (!parent) return;
  int flags = HostFlags(fs, in.flags);
  if (flags < 0) return c.Error(EINVAL);
  int error = 0;
  const PathFd parent_fd = fs.PathOf(*parent, &error);
  if (!parent_fd) return c.Error(error);

  // Exclusive at first, whatever the guest asked: what is made here is a new regular file for
  // sure, and needs no further check.
  flags &= ~(O_TRUNC | O_NOATIME);
  const mode_t wanted = AsCaller::ModeFor(c, in.mode, in.umask);
  const bool stamps = Stamps(*parent->share);
  const mode_t mode = stamps ? StampedMode(S_IFREG) & 07777 : wanted;
  keep::BeginName(c, parent_fd.fd(), name, S_IFREG);
  std::array<char, 256> space;
  const std::string_view there = RealName(c, *parent, parent_fd.fd(), name, &space);
  int fd = -1;
  if (there != name) {
    error = EEXIST;
    name = there;
  } else {
    AsCaller caller;
    error = caller.Enter(c, *parent->share, in.umask);
    if (error == 0) {
      fd = fs.OpenCounted(FdKind::kFile, [&] {
        return OpenBeneath(parent_fd.fd(), name.data(), flags | O_CREAT | O_EXCL, mode);
      });
      if (fd < 0) error = -fd;
    }
    if (!caller.Leave(c)) error = EIO;
  }
  CreateOut out = {};
  if (error == EEXIST && (in.flags & O_EXCL) == 0) {
    error = OpenExisting(c, *parent, parent_fd.fd(), name, in, &out);
    if (error != 0) return c.Error(error);
    return c.Reply(out);
  }
  if (error != 0) {
    if (fd >= 0) fs.budget.Close(fd, false);
    return c.Error(error);
  }
  UndoUmask(c, fd, mode);
  if (stamps) {
    error = StampNew(c, *parent, parent_fd.fd(), {fd}, S_IFREG | wanted, 0);
    if (error != 0) ::unlinkat(parent_fd.fd(), name.data(), 0);
  }
  struct statx st;
  if (error == 0) error = StatFd(fd, &st);
  InodeRef inode;
  if (error == 0) {
    inode = EnterInode(c, *parent, {fd}, name, st, &out.entry);
    if (!inode) error = ENOMEM;
  }
  if (error != 0) {
    fs.budget.Close(fd, false);
    return c.Error(error);
  }
  error = MakeHandle(c, fs.inodes.Ref(*inode), fd, flags, in.flags, &out.open);
  ReplyCreated(c, std::move(inode), out, error);
}

// The name of a TMPFILE request means nothing.
void OpTmpfile(Call& c) {
  const auto in = c.Arg<fuse_create_in>();
  Fs& fs = c.fs;
  const InodeRef parent = c.Target();
  if (!parent) return;
  int flags = HostFlags(fs, in.flags);
  if (flags < 0 || (flags & O_ACCMODE) == O_RDONLY) return c.Error(EINVAL);
  // O_EXCL keeps the guest from giving the file a name later.
  flags = (flags & ~(O_TRUNC | O_NOATIME)) | O_TMPFILE | (static_cast<int>(in.flags) & O_EXCL);
  int error = 0;
  const PathFd parent_fd = fs.PathOf(*parent, &error);
  if (!parent_fd) return c.Error(error);
  const mode_t wanted = AsCaller::ModeFor(c, in.mode, in.umask);
  const bool stamps = Stamps(*parent->share);
  const mode_t mode = stamps ? StampedMode(S_IFREG) & 07777 : wanted;
  int fd = -1;
  {
    AsCaller caller;
    error = caller.Enter(c, *parent->share, in.umask);
    if (error == 0) {
      fd = fs.OpenCounted(FdKind::kFile,
                          [&] { return OpenBeneath(parent_fd.fd(), ".", flags, mode); });
      if (fd < 0) error = -fd;
    }
    if (!caller.Leave(c)) error = EIO;
  }
  struct statx st;
  if (error == 0) UndoUmask(c, fd, mode);
  if (error == 0 && stamps) {
    error = StampNew(c, *parent, parent_fd.fd(), {fd}, S_IFREG | wanted, 0);
  }
  if (error == 0) error = StatFd(fd, &st);
  InodeRef inode;
  if (error == 0) {
    inode = fs.inodes.Lookup(*parent->share, st);
    if (inode) c.IntendLookup(inode->nodeid());
    if (!inode) error = ENOMEM;
  }
  if (error != 0) {
    if (fd >= 0) fs.budget.Close(fd, false);
    return c.Error(error);
  }
  // No name leads to it: its descriptors are the only way.
  inode->keep_fd.store(true, std::memory_order_relaxed);
  PresentTo(c, *inode->share, {fd}, &st);
  CreateOut out = {};
  FillEntry(fs, *inode, *parent, st, &out.entry);
  error = MakeHandle(c, fs.inodes.Ref(*inode), fd, flags & ~O_TMPFILE, in.flags, &out.open);
  ReplyCreated(c, std::move(inode), out, error);
}

void OpRelease(Call& c) { Release(c); }
void OpReleasedir(Call& c) { Release(c); }

void OpFlush(Call& c) {
  const auto in = c.Arg<fuse_flush_in>();
  Fs& fs = c.fs;
  const HandleRef handle = fs.handles.Find(in.fh, c.header().nodeid);
  if (!handle) return c.Error(EBADF);
  int error = 0;
  const Share& share = *handle->share;
  if (handle->writable && (share.remote_fs || handle->inode->key.mnt_id != share.root_mnt_id)) {
    // close(2) of a duplicate is what makes such a file system write back and report.
    const int copy = fs.OpenCounted(FdKind::kShort, [&] {
      const int fd = ::fcntl(handle->fd, F_DUPFD_CLOEXEC, 0);
      return fd < 0 ? -errno : fd;
    });
    if (copy >= 0) {
      if (::close(copy) != 0) error = errno;
      fs.budget.Unreserve(false);
    }
  }
  if (fs.lock_owners.Drop(fs, *handle->inode, in.lock_owner) &&
      fs.lock_waiters.Poke(*handle->inode, c.worker.queue)) {
    c.worker.retry_parked = true;
  }
  c.Error(error);
}

}  // namespace virtbay::virtiofs
