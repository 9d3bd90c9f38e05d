// The rule by which a queue thread decides how long to look before it sleeps.
#include "framework/device/poll_window.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace virtbay {
namespace {

constexpr uint64_t kUs = 1000;
constexpr uint64_t kMs = 1000 * kUs;
constexpr uint64_t kMax = 200 * kUs;

TEST(PollWindowTest, BeginsClosed) {
  PollWindow window(kMax, 50);
  EXPECT_EQ(window.Open(1), 0u);
  EXPECT_EQ(window.window_ns(), 0u);
}

TEST(PollWindowTest, OpensWhenWorkComesSoonAfterSleep) {
  PollWindow window(kMax, 50);
  window.Woke(0, kMax, 0);
  EXPECT_GT(window.Open(1), 0u);
}

TEST(PollWindowTest, StaysClosedWhenWorkIsRare) {
  PollWindow window(kMax, 50);
  for (int i = 0; i < 100; ++i) window.Woke(0, 10 * kMs, 0);
  EXPECT_EQ(window.Open(1), 0u);
}

TEST(PollWindowTest, GrowsToItsLimitAndNotBeyond) {
  PollWindow window(kMax, 100);
  uint64_t last = 0;
  for (int i = 0; i < 50; ++i) {
    window.Woke(0, 50 * kUs, 0);
    EXPECT_GE(window.window_ns(), last);
    last = window.window_ns();
  }
  EXPECT_EQ(last, kMax);
}

TEST(PollWindowTest, AnEarlyHitLeavesItAsItIsALateOneGrowsIt) {
  PollWindow window(kMax, 100);
  window.Woke(0, 50 * kUs, 0);
  const uint64_t before = window.window_ns();
  window.Hit(before / 4);
  EXPECT_EQ(window.window_ns(), before);
  window.Hit(before - 1);
  EXPECT_GT(window.window_ns(), before);
}

TEST(PollWindowTest, ClosesWhenRequestsStop) {
  PollWindow window(kMax, 100);
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  ASSERT_EQ(window.window_ns(), kMax);
  // Much too late once: closed.
  window.Woke(0, 100 * kMs, 0);
  EXPECT_EQ(window.Open(1), 0u);
  // A little too late again and again: closed step by step.
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  uint64_t last = window.window_ns();
  for (int i = 0; i < 20 && last != 0; ++i) {
    window.Woke(0, 2 * kMax, 0);
    EXPECT_LT(window.window_ns(), last);
    last = window.window_ns();
  }
  EXPECT_EQ(last, 0u);
}

TEST(PollWindowTest, ZeroIsOff) {
  PollWindow window(0, 100);
  for (int i = 0; i < 10; ++i) {
    window.Woke(0, 0, 0);
    window.Woke(0, 1, 0);
    window.Hit(1);
    EXPECT_EQ(window.Open(1000), 0u);
  }
}

TEST(PollWindowTest, TakesItsShareOfACoreAndNoMore) {
  for (const uint32_t percent : {0u, 1u, 10u, 50u, 100u}) {
    PollWindow window(kMax, percent);
    for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
    // One second in which every window passes in vain, or just succeeds.
    constexpr uint64_t kSleepCost = 60 * kUs;
    uint64_t now = 5'000 * kMs;
    const uint64_t end = now + 1'000 * kMs;
    uint64_t polled = 0;
    for (uint64_t i = 0; now < end; ++i) {
      const uint64_t open = window.Open(now);
      now += open + 10 * kUs;
      if (open == 0) continue;
      if (i % 2 == 0) {
        window.Miss(open);
        polled += open;
      } else {
        window.Hit(open);
        polled += open - std::min(open, kSleepCost);
      }
    }
    EXPECT_LE(polled, 1'000 * kMs * percent / 100 + kMax) << percent;
    // And really uses what it may (the breaks between the windows are short).
    if (percent <= 50) {
      EXPECT_GE(polled, 1'000 * kMs * percent / 100 * 8 / 10) << percent;
    }
  }
}

TEST(PollWindowTest, LookingThatSavesASleepCostsNothing) {
  PollWindow window(kMax, 10);
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  uint64_t now = 5'000 * kMs;
  for (int i = 0; i < 100'000; ++i) {  // two seconds of a driver that answers after 20 us
    ASSERT_EQ(window.Open(now), kMax) << i;
    now += 20 * kUs;
    window.Hit(20 * kUs);
  }
}

TEST(PollWindowTest, AShareAboveAHundredIsAHundred) {
  PollWindow window(kMax, UINT32_MAX);
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  EXPECT_EQ(window.Open(1'000 * kMs), kMax);
  window.Miss(101 * kMs);
  EXPECT_EQ(window.Open(1'050 * kMs), 0u);
  EXPECT_EQ(window.Open(1'101 * kMs), kMax) << "a new period";
}

TEST(PollWindowTest, ShortLimitsWork) {
  PollWindow window(5 * kUs, 100);  // below the smallest step
  for (int i = 0; i < 10; ++i) window.Woke(0, 4 * kUs, 0);
  EXPECT_EQ(window.window_ns(), 5 * kUs);
  window.Woke(0, 6 * kUs, 0);
  EXPECT_LT(window.window_ns(), 5 * kUs);
}

TEST(PollWindowTest, PausesWhenPreemptedAndLongerEachTime) {
  PollWindow window(kMax, 100);
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  uint64_t now = 1'000 * kMs;
  ASSERT_GT(window.Open(now), 0u);
  uint64_t last_pause = 0;
  for (int i = 0; i < 3; ++i) {
    window.Preempted(now, 3 * kMs);
    uint64_t pause = 0;
    while (window.Open(now + pause) == 0 && pause < 2'000 * kMs) pause += kMs;
    EXPECT_GT(pause, last_pause);
    last_pause = pause;
    now += pause;
  }
  EXPECT_LT(last_pause, 1'000 * kMs);
}

TEST(PollWindowTest, AWindowAboveItsBudgetStillOpens) {
  PollWindow window(200 * kMs, 50);
  for (int i = 0; i < 40; ++i) window.Woke(0, 50 * kUs, 0);
  EXPECT_EQ(window.Open(1'000 * kMs), 50 * kMs);
}

// On a core that others need, work arrives when the thread sleeps at last, however long it looked.
TEST(PollWindowTest, PausesWhenWorkComesAsSoonAsItSleeps) {
  PollWindow window(kMax, 100);
  for (int i = 0; i < 10; ++i) window.Woke(0, 50 * kUs, 0);
  uint64_t now = 1000 * kMs;
  uint64_t before = 0;
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(window.Open(now), kMax);
    window.Miss(kMax);
    window.Woke(now, kMax + 30 * kUs, kMax);
    uint64_t pause = 0;
    while (window.Open(now + pause) == 0) pause += kMs;
    EXPECT_GT(pause, before);
    before = pause;
    now += pause;
  }
  // Later work says nothing of the kind, nor does a look that was shorter than it may be.
  window.Miss(kMax);
  window.Woke(now, 3 * kMax, kMax);
  EXPECT_GT(window.Open(now + 1), 0u);
  window.Woke(now, 60 * kUs, 20 * kUs);
  EXPECT_GT(window.Open(now + 1), 0u);
}

}  // namespace
}  // namespace virtbay
