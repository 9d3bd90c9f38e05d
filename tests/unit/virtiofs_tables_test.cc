// Names, inode table, descriptor budget, directory streams and lock ranges of the virtiofs plugin,
// by themselves.
#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "framework/base/unique_fd.h"
#include "plugins/virtiofs/dir.h"
#include "plugins/virtiofs/fd_budget.h"
#include "plugins/virtiofs/inode_table.h"
#include "plugins/virtiofs/locks.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/wire.h"
#include "tests/support/temp_dir.h"

namespace virtbay::virtiofs {
namespace {

namespace stdfs = std::filesystem;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(VirtioFsNames, ExactlyOneComponent) {
  std::string_view name;
  EXPECT_EQ(CheckName(Bytes({"a\0", 2}), &name), 0);
  EXPECT_EQ(name, "a");
  EXPECT_EQ(CheckName(Bytes({"...\0", 4}), &name), 0);
  EXPECT_EQ(CheckName({}, &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes({"\0", 1}), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes({".\0", 2}), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes({"..\0", 3}), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes({"a/\0", 3}), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes("ab"), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes({"a\0b\0", 4}), &name), EINVAL);
  EXPECT_EQ(CheckName(Bytes(std::string(255, 'x') + std::string(1, '\0')), &name), 0);
  EXPECT_EQ(CheckName(Bytes(std::string(256, 'x') + std::string(1, '\0')), &name), ENAMETOOLONG);
  EXPECT_EQ(CheckName(Bytes(std::string(300, 'x')), &name), ENAMETOOLONG);
}

TEST(VirtioFsNames, DeviceNumbers) {
  for (const auto& [major, minor] : {std::pair{0u, 0u}, {8u, 1u}, {4095u, 1048575u}, {7u, 259u}}) {
    const uint32_t wire = EncodeDev(major, minor);
    EXPECT_EQ(DecodeMajor(wire), major);
    EXPECT_EQ(DecodeMinor(wire), minor);
  }
}

TEST(VirtioFsNames, OpenBeneathStaysBeneath) {
  const testing::TempDir dir;
  stdfs::create_directory(dir / "sub");
  stdfs::create_directory_symlink("/", dir / "out");
  const UniqueFd root(::open(dir.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const auto opens = [&](const char* name) {
    const UniqueFd fd(OpenBeneath(root.get(), name, O_PATH));
    return fd.valid();
  };
  EXPECT_TRUE(opens("sub"));
  EXPECT_TRUE(opens("out"));  // the link itself
  EXPECT_FALSE(opens(".."));
  EXPECT_FALSE(opens("/"));
  EXPECT_FALSE(opens("out/etc"));
  EXPECT_FALSE(opens("sub/../.."));
}

TEST(VirtioFsLockRanges, WireToHostAndBack) {
  struct flock host;
  EXPECT_TRUE(LockOwners::ToHost({10, 19, F_RDLCK, 1}, &host));
  EXPECT_EQ(host.l_start, 10);
  EXPECT_EQ(host.l_len, 10);
  EXPECT_TRUE(LockOwners::ToHost({0, INT64_MAX, F_WRLCK, 1}, &host));
  EXPECT_EQ(host.l_len, 0);
  EXPECT_TRUE(LockOwners::ToHost({INT64_MAX, INT64_MAX, F_WRLCK, 1}, &host));
  EXPECT_FALSE(LockOwners::ToHost({1, 0, F_WRLCK, 1}, &host));
  EXPECT_FALSE(LockOwners::ToHost({0, uint64_t{1} << 63, F_WRLCK, 1}, &host));
  EXPECT_FALSE(LockOwners::ToHost({0, 1, 7, 1}, &host));
  host = {};
  host.l_type = F_RDLCK;
  host.l_start = 5;
  host.l_len = 1;
  const fuse_file_lock wire = LockOwners::FromHost(host, 9);
  EXPECT_EQ(wire.start, 5u);
  EXPECT_EQ(wire.end, 5u);
  EXPECT_EQ(wire.pid, 9u);
}

// A table over a real directory.
class VirtioFsInodes : public ::testing::Test {
 protected:
  void SetUp() override {
    root_.reset(::open(dir_.path().c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(share_.Open(dir_.path().native(), "test").ok());
    budget_.Configure(&table_, 8, 64);
    ASSERT_TRUE(table_.Init(&budget_, kMax, &share_));
  }
  InodeRef Lookup(const std::string& name) {
    struct statx st;
    EXPECT_EQ(StatAt(root_.get(), name.c_str(), &st), 0);
    InodeRef inode = table_.Lookup(share_, st);
    if (inode) table_.SetName(*inode, table_.root(), name);
    return inode;
  }

  static constexpr uint32_t kMax = 3000;
  testing::TempDir dir_;
  Share share_;
  UniqueFd root_;
  FdBudget budget_;
  InodeTable table_;
};

TEST_F(VirtioFsInodes, LookupsAreCounted) {
  dir_.Write("a", "");
  const uint64_t node = Lookup("a")->nodeid();
  EXPECT_EQ(Lookup("a")->nodeid(), node);
  EXPECT_EQ(table_.count(), 1u);
  EXPECT_TRUE(table_.Find(node));
  table_.Forget(node, 1);
  EXPECT_TRUE(table_.Find(node));
  table_.Forget(node, 5);
  EXPECT_FALSE(table_.Find(node));
  EXPECT_EQ(table_.count(), 0u);
  // The slot is used again under another nodeid.
  const uint64_t again = Lookup("a")->nodeid();
  EXPECT_NE(again, node);
  EXPECT_FALSE(table_.Find(node));
  EXPECT_TRUE(table_.Find(again));
  EXPECT_TRUE(table_.Find(InodeTable::kRootId));
  EXPECT_FALSE(table_.Find(0));
}

TEST_F(VirtioFsInodes, NamesLeadToInodes) {
  dir_.Write("a", "");
  const std::string long_name(200, 'n');
  const InodeRef a = Lookup("a");
  EXPECT_EQ(table_.FindByName(table_.root(), "a").get(), a.get());
  EXPECT_FALSE(table_.FindByName(*a, "a"));
  table_.SetName(*a, table_.root(), long_name);
  EXPECT_FALSE(table_.FindByName(table_.root(), "a"));
  EXPECT_EQ(table_.FindByName(table_.root(), long_name).get(), a.get());
  std::array<char, 256> text;
  EXPECT_EQ(table_.CopyName(*a, &text).get(), &table_.root());
  EXPECT_EQ(std::string(text.data()), long_name);
  table_.ClearName(*a, table_.root(), "other");
  EXPECT_TRUE(table_.CopyName(*a, &text));
  table_.ClearName(*a, table_.root(), long_name);
  EXPECT_FALSE(table_.CopyName(*a, &text));
  EXPECT_FALSE(table_.FindByName(table_.root(), long_name));
  EXPECT_TRUE(a->keep_fd);
}

TEST_F(VirtioFsInodes, AParentLivesAsLongAsItsChildren) {
  stdfs::create_directory(dir_ / "d");
  dir_.Write("d/f", "");
  uint64_t parent_node = 0, child_node = 0;
  {
    const InodeRef parent = Lookup("d");
    struct statx st;
    ASSERT_EQ(StatAt(root_.get(), "d/f", &st), 0);
    const InodeRef child = table_.Lookup(share_, st);
    table_.SetName(*child, *parent, "f");
    parent_node = parent->nodeid();
    child_node = child->nodeid();
  }
  table_.Forget(parent_node, 1);
  EXPECT_FALSE(table_.Find(parent_node));  // not for the guest
  EXPECT_EQ(table_.count(), 2u);           // but as the way to the child
  table_.Forget(child_node, 1);
  EXPECT_EQ(table_.count(), 0u);
}

TEST_F(VirtioFsInodes, TheCapHolds) {
  struct statx st = {};
  st.stx_mask = STATX_BASIC_STATS;
  st.stx_mode = S_IFREG;
  std::vector<uint64_t> nodes;
  for (uint32_t i = 0; i < kMax; ++i) {
    st.stx_ino = 1000 + i;
    const InodeRef inode = table_.Lookup(share_, st);
    ASSERT_TRUE(inode) << i;
    nodes.push_back(inode->nodeid());
  }
  st.stx_ino = 1;
  EXPECT_FALSE(table_.Lookup(share_, st));
  table_.Forget(nodes[0], 1);
  EXPECT_TRUE(table_.Lookup(share_, st));
  for (uint32_t i = 1; i < kMax; ++i) ASSERT_TRUE(table_.Find(nodes[i])) << i;
  table_.DropAll();
  EXPECT_EQ(table_.count(), 0u);
}

TEST_F(VirtioFsInodes, AnotherBirthIsAnotherInode) {
  struct statx st = {};
  st.stx_mask = STATX_BASIC_STATS | STATX_BTIME;
  st.stx_mode = S_IFREG;
  st.stx_ino = 5;
  st.stx_btime.tv_sec = 100;
  const uint64_t first = table_.Lookup(share_, st)->nodeid();
  st.stx_btime.tv_nsec = 1;
  const uint64_t second = table_.Lookup(share_, st)->nodeid();
  EXPECT_NE(first, second);
  EXPECT_TRUE(table_.Find(first));
  EXPECT_EQ(table_.Lookup(share_, st)->nodeid(), second);
  table_.Forget(first, 1);
  table_.Forget(second, 2);
  EXPECT_EQ(table_.count(), 0u);
}

TEST_F(VirtioFsInodes, ParentsInACircleAreDropped) {
  struct statx st = {};
  st.stx_mode = S_IFDIR;
  st.stx_ino = 5;
  const InodeRef a = table_.Lookup(share_, st);
  st.stx_ino = 6;
  const InodeRef b = table_.Lookup(share_, st);
  table_.SetName(*a, *b, "a");
  table_.SetName(*b, *a, "b");
  table_.SetName(*a, *a, "self");
  table_.DropAll();
  EXPECT_EQ(table_.count(), 2u);  // held here
}

TEST_F(VirtioFsInodes, TheBudgetClosesColdDescriptors) {
  std::vector<InodeRef> inodes;
  for (int i = 0; i < 30; ++i) {
    std::string name = "f";
    name += std::to_string(i);
    dir_.Write(name, "");
    inodes.push_back(Lookup(name));
    ASSERT_TRUE(budget_.Reserve(FdKind::kPath));
    const int fd = OpenBeneath(root_.get(), name.c_str(), O_PATH);
    ASSERT_GE(fd, 0);
    const PathFd use = budget_.Install(*inodes.back(), fd);
    EXPECT_EQ(use.fd(), fd);
    EXPECT_LE(budget_.open(), 9u);
  }
  int open = 0;
  for (const InodeRef& inode : inodes) open += FdBudget::Acquire(*inode) ? 1 : 0;
  EXPECT_GE(open, 4);
  EXPECT_LE(open, 9);
  // One in use is never closed.
  PathFd held;
  for (const InodeRef& inode : inodes) {
    held = FdBudget::Acquire(*inode);
    if (held) break;
  }
  while (budget_.Evict(64) != 0) {
  }
  EXPECT_EQ(budget_.open(), 1u);
  EXPECT_GE(::fcntl(held.fd(), F_GETFD), 0);
  held = PathFd();
  for (const InodeRef& inode : inodes) table_.Forget(*inode, 1);
  inodes.clear();
  EXPECT_EQ(budget_.open(), 0u);
}

// Open files leave the spare descriptors alone, directories half of them.
TEST_F(VirtioFsInodes, SpareDescriptorsAreForListingAndFinding) {
  budget_.Configure(&table_, 64, 20);
  ASSERT_TRUE(budget_.KeepSpares(nullptr, 8, 4));
  EXPECT_EQ(budget_.spares(), 8u);
  const auto reserve = [&](FdKind kind) {
    int count = 0;
    while (count < 100 && budget_.Reserve(kind)) ++count;
    return count;
  };
  EXPECT_EQ(reserve(FdKind::kFile), 12);
  EXPECT_EQ(reserve(FdKind::kShort), 4);
  EXPECT_EQ(reserve(FdKind::kFile), 0);
  EXPECT_EQ(reserve(FdKind::kPath), 4);
  EXPECT_EQ(budget_.spares(), 0u);
  EXPECT_EQ(budget_.open(), 20u);
  EXPECT_FALSE(budget_.MakeRoom());
  // What is given back becomes a spare one first.
  for (int i = 0; i < 8; ++i) budget_.Unreserve(i < 4);
  EXPECT_EQ(budget_.spares(), 8u);
  EXPECT_EQ(reserve(FdKind::kFile), 0);
  for (int i = 0; i < 12; ++i) budget_.Unreserve(false);
  EXPECT_EQ(reserve(FdKind::kFile), 12);
  for (int i = 0; i < 12; ++i) budget_.Unreserve(false);
  EXPECT_EQ(budget_.spares(), 8u);
}

// Shares may take all that there is but what some files need.
TEST_F(VirtioFsInodes, SharesLeaveSomeForFiles) {
  budget_.Configure(&table_, 64, 60);
  ASSERT_TRUE(budget_.KeepSpares(nullptr, 12, 4));
  int roots = 0;
  while (roots < 100 && budget_.ReserveRoot()) ++roots;
  EXPECT_EQ(roots, 60 - 12 - static_cast<int>(FdBudget::kFilesOfShares));
  EXPECT_FALSE(budget_.ReserveRoot());
  const auto reserve = [&](FdKind kind) {
    int count = 0;
    while (count < 100 && budget_.Reserve(kind)) ++count;
    return count;
  };
  EXPECT_EQ(reserve(FdKind::kFile), static_cast<int>(FdBudget::kFilesOfShares));
  EXPECT_EQ(reserve(FdKind::kShort), 8);
  EXPECT_EQ(reserve(FdKind::kPath), 4);
  EXPECT_EQ(budget_.open(), 60u);
  // One that goes makes room for a file, and no file for a share.
  budget_.UnreserveRoot();
  EXPECT_FALSE(budget_.ReserveRoot());
  for (uint32_t i = 0; i < FdBudget::kFilesOfShares + 8 + 4; ++i) budget_.Unreserve(i < 4);
  EXPECT_EQ(budget_.spares(), 20u);
  EXPECT_TRUE(budget_.ReserveRoot());
  EXPECT_FALSE(budget_.ReserveRoot());
  for (; roots > 0; --roots) budget_.UnreserveRoot();
  EXPECT_EQ(budget_.open(), 0u);
}

// An inode that is reached by its descriptor alone keeps it as long as anything else can go.
TEST_F(VirtioFsInodes, NamelessOnesAreTheLastToGo) {
  budget_.Configure(&table_, 64, 8);
  const auto install = [&](const InodeRef& inode, const std::string& name) {
    if (!budget_.Reserve(FdKind::kPath)) return false;
    budget_.Install(*inode, OpenBeneath(root_.get(), name.c_str(), O_PATH));
    return true;
  };
  std::vector<InodeRef> inodes;
  for (size_t i = 0; i < 8; ++i) {
    const std::string name(1, static_cast<char>('a' + static_cast<char>(i)));
    dir_.Write(name, "");
    inodes.push_back(Lookup(name));
    ASSERT_TRUE(install(inodes.back(), name));
    if (i < 6) table_.ClearName(*inodes.back(), table_.root(), name);
  }
  EXPECT_TRUE(budget_.Reserve(FdKind::kFile));
  EXPECT_TRUE(budget_.Reserve(FdKind::kFile));
  EXPECT_FALSE(budget_.Reserve(FdKind::kFile));
  for (size_t i = 0; i < 6; ++i) EXPECT_TRUE(FdBudget::Acquire(*inodes[i])) << i;
  EXPECT_TRUE(install(inodes[7], "h")) << "a lookup must go on";
  int lost = 0;
  for (size_t i = 0; i < 6; ++i) lost += FdBudget::Acquire(*inodes[i]) ? 0 : 1;
  EXPECT_EQ(lost, 1);
  budget_.Unreserve(false);
  budget_.Unreserve(false);
}

TEST_F(VirtioFsInodes, ManyThreads) {
  std::vector<struct statx> files(40);
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].stx_mask = STATX_BASIC_STATS;
    files[i].stx_mode = S_IFDIR;
    files[i].stx_ino = 100 + i;
  }
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      uint32_t random = t + 1;
      const auto next = [&] { return random = random * 1664525 + 1013904223; };
      for (int i = 0; i < 20000; ++i) {
        const size_t at = next() / 65536 % files.size();
        const InodeRef inode = table_.Lookup(share_, files[at]);
        const InodeRef parent = table_.Lookup(share_, files[next() / 65536 % files.size()]);
        ASSERT_TRUE(inode && parent);
        std::string name = "n";
        name += std::to_string(next() / 65536 % 8);
        if (at != 0 && parent->index < inode->index) table_.SetName(*inode, *parent, name);
        const InodeRef found = table_.FindByName(*parent, name);
        if (found) table_.ClearName(*found, *parent, name);
        std::array<char, 256> copied;
        table_.CopyName(*inode, &copied);
        EXPECT_TRUE(table_.Find(inode->nodeid()));
        table_.Forget(*inode, 1);
        table_.Forget(parent->nodeid(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(table_.count(), 0u);
}

TEST(VirtioFsDirStream, SeeksWhereItWas) {
  const testing::TempDir dir;
  for (int i = 0; i < 50; ++i) dir.Write(std::to_string(i), "");
  const UniqueFd fd(::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  auto stream = std::make_unique<DirStream>();
  ASSERT_EQ(stream->Seek(fd.get(), 0), 0);
  std::vector<std::pair<std::string, uint64_t>> all;
  DirEntry entry;
  while (stream->Peek(fd.get(), &entry) == 1) {
    all.emplace_back(entry.name, entry.next);
    stream->Skip(entry);
  }
  ASSERT_EQ(all.size(), 52u);
  for (size_t i = 0; i + 1 < all.size(); i += 7) {
    ASSERT_EQ(stream->Seek(fd.get(), all[i].second), 0);
    ASSERT_EQ(stream->Peek(fd.get(), &entry), 1);
    EXPECT_EQ(entry.name, all[i + 1].first);
  }
  ASSERT_EQ(stream->Seek(fd.get(), all.back().second), 0);
  EXPECT_EQ(stream->Peek(fd.get(), &entry), 0);
}

}  // namespace
}  // namespace virtbay::virtiofs
