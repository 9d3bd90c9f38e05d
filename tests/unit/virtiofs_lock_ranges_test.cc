// What a lock owner holds, and the search for owners that wait for each other, by themselves.
#include <fcntl.h>

#include <deque>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "plugins/virtiofs/handle_table.h"
#include "plugins/virtiofs/inode_table.h"
#include "plugins/virtiofs/lock_ranges.h"
#include "plugins/virtiofs/lock_waiters.h"
#include "plugins/virtiofs/locks.h"

namespace virtbay::virtiofs {
namespace {

constexpr uint64_t kEnd = INT64_MAX;

using List = std::vector<LockRange>;

TEST(VirtioFsLockRanges, SplitAndMerge) {
  LockRanges held;
  held.Set({10, 19, true});
  held.Set({20, 29, true});
  EXPECT_EQ(held.all(), (List{{10, 29, true}}));
  held.Set({15, 24, false});
  EXPECT_EQ(held.all(), (List{{10, 14, true}, {15, 24, false}, {25, 29, true}}));
  held.Clear(18, 18);
  EXPECT_EQ(held.all(), (List{{10, 14, true}, {15, 17, false}, {19, 24, false}, {25, 29, true}}));
  held.Set({18, 18, false});
  EXPECT_EQ(held.all(), (List{{10, 14, true}, {15, 24, false}, {25, 29, true}}));
  held.Set({0, kEnd, false});
  EXPECT_EQ(held.all(), (List{{0, kEnd, false}}));
  held.Clear(100, kEnd);
  EXPECT_EQ(held.all(), (List{{0, 99, false}}));
  held.Clear(0, kEnd);
  EXPECT_TRUE(held.empty());
  held.Clear(0, kEnd);
  held.Set({kEnd, kEnd, true});
  held.Set({0, 0, true});
  EXPECT_EQ(held.all(), (List{{0, 0, true}, {kEnd, kEnd, true}}));
}

// Against one flag per byte, with everything that Set, Clear and Conflict can meet.
TEST(VirtioFsLockRanges, AsAByteMapHasIt) {
  constexpr uint64_t kBytes = 40;
  std::mt19937 random(7);
  std::array<char, kBytes> map = {};
  LockRanges held;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t start = random() % kBytes;
    const uint64_t end = start + random() % (kBytes - start);
    const bool write = random() % 2 == 0;
    switch (random() % 3) {
      case 0:
        held.Set({start, end, write});
        std::fill(map.begin() + start, map.begin() + end + 1, write ? 'w' : 'r');
        break;
      case 1:
        held.Clear(start, end);
        std::fill(map.begin() + start, map.begin() + end + 1, '\0');
        break;
      default: {
        const LockRange* found = held.Conflict({start, end, write});
        bool expected = false;
        for (uint64_t at = start; at <= end; ++at) {
          expected |= map[at] == 'w' || (map[at] == 'r' && write);
        }
        ASSERT_EQ(found != nullptr, expected);
      }
    }
    List ranges;
    for (uint64_t at = 0; at < kBytes; ++at) {
      if (map[at] == '\0') continue;
      const bool is_write = map[at] == 'w';
      if (!ranges.empty() && ranges.back().end + 1 == at && ranges.back().write == is_write) {
        ranges.back().end = at;
      } else {
        ranges.push_back({at, at, is_write});
      }
    }
    ASSERT_EQ(held.all(), ranges) << i;
  }
}

TEST(VirtioFsLockRanges, ReadersAreOnlyInTheWayOfWriters) {
  LockRanges held;
  for (uint64_t i = 0; i < 1000; ++i) held.Set({2 * i, 2 * i, false});
  EXPECT_EQ(held.Conflict({0, kEnd, false}), nullptr);
  EXPECT_EQ(held.Conflict({1, 1, true}), nullptr);
  ASSERT_NE(held.Conflict({1, 2, true}), nullptr);
  held.Set({3000, 3000, true});
  ASSERT_NE(held.Conflict({0, kEnd, false}), nullptr);
  EXPECT_EQ(held.Conflict({0, kEnd, false})->start, 3000u);
  EXPECT_EQ(held.Conflict({0, 2999, false}), nullptr);
  // However the last write lock goes.
  held.Set({2999, 3001, true});
  held.Set({3000, 3000, false});
  ASSERT_NE(held.Conflict({2999, 2999, false}), nullptr);
  ASSERT_NE(held.Conflict({3001, 3001, false}), nullptr);
  held.Clear(3001, kEnd);
  held.Set({2990, 2999, false});
  EXPECT_EQ(held.Conflict({0, kEnd, false}), nullptr);
}

// Waiters and holders of made-up owners on made-up inodes.
class VirtioFsLockSearch : public ::testing::Test, private HandleTable::Closer {
 protected:
  void SetUp() override {
    budget_.Configure(&inodes_, 8, 64);
    waiters_.Configure(1024);
    ASSERT_TRUE(inodes_.Init(&budget_, 1000, &share_));
    ASSERT_TRUE(handles_.Init(this, 100));
  }
  void TearDown() override {
    for (LockWaiter& waiter : waiting_) waiters_.Remove(&waiter);
    waiting_.clear();
    for (Inode* inode : files_) inode->lock_owners.store(nullptr);
    handles_.DropAll();
  }
  // A file, by which it is told later.
  size_t File() {
    struct statx st = {};
    st.stx_ino = 100 + files_.size();
    st.stx_mode = S_IFREG;
    InodeRef inode = inodes_.Lookup(share_, st);
    files_.push_back(inode.get());
    open_.push_back(handles_.Open(&inode, {}));
    return files_.size() - 1;
  }
  void Hold(uint64_t owner, size_t file, const LockRange& range) {
    LockOwner& entry = owners_made_.emplace_back();
    entry.owner = owner;
    entry.ranges.Set(range);
    entry.next = files_[file]->lock_owners.load();
    files_[file]->lock_owners.store(&entry);
  }
  LockWaiter& Waiter(uint64_t owner, size_t file, const LockRange& range) {
    LockWaiter& waiter = waiting_.emplace_back();
    waiter.owner = owner;
    waiter.lock = {range.start, range.end, static_cast<uint32_t>(range.write ? F_WRLCK : F_RDLCK),
                   1};
    waiter.handle = handles_.AnyOf(*files_[file]);
    return waiter;
  }
  LockWaiters::Added Wait(uint64_t owner, size_t file, const LockRange& range) {
    return waiters_.Add(&Waiter(owner, file, range), owners_);
  }

  static constexpr LockRange kAll = {0, kEnd, true};
  static constexpr auto kWaits = LockWaiters::Added::kWaits;
  static constexpr auto kDeadlock = LockWaiters::Added::kDeadlock;
  Share share_;
  FdBudget budget_;
  InodeTable inodes_;
  HandleTable handles_;
  LockOwners owners_;
  LockWaiters waiters_;
  std::vector<Inode*> files_;
  std::vector<HandleRef> open_;
  std::deque<LockOwner> owners_made_;
  std::deque<LockWaiter> waiting_;

 private:
  void CloseHandle(Handle& handle, bool /*last*/) override {
    InodeRef(&inodes_, handle.inode).Reset();
  }
  void Unlock(Handle& /*handle*/) override {}
};

TEST_F(VirtioFsLockSearch, ACircleOfAnyLengthIsFoundByItsLast) {
  for (const uint64_t length : {2u, 3u, 20u}) {
    const uint64_t first = 1000 * length;
    std::vector<size_t> file;
    for (uint64_t i = 0; i < length; ++i) {
      file.push_back(File());
      Hold(first + i, file[i], kAll);
    }
    for (uint64_t i = 0; i + 1 < length; ++i) EXPECT_EQ(Wait(first + i, file[i + 1], kAll), kWaits);
    EXPECT_EQ(Wait(first + length - 1, file[0], kAll), kDeadlock);
    // Who was told and is not in the circle any more does not make one for others.
    EXPECT_EQ(Wait(first + length, file[0], kAll), kWaits);
  }
}

TEST_F(VirtioFsLockSearch, WhoWasInterruptedWaitsNoMore) {
  const size_t a = File(), b = File();
  Hold(1, a, kAll);
  Hold(2, b, kAll);
  EXPECT_EQ(Wait(1, b, kAll), kWaits);
  waiting_.back().interrupted.store(true);
  EXPECT_EQ(Wait(2, a, kAll), kWaits);
}

TEST_F(VirtioFsLockSearch, AWriterWaitsForEveryReader) {
  const size_t shared = File(), b = File();
  const LockRange read = {0, 99, false};
  for (uint64_t owner = 1; owner <= 5; ++owner) Hold(owner, shared, read);
  Hold(10, b, kAll);
  EXPECT_EQ(Wait(10, shared, {50, 50, true}), kWaits);
  EXPECT_EQ(Wait(10, shared, {50, 50, true}), kWaits) << "a second thread of it";
  for (uint64_t owner = 1; owner <= 5; ++owner) EXPECT_EQ(Wait(owner, b, kAll), kDeadlock);
  // A reader beside them stands in nobody's way, and bytes that nobody reads are not waited for.
  EXPECT_EQ(Wait(6, b, kAll), kWaits);
  EXPECT_EQ(Wait(10, shared, {100, 100, true}), kWaits);
}

TEST_F(VirtioFsLockSearch, FlocksAreNoPartOfIt) {
  const size_t a = File(), b = File();
  Hold(1, a, kAll);
  Hold(2, b, kAll);
  LockWaiter& flock = Waiter(1, b, kAll);
  flock.flock = true;
  EXPECT_EQ(waiters_.Add(&flock, owners_), kWaits);
  EXPECT_EQ(Wait(2, a, kAll), kWaits);
  EXPECT_FALSE(waiters_.RemoveIfDeadlocked(&flock, owners_));
}

TEST_F(VirtioFsLockSearch, OneThatWaitsAlreadyIsRemoved) {
  const size_t a = File(), b = File();
  Hold(1, a, kAll);
  EXPECT_EQ(Wait(1, b, kAll), kWaits);
  LockWaiter& first = waiting_.back();
  EXPECT_EQ(Wait(2, a, kAll), kWaits);
  EXPECT_FALSE(waiters_.RemoveIfDeadlocked(&first, owners_));
  Hold(2, b, kAll);
  EXPECT_TRUE(waiters_.RemoveIfDeadlocked(&first, owners_));
  EXPECT_EQ(waiters_.count(), 1u);
  EXPECT_FALSE(waiters_.RemoveIfDeadlocked(&waiting_.back(), owners_)) << "one of two is told";
}

// However many others hold and wait beside the circle.
TEST_F(VirtioFsLockSearch, ACircleIsFoundInACrowd) {
  constexpr uint64_t kHolders = 40'000;
  constexpr uint64_t kWaiters = 1000;
  waiters_.Configure(2 * kWaiters);
  const size_t crowded = File(), other = File(), last = File();
  // The first holder made is the last that a search comes to.
  Hold(1, crowded, {0, kEnd, false});
  for (uint64_t owner = 2; owner <= kHolders; ++owner) Hold(owner, crowded, {0, kEnd, false});
  for (uint64_t owner = 0; owner < kWaiters; ++owner) {
    ASSERT_EQ(Wait(100'000 + owner, crowded, kAll), kWaits);
  }
  Hold(100'001, other, kAll);
  Hold(300'000, last, kAll);
  // They hold the crowded file as well and wait for the same: all are gone through.
  for (uint64_t owner = 2; owner < kWaiters; ++owner) ASSERT_EQ(Wait(owner, last, kAll), kWaits);
  EXPECT_EQ(Wait(300'001, other, kAll), kWaits) << "no circle";
  EXPECT_EQ(Wait(1, other, kAll), kDeadlock);
  EXPECT_EQ(Wait(300'000, other, kAll), kDeadlock) << "through one of those who wait for it";
}

}  // namespace
}  // namespace virtbay::virtiofs
