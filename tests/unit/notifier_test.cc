// The notifier alone: what the watchdog takes for a front-end that holds a thread up.
#include "framework/device/notifier.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>
#include <utility>

#include "tests/support/process_state.h"

namespace virtbay {
namespace {

constexpr uint64_t kMost = ~uint64_t{1};

sem_t entered;
sem_t leave;

void Hold(int) {
  sem_post(&entered);
  while (sem_wait(&leave) != 0) {
  }
}

class NotifierTest : public ::testing::Test {
 protected:
  NotifierTest() : fd_(eventfd(0, EFD_CLOEXEC)) {
    notifier_.Set(fd_.Duplicate());
    EXPECT_EQ(write(fd_.get(), &kMost, sizeof kMost), 8);
  }
  uint64_t Take() {
    uint64_t count = 0;
    EXPECT_EQ(read(fd_.get(), &count, sizeof count), 8);
    return count;
  }

  UniqueFd fd_;
  Notifier notifier_;
};

TEST_F(NotifierTest, OneThatWaitsForRoomIsFreedAndNoOtherFollows) {
  std::thread thread([this] {
    notifier_.Notify();
    notifier_.Notify();
  });
  ASSERT_TRUE(testing::Eventually([&] { return notifier_.Release(); }));
  thread.join();
  EXPECT_FALSE(notifier_.Release());
  pollfd some{fd_.get(), POLLIN, 0};
  if (poll(&some, 1, 0) == 1) Take();
  ASSERT_EQ(write(fd_.get(), &kMost, sizeof kMost), 8);
  notifier_.Notify();  // does not wait
  // Another descriptor begins anew.
  const UniqueFd next(eventfd(0, EFD_CLOEXEC));
  notifier_.Set(next.Duplicate());
  notifier_.Notify();
  uint64_t count = 0;
  ASSERT_EQ(read(next.get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 1u);
}

// Inside of its write, but held up by nobody: preempted, or, here, in a signal handler.
TEST_F(NotifierTest, OneThatHasRoomIsLeftAlone) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "this sanitizer delivers a signal when the write has ended";
#endif
  ASSERT_EQ(sem_init(&entered, 0, 0), 0);
  ASSERT_EQ(sem_init(&leave, 0, 0), 0);
  struct sigaction action {};
  action.sa_handler = Hold;
  action.sa_flags = SA_RESTART;
  struct sigaction before {};
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  std::thread thread([this] { notifier_.Notify(); });
  ASSERT_TRUE(testing::Eventually([&] { return notifier_.writing(); }));
  ASSERT_EQ(pthread_kill(thread.native_handle(), SIGUSR1), 0);
  while (sem_wait(&entered) != 0) {
  }
  EXPECT_TRUE(notifier_.writing());
  EXPECT_EQ(Take(), kMost);
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(notifier_.Release());
  sem_post(&leave);
  thread.join();
  notifier_.Notify();
  EXPECT_EQ(Take(), 2u) << "both were told";
  sigaction(SIGUSR1, &before, nullptr);
}

}  // namespace
}  // namespace virtbay
