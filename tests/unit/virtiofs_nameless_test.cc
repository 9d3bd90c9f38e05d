// Inodes of the virtiofs plugin that lose their last name while the guest still knows them.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

// Descriptors of this process, the device's among them.
auto OpenDescriptors() {
  return std::distance(stdfs::directory_iterator("/proc/self/fd"), stdfs::directory_iterator());
}

class VirtioFsNameless : public ::testing::Test {
 protected:
  explicit VirtioFsNameless(bool writeback = true) : share_(With(writeback)) {}
  void SetUp() override { ASSERT_TRUE(share_.ready()); }
  guest::FuseClient& fs() { return share_.fs(); }

  // A file that the guest has written to and closed.
  uint64_t Closed(const std::string& name) {
    const auto made = fs().Create(kRoot, name, O_RDWR, 0600);
    EXPECT_EQ(made.error, 0);
    const uint64_t node = made.value.entry.nodeid;
    EXPECT_EQ(fs().Write(node, made.value.open.fh, 0, Bytes("data"), FUSE_WRITE_CACHE).value, 4u);
    EXPECT_EQ(fs().Flush(node, made.value.open.fh), 0);
    EXPECT_EQ(fs().Release(node, made.value.open.fh), 0);
    return node;
  }
  // What Linux sends when a name of a file has gone and it keeps times itself.
  int FlushTimes(uint64_t node) {
    fuse_setattr_in change = {};
    change.valid = FATTR_MTIME | FATTR_CTIME;
    change.mtime = 1'000'000'000;
    return fs().SetAttr(node, change).error;
  }

  static ShareOptions With(bool writeback) {
    ShareOptions options;
    if (writeback) options.options["writeback"] = "";
    return options;
  }
  Share share_;
};

class VirtioFsNamelessThrough : public VirtioFsNameless {
 protected:
  VirtioFsNamelessThrough() : VirtioFsNameless(false) {}
};

TEST_F(VirtioFsNameless, RemovedFilesTakeTheTimesThatTheGuestHeldBack) {
  const uint64_t node = Closed("file");
  const auto before = OpenDescriptors();
  EXPECT_EQ(fs().Unlink(kRoot, "file"), 0);
  EXPECT_EQ(FlushTimes(node), 0);
  const auto attr = fs().GetAttr(node);
  EXPECT_EQ(attr.error, 0);
  EXPECT_EQ(attr.value.attr.nlink, 0u);
  EXPECT_EQ(attr.value.attr.mtime, 1'000'000'000u);
  EXPECT_EQ(OpenDescriptors(), before + 1);
  EXPECT_EQ(fs().Forget(node, 1), 0);
  EXPECT_EQ(fs().GetAttr(node).error, ESTALE);
  EXPECT_EQ(OpenDescriptors(), before) << "a file that nobody knows is still held";
}

TEST_F(VirtioFsNameless, ReplacedFilesTakeThemToo) {
  for (const uint32_t flags : {0u, uint32_t{RENAME_WHITEOUT}}) {
    const uint64_t old_node = Closed("old");
    const uint64_t new_node = Closed("new");
    const int error = fs().Rename2(kRoot, "new", kRoot, "old", flags);
    if (flags != 0 && (error == EPERM || error == EINVAL)) continue;  // no right to make a whiteout
    ASSERT_EQ(error, 0);
    EXPECT_EQ(FlushTimes(old_node), 0);
    EXPECT_EQ(FlushTimes(new_node), 0);
    EXPECT_EQ(fs().GetAttr(old_node).value.attr.nlink, 0u);
    EXPECT_EQ(fs().GetAttr(new_node).value.attr.nlink, 1u);
    stdfs::remove(share_.dir() / "old");
    stdfs::remove(share_.dir() / "new");
  }
}

TEST_F(VirtioFsNameless, AnExchangeLosesNothing) {
  const uint64_t a = Closed("a");
  const uint64_t b = Closed("b");
  const auto before = OpenDescriptors();
  ASSERT_EQ(fs().Rename2(kRoot, "a", kRoot, "b", RENAME_EXCHANGE), 0);
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(fs().Rename2(kRoot, "a", kRoot, "b", RENAME_NOREPLACE), EEXIST);
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(fs().GetAttr(a).value.attr.nlink, 1u);
  EXPECT_EQ(share_.Node("b"), a);
  EXPECT_EQ(share_.Node("a"), b);
}

TEST_F(VirtioFsNameless, AnOpenFileIsReachedByWhatItIsOpenBy) {
  const auto made = fs().Create(kRoot, "file", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid;
  const auto before = OpenDescriptors();
  EXPECT_EQ(fs().Unlink(kRoot, "file"), 0);
  EXPECT_EQ(OpenDescriptors(), before) << "a second descriptor is of no use";
  EXPECT_EQ(fs().Write(node, made.value.open.fh, 0, Bytes("late"), FUSE_WRITE_CACHE).value, 4u);
  EXPECT_EQ(fs().Release(node, made.value.open.fh), 0);
  EXPECT_EQ(FlushTimes(node), 0);
  EXPECT_EQ(fs().GetAttr(node).value.attr.size, 4u);
  EXPECT_EQ(fs().Forget(node, 1), 0);
  EXPECT_EQ(OpenDescriptors(), before - 1);
}

TEST_F(VirtioFsNameless, ARemovalThatFailsLosesNothing) {
  EXPECT_EQ(fs().Mkdir(kRoot, "dir", 0700).error, 0);
  const uint64_t node = Closed("file");
  EXPECT_EQ(fs().Rmdir(kRoot, "file"), ENOTDIR);
  EXPECT_EQ(fs().Rename(kRoot, "dir", kRoot, "file"), ENOTDIR);
  EXPECT_EQ(FlushTimes(node), 0);
  EXPECT_EQ(share_.Node("file"), node);
}

// A guest that holds nothing back does not come again for a file that it has removed and does not
// have open: it costs no open and no close.
TEST_F(VirtioFsNamelessThrough, ClosedFilesAreNotHeld) {
  const uint64_t node = Closed("file");
  const auto before = OpenDescriptors();
  EXPECT_EQ(fs().Unlink(kRoot, "file"), 0);
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(fs().GetAttr(node).error, ESTALE);
}

// The guest opens these without a word to the device.
TEST_F(VirtioFsNamelessThrough, PipesAndSocketsLiveOn) {
  for (const uint32_t type : {uint32_t{S_IFIFO}, uint32_t{S_IFSOCK}}) {
    const auto made = fs().Mknod(kRoot, "special", type | 0600);
    ASSERT_EQ(made.error, 0);
    EXPECT_EQ(fs().Unlink(kRoot, "special"), 0);
    const auto attr = fs().GetAttr(made.value.nodeid);
    EXPECT_EQ(attr.error, 0);
    EXPECT_EQ(attr.value.attr.nlink, 0u);
  }
}

}  // namespace
}  // namespace virtbay::testing
