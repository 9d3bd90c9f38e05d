// File locks of the virtiofs plugin: POSIX and flock locks on the host, and SETLKW that waits
// without stopping its queue.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <thread>

#include "framework/base/unique_fd.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

constexpr uint64_t kEnd = INT64_MAX;

fuse_file_lock Lock(uint32_t type, uint64_t start = 0, uint64_t end = kEnd, uint32_t pid = 42) {
  return {start, end, type, pid};
}

class VirtioFsLocks : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(share_.ready());
    share_.dir().Write("file", "0123456789");
    node_ = share_.Node("file");
    fh_ = share_.OpenPath("file", O_RDWR);
    other_ = share_.OpenPath("file", O_RDWR);
  }
  guest::FuseClient& fs() { return share_.fs(); }
  int Set(uint64_t owner, const fuse_file_lock& lock) {
    return fs().SetLk(node_, fh_, owner, lock, false);
  }
  UniqueFd HostFd() {
    return UniqueFd(::open((share_.dir() / "file").c_str(), O_RDWR | O_CLOEXEC));
  }
  // Waits until that many SETLKW have been parked in all.
  void AwaitParked(uint64_t count) {
    // The device takes requests in order: an answer to a later one means that it has seen them.
    EXPECT_EQ(fs().GetAttr(kRoot).error, 0);
    EXPECT_GE(share_.Metric("parked_locks"), count);
  }

  static ShareOptions WithQueues() {
    ShareOptions options;
    options.options["request-queues"] = "2";
    options.session.request_queues = 2;
    return options;
  }

  Share share_{WithQueues()};
  uint64_t node_ = 0, fh_ = 0, other_ = 0;
};

TEST_F(VirtioFsLocks, OwnersConflictAndRangesDoNot) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 5, 20)), 0);
  EXPECT_EQ(Set(2, Lock(F_RDLCK, 20, 20)), EAGAIN);
  EXPECT_EQ(Set(2, Lock(F_RDLCK, 21, 30)), 0);
  EXPECT_EQ(Set(1, Lock(F_RDLCK, 21, 21)), 0);
  EXPECT_EQ(Set(1, Lock(F_UNLCK, 0, 20)), 0);
  EXPECT_EQ(Set(2, Lock(F_WRLCK, 0, 20)), 0);
  EXPECT_EQ(Set(3, Lock(F_UNLCK)), 0);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 5, 4)), EINVAL);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, UINT64_MAX)), EINVAL);
  EXPECT_EQ(Set(1, Lock(99, 0, 1)), EINVAL);
  EXPECT_EQ(fs().SetLk(node_, 999, 1, Lock(F_WRLCK), false), EBADF);
}

TEST_F(VirtioFsLocks, GetlkTellsTheHolder) {
  EXPECT_EQ(fs().GetLk(node_, fh_, 2, Lock(F_WRLCK)).value.type, static_cast<uint32_t>(F_UNLCK));
  EXPECT_EQ(Set(7, Lock(F_RDLCK, 100, 199, 700)), 0);
  EXPECT_EQ(Set(8, Lock(F_WRLCK, 200, 299, 800)), 0);
  EXPECT_EQ(Set(9, Lock(F_RDLCK, 300, kEnd, 900)), 0);
  const auto held = fs().GetLk(node_, fh_, 2, Lock(F_WRLCK, 250, 260));
  ASSERT_EQ(held.error, 0);
  EXPECT_EQ(held.value.type, static_cast<uint32_t>(F_WRLCK));
  EXPECT_EQ(held.value.start, 200u);
  EXPECT_EQ(held.value.end, 299u);
  EXPECT_EQ(held.value.pid, 800u);
  const auto rest = fs().GetLk(node_, fh_, 2, Lock(F_WRLCK, 1000, kEnd));
  EXPECT_EQ(rest.value.end, kEnd);
  EXPECT_EQ(rest.value.pid, 900u);
  EXPECT_EQ(fs().GetLk(node_, fh_, 2, Lock(F_RDLCK, 150, 160)).value.type,
            static_cast<uint32_t>(F_UNLCK));
  EXPECT_EQ(fs().GetLk(node_, fh_, 7, Lock(F_WRLCK, 150, 160)).value.type,
            static_cast<uint32_t>(F_UNLCK));
}

TEST_F(VirtioFsLocks, LocksAreReallyOnTheHost) {
  const UniqueFd host = HostFd();
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, 9)), 0);
  struct flock probe = {};
  probe.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_SETLK, &probe), -1);
  EXPECT_EQ(fs().Flush(node_, fh_, 1), 0);
  EXPECT_EQ(::fcntl(host.get(), F_OFD_SETLK, &probe), 0);
  EXPECT_EQ(Set(1, Lock(F_RDLCK, 0, 9)), EAGAIN);
  const auto held = fs().GetLk(node_, fh_, 1, Lock(F_RDLCK, 0, 9));
  EXPECT_EQ(held.value.type, static_cast<uint32_t>(F_WRLCK));
  EXPECT_EQ(held.value.pid, 0u);
}

// A lock of an open file description: the guest's owner is the description, and neither FLUSH nor
// RELEASE names it.
TEST_F(VirtioFsLocks, ReleaseOfAHandleReleasesTheLocksMadeOnIt) {
  const uint64_t second = share_.OpenPath("file", O_RDWR);
  EXPECT_EQ(fs().SetLk(node_, second, 77, Lock(F_WRLCK, 0, 9), false), 0);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, 9)), EAGAIN);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 10, 19)), 0);
  EXPECT_EQ(fs().Flush(node_, second, 4711), 0);
  EXPECT_EQ(fs().Release(node_, second), 0);
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(Set(2, Lock(F_WRLCK, 10, 19)), EAGAIN) << "the other handle's are still held";
}

TEST_F(VirtioFsLocks, FlushReleasesOneOwnerAndTheLastReleaseAll) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(Set(2, Lock(F_WRLCK, 10, 19)), 0);
  EXPECT_EQ(fs().Flush(node_, other_, 1), 0);
  EXPECT_EQ(Set(3, Lock(F_WRLCK, 0, 9)), 0);
  EXPECT_EQ(Set(3, Lock(F_WRLCK, 10, 19)), EAGAIN);
  EXPECT_EQ(fs().Release(node_, other_), 0);
  EXPECT_EQ(Set(4, Lock(F_WRLCK, 10, 19)), EAGAIN);
  EXPECT_EQ(fs().Release(node_, fh_), 0);
  const UniqueFd host = HostFd();
  struct flock probe = {};
  probe.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_SETLK, &probe), 0);
}

TEST_F(VirtioFsLocks, Flock) {
  const UniqueFd host = HostFd();
  EXPECT_EQ(fs().SetLk(node_, fh_, 1, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().SetLk(node_, other_, 2, Lock(F_RDLCK), false, FUSE_LK_FLOCK), EAGAIN);
  EXPECT_EQ(::flock(host.get(), LOCK_SH | LOCK_NB), -1);
  EXPECT_EQ(fs().SetLk(node_, fh_, 1, Lock(F_RDLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().SetLk(node_, other_, 2, Lock(F_RDLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().SetLk(node_, other_, 2, Lock(F_UNLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(fs().Release(node_, fh_, FUSE_RELEASE_FLOCK_UNLOCK), 0);
  EXPECT_EQ(::flock(host.get(), LOCK_EX | LOCK_NB), 0);
  // POSIX and flock locks do not see each other.
  EXPECT_EQ(fs().SetLk(node_, other_, 3, Lock(F_WRLCK), false), 0);
}

TEST_F(VirtioFsLocks, WaitingDoesNotStopTheQueue) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* waiting = fs().StartLkw(node_, other_, 2, Lock(F_WRLCK));
  ASSERT_NE(waiting, nullptr);
  AwaitParked(1);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(fs().GetAttr(node_).error, 0);
  EXPECT_EQ(Set(1, Lock(F_UNLCK)), 0);
  EXPECT_EQ(fs().FinishLk(waiting), 0);
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), EAGAIN);
}

TEST_F(VirtioFsLocks, WaitersOfAnotherQueueAreWoken) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), 0);
  guest::FuseClient& second = share_.fs(1);
  guest::FuseSlot* waiting = second.StartLkw(node_, other_, 2, Lock(F_WRLCK));
  ASSERT_NE(waiting, nullptr);
  EXPECT_EQ(second.GetAttr(kRoot).error, 0);
  EXPECT_EQ(fs().Flush(node_, fh_, 1), 0);
  EXPECT_EQ(second.FinishLk(waiting), 0);
  // flock(2) as well, given up by the last close.
  EXPECT_EQ(fs().SetLk(node_, fh_, 1, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  waiting = second.StartLkw(node_, other_, 2, Lock(F_WRLCK), FUSE_LK_FLOCK);
  ASSERT_NE(waiting, nullptr);
  EXPECT_EQ(second.GetAttr(kRoot).error, 0);
  EXPECT_EQ(fs().Release(node_, fh_, FUSE_RELEASE_FLOCK_UNLOCK), 0);
  EXPECT_EQ(second.FinishLk(waiting), 0);
}

TEST_F(VirtioFsLocks, AHolderOnTheHostIsWaitedFor) {
  const UniqueFd host = HostFd();
  ASSERT_EQ(::flock(host.get(), LOCK_EX), 0);
  guest::FuseSlot* waiting = fs().StartLkw(node_, fh_, 1, Lock(F_RDLCK), FUSE_LK_FLOCK);
  ASSERT_NE(waiting, nullptr);
  AwaitParked(1);
  ASSERT_EQ(::flock(host.get(), LOCK_UN), 0);
  EXPECT_EQ(fs().FinishLk(waiting), 0);
}

TEST_F(VirtioFsLocks, Interrupt) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), 0);
  // By the hiprio queue, and by the queue itself.
  for (guest::FuseClient* from : {&share_.session().hiprio(), &fs(), &share_.fs(1)}) {
    guest::FuseSlot* waiting = fs().StartLkw(node_, other_, 2, Lock(F_WRLCK));
    ASSERT_NE(waiting, nullptr);
    EXPECT_EQ(fs().GetAttr(kRoot).error, 0);
    EXPECT_EQ(from->Interrupt(waiting->unique()), 0);
    EXPECT_EQ(fs().FinishLk(waiting), EINTR);
  }
  EXPECT_EQ(share_.session().hiprio().Interrupt(123456), 0);
  EXPECT_EQ(Set(1, Lock(F_UNLCK)), 0);
}

TEST_F(VirtioFsLocks, ANewSessionEndsTheWaiters) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), 0);
  guest::FuseSlot* waiting = share_.fs(1).StartLkw(node_, other_, 2, Lock(F_WRLCK));
  ASSERT_NE(waiting, nullptr);
  EXPECT_EQ(share_.fs(1).GetAttr(kRoot).error, 0);
  EXPECT_EQ(fs().Init().error, 0);
  EXPECT_EQ(share_.fs(1).FinishLk(waiting), EINTR);
  const UniqueFd host = HostFd();
  struct flock probe = {};
  probe.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_SETLK, &probe), 0);
}

TEST_F(VirtioFsLocks, AFrontEndMayGoWhileRequestsWait) {
  EXPECT_EQ(Set(1, Lock(F_WRLCK)), 0);
  ASSERT_NE(fs().StartLkw(node_, other_, 2, Lock(F_WRLCK)), nullptr);
  AwaitParked(1);
  share_.Disconnect();
  const UniqueFd host = HostFd();
  struct flock probe = {};
  probe.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_SETLK, &probe), 0);
  share_.Connect(WithQueues().session);
  ASSERT_TRUE(share_.ready());
  EXPECT_NE(share_.Node("file"), 0u);
}

TEST(VirtioFsLockLimit, TooManyWaitersAreRefused) {
  ShareOptions options;
  options.options["max-lock-waiters"] = "2";
  Share share(std::move(options));
  ASSERT_TRUE(share.ready());
  share.dir().Write("file", "");
  const uint64_t node = share.Node("file");
  const uint64_t fh = share.OpenPath("file", O_RDWR);
  EXPECT_EQ(share.fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  guest::FuseSlot* first = share.fs().StartLkw(node, fh, 2, Lock(F_RDLCK));
  guest::FuseSlot* second = share.fs().StartLkw(node, fh, 3, Lock(F_RDLCK));
  EXPECT_EQ(share.fs().SetLk(node, fh, 4, Lock(F_RDLCK), true), ENOLCK);
  EXPECT_EQ(share.fs().SetLk(node, fh, 1, Lock(F_UNLCK), false), 0);
  EXPECT_EQ(share.fs().FinishLk(first), 0);
  EXPECT_EQ(share.fs().FinishLk(second), 0);
}

}  // namespace
}  // namespace virtbay::testing
