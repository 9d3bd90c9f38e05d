// Every opcode of the virtiofs plugin that works on names, attributes and file data.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
using ::testing::AnyOf;

bool IsRoot() { return ::geteuid() == 0; }

struct stat HostStat(const stdfs::path& path) {
  struct stat st = {};
  EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path;
  return st;
}

class VirtioFsOps : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(share_.ready()); }
  guest::FuseClient& fs() { return share_.fs(); }
  stdfs::path Host(const std::string& name) { return share_.dir() / name; }

  Share share_{{.options = {{"xattr", ""}}, .session = {}}};
};

TEST_F(VirtioFsOps, CreateWriteReadUnlink) {
  const auto made = fs().Create(kRoot, "file", O_RDWR, 0640);
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid;
  EXPECT_EQ(made.value.entry.attr.mode, static_cast<uint32_t>(S_IFREG | 0640));
  const auto wrote = fs().Write(node, made.value.open.fh, 0, Bytes("hello"));
  EXPECT_EQ(wrote.error, 0);
  EXPECT_EQ(wrote.value, 5u);
  EXPECT_EQ(ReadFile(Host("file")), "hello");
  EXPECT_EQ(Text(fs().Read(node, made.value.open.fh, 0, 4096).value), "hello");
  EXPECT_EQ(Text(fs().Read(node, made.value.open.fh, 3, 4096).value), "lo");
  EXPECT_EQ(Text(fs().Read(node, made.value.open.fh, 5, 4096).value), "");
  EXPECT_EQ(fs().Flush(node, made.value.open.fh), 0);
  EXPECT_EQ(fs().Fsync(node, made.value.open.fh), 0);
  EXPECT_EQ(fs().Fsync(node, made.value.open.fh, true), 0);
  EXPECT_EQ(fs().Release(node, made.value.open.fh), 0);
  EXPECT_EQ(fs().Release(node, made.value.open.fh), EBADF);
  EXPECT_EQ(fs().Read(node, made.value.open.fh, 0, 1).error, EBADF);
  EXPECT_EQ(fs().Unlink(kRoot, "file"), 0);
  EXPECT_EQ(fs().Unlink(kRoot, "file"), ENOENT);
  EXPECT_EQ(fs().Lookup(kRoot, "file").error, ENOENT);
}

TEST_F(VirtioFsOps, ModesDoNotMeetTheUmaskOfTheProcess) {
  const mode_t before = ::umask(077);
  EXPECT_EQ(fs().Create(kRoot, "file", O_RDWR, 0666).error, 0);
  EXPECT_EQ(fs().Mkdir(kRoot, "dir", 01777).error, 0);
  EXPECT_EQ(fs().Mknod(kRoot, "fifo", S_IFIFO | 0622).error, 0);
  EXPECT_EQ(::umask(before), 077u);
  EXPECT_EQ(HostStat(Host("file")).st_mode & 07777, 0666u);
  EXPECT_EQ(HostStat(Host("dir")).st_mode & 07777, 01777u);
  EXPECT_EQ(HostStat(Host("fifo")).st_mode, static_cast<mode_t>(S_IFIFO | 0622));
}

TEST_F(VirtioFsOps, CreateOfAnExistingFileOpensIt) {
  share_.dir().Write("old", "content");
  const auto kept = fs().Create(kRoot, "old", O_RDWR, 0600);
  ASSERT_EQ(kept.error, 0);
  EXPECT_EQ(kept.value.entry.attr.size, 7u);
  EXPECT_EQ(fs().Create(kRoot, "old", O_RDWR | O_EXCL, 0600).error, EEXIST);
  const auto cut = fs().Create(kRoot, "old", O_RDWR | O_TRUNC, 0600);
  ASSERT_EQ(cut.error, 0);
  EXPECT_EQ(cut.value.entry.attr.size, 0u);
  EXPECT_EQ(cut.value.entry.nodeid, kept.value.entry.nodeid);
  EXPECT_EQ(ReadFile(Host("old")), "");
  stdfs::create_directory(Host("dir"));
  EXPECT_EQ(fs().Create(kRoot, "dir", O_RDWR, 0600).error, EISDIR);
  stdfs::create_symlink("/etc/passwd", Host("link"));
  EXPECT_EQ(fs().Create(kRoot, "link", O_RDWR, 0600).error, ELOOP);
}

TEST_F(VirtioFsOps, OpenFlags) {
  share_.dir().Write("file", "0123456789");
  const uint64_t node = share_.Node("file");
  const auto read_only = fs().Open(node, O_RDONLY);
  ASSERT_EQ(read_only.error, 0);
  EXPECT_EQ(fs().Write(node, read_only.value.fh, 0, Bytes("x")).error, EBADF);
  const auto write_only = fs().Open(node, O_WRONLY);
  ASSERT_EQ(write_only.error, 0);
  EXPECT_EQ(fs().Read(node, write_only.value.fh, 0, 4).error, EBADF);
  const auto append = fs().Open(node, O_WRONLY | O_APPEND);
  ASSERT_EQ(append.error, 0);
  EXPECT_EQ(fs().Write(node, append.value.fh, 3, Bytes("ab"), 0, O_WRONLY | O_APPEND).value, 2u);
  EXPECT_EQ(ReadFile(Host("file")), "0123456789ab")
      << "at the end, wherever the guest thinks that is";
  // The guest has cleared the flag (F_SETFL), or writes back a page of a shared mapping.
  EXPECT_EQ(fs().Write(node, append.value.fh, 0, Bytes("xy"), 0, O_WRONLY).value, 2u);
  EXPECT_EQ(fs().Write(node, append.value.fh, 4, Bytes("AB"), FUSE_WRITE_CACHE, O_APPEND).value,
            2u);
  EXPECT_EQ(ReadFile(Host("file")), "xy23AB6789ab");
  const auto made = fs().Create(kRoot, "made", O_RDWR | O_APPEND, 0644);
  ASSERT_EQ(made.error, 0);
  const uint64_t inode = made.value.entry.nodeid;
  EXPECT_EQ(fs().Write(inode, made.value.open.fh, 0, Bytes("abc"), 0, O_RDWR | O_APPEND).value, 3u);
  EXPECT_EQ(fs().Write(inode, made.value.open.fh, 0, Bytes("AB"), FUSE_WRITE_CACHE).value, 2u);
  EXPECT_EQ(ReadFile(Host("made")), "ABc");
  EXPECT_EQ(fs().Open(node, O_ACCMODE).error, EINVAL);
  EXPECT_EQ(fs().Open(node, O_RDWR | O_TRUNC).error, 0);
  EXPECT_EQ(ReadFile(Host("file")), "");
  EXPECT_EQ(fs().Open(kRoot, O_RDONLY).error, EISDIR);
  EXPECT_EQ(fs().OpenDir(node).error, ENOTDIR);
  EXPECT_EQ(fs().Open(node + (uint64_t{1} << 32), O_RDONLY).error, ESTALE);
}

// Opening a device or a FIFO is an act by itself, so what took a file's place is looked at first.
TEST_F(VirtioFsOps, WhatTookAFilesPlaceIsNotOpened) {
  share_.dir().Write("file", "text");
  const uint64_t node = share_.Node("file");
  ASSERT_NE(node, 0u);
  ASSERT_EQ(::unlink(Host("file").c_str()), 0);
  ASSERT_EQ(::mkfifo(Host("file").c_str(), 0600), 0);
  const UniqueFd events(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  ASSERT_GE(::inotify_add_watch(events.get(), Host("file").c_str(), IN_OPEN), 0);
  for (const int flags : {O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC}) {
    EXPECT_EQ(fs().Open(node, static_cast<uint32_t>(flags)).error, ESTALE) << flags;
  }
  char event[512];
  EXPECT_EQ(::read(events.get(), event, sizeof(event)), -1) << "it was opened";
  EXPECT_EQ(errno, EAGAIN);
}

TEST_F(VirtioFsOps, OnlyFilesAndDirectoriesAreOpened) {
  ASSERT_EQ(::mkfifo(Host("fifo").c_str(), 0600), 0);
  stdfs::create_symlink("file", Host("link"));
  for (const char* name : {"fifo", "link"}) {
    EXPECT_EQ(fs().Open(share_.Node(name), O_RDONLY).error, ELOOP) << name;
  }
  // A file that the guest knows and that the host made a FIFO: neither opened nor waited for.
  share_.dir().Write("file", "x");
  const uint64_t node = share_.Node("file");
  stdfs::remove(Host("file"));
  ASSERT_EQ(::mkfifo(Host("file").c_str(), 0600), 0);
  EXPECT_EQ(fs().Open(node, O_RDONLY).error, ESTALE);
  EXPECT_EQ(fs().Open(node, O_WRONLY).error, ESTALE);
}

TEST_F(VirtioFsOps, ShortReadsOnlyAtTheEnd) {
  std::string content(300'000, 'a');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>('a' + i % 23);
  share_.dir().Write("big", content);
  const uint64_t node = share_.Node("big");
  const uint64_t fh = share_.OpenPath("big", O_RDWR);
  EXPECT_EQ(Text(fs().Read(node, fh, 0, 1u << 20).value), content);
  EXPECT_EQ(Text(fs().Read(node, fh, 4096, 8192).value), content.substr(4096, 8192));
  const std::string more(1u << 20, 'z');
  EXPECT_EQ(fs().Write(node, fh, 100, Bytes(more)).value, more.size());
  EXPECT_EQ(ReadFile(Host("big")), content.substr(0, 100) + more);
  EXPECT_EQ(fs().Read(node, fh, UINT64_MAX, 10).error, EINVAL);
  EXPECT_EQ(fs().Write(node, fh, INT64_MAX, Bytes("x")).error, EFBIG);
  EXPECT_GT(share_.Metric("bytes_read"), content.size());
}

TEST_F(VirtioFsOps, LookupAndForget) {
  share_.dir().Write("a", "1");
  const auto first = fs().Lookup(kRoot, "a");
  ASSERT_EQ(first.error, 0);
  EXPECT_EQ(first.value.attr.size, 1u);
  EXPECT_EQ(first.value.attr.ino, HostStat(Host("a")).st_ino);
  EXPECT_EQ(first.value.entry_valid, 1u);
  const uint64_t node = first.value.nodeid;
  EXPECT_EQ(fs().Lookup(kRoot, "a").value.nodeid, node);
  EXPECT_EQ(fs().Forget(node, 1), 0);
  EXPECT_EQ(fs().GetAttr(node).error, 0);
  // More than there were: no underflow, and the inode is gone.
  EXPECT_EQ(fs().Forget(node, 1'000'000), 0);
  EXPECT_EQ(fs().GetAttr(node).error, ESTALE);
  const uint64_t again = share_.Node("a");
  EXPECT_NE(again, 0u);
  EXPECT_EQ(fs().Forget(node, UINT64_MAX), 0);
  EXPECT_EQ(fs().GetAttr(again).error, 0);
  EXPECT_EQ(fs().Forget(kRoot, UINT64_MAX), 0);
  EXPECT_EQ(fs().GetAttr(kRoot).error, 0);
  EXPECT_EQ(fs().Lookup(node, "x").error, ESTALE);
  EXPECT_EQ(fs().Lookup(again, "x").error, ENOTDIR);
}

TEST_F(VirtioFsOps, BatchForget) {
  std::vector<fuse_forget_one> items;
  for (int i = 0; i < 400; ++i) {
    std::string name = "f";
    name += std::to_string(i);
    share_.dir().Write(name, "");
    items.push_back({share_.Node(name), 1});
  }
  EXPECT_EQ(share_.Metric("inodes"), 400u);
  items.push_back({12345678901u, 3});
  items.push_back({kRoot, 3});
  EXPECT_EQ(share_.session().hiprio().BatchForget(items), 0);
  EXPECT_EQ(share_.Metric("inodes"), 0u);
}

TEST_F(VirtioFsOps, StaleNodeidNeverMeansAnotherInode) {
  share_.dir().Write("a", "");
  share_.dir().Write("b", "");
  const uint64_t a = share_.Node("a");
  EXPECT_EQ(fs().Forget(a, 1), 0);
  for (int i = 0; i < 1000; ++i) {
    const uint64_t b = share_.Node("b");
    ASSERT_NE(a, b);
    EXPECT_EQ(fs().Forget(b, 1), 0);
  }
  EXPECT_EQ(fs().GetAttr(a).error, ESTALE);
}

TEST_F(VirtioFsOps, ReusedInodeNumberIsAnotherInode) {
  share_.dir().Write("a", "old");
  const uint64_t old_node = share_.Node("a");
  const ino_t ino = HostStat(Host("a")).st_ino;
  stdfs::remove(Host("a"));
  share_.dir().Write("a", "new!");
  const auto now = fs().Lookup(kRoot, "a");
  ASSERT_EQ(now.error, 0);
  if (HostStat(Host("a")).st_ino == ino) {
    EXPECT_NE(now.value.nodeid, old_node);
  }
  EXPECT_EQ(fs().GetAttr(old_node).error, ESTALE);
  EXPECT_EQ(fs().GetAttr(now.value.nodeid).value.attr.size, 4u);
}

TEST_F(VirtioFsOps, AttributesFollowTheHost) {
  share_.dir().Write("a", "1");
  const uint64_t node = share_.Node("a");
  share_.dir().Write("a", "12345");
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 5u);
  stdfs::rename(Host("a"), Host("b"));
  EXPECT_EQ(fs().GetAttr(node).error, ESTALE);
  EXPECT_EQ(share_.Node("b"), node);
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 5u);
}

TEST_F(VirtioFsOps, SetAttr) {
  share_.dir().Write("a", "0123456789");
  const uint64_t node = share_.Node("a");
  fuse_setattr_in change = {};
  change.valid = FATTR_MODE | FATTR_SIZE;
  change.mode = 04711;
  change.size = 4;
  const auto reply = fs().SetAttr(node, change);
  ASSERT_EQ(reply.error, 0);
  EXPECT_EQ(reply.value.attr.size, 4u);
  EXPECT_EQ(HostStat(Host("a")).st_size, 4);

  change = {};
  change.valid = FATTR_ATIME | FATTR_MTIME;
  change.atime = 1000;
  change.atimensec = 7;
  change.mtime = 2000;
  change.mtimensec = 9;
  ASSERT_EQ(fs().SetAttr(node, change).error, 0);
  const struct stat st = HostStat(Host("a"));
  EXPECT_EQ(st.st_atim.tv_sec, 1000);
  EXPECT_EQ(st.st_atim.tv_nsec, 7);
  EXPECT_EQ(st.st_mtim.tv_sec, 2000);
  EXPECT_EQ(st.st_mtim.tv_nsec, 9);
  change.valid = FATTR_MTIME | FATTR_MTIME_NOW;
  ASSERT_EQ(fs().SetAttr(node, change).error, 0);
  EXPECT_GT(HostStat(Host("a")).st_mtim.tv_sec, 2000);
  EXPECT_EQ(HostStat(Host("a")).st_atim.tv_sec, 1000);
  change.valid = FATTR_MTIME;
  change.mtimensec = 1'000'000'000;
  EXPECT_EQ(fs().SetAttr(node, change).error, EINVAL);

  change = {};
  change.valid = FATTR_SIZE;
  change.size = UINT64_MAX;
  EXPECT_EQ(fs().SetAttr(node, change).error, EFBIG);
  EXPECT_EQ(fs().SetAttr(kRoot, change).error, EFBIG);
  change.size = 1;
  EXPECT_EQ(fs().SetAttr(kRoot, change).error, EISDIR);
  change.valid = FATTR_FH | FATTR_SIZE;
  change.fh = 0x123456;
  EXPECT_EQ(fs().SetAttr(node, change).error, EBADF);
  change.fh = share_.OpenPath("a", O_RDWR);
  change.size = 100;
  EXPECT_EQ(fs().SetAttr(node, change).value.attr.size, 100u);

  if (IsRoot()) {
    change = {};
    change.valid = FATTR_UID | FATTR_GID;
    change.uid = 1234;
    change.gid = 5678;
    ASSERT_EQ(fs().SetAttr(node, change).error, 0);
    EXPECT_EQ(HostStat(Host("a")).st_uid, 1234u);
    EXPECT_EQ(HostStat(Host("a")).st_gid, 5678u);
    // The change of owner took the set-user-ID bit.
    EXPECT_EQ(HostStat(Host("a")).st_mode & 07777, 0711u);
  }
  stdfs::create_symlink("nowhere", Host("link"));
  change = {};
  change.valid = FATTR_MODE;
  change.mode = 0777;
  EXPECT_EQ(fs().SetAttr(share_.Node("link"), change).error, EOPNOTSUPP);
  change.valid = FATTR_MTIME;
  change.mtime = 77;
  EXPECT_EQ(fs().SetAttr(share_.Node("link"), change).error, 0);
  EXPECT_EQ(HostStat(Host("link")).st_mtim.tv_sec, 77);
}

TEST_F(VirtioFsOps, Statx) {
  share_.dir().Write("a", "1");
  guest::FuseStatxIn ask;
  ask.sx_mask = STATX_BASIC_STATS | STATX_BTIME;
  const auto reply = fs().Statx(share_.Node("a"), ask);
  ASSERT_EQ(reply.error, 0);
  EXPECT_EQ(reply.value.stat.size, 1u);
  EXPECT_EQ(reply.value.stat.ino, HostStat(Host("a")).st_ino);
  EXPECT_EQ(reply.value.attr_valid, 1u);
  if ((reply.value.stat.mask & STATX_BTIME) != 0) {
    EXPECT_GT(reply.value.stat.btime.seconds, 0);
  }
  EXPECT_EQ(fs().Statx(1u << 20, ask).error, ESTALE);
}

TEST_F(VirtioFsOps, SymlinkAndReadlink) {
  const auto made = fs().Symlink(kRoot, "link", "../outside/of it");
  ASSERT_EQ(made.error, 0);
  EXPECT_EQ(made.value.attr.mode & S_IFMT, static_cast<uint32_t>(S_IFLNK));
  EXPECT_EQ(fs().ReadLink(made.value.nodeid).value, "../outside/of it");
  EXPECT_EQ(fs().ReadLink(kRoot).error, EINVAL);
  EXPECT_EQ(fs().Symlink(kRoot, "link", "again").error, EEXIST);
  EXPECT_EQ(fs().Symlink(kRoot, "empty", "").error, ENOENT);
  const std::string long_target(4095, 'x');
  const auto longest = fs().Symlink(kRoot, "long", long_target);
  ASSERT_EQ(longest.error, 0);
  EXPECT_EQ(fs().ReadLink(longest.value.nodeid).value, long_target);
  EXPECT_EQ(fs().Symlink(kRoot, "longer", std::string(4096, 'x')).error, ENAMETOOLONG);
  // Nothing is ever followed: a link is no parent.
  stdfs::create_directory_symlink("/", Host("root"));
  EXPECT_EQ(fs().Lookup(share_.Node("root"), "etc").error, ENOTDIR);
  EXPECT_EQ(fs().Mkdir(share_.Node("root"), "x", 0755).error, ENOTDIR);
}

TEST_F(VirtioFsOps, MknodMkdirRmdir) {
  EXPECT_EQ(fs().Mknod(kRoot, "file", S_IFREG | 0600).error, 0);
  EXPECT_EQ(fs().Mknod(kRoot, "file", S_IFREG | 0600).error, EEXIST);
  EXPECT_EQ(fs().Mknod(kRoot, "dir", S_IFDIR | 0600).error, EINVAL);
  EXPECT_EQ(fs().Mknod(kRoot, "socket", S_IFSOCK | 0600).error, 0);
  if (IsRoot()) {
    const auto device = fs().Mknod(kRoot, "device", S_IFCHR | 0600, (7u << 8) | 3u | (1u << 20));
    if (device.error != EPERM) {
      ASSERT_EQ(device.error, 0);
      EXPECT_EQ(HostStat(Host("device")).st_rdev, makedev(7, 3 + 256));
      EXPECT_EQ(device.value.attr.rdev, (7u << 8) | 3u | (1u << 20));
      EXPECT_EQ(fs().Open(device.value.nodeid, O_RDONLY).error, ELOOP);
    }
  }
  const auto dir = fs().Mkdir(kRoot, "dir", 0755);
  ASSERT_EQ(dir.error, 0);
  EXPECT_EQ(fs().Mkdir(kRoot, "dir", 0755).error, EEXIST);
  EXPECT_EQ(fs().Mkdir(dir.value.nodeid, "sub", 0755).error, 0);
  EXPECT_EQ(fs().Rmdir(kRoot, "dir"), ENOTEMPTY);
  EXPECT_THAT(fs().Unlink(kRoot, "dir"), AnyOf(EISDIR, EPERM));
  EXPECT_EQ(fs().Rmdir(kRoot, "file"), ENOTDIR);
  EXPECT_EQ(fs().Rmdir(dir.value.nodeid, "sub"), 0);
  EXPECT_EQ(fs().Rmdir(kRoot, "dir"), 0);
  // A directory lives on for those who are in it.
  EXPECT_EQ(fs().GetAttr(dir.value.nodeid).error, 0);
  EXPECT_EQ(fs().GetAttr(dir.value.nodeid).value.attr.nlink, 0u);
  EXPECT_EQ(fs().Mkdir(dir.value.nodeid, "x", 0755).error, ENOENT);
}

TEST_F(VirtioFsOps, LinkKeepsOneInode) {
  share_.dir().Write("a", "1");
  const uint64_t node = share_.Node("a");
  const auto link = fs().Link(node, kRoot, "b");
  ASSERT_EQ(link.error, 0);
  EXPECT_EQ(link.value.nodeid, node);
  EXPECT_EQ(link.value.attr.nlink, 2u);
  EXPECT_EQ(fs().Link(node, kRoot, "b").error, EEXIST);
  EXPECT_EQ(fs().Link(kRoot, kRoot, "c").error, EPERM);
  EXPECT_EQ(fs().Link(999, kRoot, "c").error, ESTALE);
  // Either name may go; the guest need not look up the other.
  EXPECT_EQ(fs().Unlink(kRoot, "b"), 0);
  EXPECT_EQ(fs().GetAttr(node).error, 0);
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 1u);
  EXPECT_EQ(fs().Open(node, O_RDWR).error, 0);
  stdfs::create_symlink("target", Host("symlink"));
  EXPECT_EQ(fs().Link(share_.Node("symlink"), kRoot, "symlink2").error, 0);
  EXPECT_EQ(stdfs::read_symlink(Host("symlink2")), "target");
}

TEST_F(VirtioFsOps, LinkOfARenamedFileIsStale) {
  share_.dir().Write("a", "1");
  const uint64_t node = share_.Node("a");
  stdfs::remove(Host("a"));
  share_.dir().Write("a", "other");
  EXPECT_EQ(fs().Link(node, kRoot, "b").error, ESTALE);
  EXPECT_FALSE(stdfs::exists(Host("b")));
}

TEST_F(VirtioFsOps, RenameMovesTheInode) {
  stdfs::create_directories(Host("d1/sub"));
  stdfs::create_directory(Host("d2"));
  share_.dir().Write("d1/sub/file", "x");
  const uint64_t d1 = share_.Node("d1"), d2 = share_.Node("d2");
  const uint64_t sub = share_.Node("d1/sub"), file = share_.Node("d1/sub/file");
  EXPECT_EQ(fs().Rename(d1, "sub", d2, "moved"), 0);
  EXPECT_TRUE(stdfs::exists(Host("d2/moved/file")));
  EXPECT_EQ(fs().GetAttr(sub).error, 0);
  EXPECT_EQ(fs().GetAttr(file).error, 0);
  EXPECT_EQ(share_.Node("d2/moved/file"), file);
  EXPECT_EQ(fs().Rename(d1, "sub", d2, "moved"), ENOENT);
  EXPECT_EQ(fs().Rename(d2, "moved", sub, "loop"), EINVAL);
  EXPECT_EQ(fs().Rename(file, "x", d2, "y"), ENOTDIR);
  EXPECT_EQ(fs().Rename(d2, "moved", 777, "y"), ESTALE);
}

TEST_F(VirtioFsOps, RenameOverAFileKeepsTheOldOneForItsUsers) {
  share_.dir().Write("a", "new");
  share_.dir().Write("b", "old content");
  const uint64_t a = share_.Node("a"), b = share_.Node("b");
  const uint64_t fh = share_.OpenPath("b", O_RDWR);
  EXPECT_EQ(fs().Rename(kRoot, "a", kRoot, "b"), 0);
  EXPECT_EQ(share_.Node("b"), a);
  EXPECT_EQ(Text(fs().Read(b, fh, 0, 100).value), "old content");
  EXPECT_EQ(fs().GetAttr(b).error, 0);
  EXPECT_EQ(fs().GetAttr(b).value.attr.nlink, 0u);
  EXPECT_EQ(fs().GetAttr(a).value.attr.size, 3u);
}

TEST_F(VirtioFsOps, Rename2Flags) {
  share_.dir().Write("a", "A");
  share_.dir().Write("b", "BB");
  const uint64_t a = share_.Node("a"), b = share_.Node("b");
  EXPECT_EQ(fs().Rename2(kRoot, "a", kRoot, "b", RENAME_NOREPLACE), EEXIST);
  EXPECT_EQ(fs().Rename2(kRoot, "a", kRoot, "b", 0x80), EINVAL);
  EXPECT_EQ(fs().Rename2(kRoot, "a", kRoot, "b", RENAME_EXCHANGE), 0);
  EXPECT_EQ(ReadFile(Host("a")), "BB");
  EXPECT_EQ(fs().GetAttr(a).value.attr.size, 1u);
  EXPECT_EQ(fs().GetAttr(b).value.attr.size, 2u);
  EXPECT_EQ(share_.Node("b"), a);
  EXPECT_EQ(fs().Rename2(kRoot, "a", kRoot, "c", RENAME_NOREPLACE), 0);
  EXPECT_EQ(share_.Node("c"), b);
  const int whiteout = fs().Rename2(kRoot, "c", kRoot, "d", RENAME_WHITEOUT);
  if (whiteout == 0) {
    EXPECT_EQ(HostStat(Host("c")).st_mode & S_IFMT, static_cast<mode_t>(S_IFCHR));
    EXPECT_EQ(fs().GetAttr(b).value.attr.size, 2u);
    EXPECT_EQ(share_.Node("d"), b);
  } else {
    EXPECT_THAT(whiteout, AnyOf(EPERM, EINVAL));
  }
}

TEST_F(VirtioFsOps, UnlinkedButOpen) {
  const auto made = fs().Create(kRoot, "tmp", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid, fh = made.value.open.fh;
  EXPECT_EQ(fs().Unlink(kRoot, "tmp"), 0);
  EXPECT_EQ(fs().Write(node, fh, 0, Bytes("still here")).value, 10u);
  // Linux sends fstat without the handle.
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 10u);
  fuse_setattr_in change = {};
  change.valid = FATTR_SIZE;
  change.size = 5;
  EXPECT_EQ(fs().SetAttr(node, change).value.attr.size, 5u);
  change.valid = FATTR_MODE;
  change.mode = 0644;
  EXPECT_EQ(fs().SetAttr(node, change).error, 0);
  // A second open of it, and its life after the first handle.
  const auto second = fs().Open(node, O_RDWR);
  ASSERT_EQ(second.error, 0);
  EXPECT_EQ(fs().Release(node, fh), 0);
  EXPECT_EQ(Text(fs().Read(node, second.value.fh, 0, 10).value), "still");
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 5u);
  EXPECT_EQ(fs().Release(node, second.value.fh), 0);
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 0u);
  EXPECT_EQ(fs().SetXattr(node, "user.x", Bytes("1")), 0);
  EXPECT_EQ(fs().Forget(node, 1), 0);
  EXPECT_EQ(fs().GetAttr(node).error, ESTALE);
}

TEST_F(VirtioFsOps, Tmpfile) {
  const auto made = fs().Tmpfile(kRoot, O_RDWR, 0600);
  if (made.error == EOPNOTSUPP) GTEST_SKIP() << "the file system has no O_TMPFILE";
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid;
  EXPECT_EQ(made.value.entry.attr.nlink, 0u);
  EXPECT_EQ(fs().Write(node, made.value.open.fh, 0, Bytes("abc")).value, 3u);
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 3u);
  EXPECT_EQ(fs().Tmpfile(kRoot, O_RDONLY, 0600).error, EINVAL);
  const auto named = fs().Link(node, kRoot, "named");
  ASSERT_EQ(named.error, 0);
  EXPECT_EQ(named.value.nodeid, node);
  EXPECT_EQ(ReadFile(Host("named")), "abc");
  EXPECT_EQ(fs().Release(node, made.value.open.fh), 0);
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 1u);
}

TEST_F(VirtioFsOps, FallocateLseekCopy) {
  const auto made = fs().Create(kRoot, "a", O_RDWR, 0600);
  const uint64_t a = made.value.entry.nodeid, fa = made.value.open.fh;
  EXPECT_EQ(fs().Fallocate(a, fa, 0, 1u << 20, 0), 0);
  EXPECT_EQ(fs().GetAttr(a).value.attr.size, 1u << 20);
  EXPECT_EQ(fs().Write(a, fa, 8192, Bytes("data")).value, 4u);
  EXPECT_EQ(fs().Fallocate(a, fa, 0, 4096, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE), 0);
  EXPECT_THAT(fs().Fallocate(a, fa, 0, 4096, 0xffff), AnyOf(EOPNOTSUPP, EINVAL));
  EXPECT_EQ(fs().Fallocate(a, fa, UINT64_MAX, 2, 0), EFBIG);
  EXPECT_EQ(fs().Lseek(a, fa, 8192, SEEK_DATA).value, 8192u);
  EXPECT_EQ(fs().Lseek(a, fa, 0, SEEK_HOLE).error, 0);
  EXPECT_EQ(fs().Lseek(a, fa, 1u << 21, SEEK_DATA).error, ENXIO);
  EXPECT_EQ(fs().Lseek(a, fa, 0, SEEK_CUR).error, EINVAL);
  EXPECT_EQ(fs().Lseek(a, fa, UINT64_MAX, SEEK_SET).error, EINVAL);

  const auto other = fs().Create(kRoot, "b", O_RDWR, 0600);
  const uint64_t b = other.value.entry.nodeid, fb = other.value.open.fh;
  const auto copied = fs().CopyFileRange(a, fa, 8192, b, fb, 3, 4);
  if (copied.error != EXDEV && copied.error != EOPNOTSUPP) {
    EXPECT_EQ(copied.error, 0);
    EXPECT_EQ(copied.value, 4u);
    EXPECT_EQ(ReadFile(Host("b")), std::string("\0\0\0data", 7));
  }
  EXPECT_EQ(fs().CopyFileRange(a, fa, 0, b, fb, 0, 4, 1).error, EINVAL);
  EXPECT_EQ(fs().CopyFileRange(a, fa, UINT64_MAX, b, fb, 0, 4).error, EINVAL);
  EXPECT_EQ(fs().CopyFileRange(a, fa, 0, b, fa, 0, 4).error, EBADF);
  EXPECT_EQ(fs().SyncFs(), 0);
  EXPECT_EQ(fs().SyncFs(4711), ESTALE);
}

TEST_F(VirtioFsOps, StatFsAndAccess) {
  const auto reply = fs().StatFs();
  ASSERT_EQ(reply.error, 0);
  EXPECT_GT(reply.value.blocks, 0u);
  EXPECT_EQ(reply.value.namelen, 255u);
  share_.dir().Write("a", "");
  stdfs::permissions(Host("a"), stdfs::perms(0640));
  const uint64_t node = share_.Node("a");
  EXPECT_EQ(fs().Access(node, R_OK | W_OK), 0);
  EXPECT_EQ(fs().Access(node, X_OK), EACCES);
  EXPECT_EQ(fs().Access(node, 0x100), EINVAL);
  share_.fs().queue().set_caller({.uid = 4444, .gid = 4444, .groups = {}});
  EXPECT_EQ(fs().Access(node, R_OK), EACCES);
  EXPECT_EQ(fs().Access(node, F_OK), 0);
}

TEST_F(VirtioFsOps, Xattrs) {
  share_.dir().Write("a", "");
  const uint64_t node = share_.Node("a");
  const int set = fs().SetXattr(node, "user.key", Bytes("value"));
  if (set == EOPNOTSUPP) GTEST_SKIP() << "the file system has no extended attributes";
  ASSERT_EQ(set, 0);
  EXPECT_EQ(Text(fs().GetXattr(node, "user.key", 100).value), "value");
  EXPECT_EQ(fs().GetXattr(node, "user.key", 0).value.size(), 5u);
  EXPECT_EQ(fs().GetXattr(node, "user.key", 2).error, ERANGE);
  EXPECT_EQ(fs().GetXattr(node, "user.none", 10).error, ENODATA);
  EXPECT_EQ(Text(fs().ListXattr(node, 100).value), std::string("user.key\0", 9));
  EXPECT_GE(fs().ListXattr(node, 0).value.size(), 9u);
  EXPECT_EQ(fs().ListXattr(node, 2).error, ERANGE);
  EXPECT_EQ(fs().SetXattr(node, "user.key", Bytes("x"), 1 /* XATTR_CREATE */), EEXIST);
  const std::string big(3000, 'b');
  EXPECT_EQ(fs().SetXattr(node, "user.big", Bytes(big)), 0);
  EXPECT_EQ(Text(fs().GetXattr(node, "user.big", 65536).value), big);
  EXPECT_EQ(fs().RemoveXattr(node, "user.key"), 0);
  EXPECT_EQ(fs().RemoveXattr(node, "user.key"), ENODATA);
  EXPECT_EQ(fs().SetXattr(node, "", Bytes("x")), ERANGE);
  EXPECT_EQ(fs().SetXattr(node, std::string(256, 'n'), Bytes("x")), ERANGE);
  // ACLs only when both sides have agreed on them.
  EXPECT_EQ(fs().SetXattr(node, "system.posix_acl_access", Bytes("x")), EOPNOTSUPP);
  EXPECT_EQ(fs().GetXattr(node, "system.posix_acl_access", 10).error, EOPNOTSUPP);
  // Types that are never opened.
  ASSERT_EQ(::mkfifo(Host("fifo").c_str(), 0600), 0);
  stdfs::create_symlink("a", Host("link"));
  EXPECT_EQ(fs().ListXattr(share_.Node("fifo"), 100).error, 0);
  EXPECT_EQ(fs().GetXattr(share_.Node("fifo"), "trusted.none", 10).error, ENODATA);
  EXPECT_EQ(fs().SetXattr(share_.Node("link"), "user.key", Bytes("x")), EPERM);
  if (IsRoot() && fs().SetXattr(share_.Node("link"), "trusted.key", Bytes("x")) == 0) {
    EXPECT_EQ(Text(fs().GetXattr(share_.Node("link"), "trusted.key", 10).value), "x");
    EXPECT_EQ(fs().GetXattr(node, "trusted.key", 10).error, ENODATA);
  }
}

TEST_F(VirtioFsOps, CreatesAsTheCaller) {
  if (!IsRoot()) GTEST_SKIP() << "needs the right to act as another user";
  stdfs::permissions(share_.dir().path(), stdfs::perms(0777));
  fs().queue().set_caller({.uid = 1000, .gid = 1001, .groups = {}});
  ASSERT_EQ(fs().Create(kRoot, "file", O_RDWR, 0600).error, 0);
  ASSERT_EQ(fs().Mkdir(kRoot, "dir", 0700).error, 0);
  ASSERT_EQ(fs().Symlink(kRoot, "link", "x").error, 0);
  ASSERT_EQ(fs().Mknod(kRoot, "fifo", S_IFIFO | 0600).error, 0);
  const auto tmp = fs().Tmpfile(kRoot, O_RDWR, 0600);
  if (tmp.ok()) {
    EXPECT_EQ(tmp.value.entry.attr.uid, 1000u);
  }
  for (const char* name : {"file", "dir", "link", "fifo"}) {
    EXPECT_EQ(HostStat(Host(name)).st_uid, 1000u) << name;
    EXPECT_EQ(HostStat(Host(name)).st_gid, 1001u) << name;
  }
  // Checked as that user: the guest sends the groups that matter.
  stdfs::create_directory(Host("closed"));
  stdfs::permissions(Host("closed"), stdfs::perms(0070));
  ASSERT_EQ(::chown(Host("closed").c_str(), 0, 2002), 0);
  const uint64_t closed = share_.Node("closed");
  EXPECT_EQ(fs().Mkdir(closed, "no", 0755).error, EACCES);
  fs().queue().set_caller({.uid = 1000, .gid = 1001, .groups = {2002}});
  EXPECT_EQ(fs().Mkdir(closed, "yes", 0755).error, 0);
  EXPECT_EQ(HostStat(Host("closed/yes")).st_gid, 1001u);
  // And the thread is itself again.
  fs().queue().set_caller({});
  EXPECT_EQ(fs().Mkdir(closed, "root", 0755).error, 0);
  EXPECT_EQ(HostStat(Host("closed/root")).st_uid, 0u);
}

TEST_F(VirtioFsOps, UnknownOpcodes) {
  for (const uint32_t opcode : {0u, 7u, 37u, 39u, 40u, 41u, 48u, 49u, 54u, 1000u, 0xffffffffu}) {
    EXPECT_EQ(fs().Other(opcode, kRoot, {}, 64).error, ENOSYS) << opcode;
  }
}

TEST_F(VirtioFsOps, DescriptorsAreReturned) {
  const size_t before = static_cast<size_t>(
      std::distance(stdfs::directory_iterator("/proc/self/fd"), stdfs::directory_iterator()));
  stdfs::create_directories(Host("d/e/f"));
  for (int i = 0; i < 50; ++i) {
    const auto made = fs().Create(share_.Node("d/e/f"), "file", O_RDWR, 0600);
    ASSERT_EQ(made.error, 0);
    if (i % 2 == 0) {
      EXPECT_EQ(fs().Unlink(share_.Node("d/e/f"), "file"), 0);
    }
    EXPECT_EQ(fs().Release(made.value.entry.nodeid, made.value.open.fh), 0);
    fs().Unlink(share_.Node("d/e/f"), "file");
  }
  EXPECT_EQ(fs().Destroy(), 0);
  const size_t after = static_cast<size_t>(
      std::distance(stdfs::directory_iterator("/proc/self/fd"), stdfs::directory_iterator()));
  EXPECT_EQ(after, before);
  EXPECT_EQ(share_.Metric("inodes"), 0u);
  EXPECT_EQ(share_.Metric("open_handles"), 0u);
}

}  // namespace
}  // namespace virtbay::testing
