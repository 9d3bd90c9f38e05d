// The threads for a device's blocking work.
#include "framework/device/offload_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/synchronization/barrier.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "tests/support/process_state.h"

namespace virtbay {
namespace {

using ::virtbay::testing::CountEntries;
using ::virtbay::testing::Eventually;

TEST(OffloadPoolTest, AnUnusedPoolHasNoThreads) {
  const size_t before = CountEntries("/proc/self/task");
  OffloadPool pool("idle", 16);
  EXPECT_EQ(CountEntries("/proc/self/task"), before);
}

TEST(OffloadPoolTest, WorkRunsOnAnotherThread) {
  OffloadPool pool("test", 4);
  absl::Notification done;
  std::thread::id where;
  ASSERT_TRUE(pool.Run([&] {
    where = std::this_thread::get_id();
    done.Notify();
  }));
  done.WaitForNotification();
  EXPECT_NE(where, std::this_thread::get_id());
}

TEST(OffloadPoolTest, BlockedWorkDoesNotHoldUpOthers) {
  constexpr int kThreads = 8;
  OffloadPool pool("test", kThreads);
  // Ends only when all of them run at the same time.
  auto* barrier = new absl::Barrier(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    ASSERT_TRUE(pool.Run([barrier] {
      if (barrier->Block()) delete barrier;
    }));
  }
}

TEST(OffloadPoolTest, NeverMoreThreadsThanAllowed) {
  std::atomic<int> running{0};
  std::atomic<int> most{0};
  std::atomic<int> ran{0};
  {
    OffloadPool pool("test", 3);
    for (int i = 0; i < 500; ++i) {
      ASSERT_TRUE(pool.Run([&] {
        const int now = ++running;
        int seen = most.load();
        while (now > seen && !most.compare_exchange_weak(seen, now)) {
        }
        std::this_thread::yield();
        --running;
        ++ran;
      }));
    }
  }  // waits for all of it
  EXPECT_EQ(ran, 500);
  EXPECT_LE(most, 3);
  EXPECT_GE(most, 1);
}

TEST(OffloadPoolTest, OneThreadKeepsTheOrder) {
  std::vector<int> order;
  {
    OffloadPool pool("test", 1);
    for (int i = 0; i < 1000; ++i) {
      ASSERT_TRUE(pool.Run([&order, i] { order.push_back(i); }));
    }
  }
  ASSERT_EQ(order.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(OffloadPoolTest, ThreadsAreUsedAgain) {
  OffloadPool pool("test", 16);
  const size_t before = CountEntries("/proc/self/task");
  for (int i = 0; i < 200; ++i) {
    absl::Notification done;
    ASSERT_TRUE(pool.Run([&] { done.Notify(); }));
    done.WaitForNotification();
  }
  // One at a time needs one or two (the last may not be back when the next piece comes).
  EXPECT_LE(CountEntries("/proc/self/task"), before + 16);
}

TEST(OffloadPoolTest, IdleThreadsEndAndNewOnesTakeTheirPlace) {
  std::thread([] {}).join();  // with the first thread a sanitizer starts one of its own
  const size_t before = CountEntries("/proc/self/task");
  OffloadPool pool("test", 4, absl::Milliseconds(1));
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> ran{0};
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(pool.Run([&] { ++ran; }));
    EXPECT_TRUE(Eventually([&] { return ran == 20; }));
    EXPECT_TRUE(Eventually([&] { return CountEntries("/proc/self/task") == before; }));
  }
}

TEST(OffloadPoolTest, ManyThreadsMayGiveWork) {
  std::atomic<int> ran{0};
  {
    // Threads that end at once: the most coming and going.
    OffloadPool pool("test", 4, absl::ZeroDuration());
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 500; ++i) {
          while (!pool.Run([&] { ++ran; })) {
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(ran, 2000);
}

TEST(OffloadPoolTest, WorkMayGiveWork) {
  std::atomic<int> ran{0};
  {
    OffloadPool pool("test", 2);
    absl::Notification done;
    ASSERT_TRUE(pool.Run([&] {
      ++ran;
      pool.Run([&] {
        ++ran;
        done.Notify();
      });
    }));
    done.WaitForNotification();
  }
  EXPECT_EQ(ran, 2);
}

TEST(OffloadPoolTest, WhatWorkHoldsGoesWhenItIsDone) {
  OffloadPool pool("test", 2);
  auto held = std::make_shared<int>(1);
  ASSERT_TRUE(pool.Run([held] {}));
  EXPECT_TRUE(Eventually([&] { return held.use_count() == 1; }));
}

}  // namespace
}  // namespace virtbay
