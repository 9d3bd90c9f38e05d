#include <unistd.h>

#include <cerrno>
#include <climits>

#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/view.h"

namespace virtbay::virtiofs {

InodeRef EnterInode(Call& c, Inode& parent, const FileAt& file, std::string_view name,
                    const struct statx& st, fuse_entry_out* entry) {
  Fs& fs = c.fs;
  InodeRef inode = fs.inodes.Lookup(*parent.share, st);
  if (!inode) {
    fs.WarnOnce(&fs.said_inodes, "the guest knows as many inodes as max-inodes allows");
    return inode;
  }
  c.IntendLookup(inode->nodeid());
  fs.inodes.SetName(*inode, parent, name);
  if (inode->share->plain) {
    FillEntry(fs, *inode, parent, st, entry);
  } else {
    struct statx shown = st;
    PresentTo(c, *inode->share, file, &shown);
    FillEntry(fs, *inode, parent, shown, entry);
  }
  return inode;
}

std::string_view RealName(Call& c, const Inode& dir, int dirfd, std::string_view name,
                          std::array<char, 256>* space) {
  const CaseFolder* folder = dir.share->folder.get();
  struct statx st;
  if (folder == nullptr || StatAt(dirfd, name.data(), &st, STATX_TYPE) != ENOENT ||
      folder->Find(c.fs, dirfd, name, space) != 0) {
    return name;
  }
  return space->data();
}

int MakeEntry(Call& c, Inode& parent, int parent_fd, std::string_view name, fuse_entry_out* entry) {
  struct statx st;
  if (const int error = StatAt(parent_fd, name.data(), &st); error != 0) return error;
  return EnterInode(c, parent, {parent_fd, name.data()}, name, st, entry) ? 0 : ENOMEM;
}

void OpLookup(Call& c) {
  sdk::Host::Add(c.fs.counters.lookups);
  const InodeRef parent = c.Target();
  if (!parent) return;
  std::string_view name;
  if (const int error = c.Name(0, &name); error != 0) return c.Error(error);
  int error = 0;
  const PathFd parent_fd = c.fs.PathOf(*parent, &error);
  if (!parent_fd) return c.Error(error);
  fuse_entry_out entry = {};
  error = MakeEntry(c, *parent, parent_fd.fd(), name, &entry);
  if (error == ENOENT && parent->share->folder != nullptr) {
    // Nor is its absence remembered: another spelling may come to be.
    std::array<char, 256> space;
    const std::string_view real = RealName(c, *parent, parent_fd.fd(), name, &space);
    if (real == name) return c.Error(ENOENT);
    error = MakeEntry(c, *parent, parent_fd.fd(), real, &entry);
    if (error != 0) return c.Error(error);
    return c.Reply(entry);
  }
  if (error == ENOENT && c.fs.options.negative_timeout_ns != 0) {
    // nodeid 0: the guest remembers that there is nothing.
    entry = {};
    entry.entry_valid = c.fs.options.negative_timeout_ns / 1'000'000'000;
    entry.entry_valid_nsec =
        static_cast<uint32_t>(c.fs.options.negative_timeout_ns % 1'000'000'000);
    return c.Reply(entry);
  }
  if (error != 0) return c.Error(error);
  c.Reply(entry);
}

void OpForget(Call& c) {
  c.fs.inodes.Forget(c.header().nodeid, c.Arg<fuse_forget_in>().nlookup);
  c.Ok();
}

void OpBatchForget(Call& c) {
  const auto in = c.Arg<fuse_batch_forget_in>();
  constexpr uint32_t kStart = kInHeader + sizeof(fuse_batch_forget_in);
  const uint32_t there = c.header().len - kStart;
  const uint32_t count = std::min(in.count, there / static_cast<uint32_t>(sizeof(fuse_forget_one)));
  auto each = [&](std::span<const std::byte> list) {
    for (; list.size() >= sizeof(fuse_forget_one); list = list.subspan(sizeof(fuse_forget_one))) {
      fuse_forget_one one;
      std::memcpy(&one, list.data(), sizeof(one));
      c.fs.inodes.Forget(one.nodeid, one.nlookup);
    }
  };
  const uint32_t bytes = count * static_cast<uint32_t>(sizeof(fuse_forget_one));
  const uint32_t view = static_cast<uint32_t>(c.request().in().size());
  const uint32_t in_view = view < kStart ? 0 : (view - kStart) / 16 * 16;
  const uint32_t first = std::min(bytes, in_view);
  each(c.request().in().subspan(std::min(kStart, view), first));
  // What the arena has no room for is not forgotten; it goes with the session.
  for (uint32_t at = first; at < bytes;) {
    const uint32_t step = std::min(bytes - at, 32u * 1024);
    const auto list = c.request().Fetch(kStart + at, step);
    if (list.empty()) break;
    each(list);
    at += step;
  }
  c.Ok();
}

void OpReadlink(Call& c) {
  const InodeRef inode = c.Target();
  if (!inode) return;
  if (!inode->is_symlink()) return c.Error(EINVAL);
  std::array<char, PATH_MAX> target;
  ssize_t n = -1;
  int error = ESTALE;
  if (const PathFd fd = FdBudget::Acquire(*inode)) {
    n = ::readlinkat(fd.fd(), "", target.data(), target.size());
    error = errno;
  } else {
    std::array<char, 256> name;
    const InodeRef parent = c.fs.inodes.CopyName(*inode, &name);
    const PathFd parent_fd = parent ? c.fs.PathOf(*parent, &error) : PathFd();
    if (parent_fd) {
      n = ::readlinkat(parent_fd.fd(), name.data(), target.data(), target.size());
      error = errno;
    }
    if (n < 0 && (error == ENOENT || error == EINVAL || error == ENOTDIR || error == ESTALE)) {
      const PathFd own = c.fs.PathOf(*inode, &error);
      if (own) {
        n = ::readlinkat(own.fd(), "", target.data(), target.size());
        error = errno;
      }
    }
  }
  if (n < 0) return c.Error(error);
  if (!inode->share->plain) {
    n = static_cast<ssize_t>(
        LinkToGuest(*inode->share, target.data(), static_cast<size_t>(n), target.size()));
    if (n == 0) return c.Error(ENAMETOOLONG);
  }
  const uint32_t length = std::min(static_cast<uint32_t>(n), c.room());
  std::byte* body = c.Body(length);
  if (body == nullptr) return c.Error(ENOMEM);
  std::memcpy(body, target.data(), length);
  c.Finish(length);
}

}  // namespace virtbay::virtiofs
