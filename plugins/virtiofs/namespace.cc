#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>

#include "plugins/virtiofs/keep/replay.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/ownership.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/view.h"

namespace virtbay::virtiofs {
namespace {

// The directory that a request works in.
struct Dir {
  InodeRef inode;
  PathFd fd;
};

int OpenDir(Call& c, uint64_t nodeid, Dir* dir) {
  dir->inode = c.Find(nodeid);
  if (!dir->inode) return ESTALE;
  if (!dir->inode->is_dir()) return ENOTDIR;
  int error = 0;
  dir->fd = c.fs.PathOf(*dir->inode, &error);
  return dir->fd ? 0 : error;
}

// What is to be made.
struct NewEntry {
  std::string_view name;
  mode_t mode = 0;  // with the type
  uint32_t umask = 0;
  uint32_t rdev = 0;
};

// A name of another spelling is there (case=off).
bool Exists(Call& c, const Dir& dir, std::string_view name) {
  std::array<char, 256> space;
  return dir.inode->share->folder != nullptr &&
         RealName(c, *dir.inode, dir.fd.fd(), name, &space) != name;
}

// What all create-type operations have around their system call `make(dirfd, name, mode)`.
template <typename Make>
void CreateEntry(Call& c, const NewEntry& made, Make&& make) {
  const std::string_view name = made.name;
  Dir dir;
  if (const int error = OpenDir(c, c.header().nodeid, &dir); error != 0) return c.Error(error);
  const Share& share = *dir.inode->share;
  const bool link = S_ISLNK(made.mode);
  keep::BeginName(c, dir.fd.fd(), name,
                  Stamps(share) && !link ? StampedMode(made.mode) : made.mode);
  if (Exists(c, dir, name)) return c.Error(EEXIST);
  const bool stamps = Stamps(share) && !link;
  const mode_t mode = stamps ? StampedMode(made.mode) : made.mode;
  int error = 0;
  {
    AsCaller caller;
    error = caller.Enter(c, share, made.umask);
    if (error == 0 && make(dir.fd.fd(), name.data(), mode) != 0) error = errno;
    if (!caller.Leave(c)) error = EIO;
  }
  if (error != 0) return c.Error(error);
  // The process's umask is the embedder's; where the thread cannot have its own, undo it.
  if (!link && !c.worker.identity.own_umask() && !c.fs.has(FUSE_POSIX_ACL) &&
      ::fchmodat(dir.fd.fd(), name.data(), mode & 07777, 0) != 0) {
    c.fs.host->Log(VIRTBAY_LOG_DEBUG, "cannot undo the umask: errno %d", errno);
  }
  if (stamps) {
    error = StampNew(c, *dir.inode, dir.fd.fd(), {dir.fd.fd(), name.data()}, made.mode, made.rdev);
    if (error != 0) {
      ::unlinkat(dir.fd.fd(), name.data(), S_ISDIR(mode) ? AT_REMOVEDIR : 0);
      return c.Error(error);
    }
  }
  fuse_entry_out entry = {};
  error = MakeEntry(c, *dir.inode, dir.fd.fd(), name, &entry);
  if (error != 0) return c.Error(error);
  c.Reply(entry);
}

void Remove(Call& c, int flags) {
  std::string_view name;
  if (const int error = c.Name(0, &name); error != 0) return c.Error(error);
  Dir dir;
  if (const int error = OpenDir(c, c.header().nodeid, &dir); error != 0) return c.Error(error);
  std::array<char, 256> space;
  name = RealName(c, *dir.inode, dir.fd.fd(), name, &space);
  const InodeRef victim = c.fs.inodes.FindByName(*dir.inode, name);
  FdUse pin;
  if (victim) {
    c.fs.PinBeforeLoss(*victim, &pin);
    if (c.fs.keep != nullptr) c.fs.keep->MayLose(*victim);
  }
  if (keep::BeginRemoval(c, dir.fd.fd(), name)) return c.Ok();
  if (::unlinkat(dir.fd.fd(), name.data(), flags) != 0) return c.Error(errno);
  if (victim) c.fs.inodes.ClearName(*victim, *dir.inode, name);
  c.Ok();
}

void Rename(Call& c, uint32_t fixed, uint64_t new_parent, uint32_t flags) {
  constexpr uint32_t kKnown = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
  if ((flags & ~kKnown) != 0) return c.Error(EINVAL);
  std::string_view from_name, to_name;
  int error = c.TwoTexts(fixed, true, &from_name, &to_name);
  if (error != 0) return c.Error(error);
  Dir from, to;
  error = OpenDir(c, c.header().nodeid, &from);
  if (error == 0) error = OpenDir(c, new_parent, &to);
  if (error == 0 && to.inode->share != from.inode->share) {
    error = to.inode->share->aggregate != nullptr ? EROFS : EXDEV;
  }
  if (error != 0) return c.Error(error);

  std::array<char, 256> from_space, to_space;
  from_name = RealName(c, *from.inode, from.fd.fd(), from_name, &from_space);
  const std::string_view there = RealName(c, *to.inode, to.fd.fd(), to_name, &to_space);
  // A new spelling of the same name is not another file in its way.
  if (from.inode.get() != to.inode.get() || there != from_name) to_name = there;

  InodeTable& inodes = c.fs.inodes;
  const InodeRef moved = inodes.FindByName(*from.inode, from_name);
  const InodeRef target = inodes.FindByName(*to.inode, to_name);
  const bool replaces = target && target.get() != moved.get();
  FdUse pin;
  if (replaces && (flags & (RENAME_EXCHANGE | RENAME_NOREPLACE)) == 0) {
    c.fs.PinBeforeLoss(*target, &pin);
    if (c.fs.keep != nullptr) c.fs.keep->MayLose(*target);
  }
  if (moved) inodes.ExpectName(*moved, *to.inode, to_name);
  if ((flags & RENAME_EXCHANGE) != 0 && replaces) {
    inodes.ExpectName(*target, *from.inode, from_name);
  }
  if (keep::BeginRename(c, from.fd.fd(), from_name, to.fd.fd(), to_name,
                        (flags & RENAME_EXCHANGE) != 0)) {
    return c.Ok();
  }
  const int64_t result =
      flags == 0 ? ::renameat(from.fd.fd(), from_name.data(), to.fd.fd(), to_name.data())
                 : ::syscall(SYS_renameat2, from.fd.fd(), from_name.data(), to.fd.fd(),
                             to_name.data(), flags);
  if (result != 0) return c.Error(errno);
  if ((flags & RENAME_EXCHANGE) != 0) {
    if (replaces) inodes.SetName(*target, *from.inode, from_name);
  } else if (replaces) {
    inodes.ClearName(*target, *to.inode, to_name);
  }
  if (moved) inodes.SetName(*moved, *to.inode, to_name);
  c.Ok();
}

// A hard link to an inode without a descriptor, by its name. ESTALE: the name does not lead to it.
int LinkByName(Call& c, Inode& inode, const Dir& dir, std::string_view name,
               fuse_entry_out* entry) {
  std::array<char, 256> old_name;
  const InodeRef parent = c.fs.inodes.CopyName(inode, &old_name);
  if (!parent) return ESTALE;
  int error = 0;
  const PathFd parent_fd = c.fs.PathOf(*parent, &error);
  if (!parent_fd) return error;
  if (::linkat(parent_fd.fd(), old_name.data(), dir.fd.fd(), name.data(), 0) != 0) {
    return errno == ENOENT ? ESTALE : errno;
  }
  struct statx st;
  error = StatAt(dir.fd.fd(), name.data(), &st);
  if (error == 0 && !inode.Matches(st)) {
    // The host has put another file there in between; this link to it is ours to undo.
    ::unlinkat(dir.fd.fd(), name.data(), 0);
    error = ESTALE;
  }
  if (error != 0) return error;
  return EnterInode(c, *dir.inode, {dir.fd.fd(), name.data()}, name, st, entry) ? 0 : ENOMEM;
}

}  // namespace

void OpMknod(Call& c) {
  const auto in = c.Arg<fuse_mknod_in>();
  std::string_view name;
  if (const int error = c.Name(sizeof(in), &name); error != 0) return c.Error(error);
  const mode_t type = in.mode & S_IFMT;
  if (type != 0 && type != S_IFREG && type != S_IFCHR && type != S_IFBLK && type != S_IFIFO &&
      type != S_IFSOCK) {
    return c.Error(EINVAL);
  }
  const mode_t wanted = (type == 0 ? S_IFREG : type) | AsCaller::ModeFor(c, in.mode, in.umask);
  const dev_t dev = ::makedev(DecodeMajor(in.rdev), DecodeMinor(in.rdev));
  CreateEntry(c, {name, wanted, in.umask, in.rdev}, [&](int dirfd, const char* at, mode_t mode) {
    return ::mknodat(dirfd, at, mode, S_ISREG(mode) ? 0 : dev);
  });
}

void OpMkdir(Call& c) {
  const auto in = c.Arg<fuse_mkdir_in>();
  std::string_view name;
  if (const int error = c.Name(sizeof(in), &name); error != 0) return c.Error(error);
  const mode_t wanted = S_IFDIR | AsCaller::ModeFor(c, in.mode, in.umask);
  CreateEntry(c, {name, wanted, in.umask}, [&](int dirfd, const char* at, mode_t mode) {
    return ::mkdirat(dirfd, at, mode & 07777);
  });
}

void OpSymlink(Call& c) {
  std::string_view name, target;
  if (const int error = c.TwoTexts(0, false, &name, &target); error != 0) return c.Error(error);
  if (target.empty()) return c.Error(ENOENT);
  std::array<char, PATH_MAX> host_target;
  const char* points_to = target.data();
  const InodeRef parent = c.Find(c.header().nodeid);
  if (parent && !parent->share->plain) {
    if (!LinkToHost(*parent->share, points_to, host_target.data(), host_target.size())) {
      return c.Error(ENAMETOOLONG);
    }
    points_to = host_target.data();
  }
  CreateEntry(c, {name, S_IFLNK | 0777}, [&](int dirfd, const char* at, mode_t /*mode*/) {
    return ::symlinkat(points_to, dirfd, at);
  });
}

void OpLink(Call& c) {
  const auto in = c.Arg<fuse_link_in>();
  std::string_view name;
  if (const int error = c.Name(sizeof(in), &name); error != 0) return c.Error(error);
  const InodeRef inode = c.Find(in.oldnodeid);
  if (!inode) return c.Error(ESTALE);
  if (inode->is_dir()) return c.Error(EPERM);
  Dir dir;
  int error = OpenDir(c, c.header().nodeid, &dir);
  if (error != 0) return c.Error(error);
  if (inode->share != dir.inode->share) return c.Error(EXDEV);
  const bool linked = keep::BeginName(c, dir.fd.fd(), name, 0, inode.get());
  if (!linked && Exists(c, dir, name)) return c.Error(EEXIST);
  fuse_entry_out entry = {};
  error = ESTALE;
  if (linked) {
    error = MakeEntry(c, *dir.inode, dir.fd.fd(), name, &entry);
  } else if (!FdBudget::Acquire(*inode)) {
    error = LinkByName(c, *inode, dir, name, &entry);
  }
  if (error == ESTALE && !linked) {
    FdUse use;
    error = c.fs.AnyFd(*inode, &use);
    if (error != 0) return c.Error(error);
    // Through /proc/self/fd because AT_EMPTY_PATH needs CAP_DAC_READ_SEARCH.
    if (::linkat(c.fs.proc_fd, FdName(use.fd()).c_str(), dir.fd.fd(), name.data(),
                 AT_SYMLINK_FOLLOW) != 0) {
      return c.Error(errno);
    }
    error = MakeEntry(c, *dir.inode, dir.fd.fd(), name, &entry);
  }
  if (error != 0) return c.Error(error);
  c.Reply(entry);
}

void OpUnlink(Call& c) { Remove(c, 0); }
void OpRmdir(Call& c) { Remove(c, AT_REMOVEDIR); }

void OpRename(Call& c) {
  const auto in = c.Arg<fuse_rename_in>();
  Rename(c, sizeof(in), in.newdir, 0);
}

void OpRename2(Call& c) {
  const auto in = c.Arg<fuse_rename2_in>();
  Rename(c, sizeof(in), in.newdir, in.flags);
}

}  // namespace virtbay::virtiofs
