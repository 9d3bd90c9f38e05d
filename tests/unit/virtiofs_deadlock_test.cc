// Lock owners of the guest that wait for each other: whoever closes the circle is told (EDEADLK).
#include <fcntl.h>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

constexpr uint64_t kEnd = INT64_MAX;

fuse_file_lock Lock(uint32_t type, uint64_t start = 0, uint64_t end = kEnd) {
  return {start, end, type, 42};
}

class VirtioFsDeadlock : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(share_.ready());
    for (size_t i = 0; i < kFiles; ++i) {
      const std::string name(1, static_cast<char>('a' + i));
      share_.dir().Write(name, "");
      node_[i] = share_.Node(name);
      fh_[i] = share_.OpenPath(name, O_RDWR);
    }
  }
  int Set(uint64_t owner, size_t file, const fuse_file_lock& lock) {
    return share_.fs().SetLk(node_[file], fh_[file], owner, lock, false);
  }
  int SetWait(uint64_t owner, size_t file, const fuse_file_lock& lock, uint32_t queue = 0) {
    return share_.fs(queue).SetLk(node_[file], fh_[file], owner, lock, true);
  }
  // Waits until the device has it among those that wait.
  guest::FuseSlot* Park(uint64_t owner, size_t file, const fuse_file_lock& lock,
                        uint32_t queue = 0) {
    const uint64_t before = share_.Metric("parked_locks");
    guest::FuseSlot* slot = share_.fs(queue).StartLkw(node_[file], fh_[file], owner, lock);
    EXPECT_NE(slot, nullptr);
    // The device takes requests in order: an answer to a later one means that it has seen this.
    EXPECT_EQ(share_.fs(queue).GetAttr(kRoot).error, 0);
    EXPECT_EQ(share_.Metric("parked_locks"), before + 1);
    return slot;
  }
  int Finish(guest::FuseSlot* slot, uint32_t queue = 0) { return share_.fs(queue).FinishLk(slot); }
  int DropAllOf(uint64_t owner) {
    int error = 0;
    for (size_t i = 0; i < kFiles; ++i) error |= share_.fs().Flush(node_[i], fh_[i], owner);
    return error;
  }

  static ShareOptions WithQueues() {
    ShareOptions options;
    options.options["request-queues"] = "2";
    options.session.request_queues = 2;
    return options;
  }
  static constexpr size_t kFiles = 4;
  Share share_{WithQueues()};
  uint64_t node_[kFiles] = {};
  uint64_t fh_[kFiles] = {};
};

TEST_F(VirtioFsDeadlock, TwoOwners) {
  ASSERT_EQ(Set(1, 0, Lock(F_WRLCK)), 0);
  ASSERT_EQ(Set(2, 1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* first = Park(1, 1, Lock(F_WRLCK));
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK)), EDEADLK);
  EXPECT_EQ(share_.Metric("lock_deadlocks"), 1u);
  // It holds what it held, and may give it up.
  EXPECT_EQ(Set(3, 1, Lock(F_WRLCK)), EAGAIN);
  EXPECT_EQ(Set(2, 0, Lock(F_WRLCK)), EAGAIN) << "who does not wait makes no circle";
  EXPECT_EQ(DropAllOf(2), 0);
  EXPECT_EQ(Finish(first), 0);
}

TEST_F(VirtioFsDeadlock, ThreeOwnersOnTwoQueues) {
  for (uint64_t owner = 0; owner < 3; ++owner) ASSERT_EQ(Set(owner, owner, Lock(F_WRLCK)), 0);
  guest::FuseSlot* zero = Park(0, 1, Lock(F_WRLCK), 0);
  guest::FuseSlot* one = Park(1, 2, Lock(F_RDLCK), 1);
  EXPECT_EQ(SetWait(2, 0, Lock(F_RDLCK), 1), EDEADLK);
  EXPECT_EQ(DropAllOf(2), 0);
  EXPECT_EQ(Finish(one, 1), 0);
  EXPECT_EQ(DropAllOf(1), 0);
  EXPECT_EQ(Finish(zero, 0), 0);
}

TEST_F(VirtioFsDeadlock, AChainIsNone) {
  ASSERT_EQ(Set(1, 0, Lock(F_WRLCK)), 0);
  ASSERT_EQ(Set(2, 1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* two = Park(2, 0, Lock(F_WRLCK));
  guest::FuseSlot* three = Park(3, 1, Lock(F_WRLCK));
  guest::FuseSlot* four = Park(4, 1, Lock(F_WRLCK));
  EXPECT_EQ(SetWait(1, 2, Lock(F_WRLCK)), 0);
  EXPECT_EQ(SetWait(1, 0, Lock(F_RDLCK)), 0) << "its own is in nobody's way";
  EXPECT_EQ(DropAllOf(1), 0);
  EXPECT_EQ(Finish(two), 0);
  EXPECT_EQ(DropAllOf(2), 0);
  EXPECT_EQ(Finish(three), 0);
  EXPECT_EQ(DropAllOf(3), 0);
  EXPECT_EQ(Finish(four), 0);
  EXPECT_EQ(share_.Metric("lock_deadlocks"), 0u);
}

TEST_F(VirtioFsDeadlock, OnlyWhatIsStillHeldCounts) {
  ASSERT_EQ(Set(1, 0, Lock(F_WRLCK, 0, 99)), 0);
  ASSERT_EQ(Set(1, 0, Lock(F_UNLCK, 40, 59)), 0);
  ASSERT_EQ(Set(1, 0, Lock(F_RDLCK, 80, 99)), 0);
  ASSERT_EQ(Set(2, 0, Lock(F_WRLCK, 200, 299)), 0);
  ASSERT_EQ(Set(3, 0, Lock(F_RDLCK, 80, 89)), 0);
  guest::FuseSlot* one = Park(1, 0, Lock(F_WRLCK, 250, 250));
  // Given up, made a read lock, never locked: not owner 1's.
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK, 40, 59)), 0);
  EXPECT_EQ(SetWait(2, 0, Lock(F_RDLCK, 80, 99)), 0);
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK, 100, 100)), 0);
  // On both sides of the gap, and the read lock for a writer.
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK, 39, 45)), EDEADLK);
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK, 55, 60)), EDEADLK);
  EXPECT_EQ(SetWait(2, 0, Lock(F_WRLCK, 99, 99)), EDEADLK);
  EXPECT_EQ(SetWait(2, 0, Lock(F_RDLCK, 0, kEnd)), EDEADLK);
  // Merged again, the gap is no gap.
  EXPECT_EQ(Set(2, 0, Lock(F_UNLCK, 0, 199)), 0);
  EXPECT_EQ(Set(1, 0, Lock(F_WRLCK, 40, 59)), 0);
  EXPECT_EQ(SetWait(2, 0, Lock(F_RDLCK, 50, 50)), EDEADLK);
  EXPECT_EQ(DropAllOf(2), 0);
  EXPECT_EQ(Finish(one), 0);
}

TEST_F(VirtioFsDeadlock, AReaderAmongSeveralIsInTheWay) {
  ASSERT_EQ(Set(1, 0, Lock(F_RDLCK)), 0);
  ASSERT_EQ(Set(2, 0, Lock(F_RDLCK)), 0);
  ASSERT_EQ(Set(3, 1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* three = Park(3, 0, Lock(F_WRLCK));
  EXPECT_EQ(SetWait(2, 1, Lock(F_RDLCK)), EDEADLK);
  EXPECT_EQ(SetWait(1, 1, Lock(F_RDLCK)), EDEADLK);
  EXPECT_EQ(DropAllOf(1), 0);
  EXPECT_EQ(SetWait(2, 1, Lock(F_RDLCK)), EDEADLK) << "the other reader still is";
  EXPECT_EQ(DropAllOf(2), 0);
  EXPECT_EQ(Finish(three), 0);
}

TEST_F(VirtioFsDeadlock, WhoWasInterruptedMakesNoCircle) {
  ASSERT_EQ(Set(1, 0, Lock(F_WRLCK)), 0);
  ASSERT_EQ(Set(2, 1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* one = Park(1, 1, Lock(F_WRLCK));
  EXPECT_EQ(share_.session().hiprio().Interrupt(one->unique()), 0);
  guest::FuseSlot* two = Park(2, 0, Lock(F_WRLCK), 1);
  EXPECT_EQ(Finish(one), EINTR);
  EXPECT_EQ(share_.Metric("lock_deadlocks"), 0u);
  EXPECT_EQ(SetWait(1, 1, Lock(F_WRLCK)), EDEADLK) << "waiting again is another matter";
  EXPECT_EQ(DropAllOf(1), 0);
  EXPECT_EQ(Finish(two, 1), 0);
}

// Owner 2 has two threads. Which of the two that wait for file 0 gets it decides whether there is a
// circle.
TEST_F(VirtioFsDeadlock, ACircleThatAGrantClosesIsFound) {
  ASSERT_EQ(Set(3, 0, Lock(F_WRLCK)), 0);
  ASSERT_EQ(Set(1, 1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* two_for_one = Park(2, 1, Lock(F_WRLCK));
  guest::FuseSlot* two = Park(2, 0, Lock(F_WRLCK));
  guest::FuseSlot* one = Park(1, 0, Lock(F_WRLCK));
  EXPECT_EQ(DropAllOf(3), 0);
  EXPECT_EQ(Finish(two), 0);
  EXPECT_EQ(Finish(one), EDEADLK);
  EXPECT_EQ(DropAllOf(1), 0);
  EXPECT_EQ(Finish(two_for_one), 0);
}

// As on a local file system, only record locks are looked at.
TEST_F(VirtioFsDeadlock, FlockWaitsForEver) {
  auto& fs = share_.fs();
  const uint64_t other[2] = {share_.OpenPath("a", O_RDWR), share_.OpenPath("b", O_RDWR)};
  EXPECT_EQ(fs.SetLk(node_[0], fh_[0], 1, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs.SetLk(node_[1], fh_[1], 2, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  guest::FuseSlot* one = fs.StartLkw(node_[1], other[1], 1, Lock(F_WRLCK), FUSE_LK_FLOCK);
  guest::FuseSlot* two = fs.StartLkw(node_[0], other[0], 2, Lock(F_WRLCK), FUSE_LK_FLOCK);
  ASSERT_TRUE(one != nullptr && two != nullptr);
  EXPECT_EQ(fs.GetAttr(kRoot).error, 0);
  EXPECT_EQ(share_.Metric("parked_locks"), 2u);
  for (guest::FuseSlot* slot : {one, two}) {
    EXPECT_EQ(share_.session().hiprio().Interrupt(slot->unique()), 0);
    EXPECT_EQ(Finish(slot), EINTR);
  }
}

}  // namespace
}  // namespace virtbay::testing
