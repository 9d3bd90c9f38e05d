// States of the virtiofs plugin that no device would write, and how descriptors are counted on the
// way from one device to another.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "plugins/virtiofs/dir.h"
#include "tests/support/bare_fs.h"
#include "tests/support/process_state.h"
#include "tests/support/temp_dir.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;
namespace state = virtiofs::state;

// A device with some of everything, its state, and what becomes of that in another one.
class VirtioFsStateParts : public ::testing::Test {
 protected:
  void SetUp() override {
    stdfs::create_directories(dir_ / "a/b");
    for (const char* name : {"a/file", "a/b/other", "gone"}) dir_.Write(name, "text");
    for (int i = 0; i < 20; ++i) dir_.Write("a/b/entry" + std::to_string(i), "");
    ASSERT_TRUE(from_.ok()) << from_.problem();
    a_ = from_.Lookup(1, "a");
    b_ = from_.Lookup(a_, "b");
    file_ = from_.Lookup(a_, "file");
    const uint64_t gone = from_.Lookup(1, "gone");
    file_fh_ = from_.Open(file_, O_RDWR);
    const uint64_t gone_fh = from_.Open(gone, O_RDONLY);
    const uint64_t b_fh = from_.Open(b_, O_RDONLY | O_DIRECTORY);
    for (const uint64_t made : {a_, b_, file_, gone, file_fh_, gone_fh, b_fh}) ASSERT_NE(made, 0u);
    {
      // A directory in the middle of being read, and a file without its name.
      const virtiofs::HandleRef handle = from_.fs().handles.Find(b_fh, b_);
      handle->dir = std::make_unique<virtiofs::DirStream>();
      virtiofs::DirEntry entry;
      ASSERT_EQ(handle->dir->Peek(handle->fd, &entry), 1);
      handle->dir->Skip(entry);
      const virtiofs::InodeRef inode = from_.fs().inodes.Find(gone);
      virtiofs::FdUse use;
      ASSERT_EQ(from_.fs().AnyFd(*inode, &use), 0);
      ASSERT_EQ(::unlink((dir_ / "gone").c_str()), 0);
      from_.fs().inodes.ClearName(*inode, from_.fs().inodes.root(), "gone");
    }
    ASSERT_EQ(from_.Lock(file_, file_fh_, 1, F_WRLCK, 0, 9), 0);
    ASSERT_EQ(from_.Lock(file_, file_fh_, 1, F_RDLCK, 20, 29), 0);
    ASSERT_EQ(from_.Lock(file_, file_fh_, 2, F_RDLCK, 25, 40), 0);
    ASSERT_TRUE(virtiofs::SaveState(from_.fs(), &saved_).ok());
    parts_ = StateParts(saved_.bytes());
  }

  BareFs::Options Options() const {
    return {{"shared-dir", dir_.path().native()}, {"host.restores", "true"}};
  }
  // What a new device says to these bytes; afterwards nothing is left of it.
  std::string Try(std::span<const std::byte> bytes, std::span<const virtbay_state_fd> fds) {
    const size_t open = CountEntries("/proc/self/fd");
    BareFs to(Options());
    EXPECT_TRUE(to.ok()) << to.problem();
    std::string problem = RestoreInto(&to, bytes, fds);
    EXPECT_EQ(to.End(), BareFs(Options()).counted()) << "only what is kept for later";
    EXPECT_EQ(CountEntries("/proc/self/fd"), open) << problem;
    return problem;
  }
  std::string Try(const std::function<void(StateParts&)>& change) {
    StateParts changed = parts_;
    change(changed);
    return Try(changed.Whole(), saved_.fds());
  }
  template <typename T>
  std::string TryRecord(uint32_t tag, size_t index, const std::function<void(T&)>& change) {
    return Try([&](StateParts& parts) {
      T record = parts.Get<T>(tag, index);
      change(record);
      parts.Set(tag, index, record);
    });
  }
  // Index of the record of that node.
  size_t InodeAt(uint64_t node) {
    for (size_t i = 0;; ++i) {
      if (parts_.Get<state::Inode>(state::kInodes, i).node == node) return i;
    }
  }

  TempDir dir_;
  BareFs from_{{{"shared-dir", dir_.path().native()}}};
  uint64_t a_ = 0, b_ = 0, file_ = 0, file_fh_ = 0;
  sdk::StateWriter saved_;
  StateParts parts_;
};

TEST_F(VirtioFsStateParts, AreWhatWasSaved) {
  EXPECT_EQ(Try(saved_.bytes(), saved_.fds()), "");
  EXPECT_EQ(parts_.Count<state::Inode>(state::kInodes), 4u);
  EXPECT_EQ(parts_.Count<state::Handle>(state::kHandles), 3u);
  EXPECT_EQ(parts_.Count<state::LockOwner>(state::kLockOwners), 2u);
  EXPECT_EQ(parts_.Count<state::LockRange>(state::kLockRanges), 3u);
  EXPECT_GT(parts_.Bytes(state::kStreams).size(), sizeof(state::Stream));
  // Saving what was restored gives the same.
  BareFs to(Options());
  ASSERT_EQ(RestoreInto(&to, saved_.bytes(), saved_.fds()), "");
  sdk::StateWriter again;
  ASSERT_TRUE(virtiofs::SaveState(to.fs(), &again).ok());
  EXPECT_TRUE(std::equal(again.bytes().begin(), again.bytes().end(), saved_.bytes().begin(),
                         saved_.bytes().end()));
  EXPECT_EQ(again.fds().size(), saved_.fds().size());
}

TEST_F(VirtioFsStateParts, SectionsThatAreNotKnownArePassedOver) {
  EXPECT_EQ(Try([](StateParts& parts) {
              parts.sections.insert(parts.sections.begin(), {999, std::vector<std::byte>(77)});
              parts.sections.push_back({1000, {}});
            }),
            "");
  // Those that are known have to be there.
  for (const StateParts::Section& section : parts_.sections) {
    EXPECT_NE(Try([&](StateParts& parts) { parts.Remove(section.tag); }), "") << section.tag;
  }
}

TEST_F(VirtioFsStateParts, BytesThatAreCutMakeNoDevice) {
  const auto bytes = saved_.bytes();
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A buffer of its own, so that a look behind its end is found.
    const std::vector<std::byte> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    ASSERT_NE(Try(cut, saved_.fds()), "") << n;
  }
  for (const StateParts::Section& section : parts_.sections) {
    // Whole records may go where nothing refers to them.
    for (size_t n = 0; n < section.bytes.size(); ++n) {
      const std::string problem =
          Try([&](StateParts& parts) { parts.Bytes(section.tag).resize(n); });
      // Without its stream a directory is read from the guest's offset.
      const bool fewer = section.tag == state::kStreams && n == 0;
      EXPECT_TRUE(!problem.empty() || fewer) << section.tag << " " << n;
    }
  }
}

TEST_F(VirtioFsStateParts, BytesThatAreOthersDoNoHarm) {
  for (size_t n = 0; n < saved_.bytes().size(); ++n) {
    for (const auto flip : {std::byte{0xff}, std::byte{1}, std::byte{0x80}}) {
      std::vector<std::byte> wrong(saved_.bytes().begin(), saved_.bytes().end());
      wrong[n] ^= flip;
      std::ignore = Try(wrong, saved_.fds());
    }
  }
}

TEST_F(VirtioFsStateParts, InodesThatCannotBeAreRefused) {
  const size_t a = InodeAt(a_), b = InodeAt(b_), file = InodeAt(file_);
  using Inode = state::Inode;
  const auto inode = [this](size_t at, const std::function<void(Inode&)>& change) {
    return TryRecord<Inode>(state::kInodes, at, change);
  };
  const uint64_t a_node = a_, b_index = b_ & UINT32_MAX;
  EXPECT_NE(inode(b, [&](Inode& i) { i.node = a_node; }), "") << "twice";
  EXPECT_NE(inode(b, [&](Inode& i) { i.node = a_node | uint64_t{1} << 32; }), "")
      << "the same index";
  EXPECT_NE(inode(a, [](Inode& i) { i.node = 1; }), "") << "the root's";
  EXPECT_NE(inode(a, [](Inode& i) { i.node = 0; }), "");
  EXPECT_NE(inode(file, [](Inode& i) { i.node = UINT32_MAX; }), "") << "beyond max-inodes";
  EXPECT_NE(inode(b, [](Inode& i) { i.parent = 77777; }), "") << "a parent that is not there";
  EXPECT_NE(inode(b, [](Inode& i) { i.parent = UINT32_MAX; }), "");
  EXPECT_NE(inode(b, [](Inode& i) { i.parent = 0; }), "") << "a name without a parent";
  EXPECT_NE(inode(b, [&](Inode& i) { i.parent = static_cast<uint32_t>(b_index); }), "")
      << "its own";
  EXPECT_NE(inode(a, [&](Inode& i) { i.parent = static_cast<uint32_t>(b_index); }), "")
      << "a circle";
  EXPECT_NE(inode(b, [&](Inode& i) { i.parent = static_cast<uint32_t>(file_ & UINT32_MAX); }), "")
      << "a file as a parent";
  EXPECT_NE(inode(a, [](Inode& i) { i.place = 1; }), "");
  EXPECT_NE(inode(a, [](Inode& i) { i.type = 0; }), "");
  EXPECT_NE(inode(a, [](Inode& i) { i.type = 15; }), "");
  EXPECT_NE(inode(file, [](Inode& i) { i.ino ^= 1; }), "") << "its descriptors are of another file";
  EXPECT_NE(inode(file, [](Inode& i) { i.btime_ns ^= 1; }), "");
  EXPECT_NE(inode(file, [](Inode& i) { i.flags |= state::kInodeHasFd; }), "") << "one too few";
  EXPECT_NE(inode(file, [](Inode& i) { i.flags |= state::kInodeShareRoot; }), "");
  EXPECT_NE(inode(a, [](Inode& i) { i.handle_size = 3; }), "");
  EXPECT_NE(inode(a, [](Inode& i) { i.handle_size = UINT16_MAX; }), "");
  EXPECT_NE(inode(a, [](Inode& i) { ++i.name_size; }), "");
  // Not known by the guest, and nobody's parent.
  const uint64_t lone = from_.Lookup(b_, "other");
  StateParts parts = parts_;
  Inode record = parts.Get<Inode>(state::kInodes, a);
  record.node = lone + 1;
  record.lookups = 0;
  record.parent = 0;
  record.name_size = 0;
  record.handle_size = 0;
  record.flags = state::kInodeKeepsFd;
  parts.Append(state::kInodes, record);
  EXPECT_NE(Try(parts.Whole(), saved_.fds()), "");
  record.lookups = 1;
  parts.Set(state::kInodes, parts.Count<Inode>(state::kInodes) - 1, record);
  EXPECT_EQ(Try(parts.Whole(), saved_.fds()), "");
}

TEST_F(VirtioFsStateParts, NamesThatLeadElsewhereAreRefused) {
  for (const char* name : {".", "/", "\0"}) {
    EXPECT_NE(Try([&](StateParts& parts) { parts.Bytes(state::kTexts)[0] = std::byte(*name); }),
              "");
  }
  EXPECT_NE(Try([](StateParts& parts) { parts.Bytes(state::kTexts).push_back(std::byte{'x'}); }),
            "");
}

TEST_F(VirtioFsStateParts, EntriesThatLeadElsewhereAreRefused) {
  const size_t first = sizeof(state::Stream);
  const auto change = [&](size_t at, std::byte to) {
    return Try([&](StateParts& parts) { parts.Bytes(state::kStreams)[first + at] = to; });
  };
  EXPECT_NE(change(16, std::byte{0}), "") << "an entry of no length";
  EXPECT_NE(change(17, std::byte{0xff}), "") << "one that is longer than what was read";
  EXPECT_NE(change(19, std::byte{0}), "") << "a name of no length";
  EXPECT_NE(change(19, std::byte{'/'}), "") << "a path";
  using Stream = state::Stream;
  const auto stream = [this](const std::function<void(Stream&)>& to) {
    return TryRecord<Stream>(state::kStreams, 0, to);
  };
  EXPECT_NE(stream([](Stream& s) { ++s.at; }), "") << "not where an entry begins";
  EXPECT_NE(stream([](Stream& s) { s.at = UINT32_MAX; }), "");
  EXPECT_NE(stream([](Stream& s) { s.size = UINT32_MAX; }), "");
  EXPECT_NE(stream([](Stream& s) { s.size = 0; }), "");
  EXPECT_NE(stream([](Stream& s) { s.fh = 77; }), "");
  EXPECT_NE(stream([&](Stream& s) { s.fh = file_fh_; }), "") << "no directory";
}

TEST_F(VirtioFsStateParts, OpenFilesThatCannotBeAreRefused) {
  using Handle = state::Handle;
  const auto handle = [this](size_t at, const std::function<void(Handle&)>& change) {
    return TryRecord<Handle>(state::kHandles, at, change);
  };
  const Handle first = parts_.Get<Handle>(state::kHandles, 0);
  EXPECT_NE(handle(1, [&](Handle& h) { h.fh = first.fh; }), "") << "twice";
  EXPECT_NE(handle(0, [](Handle& h) { h.fh = 0; }), "");
  EXPECT_NE(handle(0, [](Handle& h) { h.fh = UINT32_MAX; }), "") << "beyond max-open-files";
  EXPECT_NE(handle(0, [](Handle& h) { h.inode = 0; }), "");
  EXPECT_NE(handle(0, [](Handle& h) { h.inode = 77777; }), "") << "of an inode that is not there";
  EXPECT_NE(handle(0, [&](Handle& h) { h.inode = static_cast<uint32_t>(a_ & UINT32_MAX); }), "")
      << "of another one";
  EXPECT_NE(handle(0, [](Handle& h) { h.flags ^= state::kHandleWritable; }), "")
      << "not as it is open";
  EXPECT_NE(handle(0, [](Handle& h) { h.flags ^= state::kHandleReadable; }), "");
  EXPECT_NE(Try([](StateParts& parts) {
              std::vector<std::byte>& bytes = parts.Bytes(state::kHandles);
              bytes.resize(bytes.size() - sizeof(Handle));
            }),
            "")
      << "fewer than descriptors";
}

TEST_F(VirtioFsStateParts, LocksThatCannotBeAreRefused) {
  using Owner = state::LockOwner;
  using Range = state::LockRange;
  const auto owner = [this](size_t at, const std::function<void(Owner&)>& change) {
    return TryRecord<Owner>(state::kLockOwners, at, change);
  };
  const auto range = [this](size_t at, const std::function<void(Range&)>& change) {
    return TryRecord<Range>(state::kLockRanges, at, change);
  };
  EXPECT_NE(owner(1, [](Owner& o) { o.owner = 1; }), "") << "twice";
  EXPECT_NE(owner(1, [](Owner& o) { o.owner = 0; }), "") << "not in their order";
  EXPECT_NE(owner(0, [](Owner& o) { o.fh = 77; }), "");
  EXPECT_NE(owner(0, [](Owner& o) { o.inode = 77777; }), "");
  EXPECT_NE(owner(0, [&](Owner& o) { o.inode = static_cast<uint32_t>(a_ & UINT32_MAX); }), "");
  EXPECT_NE(owner(0, [](Owner& o) { o.flags = 0; }), "");
  EXPECT_NE(owner(0, [](Owner& o) { o.ranges = UINT32_MAX; }), "");
  EXPECT_NE(owner(0, [](Owner& o) { o.ranges = 1; }), "") << "one is nobody's";
  EXPECT_NE(range(0, [](Range& r) { r.end = UINT64_MAX; }), "");
  EXPECT_NE(range(0, [](Range& r) { r.start = 10; }), "") << "ends before it begins";
  EXPECT_NE(range(1, [](Range& r) { r.start = 9; }), "") << "has a byte of the one before";
  EXPECT_EQ(owner(0, [](Owner& o) { o.fh = 0; }), "") << "the handle has gone since";
}

TEST_F(VirtioFsStateParts, DescriptorsThatAreNotWhatTheySayAreRefused) {
  const std::vector<virtbay_state_fd> fds(saved_.fds().begin(), saved_.fds().end());
  const int event = ::eventfd(0, EFD_CLOEXEC);
  const int path = ::open((dir_ / "a/file").c_str(), O_PATH | O_CLOEXEC);
  const int directory = ::open(dir_.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const int other = ::open((dir_ / "a/b/other").c_str(), O_RDWR | O_CLOEXEC);
  for (size_t i = 0; i < fds.size(); ++i) {
    // Another file, another kind, none at all, one too few, one twice, one of another role.
    for (const int wrong : {event, path, directory, other, -1}) {
      if (wrong == directory && fds[i].role == state::kShareFd) continue;
      std::vector<virtbay_state_fd> changed = fds;
      changed[i].fd = wrong;
      EXPECT_NE(Try(saved_.bytes(), changed), "") << i << " " << wrong;
    }
    std::vector<virtbay_state_fd> fewer = fds, more = fds, moved = fds;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_NE(Try(saved_.bytes(), fewer), "") << i;
    more.push_back(fds[i]);
    EXPECT_NE(Try(saved_.bytes(), more), "") << i;
    moved[i].role = 99;
    EXPECT_NE(Try(saved_.bytes(), moved), "") << i;
  }
  EXPECT_NE(Try(saved_.bytes(), {}), "");
  for (const int fd : {event, path, directory, other}) ::close(fd);
}

TEST_F(VirtioFsStateParts, SmallNumbersThatPromiseMuchTakeLittle) {
  using Inode = state::Inode;
  // The highest index there may be: what lies below is not made, and is given out all the same.
  BareFs::Options options = Options();
  options["max-inodes"] = "1000000";
  StateParts parts = parts_;
  const size_t last = parts.Count<Inode>(state::kInodes) - 1;
  Inode record = parts.Get<Inode>(state::kInodes, last);
  const uint64_t index = record.node & UINT32_MAX;
  record.node = (uint64_t{7} << 32) | 1'400'001;
  parts.Set(state::kInodes, last, record);
  for (size_t i = 0; i < parts.Count<state::Handle>(state::kHandles); ++i) {
    auto handle = parts.Get<state::Handle>(state::kHandles, i);
    if (handle.inode == index) handle.inode = 1'400'001;
    parts.Set(state::kHandles, i, handle);
  }
  BareFs to(options);
  ASSERT_EQ(RestoreInto(&to, parts.Whole(), saved_.fds()), "");
  EXPECT_TRUE(to.fs().inodes.Find(record.node));
  std::vector<uint64_t> nodes;
  struct statx st = {};
  st.stx_mode = S_IFREG;
  for (uint32_t i = 0; i < 300; ++i) {
    st.stx_ino = 1000 + i;
    const virtiofs::InodeRef inode = to.fs().inodes.Lookup(to.fs().share, st);
    ASSERT_TRUE(inode);
    nodes.push_back(inode->nodeid());
    EXPECT_LT(inode->index, 1'400'001u);
  }
  std::sort(nodes.begin(), nodes.end());
  EXPECT_EQ(std::adjacent_find(nodes.begin(), nodes.end()), nodes.end());
  for (const uint64_t node : nodes) to.fs().inodes.Forget(node, 1);
  EXPECT_EQ(to.fs().inodes.count(), 4u);
}

TEST_F(VirtioFsStateParts, NumbersOfWhatIsGoneAreNotGivenOutAgain) {
  // The index of `a` again and again.
  BareFs to(Options());
  ASSERT_EQ(RestoreInto(&to, saved_.bytes(), saved_.fds()), "");
  struct statx st = {};
  st.stx_mode = S_IFREG;
  uint64_t highest = 0;
  for (uint32_t i = 0; i < 200; ++i) {
    st.stx_ino = 5000 + i;
    const virtiofs::InodeRef inode = to.fs().inodes.Lookup(to.fs().share, st);
    highest = std::max(highest, inode->nodeid());
    to.fs().inodes.Forget(*inode, 1);
  }
  ASSERT_GT(highest >> 32, 0u);
  sdk::StateWriter again;
  ASSERT_TRUE(virtiofs::SaveState(to.fs(), &again).ok());
  BareFs next(Options());
  ASSERT_EQ(RestoreInto(&next, again.bytes(), again.fds()), "");
  for (uint32_t i = 0; i < 200; ++i) {
    st.stx_ino = 5000 + i;
    const virtiofs::InodeRef inode = next.fs().inodes.Lookup(next.fs().share, st);
    EXPECT_GE(inode->nodeid() >> 32, highest >> 32);
    next.fs().inodes.Forget(*inode, 1);
  }
}

TEST_F(VirtioFsStateParts, CirclesThatTheHostMadeAreNoneForTheNext) {
  // The guest looks, the host moves, the guest looks: `a` is found below what is below it.
  {
    const virtiofs::InodeRef a = from_.fs().inodes.Find(a_), b = from_.fs().inodes.Find(b_);
    from_.fs().inodes.SetName(*a, *b, "moved");
    EXPECT_EQ(from_.fs().inodes.Circles({a.get(), b.get()}).size(), 1u);
  }
  sdk::StateWriter writer;
  ASSERT_TRUE(virtiofs::SaveState(from_.fs(), &writer).ok());
  EXPECT_EQ(Try(writer.bytes(), writer.fds()), "");
  BareFs to(Options());
  ASSERT_EQ(RestoreInto(&to, writer.bytes(), writer.fds()), "");
  EXPECT_TRUE(to.fs().inodes.Find(a_));
  EXPECT_TRUE(to.fs().inodes.Find(b_));
}

// ---- descriptors

TEST_F(VirtioFsStateParts, DescriptorsAreCountedOnceInEach) {
  const uint32_t before = from_.counted();
  BareFs to(Options());
  const uint32_t kept = to.counted();
  ASSERT_EQ(RestoreInto(&to, saved_.bytes(), saved_.fds()), "");
  // The share's own directory is not the guest's.
  EXPECT_EQ(to.counted() - kept, saved_.fds().size() - 1);
  EXPECT_EQ(from_.counted(), before) << "nothing is consumed";
  from_.fs().ShareWithAnother();
  from_.fs().DropSession();
  to.fs().TakeOver();
  EXPECT_EQ(from_.counted(), kept) << "all given back";
  EXPECT_EQ(from_.fs().budget.open(), 0u);
  // And the locks are still there.
  const int fd = ::open((dir_ / "a/file").c_str(), O_RDWR | O_CLOEXEC);
  const auto locked = [&] {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    return ::fcntl(fd, F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  };
  EXPECT_TRUE(locked());
  to.fs().DropSession();
  EXPECT_FALSE(locked());
  EXPECT_EQ(to.counted(), kept);
  ::close(fd);
}

TEST_F(VirtioFsStateParts, ADeviceGoesOnWhereThereAreNoDescriptorsLeft) {
  // None are left, not even for what is kept aside: both have everything open for a moment.
  BareFs to(Options(), 0);
  ASSERT_TRUE(to.ok()) << to.problem();
  ASSERT_EQ(RestoreInto(&to, saved_.bytes(), saved_.fds()), "");
  EXPECT_EQ(to.counted(), 0u);
  const uint32_t owed = to.fs().budget.owed();
  // A directory that can be found by name was closed instead.
  EXPECT_LT(owed, saved_.fds().size() - 1);
  EXPECT_GT(owed, 0u);
  EXPECT_EQ(to.fs().budget.open(), owed);
  EXPECT_EQ(to.Open(file_, O_RDWR), 0u) << "no more than it has";
  // The one before goes; what is owed is settled before anything is opened.
  to.set_most(owed + 20);
  EXPECT_NE(to.Open(file_, O_RDWR), 0u);
  EXPECT_EQ(to.fs().budget.owed(), 0u);
  EXPECT_EQ(to.counted(), to.fs().budget.open() + to.fs().budget.spares());
  to.fs().DropSession();
  EXPECT_EQ(to.fs().budget.open(), 0u);
  EXPECT_EQ(to.counted(), to.fs().budget.spares());
}

TEST_F(VirtioFsStateParts, WhatIsOwedIsNotGivenBack) {
  BareFs to(Options(), 2);
  ASSERT_EQ(RestoreInto(&to, saved_.bytes(), saved_.fds()), "");
  ASSERT_GT(to.fs().budget.owed(), 0u);
  to.fs().DropSession();
  EXPECT_EQ(to.fs().budget.owed(), 0u);
  EXPECT_EQ(to.fs().budget.open(), 0u);
  EXPECT_EQ(to.counted(), to.fs().budget.spares());
  EXPECT_LE(to.counted(), 2u);
}

}  // namespace
}  // namespace virtbay::testing
