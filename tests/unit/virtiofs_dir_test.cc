// READDIR and READDIRPLUS of the virtiofs plugin.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
using guest::FuseDirEntry;

class VirtioFsDir : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(share_.ready());
    for (int i = 0; i < kFiles; ++i) {
      std::string name = "file-";
      name += std::to_string(i);
      share_.dir().Write(name, std::string(static_cast<size_t>(i % 7), 'x'));
      names_.insert(name);
    }
    names_.insert({".", ".."});
  }
  guest::FuseClient& fs() { return share_.fs(); }

  // Everything from `offset` on, in answers of `size` bytes.
  std::vector<FuseDirEntry> ReadAll(uint64_t fh, uint64_t offset, uint32_t size, bool plus) {
    std::vector<FuseDirEntry> all;
    for (;;) {
      const auto part =
          plus ? fs().ReadDirPlus(kRoot, fh, offset, size) : fs().ReadDir(kRoot, fh, offset, size);
      EXPECT_EQ(part.error, 0);
      if (!part.ok() || part.value.empty()) return all;
      all.insert(all.end(), part.value.begin(), part.value.end());
      offset = all.back().next_offset;
    }
  }
  static std::multiset<std::string> Names(const std::vector<FuseDirEntry>& entries) {
    std::multiset<std::string> names;
    for (const FuseDirEntry& entry : entries) names.insert(entry.name);
    return names;
  }

  static constexpr int kFiles = 1500;
  Share share_;
  std::multiset<std::string> names_;
};

TEST_F(VirtioFsDir, ListsEverythingOnceInAnswersOfAnySize) {
  const auto dir = fs().OpenDir(kRoot);
  ASSERT_EQ(dir.error, 0);
  for (const uint32_t size : {500u, 4096u, 65536u, 1u << 20}) {
    EXPECT_EQ(Names(ReadAll(dir.value.fh, 0, size, false)), names_) << size;
    EXPECT_EQ(Names(ReadAll(dir.value.fh, 0, size, true)), names_) << size;
  }
  EXPECT_EQ(fs().ReleaseDir(kRoot, dir.value.fh), 0);
  EXPECT_EQ(fs().ReadDir(kRoot, dir.value.fh, 0, 4096).error, EBADF);
}

TEST_F(VirtioFsDir, OffsetsStayGood) {
  const auto dir = fs().OpenDir(kRoot);
  const auto all = ReadAll(dir.value.fh, 0, 4096, false);
  ASSERT_EQ(all.size(), names_.size());
  for (const size_t at : {size_t{1100}, size_t{3}, size_t{1400}, size_t{0}}) {
    const auto rest = ReadAll(dir.value.fh, all[at].next_offset, 65536, false);
    ASSERT_EQ(rest.size(), all.size() - at - 1) << at;
    for (size_t i = 0; i < rest.size(); ++i) ASSERT_EQ(rest[i].name, all[at + 1 + i].name);
  }
  // Back to the front: what was made in between is there.
  share_.dir().Write("late", "");
  EXPECT_EQ(Names(ReadAll(dir.value.fh, 0, 4096, false)).count("late"), 1u);
}

TEST_F(VirtioFsDir, PlusCountsLookups) {
  const auto dir = fs().OpenDir(kRoot);
  const auto all = ReadAll(dir.value.fh, 0, 65536, true);
  EXPECT_EQ(share_.Metric("inodes"), static_cast<uint64_t>(kFiles));
  for (const FuseDirEntry& entry : all) {
    if (entry.name == "." || entry.name == "..") {
      EXPECT_EQ(entry.entry.nodeid, 0u);
      continue;
    }
    ASSERT_NE(entry.entry.nodeid, 0u) << entry.name;
    struct stat st;
    ASSERT_EQ(::stat((share_.dir() / entry.name).c_str(), &st), 0);
    EXPECT_EQ(entry.entry.attr.size, static_cast<uint64_t>(st.st_size));
    EXPECT_EQ(entry.ino, st.st_ino);
    EXPECT_EQ(entry.type, static_cast<uint32_t>(DT_REG));
    EXPECT_EQ(fs().GetAttr(entry.entry.nodeid).error, 0);
    EXPECT_EQ(fs().Forget(entry.entry.nodeid, 1), 0);
  }
  EXPECT_EQ(share_.Metric("inodes"), 0u);
}

TEST_F(VirtioFsDir, DotsOfTheRootStayInside) {
  struct stat root, above;
  ASSERT_EQ(::stat(share_.dir().path().c_str(), &root), 0);
  ASSERT_EQ(::stat((share_.dir() / "..").c_str(), &above), 0);
  stdfs::create_directory(share_.dir() / "sub");
  const auto dir = fs().OpenDir(kRoot);
  for (const bool plus : {false, true}) {
    for (const FuseDirEntry& entry : ReadAll(dir.value.fh, 0, 65536, plus)) {
      if (entry.name == "..") {
        EXPECT_EQ(entry.ino, root.st_ino);
        EXPECT_NE(entry.ino, above.st_ino);
      }
      if (entry.name == ".") {
        EXPECT_EQ(entry.ino, root.st_ino);
      }
    }
  }
  const uint64_t sub = share_.Node("sub");
  const auto inner = fs().OpenDir(sub);
  const auto entries = fs().ReadDir(sub, inner.value.fh, 0, 4096);
  ASSERT_EQ(entries.value.size(), 2u);
  for (const FuseDirEntry& entry : entries.value) {
    if (entry.name == "..") {
      EXPECT_EQ(entry.ino, root.st_ino);
    }
  }
}

TEST_F(VirtioFsDir, Errors) {
  const auto dir = fs().OpenDir(kRoot);
  EXPECT_EQ(fs().ReadDir(kRoot, dir.value.fh, 0, 16).error, EINVAL);
  EXPECT_EQ(fs().ReadDirPlus(kRoot, dir.value.fh, 0, 100).error, EINVAL);
  EXPECT_EQ(fs().ReadDir(kRoot, 77, 0, 4096).error, EBADF);
  const uint64_t node = share_.Node("file-1");
  const uint64_t fh = share_.OpenPath("file-1", O_RDONLY);
  EXPECT_EQ(fs().ReadDir(node, fh, 0, 4096).error, ENOTDIR);
  EXPECT_EQ(fs().Read(kRoot, dir.value.fh, 0, 4096).error, EISDIR);
  EXPECT_EQ(fs().FsyncDir(kRoot, dir.value.fh), 0);
  EXPECT_EQ(fs().FsyncDir(kRoot, dir.value.fh, true), 0);
  EXPECT_EQ(fs().OpenDir(kRoot, O_RDWR).error, EISDIR);
  EXPECT_EQ(fs().OpenDir(node).error, ENOTDIR);
}

TEST_F(VirtioFsDir, RemovedWhileOpen) {
  stdfs::create_directory(share_.dir() / "gone");
  const uint64_t node = share_.Node("gone");
  const auto dir = fs().OpenDir(node);
  EXPECT_EQ(fs().Rmdir(kRoot, "gone"), 0);
  // Linux's own answer for a directory that is no more.
  EXPECT_EQ(fs().ReadDir(node, dir.value.fh, 0, 4096).error, ENOENT);
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 0u);
  EXPECT_EQ(fs().ReleaseDir(node, dir.value.fh), 0);
  EXPECT_EQ(fs().GetAttr(node).error, 0);
}

}  // namespace
}  // namespace virtbay::testing
