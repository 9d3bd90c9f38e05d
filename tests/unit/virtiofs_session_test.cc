// Sessions of the virtiofs plugin: INIT and what it negotiates, options, cache policies, the
// descriptor budget, read-only shares, front-ends that come and go.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "hostif/guest/fuse_protocol.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
using ::testing::HasSubstr;

ShareOptions With(std::map<std::string, std::string> options) {
  ShareOptions share;
  share.options = std::move(options);
  return share;
}

absl::Status Refused(std::map<std::string, std::string> options) {
  auto host = Host::Create(HostOptions());
  EXPECT_OK(host);
  DeviceSpec spec;
  spec.name = "share";
  spec.plugin = VIRTBAY_VIRTIOFS_PLUGIN;
  spec.options = std::move(options);
  return (*host)->Add(spec).status();
}

TEST(VirtioFsSession, ConfigSpace) {
  ShareOptions options = With({{"tag", "my share"}, {"request-queues", "3"}});
  options.session.request_queues = 0;
  Share share(std::move(options));
  ASSERT_TRUE(share.ready());
  EXPECT_EQ(share.session().tag(), "my share");
  EXPECT_EQ(share.session().configured_request_queues(), 3u);
  EXPECT_EQ(share.session().request_queues(), 3u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_EQ(share.fs(i).GetAttr(kRoot).error, 0);
}

// A stock kernel that bounces cannot map more than 256 KiB at once, and its queue never recovers.
TEST(VirtioFsSession, RequestsFitTheGuestsBouncePool) {
  for (const char* max_write : {"", "1048576", "65536"}) {
    ShareOptions options;
    options.access_platform = true;
    if (*max_write != '\0') options.options = {{"max-write", max_write}};
    Share share(std::move(options));
    ASSERT_TRUE(share.ready());
    const auto init = share.fs().Init();
    ASSERT_EQ(init.error, 0);
    const uint32_t expected = std::string_view(max_write) == "65536" ? 65536u : 262144u;
    EXPECT_EQ(init.value.max_write, expected);
    EXPECT_EQ(init.value.max_pages, expected / 4096);
  }
}

TEST(VirtioFsSession, InitNegotiates) {
  Share share;
  ASSERT_TRUE(share.ready());
  auto init = share.fs().Init();
  ASSERT_EQ(init.error, 0);
  EXPECT_EQ(init.value.major, 7u);
  EXPECT_EQ(init.value.minor, 38u);
  EXPECT_EQ(init.value.max_write, 1u << 20);
  EXPECT_EQ(init.value.max_pages, 256u);
  EXPECT_EQ(init.value.time_gran, 1u);
  const uint64_t flags = share.fs().init().flags;
  for (const uint64_t flag :
       {uint64_t{FUSE_ASYNC_READ}, uint64_t{FUSE_PARALLEL_DIROPS}, uint64_t{FUSE_BIG_WRITES},
        uint64_t{FUSE_POSIX_LOCKS}, uint64_t{FUSE_FLOCK_LOCKS}, uint64_t{FUSE_ATOMIC_O_TRUNC},
        uint64_t{FUSE_DO_READDIRPLUS}, uint64_t{FUSE_READDIRPLUS_AUTO}, uint64_t{FUSE_MAX_PAGES},
        uint64_t{FUSE_SUBMOUNTS}, uint64_t{FUSE_CACHE_SYMLINKS}, guest::kFuseCreateSuppGroup}) {
    EXPECT_EQ(flags & flag, flag) << std::hex << flag;
  }
  for (const uint64_t flag :
       {uint64_t{FUSE_WRITEBACK_CACHE}, uint64_t{FUSE_POSIX_ACL}, uint64_t{FUSE_DONT_MASK},
        uint64_t{FUSE_NO_OPEN_SUPPORT}, uint64_t{FUSE_HANDLE_KILLPRIV_V2},
        uint64_t{FUSE_EXPORT_SUPPORT}, guest::kFuseDirectIoAllowMmap}) {
    EXPECT_EQ(flags & flag, 0u) << std::hex << flag;
  }
  // Nothing that was not offered; a newer guest gets our minor, an older one its own.
  init = share.fs().Init(FUSE_ASYNC_READ, 99);
  EXPECT_EQ(init.value.minor, 39u);
  EXPECT_EQ(init.value.flags, static_cast<uint32_t>(FUSE_ASYNC_READ));
  EXPECT_EQ(init.value.flags2, 0u);
  EXPECT_EQ(share.fs().Init(FUSE_ASYNC_READ, 27).value.minor, 27u);
  EXPECT_EQ(share.fs().Init(FUSE_ASYNC_READ, 26).error, EPROTO);
}

TEST(VirtioFsSession, OptionsTurnFlagsOn) {
  Share share(With({{"writeback", ""},
                    {"posix-acl", "true"},
                    {"killpriv-v2", "yes"},
                    {"no-readdirplus", "1"},
                    {"announce-submounts", "off"},
                    {"cache", "never"},
                    {"max-write", "262144"}}));
  ASSERT_TRUE(share.ready());
  const uint64_t flags = share.fs().init().flags;
  const uint64_t on = FUSE_WRITEBACK_CACHE | FUSE_POSIX_ACL | FUSE_DONT_MASK |
                      FUSE_HANDLE_KILLPRIV_V2 | guest::kFuseDirectIoAllowMmap;
  EXPECT_EQ(flags & on, on);
  EXPECT_EQ(flags & (FUSE_DO_READDIRPLUS | FUSE_SUBMOUNTS | FUSE_CACHE_SYMLINKS), 0u);
  EXPECT_EQ(share.fs().init().out.max_write, 262144u);
  EXPECT_EQ(share.fs().init().out.max_pages, 64u);
}

TEST(VirtioFsSession, NothingBeforeInit) {
  ShareOptions options;
  options.session.init = false;
  Share share(std::move(options));
  ASSERT_TRUE(share.ready());
  EXPECT_EQ(share.fs().GetAttr(kRoot).error, ENOTCONN);
  EXPECT_EQ(share.fs().Lookup(kRoot, "x").error, ENOTCONN);
  EXPECT_EQ(share.fs().Other(37, kRoot, {}, 16).error, ENOSYS);
  EXPECT_EQ(share.session().hiprio().Forget(5, 1), 0);
  // A major version of the future: ours, and INIT again.
  fuse_init_in in = {};
  in.major = 8;
  const auto reply =
      share.fs().Other(FUSE_INIT, 0, std::as_bytes(std::span(&in, 1)), sizeof(fuse_init_out));
  ASSERT_EQ(reply.error, 0);
  fuse_init_out out;
  std::memcpy(&out, reply.value.data(), sizeof(out));
  EXPECT_EQ(out.major, 7u);
  EXPECT_EQ(share.fs().GetAttr(kRoot).error, ENOTCONN);
  in.major = 6;
  EXPECT_EQ(
      share.fs().Other(FUSE_INIT, 0, std::as_bytes(std::span(&in, 1)), sizeof(fuse_init_out)).error,
      EPROTO);
  EXPECT_EQ(share.fs().Init().error, 0);
  EXPECT_EQ(share.fs().GetAttr(kRoot).error, 0);
  EXPECT_EQ(share.fs().Destroy(), 0);
  EXPECT_EQ(share.fs().GetAttr(kRoot).error, ENOTCONN);
}

TEST(VirtioFsSession, InitStartsAnew) {
  Share share;
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  const uint64_t node = share.Node("a");
  const uint64_t fh = share.OpenPath("a", O_RDONLY);
  EXPECT_EQ(share.fs().Init().error, 0);
  EXPECT_EQ(share.fs().GetAttr(node).error, ESTALE);
  EXPECT_EQ(share.fs().Read(node, fh, 0, 1).error, EBADF);
  EXPECT_EQ(share.Metric("inodes"), 0u);
  EXPECT_EQ(share.Metric("open_handles"), 0u);
  EXPECT_NE(share.Node("a"), 0u);
}

TEST(VirtioFsSession, FrontEndsComeAndGo) {
  Share share;
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  const auto fds = [] {
    return std::distance(stdfs::directory_iterator("/proc/self/fd"), stdfs::directory_iterator());
  };
  share.Disconnect();
  share.Connect();
  const auto before = fds();
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(share.ready());
    const uint64_t node = share.Node("a");
    EXPECT_NE(node, 0u);
    share.OpenPath("a", O_RDWR);
    share.Disconnect();
    share.Connect();
  }
  EXPECT_EQ(fds(), before);
}

TEST(VirtioFsSession, APauseKeepsTheSession) {
  Share share;
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  const uint64_t node = share.Node("a");
  const uint64_t fh = share.OpenPath("a", O_RDONLY);
  ASSERT_OK(share.session().driver().Stop());
  ASSERT_OK(share.session().driver().Start());
  EXPECT_EQ(Text(share.fs().Read(node, fh, 0, 10).value), "x");
}

TEST(VirtioFsSession, ReadOnly) {
  Share share(With({{"readonly", ""}, {"xattr", ""}}));
  ASSERT_TRUE(share.ready());
  auto& fs = share.fs();
  share.dir().Write("a", "x");
  const uint64_t node = share.Node("a");
  EXPECT_EQ(fs.Create(kRoot, "b", O_RDWR, 0600).error, EROFS);
  EXPECT_EQ(fs.Create(kRoot, "a", O_RDONLY, 0600).error, EROFS);
  EXPECT_EQ(fs.Tmpfile(kRoot, O_RDWR, 0600).error, EROFS);
  EXPECT_EQ(fs.Mkdir(kRoot, "b", 0755).error, EROFS);
  EXPECT_EQ(fs.Mknod(kRoot, "b", S_IFREG).error, EROFS);
  EXPECT_EQ(fs.Symlink(kRoot, "b", "x").error, EROFS);
  EXPECT_EQ(fs.Link(node, kRoot, "b").error, EROFS);
  EXPECT_EQ(fs.Unlink(kRoot, "a"), EROFS);
  EXPECT_EQ(fs.Rmdir(kRoot, "a"), EROFS);
  EXPECT_EQ(fs.Rename(kRoot, "a", kRoot, "b"), EROFS);
  EXPECT_EQ(fs.Open(node, O_RDWR).error, EROFS);
  EXPECT_EQ(fs.Open(node, O_WRONLY).error, EROFS);
  EXPECT_EQ(fs.Open(node, O_RDONLY | O_TRUNC).error, EROFS);
  EXPECT_EQ(fs.SetXattr(node, "user.x", Bytes("1")), EROFS);
  EXPECT_EQ(fs.RemoveXattr(node, "user.x"), EROFS);
  fuse_setattr_in change = {};
  change.valid = FATTR_MODE;
  EXPECT_EQ(fs.SetAttr(node, change).error, EROFS);
  EXPECT_EQ(fs.Access(node, W_OK), EROFS);
  const uint64_t fh = share.OpenPath("a", O_RDONLY);
  EXPECT_EQ(Text(fs.Read(node, fh, 0, 10).value), "x");
  EXPECT_EQ(fs.Write(node, fh, 0, Bytes("y")).error, EROFS);
  EXPECT_EQ(fs.Fallocate(node, fh, 0, 10, 0), EROFS);
  EXPECT_EQ(fs.CopyFileRange(node, fh, 0, node, fh, 0, 1).error, EROFS);
  EXPECT_EQ(fs.Access(node, R_OK), 0);
  EXPECT_EQ(fs.StatFs().error, 0);
  EXPECT_EQ(ReadFile(share.dir() / "a"), "x");
}

TEST(VirtioFsSession, CachePolicies) {
  struct Expected {
    const char* policy;
    uint64_t valid;
    uint32_t file, dir;
  };
  constexpr uint32_t kDirect = FOPEN_DIRECT_IO | guest::kFopenParallelDirectWrites;
  for (const Expected& e :
       {Expected{"auto", 1, 0, 0},
        Expected{"always", 86400, FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE},
        Expected{"never", 0, kDirect, 0},
        Expected{"metadata", 86400, kDirect, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE}}) {
    Share share(With({{"cache", e.policy}}));
    ASSERT_TRUE(share.ready());
    share.dir().Write("a", "x");
    const auto entry = share.fs().Lookup(kRoot, "a");
    EXPECT_EQ(entry.value.entry_valid, e.valid) << e.policy;
    EXPECT_EQ(entry.value.attr_valid, e.valid) << e.policy;
    EXPECT_EQ(share.fs().GetAttr(entry.value.nodeid).value.attr_valid, e.valid) << e.policy;
    EXPECT_EQ(share.fs().Open(entry.value.nodeid, O_RDONLY).value.open_flags, e.file) << e.policy;
    EXPECT_EQ(share.fs().OpenDir(kRoot).value.open_flags, e.dir) << e.policy;
    // A guest that cannot map what is open for direct I/O goes through its page cache.
    EXPECT_EQ(share.fs().Init(guest::kFuseLinuxInitFlags & ~guest::kFuseDirectIoAllowMmap).error,
              0);
    EXPECT_EQ(share.fs().Open(share.Node("a"), O_RDONLY).value.open_flags & FOPEN_DIRECT_IO, 0u);
  }
}

TEST(VirtioFsSession, NoFlushOnlyWithoutRemoteLocks) {
  Share share;
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  EXPECT_EQ(share.fs().Open(share.Node("a"), O_RDONLY).value.open_flags, 0u);
  EXPECT_EQ(share.fs().Init(FUSE_ASYNC_READ).error, 0);
  EXPECT_EQ(share.fs().Open(share.Node("a"), O_RDONLY).value.open_flags, guest::kFopenNoFlush);
  EXPECT_EQ(share.fs().Open(share.Node("a"), O_RDWR).value.open_flags, 0u);
}

TEST(VirtioFsSession, Timeouts) {
  Share share(With({{"attr-timeout", "2.5"}, {"entry-timeout", "0"}, {"negative-timeout", "7"}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  const auto entry = share.fs().Lookup(kRoot, "a");
  EXPECT_EQ(entry.value.attr_valid, 2u);
  EXPECT_EQ(entry.value.attr_valid_nsec, 500'000'000u);
  EXPECT_EQ(entry.value.entry_valid, 0u);
  const auto none = share.fs().Lookup(kRoot, "none");
  EXPECT_EQ(none.error, 0);
  EXPECT_EQ(none.value.nodeid, 0u);
  EXPECT_EQ(none.value.entry_valid, 7u);
}

TEST(VirtioFsSession, NoXattrUnlessAskedFor) {
  Share share;
  ASSERT_TRUE(share.ready());
  EXPECT_EQ(share.fs().GetXattr(kRoot, "user.x", 10).error, ENOSYS);
  EXPECT_EQ(share.fs().ListXattr(kRoot, 10).error, ENOSYS);
  EXPECT_EQ(share.fs().SetXattr(kRoot, "user.x", Bytes("1")), ENOSYS);
  EXPECT_EQ(share.fs().RemoveXattr(kRoot, "user.x"), ENOSYS);
}

TEST(VirtioFsSession, Writeback) {
  Share share(With({{"writeback", ""}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "0123456789");
  const uint64_t node = share.Node("a");
  const auto open = share.fs().Open(node, O_WRONLY | O_APPEND);
  ASSERT_EQ(open.error, 0);
  // The guest fills pages, and places appended data itself.
  EXPECT_EQ(Text(share.fs().Read(node, open.value.fh, 0, 3).value), "012");
  EXPECT_EQ(share.fs().Write(node, open.value.fh, 2, Bytes("XY"), FUSE_WRITE_CACHE).value, 2u);
  EXPECT_EQ(ReadFile(share.dir() / "a"), "01XY456789");
}

TEST(VirtioFsSession, KillprivV2) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs the capability that keeps set-user-ID bits";
  Share share(With({{"killpriv-v2", ""}}));
  ASSERT_TRUE(share.ready());
  const auto mode_after = [&](auto&& change) {
    share.dir().Write("a", "content");
    EXPECT_EQ(::chmod((share.dir() / "a").c_str(), 06755), 0);
    change(share.Node("a"));
    struct stat st;
    EXPECT_EQ(::stat((share.dir() / "a").c_str(), &st), 0);
    return st.st_mode & 07777;
  };
  auto& fs = share.fs();
  const auto write = [&](uint32_t flags) {
    return [&fs, flags](uint64_t node) {
      const auto open = fs.Open(node, O_RDWR);
      EXPECT_EQ(fs.Write(node, open.value.fh, 0, Bytes("x"), flags).value, 1u);
    };
  };
  EXPECT_EQ(mode_after(write(0)), 06755u);
  EXPECT_EQ(mode_after(write(FUSE_WRITE_KILL_SUIDGID)), 0755u);
  EXPECT_EQ(mode_after([&](uint64_t node) {
              fuse_setattr_in change = {};
              change.valid = FATTR_SIZE | FATTR_KILL_SUIDGID;
              EXPECT_EQ(fs.SetAttr(node, change).error, 0);
            }),
            0755u);
  EXPECT_EQ(mode_after([&](uint64_t node) {
              EXPECT_EQ(fs.Open(node, O_RDWR | O_TRUNC, FUSE_OPEN_KILL_SUIDGID).error, 0);
            }),
            0755u);
  EXPECT_EQ(mode_after(write(0)), 06755u);
}

TEST(VirtioFsSession, UmaskOfTheGuestWithAcls) {
  Share share(With({{"posix-acl", ""}}));
  ASSERT_TRUE(share.ready());
  const auto made = share.fs().Create(kRoot, "a", O_RDWR, 0666, 027);
  ASSERT_EQ(made.error, 0);
  EXPECT_EQ(made.value.entry.attr.mode & 07777, 0640u);
  EXPECT_EQ(share.fs().Mkdir(kRoot, "d", 0777, 022).value.attr.mode & 07777, 0755u);
  EXPECT_EQ(share.fs().Mkdir(kRoot, "e", 0777, 0).value.attr.mode & 07777, 0777u);
}

TEST(VirtioFsSession, DirectIo) {
  Share share(With({{"allow-direct-io", ""}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", std::string(65536, 'd'));
  const uint64_t node = share.Node("a");
  const auto open = share.fs().Open(node, O_RDWR | O_DIRECT);
  if (open.error == EINVAL) GTEST_SKIP() << "the file system has no O_DIRECT";
  ASSERT_EQ(open.error, 0);
  EXPECT_EQ(Text(share.fs().Read(node, open.value.fh, 4096, 8192).value), std::string(8192, 'd'));
  EXPECT_EQ(share.fs().Write(node, open.value.fh, 0, Bytes(std::string(4096, 'e'))).value, 4096u);
  EXPECT_EQ(ReadFile(share.dir() / "a"), std::string(4096, 'e') + std::string(61440, 'd'));
  EXPECT_GE(share.Metric("submitted_io"), 2u);
}

TEST(VirtioFsSession, ColdDescriptorsAreClosedAndFoundAgain) {
  Share share(With({{"max-open-inodes", "16"}, {"xattr", ""}}));
  ASSERT_TRUE(share.ready());
  std::vector<uint64_t> nodes;
  for (int i = 0; i < 100; ++i) {
    std::string name = "d";
    name += std::to_string(i);
    stdfs::create_directories(share.dir() / name / "sub");
    nodes.push_back(share.Node(name + "/sub"));
    ASSERT_NE(nodes.back(), 0u);
    // Used as a parent, so that it gets a descriptor.
    EXPECT_EQ(share.fs().Lookup(nodes.back(), "none").error, ENOENT);
  }
  EXPECT_GT(share.Metric("fds_evicted"), 100u);
  for (const uint64_t node : nodes) {
    EXPECT_EQ(share.fs().Mkdir(node, "made", 0755).error, 0);
    EXPECT_EQ(share.fs().GetAttr(node).error, 0);
  }
  // Renamed by the host meanwhile: found by file handle, where that is allowed.
  stdfs::rename(share.dir() / "d0", share.dir() / "moved");
  const int error = share.fs().Mkdir(nodes[0], "again", 0755).error;
  if (::geteuid() == 0) {
    EXPECT_EQ(error, 0);
    EXPECT_TRUE(stdfs::exists(share.dir() / "moved/sub/again"));
  } else {
    EXPECT_THAT(error, ::testing::AnyOf(0, ESTALE));
  }
}

TEST(VirtioFsSession, TooManyOpenFilesAreTheGuestsOwn) {
  Share share(With({{"max-open-files", "40"}}));
  ASSERT_TRUE(share.ready());
  share.dir().Write("a", "x");
  const uint64_t node = share.Node("a");
  std::vector<uint64_t> handles;
  int error = 0;
  for (int i = 0; i < 200 && error == 0; ++i) {
    const auto open = share.fs().Open(node, O_RDONLY);
    error = open.error;
    if (error == 0) handles.push_back(open.value.fh);
  }
  EXPECT_EQ(error, ENFILE);
  EXPECT_GE(handles.size(), 30u);
  for (const uint64_t fh : handles) EXPECT_EQ(share.fs().Release(node, fh), 0);
  EXPECT_EQ(share.fs().Open(node, O_RDONLY).error, 0);
}

TEST(VirtioFsSession, TooManyInodes) {
  Share share(With({{"max-inodes", "64"}}));
  ASSERT_TRUE(share.ready());
  int known = 0, refused = 0;
  for (int i = 0; i < 100; ++i) {
    std::string name = "f";
    name += std::to_string(i);
    share.dir().Write(name, "");
    const auto reply = share.fs().Lookup(kRoot, name);
    if (reply.ok()) ++known;
    if (reply.error == ENOMEM) ++refused;
  }
  EXPECT_EQ(known, 64);
  EXPECT_EQ(refused, 36);
  // A directory can still be listed; what does not fit is not made known.
  const auto dir = share.fs().OpenDir(kRoot);
  const auto entries = share.fs().ReadDirPlus(kRoot, dir.value.fh, 0, 65536);
  EXPECT_EQ(entries.value.size(), 102u);
  EXPECT_TRUE(share.log().Contains("max-inodes"));
}

TEST(VirtioFsSession, MountsBelowTheShare) {
  Share share;
  ASSERT_TRUE(share.ready());
  const stdfs::path point = share.dir() / "mount";
  stdfs::create_directory(point);
  if (::mount("tmpfs", point.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  auto& fs = share.fs();
  const auto entry = fs.Lookup(kRoot, "mount");
  EXPECT_EQ(entry.error, 0);
  EXPECT_NE(entry.value.attr.flags & FUSE_ATTR_SUBMOUNT, 0u);
  const uint64_t node = entry.value.nodeid;
  EXPECT_EQ(fs.StatFs(node).value.blocks * fs.StatFs(node).value.bsize, 1u << 20);
  EXPECT_GT(fs.StatFs(kRoot).value.blocks, fs.StatFs(node).value.blocks);
  const auto made = fs.Create(node, "file", O_RDWR, 0600);
  EXPECT_EQ(made.error, 0);
  EXPECT_EQ(made.value.entry.attr.flags & FUSE_ATTR_SUBMOUNT, 0u);
  EXPECT_EQ(fs.Write(made.value.entry.nodeid, made.value.open.fh, 0, Bytes("x")).value, 1u);
  EXPECT_EQ(Text(fs.Read(made.value.entry.nodeid, made.value.open.fh, 0, 9).value), "x");
  EXPECT_EQ(fs.SyncFs(node), 0);
  EXPECT_EQ(fs.Rename(node, "file", kRoot, "file"), EXDEV);
  EXPECT_EQ(fs.Link(made.value.entry.nodeid, kRoot, "file").error, EXDEV);
  // In a listing as well.
  const auto dir = fs.OpenDir(kRoot);
  for (const auto& found : fs.ReadDirPlus(kRoot, dir.value.fh, 0, 4096).value) {
    if (found.name == "mount") {
      EXPECT_EQ(found.entry.nodeid, node);
      EXPECT_NE(found.entry.attr.flags & FUSE_ATTR_SUBMOUNT, 0u);
    }
  }
  share.Disconnect();
  EXPECT_EQ(::umount(point.c_str()), 0);  // no descriptor keeps it
}

TEST(VirtioFsOptions, BadOnesAreNamed) {
  const TempDir dir;
  const std::string path = dir.path().native();
  EXPECT_THAT(Refused({}), StatusIs(absl::StatusCode::kInvalidArgument, "shared-dir"));
  EXPECT_THAT(Refused({{"shared-dir", path + "/none"}}),
              StatusIs(absl::StatusCode::kNotFound, "none"));
  dir.Write("file", "");
  EXPECT_THAT(Refused({{"shared-dir", path + "/file"}}),
              StatusIs(absl::StatusCode::kFailedPrecondition, "file"));
  EXPECT_THAT(Refused({{"shared-dir", path}, {"cahce", "auto"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "cahce"));
  EXPECT_THAT(Refused({{"shared-dir", path}, {"cache", "some"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "some"));
}

}  // namespace
}  // namespace virtbay::testing
