// Shares of an aggregate that come and go while the guest uses them.
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "hostif/shares/shares.h"
#include "tests/support/process_state.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

ShareOptions Aggregate(std::map<std::string, std::string> options = {}) {
  ShareOptions all;
  all.aggregate = true;
  all.options = std::move(options);
  return all;
}

class VirtioFsAggregateLife : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(all_.ready());
    for (const char* name : {"a", "b"}) {
      stdfs::create_directories(all_.dir() / name / "sub");
      all_.dir().Write(absl::StrCat(name, "/file"), absl::StrCat("of ", name));
      all_.dir().Write(absl::StrCat(name, "/sub/deep"), "");
      Add(name);
    }
  }
  guest::FuseClient& fs() { return all_.fs(); }
  void Add(const std::string& name, std::map<std::string, std::string> options = {}) {
    EXPECT_OK(shares::Add(all_.device(), {name, (all_.dir() / name).native(), std::move(options)}));
  }
  void Remove(const std::string& name) { EXPECT_OK(shares::Remove(all_.device(), name)); }

  Share all_{Aggregate({{"xattr", ""}, {"negative-timeout", "100"}})};
};

TEST_F(VirtioFsAggregateLife, WhatIsOpenGoesOnUntilItIsReleased) {
  const size_t fds = CountOpenUnder(all_.dir().path());
  const uint64_t root = all_.Node("a"), sub = all_.Node("a/sub"), file = all_.Node("a/file");
  const uint64_t other = all_.Node("a/sub/deep");
  const auto open = fs().Open(file, O_RDWR);
  const auto dir = fs().OpenDir(sub);
  ASSERT_EQ(open.error, 0);
  ASSERT_EQ(dir.error, 0);
  const uint64_t b_file = all_.Node("b/file"), b_fh = all_.OpenPath("b/file", O_RDWR);
  const uint64_t b_known = all_.Node("b/sub/deep");
  Remove("a");

  // The names are gone.
  EXPECT_EQ(fs().Lookup(kRoot, "a").error, ENOENT);
  for (const uint64_t gone : {root, other}) {
    EXPECT_EQ(fs().GetAttr(gone).error, ESTALE);
    EXPECT_EQ(fs().Lookup(gone, "file").error, ESTALE);
    EXPECT_EQ(fs().Open(gone, O_RDONLY).error, ESTALE);
    EXPECT_EQ(fs().StatFs(gone).error, ESTALE);
    EXPECT_EQ(fs().Forget(gone, 1), 0) << "the guest does so later";
  }
  EXPECT_EQ(fs().Lookup(sub, "deep").error, ESTALE) << "although the directory is open";
  EXPECT_EQ(fs().Create(sub, "new", O_RDWR, 0600).error, ESTALE);
  EXPECT_EQ(fs().Mkdir(sub, "new", 0700).error, ESTALE);
  EXPECT_EQ(fs().Unlink(sub, "deep"), ESTALE);
  EXPECT_EQ(fs().Rename(sub, "deep", sub, "new"), ESTALE);
  EXPECT_EQ(fs().Open(file, O_RDONLY).error, ESTALE) << "not once more";
  EXPECT_EQ(fs().OpenDir(sub).error, ESTALE);

  // What was open is not: contents, attributes, size, locks, listing.
  EXPECT_EQ(Text(fs().Read(file, open.value.fh, 0, 99).value), "of a");
  EXPECT_EQ(fs().Write(file, open.value.fh, 0, Bytes("OF")).value, 2u);
  EXPECT_EQ(fs().GetAttr(file).value.attr.size, 4u);
  EXPECT_EQ(fs().GetAttrOfHandle(file, open.value.fh).value.attr.size, 4u);
  fuse_setattr_in size = {};
  size.valid = FATTR_SIZE | FATTR_FH;
  size.fh = open.value.fh;
  size.size = 3;
  EXPECT_EQ(fs().SetAttr(file, size).value.attr.size, 3u);
  EXPECT_EQ(fs().Fsync(file, open.value.fh), 0);
  EXPECT_EQ(fs().Flush(file, open.value.fh), 0);
  EXPECT_EQ(fs().SetLk(file, open.value.fh, 1, {0, 9, F_WRLCK, 1}, false), 0);
  const auto entries = fs().ReadDirPlus(sub, dir.value.fh, 0, 4096);
  ASSERT_EQ(entries.value.size(), 3u);
  for (const auto& entry : entries.value) EXPECT_EQ(entry.entry.nodeid, 0u) << entry.name;
  EXPECT_EQ(ReadFile(all_.dir() / "a" / "file"), "OF ");

  // Nobody else notices.
  EXPECT_EQ(Text(fs().Read(b_file, b_fh, 0, 99).value), "of b");
  EXPECT_EQ(fs().GetAttr(b_known).error, 0);
  EXPECT_EQ(fs().Create(all_.Node("b"), "new", O_RDWR, 0600).error, 0);

  EXPECT_EQ(fs().Release(file, open.value.fh), 0);
  EXPECT_EQ(fs().GetAttr(file).error, ESTALE);
  EXPECT_EQ(fs().ReleaseDir(sub, dir.value.fh), 0);
  EXPECT_EQ(fs().GetAttr(sub).error, ESTALE);
  // Nothing is left of it: what is open is what the other share needs.
  Remove("b");
  EXPECT_EQ(fs().Release(b_file, b_fh), 0);
  all_.Connect();
  ASSERT_TRUE(all_.ready());
  EXPECT_EQ(all_.Metric("inodes"), 0u);
  EXPECT_EQ(all_.Metric("open_handles"), 0u);
  EXPECT_EQ(CountOpenUnder(all_.dir().path()), fds - 2);
}

// The file system of a share can be unmounted as soon as nothing of it is open.
TEST_F(VirtioFsAggregateLife, ARemovedShareLeavesItsFileSystemAlone) {
  const stdfs::path point = all_.dir() / "mount";
  stdfs::create_directory(point);
  if (::mount("tmpfs", point.c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "needs the right to mount";
  }
  all_.dir().Write("mount/file", "x");
  Add("mount");
  const uint64_t file = all_.Node("mount/file");
  const uint64_t fh = all_.OpenPath("mount/file", O_RDONLY);
  Remove("mount");
  EXPECT_EQ(::umount(point.c_str()), -1);
  EXPECT_EQ(errno, EBUSY);
  EXPECT_EQ(Text(fs().Read(file, fh, 0, 9).value), "x");
  EXPECT_EQ(fs().Release(file, fh), 0);
  EXPECT_EQ(::umount(point.c_str()), 0);
}

TEST_F(VirtioFsAggregateLife, TheSameNameIsAnotherShareAfterwards) {
  const auto before = fs().Lookup(kRoot, "a");
  Remove("a");
  EXPECT_EQ(fs().Lookup(kRoot, "a").error, ENOENT);
  Add("a", {{"readonly", ""}});
  const auto after = fs().Lookup(kRoot, "a");
  ASSERT_EQ(after.error, 0);
  EXPECT_NE(after.value.nodeid, before.value.nodeid);
  EXPECT_EQ(fs().GetAttr(before.value.nodeid).error, ESTALE);
  EXPECT_EQ(fs().Mkdir(after.value.nodeid, "x", 0700).error, EROFS);
}

// A listing that is under way neither skips nor repeats a share because others go or come.
// Numbers are few beside the shares that a long life sees.
TEST_F(VirtioFsAggregateLife, ARemovedShareGivesItsInodeNumbersBack) {
  std::set<uint64_t> numbers;
  for (int i = 0; i < 100; ++i) {
    const auto file = fs().GetAttr(all_.Node("a/sub/deep")).value.attr;
    numbers.insert(file.ino);
    Remove("a");
    Add("a");
  }
  EXPECT_LE(numbers.size(), 2u);
}

TEST_F(VirtioFsAggregateLife, CookiesStayWhatTheyWere) {
  for (int i = 0; i < 40; ++i) {
    const std::string name = absl::StrCat("s", 100 + i);
    stdfs::create_directory(all_.dir() / name);
    Add(name);
  }
  const auto root = fs().OpenDir(kRoot);
  std::vector<std::string> seen;
  uint64_t offset = 0;
  const auto read = [&](uint32_t size) {
    const auto part = fs().ReadDir(kRoot, root.value.fh, offset, size);
    EXPECT_EQ(part.error, 0);
    for (const auto& entry : part.value) seen.push_back(entry.name);
    if (!part.value.empty()) offset = part.value.back().next_offset;
    return !part.value.empty();
  };
  ASSERT_TRUE(read(400));
  const uint64_t half = offset;
  const std::string last = seen.back();
  // Some that were seen, the very last one among them, some that were not, and a new one.
  Remove("a");
  Remove(last);
  Remove("s139");
  Remove("s120");
  stdfs::create_directory(all_.dir() / "new");
  Add("new");
  while (read(400)) {
  }
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), seen.size()) << "none twice";
  EXPECT_EQ(seen.size(), 2u + 42 - 2 + 1);
  EXPECT_EQ(seen.back(), "new");
  // An old place is found again, as telldir and seekdir want it.
  const size_t until = seen.size();
  offset = half;
  while (read(400)) {
  }
  const auto first = std::find(seen.begin(), seen.end(), last) + 1;
  const auto middle = seen.begin() + static_cast<std::ptrdiff_t>(until);
  EXPECT_EQ(std::vector(first, middle), std::vector(middle, seen.end()));
  const uint64_t end = offset;
  EXPECT_TRUE(fs().ReadDir(kRoot, root.value.fh, end, 400).value.empty());
}

TEST_F(VirtioFsAggregateLife, TheGuestNeverRemembersNamesForLong) {
  Share always(Aggregate({{"cache", "always"}, {"negative-timeout", "100"}}));
  ASSERT_TRUE(always.ready());
  stdfs::create_directory(always.dir() / "a");
  ASSERT_OK(shares::Add(always.device(), {"a", (always.dir() / "a").native(), {}}));
  const auto share = always.fs().Lookup(kRoot, "a");
  EXPECT_EQ(share.value.entry_valid, 1u);
  EXPECT_EQ(always.fs().Lookup(kRoot, "none").error, ENOENT) << "and absence not at all";
  const auto inner = always.fs().Mkdir(share.value.nodeid, "dir", 0700);
  EXPECT_EQ(inner.value.entry_valid, 86400u) << "inside, the policy holds";
  EXPECT_LE(always.fs().GetAttr(kRoot).value.attr_valid, 1u);
  const auto open = always.fs().OpenDir(kRoot);
  EXPECT_EQ(open.value.open_flags, 0u) << "no cached listing";
  for (const auto& entry : always.fs().ReadDirPlus(kRoot, open.value.fh, 0, 4096).value) {
    EXPECT_LE(entry.entry.entry_valid, 1u);
  }
  const auto before = always.fs().GetAttr(kRoot).value.attr;
  ASSERT_OK(shares::Remove(always.device(), "a"));
  const auto after = always.fs().GetAttr(kRoot).value.attr;
  EXPECT_NE(std::pair(before.mtime, before.mtimensec), std::pair(after.mtime, after.mtimensec));
}

TEST_F(VirtioFsAggregateLife, SharesOutliveSessions) {
  all_.Disconnect();
  stdfs::create_directory(all_.dir() / "c");
  Add("c");
  Remove("b");
  ASSERT_OK(all_.device().Stop());
  Remove("c");
  Add("c", {{"uid", "7"}});
  ASSERT_OK(all_.device().Start());
  all_.Connect();
  ASSERT_TRUE(all_.ready());
  EXPECT_NE(all_.Node("a/sub/deep"), 0u);
  EXPECT_EQ(all_.Node("b"), 0u);
  EXPECT_EQ(fs().GetAttr(all_.Node("c")).value.attr.uid, 7u);
  // INIT begins a new session too.
  const uint64_t old = all_.Node("a");
  EXPECT_EQ(fs().Init().error, 0);
  EXPECT_EQ(fs().GetAttr(old).error, ESTALE);
  EXPECT_NE(all_.Node("a"), 0u);
}

TEST_F(VirtioFsAggregateLife, SyncAndForgetOfRoots) {
  EXPECT_EQ(fs().SyncFs(kRoot), 0);
  const uint64_t a = all_.Node("a");
  EXPECT_EQ(fs().SyncFs(a), 0);
  // A root that the guest has forgotten is looked up like the first time, as long as it is open.
  const auto dir = fs().OpenDir(a);
  EXPECT_EQ(fs().Forget(a, 1), 0);
  EXPECT_EQ(fs().GetAttr(a).error, ESTALE);
  EXPECT_EQ(fs().ReadDir(a, dir.value.fh, 0, 4096).value.size(), 4u);
  const uint64_t again = all_.Node("a");
  EXPECT_EQ(again, a);
  EXPECT_EQ(fs().ReleaseDir(a, dir.value.fh), 0);
  EXPECT_EQ(fs().Forget(again, 1), 0);
  const uint64_t third = all_.Node("a");
  EXPECT_NE(third, a);
  EXPECT_NE(all_.Node("a/file"), 0u);
}

// Whatever is asked of the root, of a share that is there and of one that has gone: an answer, and
// nothing that was not to be changed.
TEST_F(VirtioFsAggregateLife, RequestsOfEveryKindAndLength) {
  const uint64_t gone = all_.Node("b"), a = all_.Node("a"), file = all_.Node("a/file");
  const auto root_fh = fs().OpenDir(kRoot).value.fh;
  const auto held = fs().OpenDir(gone);
  Remove("b");
  Add("b", {{"readonly", ""}});
  const uint64_t read_only = all_.Node("b");
  for (const uint64_t fh : {root_fh, held.value.fh, uint64_t{0}}) {
    std::vector<std::byte> arguments(136);
    std::memcpy(arguments.data(), &fh, 8);
    const char text[] = "file\0other";
    for (size_t at = 8; at + sizeof(text) < arguments.size(); at += 16) {
      std::memcpy(arguments.data() + at, text, sizeof(text));
    }
    for (uint32_t opcode = 0; opcode < 56; ++opcode) {
      // These end the session.
      if (opcode == FUSE_INIT || opcode == FUSE_DESTROY) continue;
      // Waits for a lock, maybe.
      if (opcode == FUSE_SETLKW) continue;
      for (const uint64_t node :
           {kRoot, gone, read_only, uint64_t{0}, kRoot + (uint64_t{1} << 32)}) {
        for (size_t length = 0; length <= arguments.size(); length += 4) {
          const auto reply = fs().Other(opcode, node, std::span(arguments).first(length), 4096);
          ASSERT_NE(reply.error, -ETIMEDOUT) << opcode << " " << node << " " << length;
        }
      }
    }
  }
  EXPECT_EQ(ReadFile(all_.dir() / "b" / "file"), "of b");
  EXPECT_EQ(ReadFile(all_.dir() / "a" / "file"), "of a");
  EXPECT_EQ(fs().GetAttr(file).error, 0);
  EXPECT_EQ(fs().Lookup(a, "file").value.nodeid, file);
  EXPECT_EQ(fs().Lookup(kRoot, "b").error, 0);
  EXPECT_EQ(fs().GetAttr(kRoot).value.attr.mode, static_cast<uint32_t>(S_IFDIR | 0555));
}

// Two guests' threads work on shares that are removed and added under them.
// A lookup that has found the share when it is removed must not leave the guest an inode of it: its
// file system could not be unmounted for as long as the guest remembers that.
TEST(VirtioFsAggregateStress, NothingOfARemovedShareIsLeftByALookup) {
  ShareOptions options = Aggregate({{"request-queues", "2"}});
  options.session.request_queues = 2;
  Share all(std::move(options));
  ASSERT_TRUE(all.ready());
  stdfs::create_directory(all.dir() / "x");
  const auto add = [&] {
    return shares::Add(all.device(), {"x", (all.dir() / "x").native(), {}}).status();
  };
  ASSERT_OK(add());
  std::atomic<bool> stop{false};
  std::atomic<uint32_t> found{0}, missed{0};
  std::vector<std::thread> guests;
  for (uint32_t queue = 0; queue < 2; ++queue) {
    guests.emplace_back([&, queue] {
      while (!stop.load()) {
        const auto share = all.fs(queue).Lookup(kRoot, "x");
        ASSERT_TRUE(share.ok() || share.error == ENOENT) << share.error;
        (share.ok() ? found : missed).fetch_add(1);
      }
    });
  }
  for (int i = 0; i < 2000 || ((found.load() == 0 || missed.load() == 0) && i < 100000); ++i) {
    ASSERT_OK(shares::Remove(all.device(), "x"));
    ASSERT_OK(add());
  }
  ASSERT_OK(shares::Remove(all.device(), "x"));
  stop.store(true);
  for (std::thread& guest : guests) guest.join();
  EXPECT_GT(found.load(), 0u);
  EXPECT_GT(missed.load(), 0u);
  EXPECT_EQ(all.Metric("inodes"), 0u);
}

TEST(VirtioFsAggregateStress, SharesComeAndGoUnderLoad) {
  ShareOptions options = Aggregate({{"request-queues", "2"}, {"metadata", ""}});
  options.session.request_queues = 2;
  Share all(std::move(options));
  ASSERT_TRUE(all.ready());
  for (const char* name : {"x", "y"}) {
    stdfs::create_directory(all.dir() / name);
    ASSERT_OK(shares::Add(all.device(), {name, (all.dir() / name).native(), {}}));
  }
  std::atomic<bool> stop{false};
  std::atomic<int> worked{0}, refused{0};
  std::vector<std::thread> guests;
  for (uint32_t queue = 0; queue < 2; ++queue) {
    guests.emplace_back([&, queue] {
      auto& fs = all.fs(queue);
      const std::string name = absl::StrCat("f", queue);
      for (uint32_t round = 0; !stop.load(); ++round) {
        const auto share = fs.Lookup(kRoot, round % 2 == 0 ? "x" : "y");
        if (!share.ok()) {
          ASSERT_EQ(share.error, ENOENT);
          refused.fetch_add(1);
          continue;
        }
        const uint64_t root = share.value.nodeid;
        const auto made = fs.Create(root, name, O_RDWR, 0600);
        if (made.ok()) {
          const uint64_t node = made.value.entry.nodeid;
          // Open files never fail.
          ASSERT_EQ(fs.Write(node, made.value.open.fh, 0, Bytes("data")).value, 4u);
          ASSERT_EQ(Text(fs.Read(node, made.value.open.fh, 0, 9).value), "data");
          ASSERT_EQ(fs.Release(node, made.value.open.fh), 0);
          fs.Forget(node, 1);
          worked.fetch_add(1);
        } else {
          ASSERT_EQ(made.error, ESTALE);
          refused.fetch_add(1);
        }
        const auto dir = fs.OpenDir(kRoot);
        ASSERT_EQ(dir.error, 0);
        const auto entries = fs.ReadDirPlus(kRoot, dir.value.fh, 0, 4096);
        ASSERT_EQ(entries.error, 0);
        for (const auto& entry : entries.value) {
          if (entry.entry.nodeid != 0) fs.Forget(entry.entry.nodeid, 1);
        }
        ASSERT_EQ(fs.ReleaseDir(kRoot, dir.value.fh), 0);
        fs.Forget(root, 1);
      }
    });
  }
  for (int i = 0; i < 300 || ((worked.load() < 50 || refused.load() < 1) && i < 100000); ++i) {
    ASSERT_OK(shares::Remove(all.device(), "x"));
    ASSERT_OK(shares::Add(all.device(),
                          {"x", (all.dir() / "x").native(), {{"uid", std::to_string(i % 3)}}}));
    if (i % 10 == 0) {
      ASSERT_OK(shares::List(all.device()));
    }
  }
  stop.store(true);
  for (std::thread& guest : guests) guest.join();
  EXPECT_GT(worked.load(), 0);
  for (const char* name : {"x", "y"}) ASSERT_OK(shares::Remove(all.device(), name));
  all.Connect();
  ASSERT_TRUE(all.ready());
  EXPECT_EQ(all.Metric("inodes"), 0u);
  EXPECT_EQ(all.Metric("open_handles"), 0u);
}

}  // namespace
}  // namespace virtbay::testing
