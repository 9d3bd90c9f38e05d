// One virtiofs device with many shares: its made-up root, what keeps the shares apart, and how they
// are added.
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "absl/strings/str_cat.h"
#include "hostif/guest/fuse_protocol.h"
#include "hostif/shares/shares.h"
#include "tests/support/process_state.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
using ::testing::HasSubstr;

using OptionMap = std::map<std::string, std::string>;

ShareOptions Aggregate(OptionMap options = {}) {
  ShareOptions all;
  all.aggregate = true;
  all.options = std::move(options);
  return all;
}

class VirtioFsAggregate : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(all_.ready());
    for (const char* name : {"a", "b"}) {
      stdfs::create_directory(Dir(name));
      all_.dir().Write(absl::StrCat(name, "/file"), absl::StrCat("of ", name));
    }
  }
  guest::FuseClient& fs() { return all_.fs(); }
  stdfs::path Dir(const std::string& name) { return all_.dir() / name; }
  // The name that the share has now.
  absl::StatusOr<shares::AddedShare> TryAdd(const std::string& name, const stdfs::path& path,
                                            OptionMap options = {}) {
    return shares::Add(all_.device(), {name, path.native(), std::move(options)});
  }
  std::string Add(const std::string& name, const stdfs::path& path, OptionMap options = {}) {
    const auto added = TryAdd(name, path, std::move(options));
    EXPECT_OK(added);
    return added.ok() ? added->name : "";
  }
  std::vector<std::string> RootNames() {
    std::vector<std::string> names;
    const auto root = fs().OpenDir(kRoot);
    uint64_t offset = 0;
    for (;;) {
      const auto part = fs().ReadDir(kRoot, root.value.fh, offset, 4096);
      EXPECT_EQ(part.error, 0);
      if (part.value.empty()) break;
      for (const auto& entry : part.value) names.push_back(entry.name);
      offset = part.value.back().next_offset;
    }
    EXPECT_EQ(fs().ReleaseDir(kRoot, root.value.fh), 0);
    return names;
  }

  Share all_{Aggregate({{"xattr", ""}})};
};

TEST_F(VirtioFsAggregate, TheRootIsAReadOnlyDirectory) {
  const auto root = fs().GetAttr(kRoot);
  ASSERT_EQ(root.error, 0);
  EXPECT_EQ(root.value.attr.mode, static_cast<uint32_t>(S_IFDIR | 0555));
  EXPECT_EQ(root.value.attr.nlink, 2u);
  EXPECT_EQ(root.value.attr.ino, 1u);
  EXPECT_EQ(root.value.attr.uid, 0u);
  const auto statx = fs().Statx(kRoot, {.sx_mask = STATX_BASIC_STATS});
  EXPECT_EQ(statx.value.stat.mode, S_IFDIR | 0555);
  EXPECT_EQ(RootNames(), (std::vector<std::string>{".", ".."}));

  EXPECT_EQ(fs().Mkdir(kRoot, "x", 0755).error, EROFS);
  EXPECT_EQ(fs().Mknod(kRoot, "x", S_IFREG | 0644).error, EROFS);
  EXPECT_EQ(fs().Symlink(kRoot, "x", "y").error, EROFS);
  EXPECT_EQ(fs().Create(kRoot, "x", O_RDWR, 0644).error, EROFS);
  EXPECT_EQ(fs().Tmpfile(kRoot, O_RDWR, 0644).error, EROFS);
  fuse_setattr_in mode = {};
  mode.valid = FATTR_MODE;
  mode.mode = 0777;
  EXPECT_EQ(fs().SetAttr(kRoot, mode).error, EROFS);
  EXPECT_EQ(fs().SetXattr(kRoot, "user.a", Bytes("b")), EROFS);
  EXPECT_EQ(fs().RemoveXattr(kRoot, "user.a"), EROFS);
  EXPECT_EQ(fs().Access(kRoot, W_OK), EROFS);
  EXPECT_EQ(fs().Access(kRoot, R_OK | X_OK), 0);
  EXPECT_EQ(fs().GetXattr(kRoot, "user.a", 64).error, ENODATA);
  EXPECT_TRUE(fs().ListXattr(kRoot, 64).value.empty());
  EXPECT_EQ(fs().ListXattr(kRoot, 0).error, 0);
  EXPECT_EQ(fs().Open(kRoot, O_RDONLY).error, EISDIR);
  EXPECT_EQ(fs().ReadLink(kRoot).error, EINVAL);
  EXPECT_EQ(fs().StatFs(kRoot).value.blocks, 0u);
  EXPECT_EQ(fs().StatFs(kRoot).value.namelen, 255u);
  EXPECT_EQ(fs().SyncFs(kRoot), 0);

  // Names that lead nowhere, or would lead out.
  for (const char* name : {"none", "a", "proc", "self"}) {
    EXPECT_EQ(fs().Lookup(kRoot, name).error, ENOENT) << name;
  }
  for (const char* name : {"..", ".", "a/file", ""}) {
    EXPECT_EQ(fs().Lookup(kRoot, name).error, EINVAL) << name;
  }
}

// Programs lock directories; the root is one.
TEST_F(VirtioFsAggregate, TheRootCanBeOpenedAndLocked) {
  const auto first = fs().OpenDir(kRoot);
  const auto second = fs().OpenDir(kRoot);
  ASSERT_EQ(first.error, 0);
  ASSERT_EQ(second.error, 0);
  EXPECT_EQ(first.value.open_flags, 0u);
  EXPECT_EQ(fs().FsyncDir(kRoot, first.value.fh), 0);
  const fuse_file_lock lock = {0, INT64_MAX, F_WRLCK, 1};
  EXPECT_EQ(fs().SetLk(kRoot, first.value.fh, 1, lock, false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().SetLk(kRoot, second.value.fh, 2, lock, false, FUSE_LK_FLOCK), EAGAIN);
  EXPECT_EQ(fs().ReleaseDir(kRoot, first.value.fh), 0);
  EXPECT_EQ(fs().SetLk(kRoot, second.value.fh, 2, lock, false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().Read(kRoot, second.value.fh, 0, 16).error, EISDIR);
  EXPECT_EQ(fs().Write(kRoot, second.value.fh, 0, Bytes("x")).error, EROFS);
  EXPECT_EQ(fs().GetAttrOfHandle(kRoot, second.value.fh).value.attr.mode,
            static_cast<uint32_t>(S_IFDIR | 0555));
}

TEST_F(VirtioFsAggregate, SharesAreItsNames) {
  Add("a", Dir("a"));
  Add("second", Dir("b"));
  EXPECT_EQ(RootNames(), (std::vector<std::string>{".", "..", "a", "second"}));
  EXPECT_EQ(fs().GetAttr(kRoot).value.attr.nlink, 4u);
  EXPECT_EQ(all_.Metric("shares"), 2u);
  EXPECT_EQ(Text(fs().Read(all_.Node("a/file"), all_.OpenPath("a/file", O_RDONLY), 0, 99).value),
            "of a");
  EXPECT_EQ(
      Text(fs().Read(all_.Node("second/file"), all_.OpenPath("second/file", O_RDWR), 0, 99).value),
      "of b");
  const uint64_t a = all_.Node("a");
  EXPECT_EQ(fs().Create(a, "new", O_RDWR, 0600).error, 0);
  EXPECT_TRUE(stdfs::exists(Dir("a") / "new"));
  EXPECT_FALSE(stdfs::exists(Dir("b") / "new"));
  EXPECT_EQ(fs().Unlink(a, "new"), 0);
  // The shares themselves are the root's names, and those are not the guest's to change.
  EXPECT_EQ(fs().Rmdir(kRoot, "a"), EROFS);
  EXPECT_EQ(fs().Unlink(kRoot, "a"), EROFS);
  EXPECT_EQ(fs().Rename(kRoot, "a", kRoot, "c"), EROFS);
  EXPECT_EQ(fs().Rename(kRoot, "a", a, "c"), EROFS);
  EXPECT_EQ(fs().Rename(a, "file", kRoot, "c"), EROFS);
  EXPECT_EQ(fs().Link(all_.Node("a/file"), kRoot, "c").error, EROFS);
  EXPECT_EQ(fs().Mkdir(kRoot, "a", 0755).error, EROFS);
  // Listed with attributes, each is looked up.
  const auto open = fs().OpenDir(kRoot);
  const auto plus = fs().ReadDirPlus(kRoot, open.value.fh, 0, 65536);
  ASSERT_EQ(plus.value.size(), 4u);
  EXPECT_EQ(plus.value[0].entry.nodeid, 0u);
  EXPECT_EQ(plus.value[2].entry.nodeid, a);
  EXPECT_EQ(plus.value[2].ino, plus.value[2].entry.attr.ino);
  EXPECT_EQ(plus.value[2].type, uint32_t{DT_DIR});
  EXPECT_EQ(fs().GetAttr(a).value.attr.ino, plus.value[2].ino);
  // Too little room for one entry.
  EXPECT_EQ(fs().ReadDir(kRoot, open.value.fh, 2, 16).error, EINVAL);
}

TEST_F(VirtioFsAggregate, NothingLeadsOutOfAShare) {
  stdfs::create_directory(Dir("a") / "sub");
  stdfs::create_symlink("/", Dir("a") / "slash");
  stdfs::create_symlink("../b/file", Dir("a") / "up");
  Add("a", Dir("a"));
  Add("b", Dir("b"));
  const uint64_t a = all_.Node("a");
  EXPECT_EQ(fs().Lookup(a, "..").error, EINVAL);
  EXPECT_EQ(fs().Lookup(all_.Node("a/sub"), "../../b").error, EINVAL);
  // Links are the guest's to follow.
  const uint64_t link = all_.Node("a/slash");
  EXPECT_EQ(fs().ReadLink(link).value, "/");
  EXPECT_EQ(fs().Lookup(link, "etc").error, ENOTDIR);
  EXPECT_EQ(fs().Open(link, O_RDONLY).error, ELOOP);
  EXPECT_EQ(fs().ReadLink(all_.Node("a/up")).value, "../b/file");
  // What is above a share is the root of all.
  const auto open = fs().OpenDir(a);
  for (const auto& entry : fs().ReadDir(a, open.value.fh, 0, 4096).value) {
    if (entry.name == "..") {
      EXPECT_EQ(entry.ino, 1u);
    }
    if (entry.name == ".") {
      EXPECT_EQ(entry.ino, fs().GetAttr(a).value.attr.ino);
    }
  }
}

TEST_F(VirtioFsAggregate, NothingIsMovedBetweenShares) {
  Add("a", Dir("a"));
  Add("b", Dir("b"));
  // The same directory again: the same file system and directory for the host, another for us.
  Add("again", Dir("a"), {{"uid", "5"}});
  const uint64_t a = all_.Node("a"), b = all_.Node("b"), again = all_.Node("again");
  for (const uint64_t other : {b, again}) {
    EXPECT_EQ(fs().Rename(a, "file", other, "moved"), EXDEV);
    EXPECT_EQ(fs().Rename2(a, "file", other, "file", RENAME_EXCHANGE), EXDEV);
    EXPECT_EQ(fs().Link(all_.Node("a/file"), other, "linked").error, EXDEV);
  }
  EXPECT_EQ(ReadFile(Dir("a") / "file"), "of a");
  // Contents may be copied: the guest has both files open.
  const uint64_t from = all_.OpenPath("a/file", O_RDONLY), to = all_.OpenPath("b/file", O_RDWR);
  const auto copied =
      fs().CopyFileRange(all_.Node("a/file"), from, 0, all_.Node("b/file"), to, 0, 99);
  EXPECT_EQ(copied.value, 4u);
  EXPECT_EQ(ReadFile(Dir("b") / "file"), "of a");
}

TEST_F(VirtioFsAggregate, EachShareHasItsOwnOptions) {
  Add("rw", Dir("a"));
  Add("ro", Dir("a"), {{"ro", ""}});
  Add("mine", Dir("a"), {{"uid", "1234"}, {"gid", "5678"}, {"umask", "077"}});
  Add("meta", Dir("b"), {{"metadata", ""}});
  const auto mine = fs().GetAttr(all_.Node("mine/file")).value.attr;
  EXPECT_EQ(mine.uid, 1234u);
  EXPECT_EQ(mine.gid, 5678u);
  EXPECT_EQ(mine.mode & 077, 0u);
  EXPECT_EQ(fs().GetAttr(all_.Node("rw/file")).value.attr.uid, ::geteuid());
  fs().queue().set_caller({.uid = 9, .gid = 8, .groups = {}});
  EXPECT_EQ(fs().Mknod(all_.Node("meta"), "dev", S_IFCHR | 0600, 0x103).value.attr.rdev, 0x103u);
  fs().queue().set_caller({});

  const uint64_t ro = all_.Node("ro"), file = all_.Node("ro/file");
  EXPECT_EQ(Text(fs().Read(file, all_.OpenPath("ro/file", O_RDONLY), 0, 99).value), "of a");
  for (const int flags : {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC}) {
    EXPECT_EQ(fs().Open(file, static_cast<uint32_t>(flags)).error, EROFS) << flags;
  }
  EXPECT_EQ(fs().Create(ro, "new", O_RDWR, 0600).error, EROFS);
  EXPECT_EQ(fs().Mkdir(ro, "new", 0700).error, EROFS);
  EXPECT_EQ(fs().Mknod(ro, "new", S_IFIFO | 0600).error, EROFS);
  EXPECT_EQ(fs().Symlink(ro, "new", "x").error, EROFS);
  EXPECT_EQ(fs().Link(file, ro, "new").error, EROFS);
  EXPECT_EQ(fs().Tmpfile(ro, O_RDWR, 0600).error, EROFS);
  EXPECT_EQ(fs().Unlink(ro, "file"), EROFS);
  EXPECT_EQ(fs().Rmdir(ro, "file"), EROFS);
  EXPECT_EQ(fs().Rename(ro, "file", ro, "new"), EROFS);
  EXPECT_EQ(fs().SetXattr(file, "user.a", Bytes("b")), EROFS);
  EXPECT_EQ(fs().RemoveXattr(file, "user.a"), EROFS);
  fuse_setattr_in size = {};
  size.valid = FATTR_SIZE;
  EXPECT_EQ(fs().SetAttr(file, size).error, EROFS);
  EXPECT_EQ(fs().Access(file, W_OK), EROFS);
  EXPECT_EQ(fs().Fallocate(file, all_.OpenPath("ro/file", O_RDONLY), 0, 10, 0), EROFS);
  EXPECT_EQ(fs().Write(file, all_.OpenPath("ro/file", O_RDONLY), 0, Bytes("x")).error, EBADF);
  // Out of it contents may be copied, into it not.
  const uint64_t from = all_.OpenPath("ro/file", O_RDONLY), to = all_.OpenPath("meta/file", O_RDWR);
  EXPECT_EQ(fs().CopyFileRange(file, from, 0, all_.Node("meta/file"), to, 0, 9).value, 4u);
  EXPECT_NE(fs().CopyFileRange(all_.Node("meta/file"), to, 0, file, from, 0, 9).error, 0);
  EXPECT_EQ(ReadFile(Dir("a") / "file"), "of a");
}

TEST_F(VirtioFsAggregate, EachShareSaysWhoOwnsItsFiles) {
  const std::string user = absl::StrCat(::geteuid()), group = absl::StrCat(::getegid());
  Add("plain", Dir("a"));
  Add("first", Dir("a"), {{"default_uid", "11"}, {"default_gid", "12"}, {"mode", "640"}});
  Add("second", Dir("a"), {{"default_uid", "21"}, {"default_gid", "22"}, {"mode", "400"}});
  Add("mapped", Dir("a"),
      {{"translate-uid", absl::StrCat("map:31:", user, ":1")},
       {"translate-gid", absl::StrCat("map:32:", group, ":1")}});
  Add("forced", Dir("a"), {{"uid", "41"}, {"gid", "42"}, {"fmask", "077"}, {"dmask", "027"}});
  ASSERT_EQ(::chmod((Dir("a") / "file").c_str(), 0755), 0);
  ASSERT_EQ(::chmod(Dir("a").c_str(), 0755), 0);
  struct Expected {
    const char* share;
    uint32_t uid, gid, file, dir;
  };
  const Expected all[] = {{"plain", ::geteuid(), ::getegid(), 0755, 0755},
                          {"first", 11, 12, 0640, 0750},
                          {"second", 21, 22, 0400, 0500},
                          {"mapped", 31, 32, 0755, 0755},
                          {"forced", 41, 42, 0700, 0750}};
  // Whoever is asked for them, and after any other share was.
  for (int round = 0; round < 2; ++round) {
    for (const Expected& expected : all) {
      const auto dir = fs().GetAttr(all_.Node(expected.share)).value.attr;
      const auto file = fs().GetAttr(all_.Node(absl::StrCat(expected.share, "/file"))).value.attr;
      EXPECT_EQ(file.uid, expected.uid) << expected.share;
      EXPECT_EQ(file.gid, expected.gid) << expected.share;
      EXPECT_EQ(file.mode & 07777, expected.file) << expected.share;
      EXPECT_EQ(dir.uid, expected.uid) << expected.share;
      EXPECT_EQ(dir.mode & 07777, expected.dir) << expected.share;
    }
  }
  // What a share says cannot be changed from its files.
  for (const char* share : {"first", "forced"}) {
    const uint64_t file = all_.Node(absl::StrCat(share, "/file"));
    fuse_setattr_in owner = {};
    owner.valid = FATTR_UID | FATTR_GID;
    owner.uid = 777;
    owner.gid = 778;
    const auto before = fs().GetAttr(file).value.attr;
    const auto after = fs().SetAttr(file, owner);
    EXPECT_EQ(after.error, 0) << share;
    EXPECT_EQ(after.value.attr.uid, before.uid) << share;
    EXPECT_EQ(after.value.attr.gid, before.gid) << share;
  }
  struct stat host = {};
  ASSERT_EQ(::stat((Dir("a") / "file").c_str(), &host), 0);
  EXPECT_EQ(host.st_uid, ::geteuid());
  EXPECT_EQ(host.st_gid, ::getegid());
}

TEST_F(VirtioFsAggregate, AttributesPassThroughByShare) {
  ASSERT_EQ(::setxattr((Dir("a") / "file").c_str(), "user.x", "y", 1, 0), 0);
  Add("with", Dir("a"));
  Add("without", Dir("a"), {{"xattr", "false"}});
  Add("given", Dir("a"), {{"xattr", "user.given=all"}});
  EXPECT_EQ(Text(fs().GetXattr(all_.Node("with/file"), "user.x", 9).value), "y");
  const uint64_t without = all_.Node("without/file");
  EXPECT_EQ(fs().GetXattr(without, "user.x", 9).error, ENODATA);
  EXPECT_EQ(fs().SetXattr(without, "user.x", Bytes("z")), EOPNOTSUPP);
  EXPECT_EQ(fs().RemoveXattr(without, "user.x"), EOPNOTSUPP);
  EXPECT_TRUE(fs().ListXattr(without, 99).value.empty());
  EXPECT_EQ(Text(fs().GetXattr(all_.Node("given"), "user.given", 9).value), "all");
}

// ---- inode numbers ------------------------------------------------------------------------------

// Numbers of everything below a share, as lookups and as listings tell them.
void Collect(Share& all, uint64_t node, std::multiset<uint64_t>* numbers) {
  numbers->insert(all.fs().GetAttr(node).value.attr.ino);
  const auto open = all.fs().OpenDir(node);
  if (open.error != 0) return;
  for (const auto& entry : all.fs().ReadDir(node, open.value.fh, 0, 65536).value) {
    if (entry.name == "." || entry.name == "..") continue;
    const auto found = all.fs().Lookup(node, entry.name);
    EXPECT_EQ(found.value.attr.ino, entry.ino) << entry.name;
    Collect(all, found.value.nodeid, numbers);
  }
}

TEST_F(VirtioFsAggregate, InodeNumbersNeverMeet) {
  stdfs::create_directories(Dir("a") / "deep" / "er");
  all_.dir().Write("a/deep/er/file", "");
  // One of them inside the other, one with other options, and two on further file systems, whose
  // numbers begin at 1 like all others'.
  Add("a", Dir("a"));
  Add("inside", Dir("a") / "deep");
  Add("other", Dir("a"), {{"uid", "3"}});
  std::vector<stdfs::path> mounts;
  for (const char* name : {"m1", "m2"}) {
    stdfs::create_directory(Dir(name));
    if (::mount("tmpfs", Dir(name).c_str(), "tmpfs", 0, "size=1m") != 0) continue;
    mounts.push_back(Dir(name));
    all_.dir().Write(std::string(name) + "/file", "");
    Add(name, Dir(name));
  }
  std::multiset<uint64_t> numbers;
  for (const std::string& name : RootNames()) {
    if (name != "." && name != "..") Collect(all_, all_.Node(name), &numbers);
  }
  EXPECT_GE(numbers.size(), 12u + 2 * mounts.size());
  EXPECT_EQ(numbers.size(), std::set<uint64_t>(numbers.begin(), numbers.end()).size());
  EXPECT_FALSE(numbers.contains(1)) << "the root's";
  if (mounts.size() == 2) {
    EXPECT_EQ(fs().StatFs(all_.Node("m1")).value.blocks * fs().StatFs(all_.Node("m1")).value.bsize,
              1u << 20);
    struct statfs host = {};
    ASSERT_EQ(::statfs(Dir("a").c_str(), &host), 0);
    EXPECT_EQ(fs().StatFs(all_.Node("a/file")).value.blocks, host.f_blocks);
  }
  // The session holds directories there.
  all_.Disconnect();
  for (const stdfs::path& mount : mounts) {
    EXPECT_OK(shares::Remove(all_.device(), mount.filename().native()));
    EXPECT_EQ(::umount(mount.c_str()), 0);
  }
}

TEST_F(VirtioFsAggregate, SharesAreNoMountsAndMountsInThemAre) {
  const stdfs::path point = Dir("a") / "mount";
  stdfs::create_directory(point);
  if (::mount("tmpfs", point.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  Add("a", Dir("a"));
  const auto share = fs().Lookup(kRoot, "a");
  EXPECT_EQ(share.value.attr.flags & FUSE_ATTR_SUBMOUNT, 0u);
  const auto mount = fs().Lookup(share.value.nodeid, "mount");
  EXPECT_NE(mount.value.attr.flags & FUSE_ATTR_SUBMOUNT, 0u);
  EXPECT_NE(mount.value.attr.ino, share.value.attr.ino);
  all_.Disconnect();
  EXPECT_OK(shares::Remove(all_.device(), "a"));
  EXPECT_EQ(::umount(point.c_str()), 0);
}

// ---- adding -------------------------------------------------------------------------------------

TEST_F(VirtioFsAggregate, AnEqualShareIsUsedAgain) {
  const OptionMap options = {{"uid", "1000"}, {"gid", "1000"}, {"readonly", "true"}};
  EXPECT_EQ(Add("first", Dir("a"), options), "first");
  // Whatever the order and the spelling of the options and the path.
  for (const char* text : {"name=second\npath=%\nuid=1000\ngid=1000\nro=1\n",
                           "readonly=yes\ngid=1000\nuid=01000\npath=%/\n",
                           "gid=1000\npath=%/../a/.\nro=on\numask=000\nuid=1000\nname=first\n"}) {
    std::string filled = text;
    filled.replace(filled.find('%'), 1, Dir("a").native());
    EXPECT_EQ(all_.device().Control("share.add", filled).value_or("failed"),
              "name=first\nexisting=true\n")
        << text;
  }
  EXPECT_EQ(all_.Metric("shares"), 1u);
  // Something else each: a directory, an option.
  EXPECT_EQ(Add("b", Dir("b"), options), "b");
  EXPECT_EQ(Add("rw", Dir("a"), {{"uid", "1000"}, {"gid", "1000"}}), "rw");
  EXPECT_THAT(TryAdd("first", Dir("b")).status(),
              StatusIs(absl::StatusCode::kAlreadyExists, "first"));
  // Another directory took the place of the first one's.
  stdfs::rename(Dir("a"), Dir("was-a"));
  stdfs::create_directory(Dir("a"));
  EXPECT_EQ(Add("new", Dir("a"), options), "new");
  // Without a name one is made up, and is free.
  const std::string made = Add("", Dir("a"));
  EXPECT_EQ(all_.Node(made) == 0, false) << made;
  ASSERT_OK_AND_ASSIGN(const auto list, shares::List(all_.device()));
  ASSERT_EQ(list.size(), 5u);
  EXPECT_EQ(list[0].name, "first");
  EXPECT_EQ(list[0].path, Dir("a").native());
  EXPECT_EQ(list[0].options,
            (OptionMap{{"uid", "1000"}, {"gid", "1000"}, {"readonly", "true"}, {"xattr", "true"}}));
  EXPECT_EQ(list[4].name, made);
}

TEST_F(VirtioFsAggregate, WhatCannotBeAdded) {
  all_.dir().Write("plain", "");
  EXPECT_THAT(TryAdd("x", Dir("none")).status(), StatusIs(absl::StatusCode::kNotFound, "none"));
  EXPECT_THAT(TryAdd("x", Dir("plain")).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "plain"));
  EXPECT_THAT(TryAdd("x", "").status(), StatusIs(absl::StatusCode::kInvalidArgument, "path"));
  for (const std::string& name :
       {std::string("."), std::string(".."), std::string("a/b"), std::string("/"),
        std::string(256, 'n'), std::string("a\tb"), std::string("a\x7f"), std::string("a\nuid=0"),
        std::string("a\0b", 3)}) {
    EXPECT_THAT(TryAdd(name, Dir("a")).status(), StatusIs(absl::StatusCode::kInvalidArgument))
        << name;
  }
  EXPECT_EQ(Add(std::string(255, 'n'), Dir("a")), std::string(255, 'n'));
  EXPECT_EQ(Add("\xc3\xa4 b;c=d", Dir("b")), "\xc3\xa4 b;c=d");
  for (const auto& [key, value] : {std::pair{"umask", "9"},
                                   {"colour", "red"},
                                   {"cache", "always"},
                                   {"shared-dir", "/"},
                                   {"name", "y"},
                                   {"path", "/"},
                                   {"uid", "x\ngid=0"},
                                   {"a=b", "c"},
                                   {"", "c"}}) {
    EXPECT_THAT(TryAdd("x", Dir("a"), {{key, value}}).status(),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << key;
  }
  for (const char* text : {"name=x", "x", "=", "name=\npath=/", "name=x\nname=y\npath=/",
                           "path=/\npath=/", "name=x\npath=/\nuid"}) {
    EXPECT_THAT(all_.device().Control("share.add", text).status(),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << text;
  }
  EXPECT_THAT(all_.device().Control("share.add", std::string("path=/\0x", 8)).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, "NUL"));
  for (const char* text : {"", "path=/", "name=x\npath=/"}) {
    EXPECT_THAT(all_.device().Control("share.remove", text).status(),
                StatusIs(absl::StatusCode::kInvalidArgument, "name"))
        << text;
  }
  EXPECT_THAT(all_.device().Control("share.move", "").status(),
              StatusIs(absl::StatusCode::kUnimplemented, "share.add"));
  EXPECT_THAT(shares::Remove(all_.device(), "none"), StatusIs(absl::StatusCode::kNotFound, "none"));
  EXPECT_EQ(all_.Metric("shares"), 2u);
}

TEST(VirtioFsAggregateOptions, OfTheDevice) {
  {
    Share one;
    ASSERT_TRUE(one.ready());
    EXPECT_THAT(shares::Add(one.device(), {"x", "/", {}}).status(),
                StatusIs(absl::StatusCode::kFailedPrecondition, "aggregate"));
    EXPECT_THAT(shares::List(one.device()).status(),
                StatusIs(absl::StatusCode::kFailedPrecondition, "aggregate"));
  }
  Share few(Aggregate({{"max-shares", "2"}, {"uid", "42"}, {"tag", "few"}}));
  ASSERT_TRUE(few.ready());
  EXPECT_EQ(few.session().configured_request_queues(), 4u);
  for (const char* name : {"a", "b", "c"}) stdfs::create_directory(few.dir() / name);
  ASSERT_OK(shares::Add(few.device(), {"a", (few.dir() / "a").native(), {}}));
  ASSERT_OK(shares::Add(few.device(), {"b", (few.dir() / "b").native(), {{"uid", "43"}}}));
  EXPECT_EQ(few.fs().GetAttr(few.Node("a")).value.attr.uid, 42u) << "the device's is the default";
  EXPECT_EQ(few.fs().GetAttr(few.Node("b")).value.attr.uid, 43u);
  EXPECT_THAT(shares::Add(few.device(), {"c", (few.dir() / "c").native(), {}}).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, "max-shares"));
  ASSERT_OK(shares::Remove(few.device(), "a"));
  EXPECT_THAT(
      shares::Add(few.device(), {"c", (few.dir() / "c").native(), {{"xattr", ""}}}).status(),
      StatusIs(absl::StatusCode::kFailedPrecondition, "xattr"));
  EXPECT_EQ(few.fs().GetXattr(few.Node("b"), "user.a", 9).error, ENOSYS);
  EXPECT_OK(shares::Add(few.device(), {"c", (few.dir() / "c").native(), {}}));

  Share locked(Aggregate({{"readonly", ""}, {"posix-acl", ""}}));
  ASSERT_TRUE(locked.ready());
  const std::string dir = locked.dir().path().native();
  EXPECT_THAT(shares::Add(locked.device(), {"x", dir, {{"readonly", "false"}}}).status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "readonly"));
  EXPECT_THAT(shares::Add(locked.device(), {"x", dir, {{"metadata", ""}}}).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, "posix-acl"));
  EXPECT_OK(shares::Add(locked.device(), {"x", dir, {}}));
  EXPECT_EQ(locked.fs().Mkdir(locked.Node("x"), "d", 0700).error, EROFS);
}

TEST_F(VirtioFsAggregate, AThousandShares) {
  constexpr int kShares = 1000;
  struct rlimit limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  if (limit.rlim_max < 4096) GTEST_SKIP() << "needs 4096 descriptors";
  const struct rlimit before = limit;
  limit.rlim_cur = std::max<rlim_t>(limit.rlim_cur, 4096);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  {
    Share many(Aggregate());
    ASSERT_TRUE(many.ready());
    const size_t fds = CountOpenUnder(many.dir().path());
    // Others come and go with the threads of this process.
    constexpr size_t kOthers = 100;
    const size_t all = CountEntries("/proc/self/fd");
    for (int i = 0; i < kShares; ++i) {
      const std::string name = absl::StrCat("s", i);
      const stdfs::path dir = many.dir() / name;
      stdfs::create_directories(dir / "sub");
      if (i % 20 == 0) many.dir().Write(name + "/file", name);
      const auto added = shares::Add(many.device(), {name, dir.native(), {}});
      ASSERT_OK(added);
    }
    EXPECT_EQ(CountOpenUnder(many.dir().path()), fds + kShares) << "one descriptor each";
    EXPECT_LT(CountEntries("/proc/self/fd"), all + kShares + kOthers);
    EXPECT_EQ(many.fs().GetAttr(kRoot).value.attr.nlink, 2u + kShares);
    std::set<uint64_t> numbers;
    for (int i = 0; i < kShares; ++i) {
      const std::string name = absl::StrCat("s", i);
      const auto share = many.fs().Lookup(kRoot, name);
      ASSERT_EQ(share.error, 0) << name;
      const auto sub = many.fs().Lookup(share.value.nodeid, "sub");
      ASSERT_EQ(sub.error, 0) << name;
      EXPECT_TRUE(numbers.insert(share.value.attr.ino).second);
      EXPECT_TRUE(numbers.insert(sub.value.attr.ino).second);
      if (i % 20 != 0) continue;
      const uint64_t file = many.Node(name + "/file");
      const auto open = many.fs().Open(file, O_RDONLY);
      EXPECT_EQ(Text(many.fs().Read(file, open.value.fh, 0, 99).value), name);
      EXPECT_EQ(many.fs().Release(file, open.value.fh), 0);
    }
    ASSERT_OK_AND_ASSIGN(const auto list, shares::List(many.device()));
    ASSERT_EQ(list.size(), size_t{kShares});
    // In pieces, with and without attributes.
    const auto root = many.fs().OpenDir(kRoot);
    for (const bool plus : {false, true}) {
      std::set<std::string> names;
      for (uint64_t offset = 0;;) {
        const auto part = plus ? many.fs().ReadDirPlus(kRoot, root.value.fh, offset, 5000)
                               : many.fs().ReadDir(kRoot, root.value.fh, offset, 5000);
        ASSERT_EQ(part.error, 0);
        if (part.value.empty()) break;
        for (const auto& entry : part.value) EXPECT_TRUE(names.insert(entry.name).second);
        offset = part.value.back().next_offset;
      }
      EXPECT_EQ(names.size(), 2u + kShares);
    }
    EXPECT_EQ(many.fs().ReleaseDir(kRoot, root.value.fh), 0);
    for (int i = 0; i < kShares; ++i) {
      ASSERT_OK(shares::Remove(many.device(), absl::StrCat("s", i)));
    }
    EXPECT_EQ(CountOpenUnder(many.dir().path()), fds);
    EXPECT_LT(CountEntries("/proc/self/fd"), all + kOthers);
    EXPECT_EQ(many.Metric("inodes"), 0u);
    EXPECT_EQ(many.Metric("shares"), 0u);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace virtbay::testing
