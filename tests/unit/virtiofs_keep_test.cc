// What the virtiofs plugin keeps in a file for a process after this one, and what becomes of a file
// that no device would write.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "plugins/virtiofs/keep/store.h"
#include "tests/support/bare_fs.h"
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
namespace keep = virtiofs::keep;

class VirtioFsKeep : public ::testing::Test {
 protected:
  void SetUp() override {
    stdfs::create_directories(dir_ / "share/a/b");
    stdfs::create_directory(dir_ / "state");
    dir_.Write("share/a/file", "text");
    dir_.Write("share/a/b/other", "text");
    dir_.Write("secret", "not of the share");
    // A process that ends without a word.
    BareFs from(Options());
    ASSERT_TRUE(from.ok()) << from.problem();
    Begin(&from);
    a_ = from.Lookup(1, "a");
    b_ = from.Lookup(a_, "b");
    file_ = from.Lookup(a_, "file");
    other_ = from.Lookup(b_, "other");
    fh_ = Open(&from, file_);
    ASSERT_NE(Open(&from, other_), 0u);
    keep::Store& store = *from.fs().keep;
    for (uint32_t head = 0; head < 4; ++head) {
      keep::JournalEntry* const entry = store.At(1, head);
      ASSERT_NE(entry, nullptr);
      store.Begin(entry, 100 + head, FUSE_CREATE, a_);
      if (head > 0) keep::Store::Intend(entry, {}, {}, 0);
      if (head > 1) keep::Store::Finish(entry, 0, nullptr, 0);
    }
    size_ = stdfs::file_size(Path());
    head_.resize(std::min<size_t>(size_, 512 * 1024));
    Read(head_.data(), head_.size());
  }

  BareFs::Options Options() const {
    return {{"shared-dir", dir_ / "share"},
            {"max-inodes", "256"},
            {"max-open-files", "128"},
            {"request-queues", "1"},
            {"host.state-dir", dir_ / "state"}};
  }
  stdfs::path Path() const { return dir_ / "state/virtiofs.session"; }
  static void Begin(BareFs* fs) {
    fs->fs().keep->SetSession(0);
    fs->fs().ready = true;
  }
  static uint64_t Open(BareFs* fs, uint64_t node) {
    const uint64_t fh = fs->Open(node, O_RDWR);
    const virtiofs::HandleRef handle = fs->fs().handles.Find(fh, node);
    fs->fs().keep->Opened(handle->index, fh, node, O_RDWR);
    return fh;
  }
  void Read(char* data, size_t size) const {
    const int fd = ::open(Path().c_str(), O_RDONLY | O_CLOEXEC);
    ASSERT_EQ(::pread(fd, data, size, 0), static_cast<ssize_t>(size));
    ::close(fd);
  }
  // Puts back what SetUp left, changed.
  void Write(const std::vector<char>& head, size_t size) const {
    const int fd = ::open(Path().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    ASSERT_EQ(::pwrite(fd, head.data(), std::min(head.size(), size), 0),
              static_cast<ssize_t>(std::min(head.size(), size)));
    ASSERT_EQ(::ftruncate(fd, static_cast<off_t>(size)), 0);
    ::close(fd);
  }
  // A device that serves what there is, whatever it makes of the file.
  void Serve(BareFs* fs) {
    ASSERT_TRUE(fs->ok()) << fs->problem();
    virtiofs::Fs& server = fs->fs();
    for (const uint64_t node : {a_, b_, file_, other_}) {
      const virtiofs::InodeRef inode = server.inodes.Find(node);
      if (!inode) continue;
      struct statx st;
      if (server.Stat(*inode, &st) == 0) {
        EXPECT_TRUE(inode->Matches(st));
      }
      const int fd = server.OpenForIo(*inode, inode->is_dir() ? O_RDONLY | O_DIRECTORY : O_RDONLY);
      if (fd < 0) continue;
      const std::string at = stdfs::read_symlink("/proc/self/fd/" + std::to_string(fd));
      EXPECT_TRUE(at.starts_with((dir_ / "share").native())) << at;
      server.budget.Close(fd, false);
    }
    server.EndSession();
    Begin(fs);
    const uint64_t a = fs->Lookup(1, "a");
    ASSERT_NE(a, 0u);
    EXPECT_NE(fs->Lookup(a, "file"), 0u);
    EXPECT_EQ(stdfs::file_size(Path()), size_) << "it does not grow";
  }

  TempDir dir_;
  uint64_t a_ = 0, b_ = 0, file_ = 0, other_ = 0, fh_ = 0;
  size_t size_ = 0;
  std::vector<char> head_;
};

TEST_F(VirtioFsKeep, GoesOnWithASession) {
  // One that a process killed just after its start leaves as it was.
  for (int i = 0; i < 3; ++i) {
    BareFs to(Options());
    ASSERT_TRUE(to.ok()) << to.problem();
    EXPECT_TRUE(to.fs().ready);
    for (const uint64_t node : {a_, b_, file_, other_}) EXPECT_TRUE(to.fs().inodes.Find(node));
    EXPECT_TRUE(to.fs().handles.Find(fh_, file_));
    EXPECT_EQ(to.Lookup(a_, "file"), file_);
  }
  EXPECT_EQ(stdfs::file_size(Path()), size_);
}

TEST_F(VirtioFsKeep, AFileThatIsCutAnywhereIsReplaced) {
  for (size_t size = 0; size < size_; size += size < 8192 ? 61 : size < 262144 ? 4099 : 1048583) {
    SCOPED_TRACE(size);
    Write(head_, size);
    BareFs to(Options());
    ASSERT_TRUE(to.ok()) << to.problem();
    ASSERT_FALSE(to.fs().ready);
    Serve(&to);
    ASSERT_FALSE(HasFailure());
  }
  Write(head_, size_ + 1);
  BareFs longer(Options());
  ASSERT_TRUE(longer.ok());
  EXPECT_FALSE(longer.fs().ready);
}

TEST_F(VirtioFsKeep, AFileThatSaysAnythingIsSurvived) {
  std::mt19937_64 random(5);
  const auto attempt = [&](const std::vector<char>& changed) {
    Write(changed, size_);
    // And a journal of anything, of a request queue.
    std::vector<keep::JournalEntry> journal(4);
    for (keep::JournalEntry& entry : journal) {
      entry.progress = static_cast<keep::Progress>(random() % 5);
      entry.entered = random() % 4 == 0 ? random() : random() % 8;
      entry.fh = random() % 4 == 0 ? random() : random() % 8;
    }
    const int fd = ::open(Path().c_str(), O_RDWR | O_CLOEXEC);
    const size_t queue = sizeof(keep::JournalEntry) * 32768;
    ASSERT_EQ(::pwrite(fd, journal.data(), sizeof(keep::JournalEntry) * journal.size(),
                       static_cast<off_t>(size_ - queue)),
              static_cast<ssize_t>(sizeof(keep::JournalEntry) * journal.size()));
    ::close(fd);
    BareFs to(Options());
    Serve(&to);
  };
  // Each word of what is in use, in a few ways.
  constexpr uint64_t kWords[] = {0, 1, 2, 0x100000001, 0xffffffff, UINT64_MAX, 0x8000000000000000};
  for (size_t at = 0; at + 8 <= head_.size(); at += 8) {
    uint64_t before = 0;
    std::memcpy(&before, head_.data() + at, 8);
    if (before == 0 && at > 256 && random() % 512 != 0) continue;
    SCOPED_TRACE(at);
    for (const uint64_t word : {kWords[random() % std::size(kWords)], uint64_t{random()},
                                before ^ (uint64_t{1} << random() % 64)}) {
      std::vector<char> changed = head_;
      std::memcpy(changed.data() + at, &word, 8);
      attempt(changed);
      ASSERT_FALSE(HasFailure()) << word;
    }
  }
  // Names that go together in no way: each other's, their own, of what is no directory.
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(round);
    std::vector<char> changed = head_;
    for (uint32_t i = 0; i < 6; ++i) {
      keep::InodeRecord record;
      const size_t at = 4096 + i * sizeof(record);
      std::memcpy(static_cast<void*>(&record), changed.data() + at, sizeof record);
      record.name = static_cast<uint8_t>(random() % 4);
      record.other = static_cast<uint8_t>(random() % 4);
      record.losing = static_cast<uint8_t>(random() % 2);
      record.lookups = random() % 3;
      record.nlink = static_cast<uint32_t>(random() % 3);
      for (keep::Name& name : record.names) {
        name.parent = static_cast<uint32_t>(random() % 7);
        if (random() % 4 == 0) {
          constexpr const char* kTexts[] = {"..", ".", "", "a/b", "../secret", "/", "other", "b"};
          const std::string text = kTexts[random() % std::size(kTexts)];
          name.size = static_cast<uint16_t>(text.size());
          std::memcpy(name.text.data(), text.data(), text.size());
        }
      }
      std::memcpy(changed.data() + at, &record, sizeof record);
    }
    attempt(changed);
    ASSERT_FALSE(HasFailure());
  }
}

TEST_F(VirtioFsKeep, AnotherVersionOrShapeIsReplaced) {
  std::vector<char> changed = head_;
  ++changed[offsetof(keep::Header, version)];
  Write(changed, size_);
  {
    BareFs to(Options());
    EXPECT_FALSE(to.fs().ready);
    Serve(&to);
  }
  Write(head_, size_);
  BareFs::Options options = Options();
  options["max-inodes"] = "4096";
  BareFs to(options);
  ASSERT_TRUE(to.ok()) << to.problem();
  EXPECT_FALSE(to.fs().ready);
}

TEST_F(VirtioFsKeep, ASessionOfAnotherDirectoryIsNotGoneOnWith) {
  BareFs::Options options = Options();
  options["shared-dir"] = dir_ / "share/a";
  BareFs to(options);
  ASSERT_TRUE(to.ok()) << to.problem();
  EXPECT_FALSE(to.fs().ready);
  EXPECT_FALSE(to.fs().inodes.Find(file_));
}

// Another generation of the device serves, and writes to the file.
TEST_F(VirtioFsKeep, AFileInUseIsLeftAlone) {
  BareFs serving(Options());
  ASSERT_TRUE(serving.fs().ready);
  BareFs::Options options = Options();
  options["max-inodes"] = "4096";
  options["host.restores"] = "true";
  {
    BareFs next(options);
    ASSERT_TRUE(next.ok()) << next.problem();
    EXPECT_EQ(next.fs().keep, nullptr);
  }
  const uint64_t other = serving.Lookup(b_, "other");
  EXPECT_EQ(other, other_);
  EXPECT_EQ(stdfs::file_size(Path()), size_);
}

TEST_F(VirtioFsKeep, ADirectoryThatTheGuestCouldChangeIsRefused) {
  stdfs::create_directory_symlink("share", dir_ / "link");
  for (const char* name : {"share", "share/a/b", "link/a", "share/a/b/../../../state/../share/a"}) {
    BareFs::Options options = Options();
    options["host.state-dir"] = dir_ / name;
    BareFs to(options);
    EXPECT_FALSE(to.ok()) << name;
    EXPECT_THAT(to.problem(), ::testing::HasSubstr("lies in the shared directory")) << name;
  }
  EXPECT_FALSE(stdfs::exists(dir_ / "share/a/b/virtiofs.session"));
  // Beside it, with a name that begins like its own.
  stdfs::create_directory(dir_ / "share.state");
  BareFs::Options options = Options();
  options["host.state-dir"] = dir_ / "share.state";
  BareFs to(options);
  EXPECT_TRUE(to.ok()) << to.problem();
}

TEST_F(VirtioFsKeep, WhatIsNoFileIsNotOpened) {
  ASSERT_TRUE(stdfs::remove(Path()));
  stdfs::create_symlink("../secret", Path());
  {
    BareFs to(Options());
    ASSERT_TRUE(to.ok()) << to.problem();
    Serve(&to);
  }
  EXPECT_EQ(stdfs::file_size(dir_ / "secret"), 16u);
  ASSERT_TRUE(stdfs::remove(Path()));
  ASSERT_EQ(::mkfifo(Path().c_str(), 0600), 0);
  {
    BareFs to(Options());
    ASSERT_TRUE(to.ok()) << to.problem();
    Serve(&to);
  }
  ASSERT_TRUE(stdfs::remove(Path()));
  stdfs::create_directory(Path());
  EXPECT_FALSE(BareFs(Options()).ok());
}

// What was being made is taken back: the guest has not heard of it.
TEST_F(VirtioFsKeep, WhatTheGuestHasNotHeardOfIsDropped) {
  {
    BareFs from(Options());
    keep::JournalEntry* const entry = from.fs().keep->At(1, 9);
    from.fs().keep->Begin(entry, 900, FUSE_CREATE, a_);
    keep::Store::Intend(entry, {}, {}, 0);
    entry->entered = from.Lookup(a_, "file");
    entry->fh = fh_;
  }
  BareFs to(Options());
  ASSERT_TRUE(to.fs().ready);
  EXPECT_FALSE(to.fs().handles.Find(fh_, file_));
  const virtiofs::InodeRef inode = to.fs().inodes.Find(file_);
  ASSERT_TRUE(inode);
  EXPECT_EQ(inode->nlookup, 1u);
}

// The share is served on, and another process begins a new session.
TEST_F(VirtioFsKeep, WithoutRoomTheSessionEndsWithTheProcess) {
  const stdfs::path small = dir_ / "small";
  stdfs::create_directory(small);
  OnSmallDisk(small, "2M", [&] {
    BareFs::Options options = Options();
    options["host.state-dir"] = small;
    {
      BareFs from(options);
      ASSERT_TRUE(from.ok()) << from.problem();
      Begin(&from);
      const uint64_t a = from.Lookup(1, "a");
      const uint64_t file = from.Lookup(a, "file");
      EXPECT_TRUE(from.fs().keep->writes());
      FillDisk(small);
      keep::JournalEntry* entry = nullptr;
      // One of these is in blocks that are still to be had.
      for (uint32_t head = 0; head < 32768 && from.fs().keep->writes(); head += 1000) {
        entry = from.fs().keep->At(1, head);
      }
      EXPECT_EQ(entry, nullptr);
      EXPECT_FALSE(from.fs().keep->writes());
      EXPECT_NE(Open(&from, file), 0u);
      EXPECT_NE(from.Lookup(a, "b"), 0u);
    }
    ASSERT_TRUE(stdfs::remove(small / "filler"));
    BareFs to(options);
    ASSERT_TRUE(to.ok()) << to.problem();
    EXPECT_FALSE(to.fs().ready);
    EXPECT_TRUE(to.fs().keep->writes());
  });
}

TEST_F(VirtioFsKeep, WithoutRoomFromTheStartNothingIsKept) {
  const stdfs::path small = dir_ / "small";
  stdfs::create_directory(small);
  OnSmallDisk(small, "2M", [&] {
    BareFs::Options options = Options();
    options["host.state-dir"] = small;
    FillDisk(small);
    {
      BareFs fs(options);
      ASSERT_TRUE(fs.ok()) << fs.problem();
      EXPECT_EQ(fs.fs().keep, nullptr);
      fs.fs().ready = true;
      EXPECT_NE(fs.Lookup(1, "a"), 0u);
    }
    // What the first attempt left there is no session.
    ASSERT_TRUE(stdfs::remove(small / "filler"));
    BareFs next(options);
    ASSERT_TRUE(next.ok()) << next.problem();
    ASSERT_NE(next.fs().keep, nullptr);
    EXPECT_FALSE(next.fs().ready);
    EXPECT_TRUE(next.fs().keep->writes());
  });
}

// To look at a hole takes a block, and there is none: what a file says must not end the process.
TEST_F(VirtioFsKeep, AFileThatClaimsMoreThanWasWrittenTakesNoMore) {
  const stdfs::path small = dir_ / "small";
  stdfs::create_directory(small);
  for (const bool inodes : {false, true}) {
    OnSmallDisk(small, "2M", [&] {
      BareFs::Options options = Options();
      options["host.state-dir"] = small;
      options["max-inodes"] = "100000";
      uint64_t a = 0;
      {
        BareFs from(options);
        ASSERT_TRUE(from.ok()) << from.problem();
        Begin(&from);
        a = from.Lookup(1, "a");
        ASSERT_NE(a, 0u);
      }
      const int fd = ::open((small / "virtiofs.session").c_str(), O_RDWR | O_CLOEXEC);
      keep::Header header;
      ASSERT_EQ(::pread(fd, &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
      (inodes ? header.inodes_end : header.handles_end) = 100000;
      ASSERT_EQ(::pwrite(fd, &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
      ::close(fd);
      FillDisk(small);
      BareFs to(options);
      ASSERT_TRUE(to.ok()) << to.problem();
      EXPECT_TRUE(to.fs().ready);
      EXPECT_EQ(to.Lookup(1, "a"), a);
    });
  }
}

}  // namespace
}  // namespace virtbay::testing
