// How the devices of a host share what the process may open.
#include "framework/device/descriptor_budget.h"

#include <fcntl.h>
#include <unistd.h>

#include <deque>
#include <thread>
#include <vector>

#include "framework/base/unique_fd.h"
#include "gtest/gtest.h"

namespace virtbay {
namespace {

using Share = DescriptorBudget::Share;
using Use = DescriptorBudget::Share::Use;

class DescriptorBudgetTest : public ::testing::Test {
 protected:
  Share& Join() { return shares_.emplace_back(budget_); }
  static uint32_t TakeAll(Share& share, Use use = Use::kGuest) {
    uint32_t count = 0;
    while (share.Take(use)) ++count;
    return count;
  }
  static void GiveAll(Share& share) {
    while (share.held() > 0) share.Give();
  }

  DescriptorBudget::Process process_{.limit = 1024, .open = 20};
  std::shared_ptr<DescriptorBudget> budget_ = std::make_shared<DescriptorBudget>(&process_);
  std::deque<Share> shares_;
};

TEST_F(DescriptorBudgetTest, OneDeviceMayHaveWhatTheProcessDoesNotNeed) {
  Share& share = Join();
  EXPECT_EQ(share.guaranteed(), DescriptorBudget::kGuaranteed);
  constexpr uint32_t kAll = 1024 - 20 - DescriptorBudget::Slack(1024) -
                            DescriptorBudget::Growth(1024) - DescriptorBudget::kFirstRoom -
                            DescriptorBudget::kOfMessages;
  EXPECT_EQ(TakeAll(share), kAll);
  EXPECT_EQ(share.held(), kAll);
  share.Give();
  EXPECT_TRUE(share.Take(Use::kGuest));
  EXPECT_FALSE(share.Take(Use::kGuest));
  GiveAll(share);
  EXPECT_EQ(TakeAll(share), kAll);
  // Its front-end is there: what that has open shows in the process, and less room is kept for it.
  process_.open = 20 + kAll + 10;
  share.SetRoom(2);
  EXPECT_EQ(TakeAll(share), DescriptorBudget::kFirstRoom - 10 - 2);
  // What it serves with comes out of what guests cannot have.
  EXPECT_EQ(TakeAll(share, Use::kControl), DescriptorBudget::Growth(1024));
}

TEST_F(DescriptorBudgetTest, NobodyTakesAnothersPart) {
  Share& greedy = Join();
  Share& modest = Join();
  const int64_t common = budget_->common_free() - DescriptorBudget::Growth(1024);
  // One leaves a fifth of what is common to the other, who leaves a fifth of that.
  const uint32_t first = TakeAll(greedy) - greedy.guaranteed();
  EXPECT_NEAR(first, static_cast<double>(common) * 0.8, 2);
  const uint32_t second = TakeAll(modest) - modest.guaranteed();
  EXPECT_NEAR(second, static_cast<double>(common) * 0.16, 2);
  EXPECT_FALSE(greedy.Take(Use::kGuest));
  EXPECT_FALSE(modest.Take(Use::kGuest));
  // Its own part is not anybody's.
  GiveAll(modest);
  TakeAll(greedy);
  EXPECT_GE(TakeAll(modest), modest.guaranteed());
}

// The guest that has all it can get leaves enough for another device and its front-end.
TEST_F(DescriptorBudgetTest, WhoComesLateGetsAPartAllTheSame) {
  for (const uint32_t limit : {256u, 1024u, 65536u}) {
    process_ = {.limit = limit, .open = 20};
    Share greedy(budget_);
    greedy.SetRoom(0);
    TakeAll(greedy);
    process_.open += greedy.held();
    EXPECT_FALSE(greedy.Take(Use::kGuest));
    {
      Share late(budget_);
      EXPECT_GE(late.guaranteed(), 16u) << limit;
      EXPECT_FALSE(greedy.Take(Use::kGuest)) << limit;
      EXPECT_GE(TakeAll(late), 16u) << limit;
      process_.open += late.held();
      EXPECT_LE(process_.open + DescriptorBudget::Slack(limit), limit);
      process_.open -= late.held();
    }
  }
}

TEST_F(DescriptorBudgetTest, WhoComesWhenNothingIsLeftGetsNothing) {
  Share& one = Join();
  TakeAll(one, Use::kControl);
  process_.open += one.held();
  Share& late = Join();
  EXPECT_EQ(late.guaranteed(), 0u);
  EXPECT_LE(budget_->common_free(), 0);
  EXPECT_FALSE(late.Take(Use::kControl));
  process_.open -= one.held();
  GiveAll(one);
  EXPECT_TRUE(late.Take(Use::kGuest));
}

TEST_F(DescriptorBudgetTest, TellsTheLimitThatWouldDo) {
  process_.limit = 24;
  process_.open = 10;
  Share& one = Join();
  ASSERT_FALSE(one.suffices());
  const uint32_t needed = one.LimitNeeded();
  process_.limit = needed - 1;
  one.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_FALSE(one.suffices());
  process_.limit = needed;
  one.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_TRUE(one.suffices());
  // It wants more than that itself.
  EXPECT_FALSE(one.refused());
  TakeAll(one, Use::kControl);
  EXPECT_TRUE(one.refused());
  GiveAll(one);
  process_.limit = one.LimitNeeded();
  EXPECT_GT(process_.limit, needed);
  one.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_EQ(one.guaranteed(), DescriptorBudget::kLeastGuaranteed);
}

TEST_F(DescriptorBudgetTest, ManyDevicesHaveSmallParts) {
  process_.limit = 20'000;
  uint32_t before = 0;
  for (int i = 0; i < 1000; ++i) {
    Share& share = Join();
    before = share.guaranteed();
    ASSERT_TRUE(share.suffices()) << i;
    uint32_t kept = 0;
    while (kept < 12 && share.Take(kept < 4 ? Use::kControl : Use::kOwn)) ++kept;
    ASSERT_GE(kept, 4u) << i;
    EXPECT_FALSE(kept < 12 && share.Take(Use::kOwn));
    share.Keep(static_cast<int32_t>(kept));
    // Its front-end connects.
    process_.open += 3;
    share.SetRoom(12);
    ASSERT_TRUE(share.suffices()) << i;
    process_.open += 9;
    share.SetRoom(3);
  }
  EXPECT_LT(before, DescriptorBudget::kLeastGuaranteed);
  EXPECT_GT(budget_->common_free(), 100);
  // Parts grow again when there are fewer.
  while (shares_.size() > 2) {
    shares_.pop_back();
    process_.open -= 12;
  }
  EXPECT_EQ(shares_[0].guaranteed(), DescriptorBudget::kGuaranteed);
}

// One that has used a large part keeps it when parts become smaller, and nobody else is given it.
TEST_F(DescriptorBudgetTest, PartsThatShrinkAreNotGivenTwice) {
  process_.limit = 300;
  Share& one = Join();
  one.SetRoom(0);
  while (one.held() < one.guaranteed()) ASSERT_TRUE(one.Take(Use::kGuest));
  const uint32_t had = one.held();
  process_.open += had;
  for (int i = 0; i < 7; ++i) Join().SetRoom(0);
  EXPECT_LT(one.guaranteed(), had);
  uint32_t all = 0;
  for (Share& share : shares_) {
    TakeAll(share, Use::kControl);
    all += share.held();
  }
  EXPECT_EQ(all, 300 - 20 - DescriptorBudget::Slack(300) - DescriptorBudget::kOfMessages)
      << "nor is any lost";
}

TEST_F(DescriptorBudgetTest, SmallProcessesDivideWhatThereIs) {
  process_.limit = 120;
  uint32_t guaranteed = 0;
  for (int i = 0; i < 3; ++i) guaranteed += Join().guaranteed();
  EXPECT_GE(shares_[0].guaranteed(), DescriptorBudget::kLeastGuaranteed);
  EXPECT_LT(guaranteed, 100u - DescriptorBudget::Slack(120));
  for (Share& share : shares_) share.SetRoom(0);
  uint32_t taken = 0;
  for (Share& share : shares_) taken += TakeAll(share, Use::kControl);
  EXPECT_EQ(taken, 100u - DescriptorBudget::Slack(120) - DescriptorBudget::kOfMessages);
}

TEST_F(DescriptorBudgetTest, CachesLeaveHalf) {
  Share& share = Join();
  const int64_t common = budget_->common_free();
  const uint32_t cached = TakeAll(share, Use::kCached);
  EXPECT_EQ(cached, share.guaranteed() + static_cast<uint32_t>(common - common / 2));
  EXPECT_EQ(TakeAll(share), static_cast<uint32_t>(common / 2) - DescriptorBudget::Growth(1024));
}

// Where the devices themselves have most of what is common (a thousand shares), their guests may
// still have half of the rest, and not only what is beyond the part for devices to come.
TEST_F(DescriptorBudgetTest, GuestsHaveHalfOfWhatDevicesThemselvesLeave) {
  Share& share = Join();
  constexpr int64_t kGrowth = DescriptorBudget::Growth(1024);
  while (share.held() < share.guaranteed()) ASSERT_TRUE(share.Take(Use::kControl));
  const int64_t total = budget_->common_free();
  ASSERT_GT(total, 2 * kGrowth);
  for (const int64_t left : {2 * kGrowth, kGrowth, int64_t{40}, int64_t{8}, int64_t{1}}) {
    while (budget_->common_free() > left) ASSERT_TRUE(share.Take(Use::kControl));
    const uint32_t got = TakeAll(share);
    EXPECT_EQ(got, left - left / 2) << left;
    for (uint32_t i = 0; i < got; ++i) share.Give();
    EXPECT_EQ(budget_->common_free(), left);
  }
  // What is given back is for devices to come again.
  while (budget_->common_free() < total) share.Give(Use::kControl);
  EXPECT_EQ(TakeAll(share), total - kGrowth);
}

TEST_F(DescriptorBudgetTest, OthersInTheProcessComeFirst) {
  Share& share = Join();
  TakeAll(share, Use::kControl);
  const uint32_t held = share.held();
  process_.open = 20 + held + 100;
  share.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_EQ(budget_->common_free(), -100);
  for (int i = 0; i < 100; ++i) share.Give();
  process_.open -= 100;
  EXPECT_FALSE(share.Take(Use::kControl));
  share.Give();
  EXPECT_TRUE(share.Take(Use::kControl));
}

TEST_F(DescriptorBudgetTest, WhatIsKeptDoesNotShowInTheProcess) {
  Share& share = Join();
  const int64_t before = budget_->common_free();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(share.Take(Use::kGuest));
  share.Keep(12);
  process_.open = 20 + 28;
  share.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_EQ(budget_->common_free(), before - 8) << "beyond its own part";
  share.Keep(-2);
  process_.open = 20 + 30;
  share.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_EQ(budget_->common_free(), before - 8);
}

TEST_F(DescriptorBudgetTest, WhoLeavesGivesEverythingBack) {
  Share& stays = Join();
  const int64_t before = budget_->common_free();
  {
    Share leaves(budget_);
    process_.open += TakeAll(leaves);
    process_.open = 20;
  }
  EXPECT_EQ(budget_->common_free(), before);
  stays.Give();  // nothing is held
  EXPECT_EQ(stays.held(), 0u);
  EXPECT_EQ(budget_->common_free(), before);
}

TEST_F(DescriptorBudgetTest, NothingIsLostBetweenThreads) {
  process_.limit = 120;
  Share& one = Join();
  Share& two = Join();
  const int64_t before = budget_->common_free();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Share& share = t % 2 == 0 ? one : two;
      for (int i = 0; i < 20000; ++i) {
        uint32_t count = 0;
        while (count < 25 && share.Take(count % 3 == 0 ? Use::kCached : Use::kGuest)) ++count;
        for (; count > 0; --count) share.Give();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(one.held(), 0u);
  EXPECT_EQ(two.held(), 0u);
  EXPECT_EQ(budget_->common_free(), before);
}

TEST(DescriptorBudgetOfTheProcess, SeesWhatIsOpen) {
  auto budget = std::make_shared<DescriptorBudget>();
  Share share(budget);
  const int64_t before = budget->common_free();
  {
    std::vector<UniqueFd> opened;
    for (int i = 0; i < 10; ++i) opened.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
    share.SetRoom(DescriptorBudget::kFirstRoom);
    EXPECT_EQ(budget->common_free(), before - 10);
  }
  share.SetRoom(DescriptorBudget::kFirstRoom);
  EXPECT_EQ(budget->common_free(), before);
}

}  // namespace
}  // namespace virtbay
