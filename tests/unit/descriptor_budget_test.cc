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

class DescriptorBudgetTest : public ::testing::Test {
 protected:
  Share& Join() { return shares_.emplace_back(budget_); }
  static uint32_t TakeAll(Share& share, bool cached = false) {
    uint32_t count = 0;
    while (share.Take(cached)) ++count;
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
  constexpr uint32_t kAll = 1024 - 20 - DescriptorBudget::kSlack - DescriptorBudget::kPerFrontEnd;
  EXPECT_EQ(TakeAll(share), kAll);
  EXPECT_EQ(share.held(), kAll);
  share.Give();
  EXPECT_TRUE(share.Take(false));
  EXPECT_FALSE(share.Take(false));
  GiveAll(share);
  EXPECT_EQ(TakeAll(share), kAll);
  // Its front-end is there: what that has open shows in the process, and no room is kept for it.
  process_.open = 20 + kAll + 10;
  share.SetActive(true);
  EXPECT_EQ(TakeAll(share), DescriptorBudget::kPerFrontEnd - 10);
}

TEST_F(DescriptorBudgetTest, NobodyTakesAnothersPart) {
  Share& greedy = Join();
  Share& modest = Join();
  TakeAll(greedy);
  EXPECT_EQ(TakeAll(modest), DescriptorBudget::kGuaranteed);
  // What one gives back beyond its own part is anybody's.
  greedy.Give();
  EXPECT_TRUE(modest.Take(false));
  EXPECT_FALSE(greedy.Take(false));
  modest.Give();
  EXPECT_TRUE(greedy.Take(false));
  // Its own part is not.
  modest.Give();
  EXPECT_FALSE(greedy.Take(false));
  EXPECT_TRUE(modest.Take(false));
}

TEST_F(DescriptorBudgetTest, WhoComesLateGetsAPartWhenThereIsSomeAgain) {
  Share& greedy = Join();
  process_.open += TakeAll(greedy);
  Share& late = Join();
  EXPECT_EQ(late.guaranteed(), 0u);
  EXPECT_LE(budget_->common_free(), 0);
  EXPECT_FALSE(late.Take(false));
  process_.open -= greedy.held();
  GiveAll(greedy);
  EXPECT_TRUE(late.Take(false));
}

TEST_F(DescriptorBudgetTest, SmallProcessesDivideWhatThereIs) {
  process_.limit = 100;
  uint32_t guaranteed = 0;
  for (int i = 0; i < 4; ++i) guaranteed += Join().guaranteed();
  EXPECT_GE(shares_[0].guaranteed(), 8u);
  EXPECT_LT(guaranteed, 80u - DescriptorBudget::kSlack);
  for (Share& share : shares_) share.SetActive(true);
  uint32_t taken = 0;
  for (Share& share : shares_) taken += TakeAll(share);
  EXPECT_EQ(taken, 80u - DescriptorBudget::kSlack);
}

TEST_F(DescriptorBudgetTest, CachesLeaveHalf) {
  Share& share = Join();
  const int64_t common = budget_->common_free();
  const uint32_t cached = TakeAll(share, true);
  EXPECT_EQ(cached, share.guaranteed() + static_cast<uint32_t>(common - common / 2));
  EXPECT_EQ(TakeAll(share, false), static_cast<uint32_t>(common / 2));
}

TEST_F(DescriptorBudgetTest, OthersInTheProcessComeFirst) {
  Share& share = Join();
  TakeAll(share);
  const uint32_t held = share.held();
  process_.open = 20 + held + 100;
  share.SetActive(false);
  EXPECT_EQ(budget_->common_free(), -100);
  for (int i = 0; i < 100; ++i) share.Give();
  process_.open -= 100;
  EXPECT_FALSE(share.Take(false));
  share.Give();
  EXPECT_TRUE(share.Take(false));
}

TEST_F(DescriptorBudgetTest, WhatIsKeptDoesNotShowInTheProcess) {
  Share& share = Join();
  const int64_t before = budget_->common_free();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(share.Take(false));
  share.Keep(12);
  process_.open = 20 + 28;
  share.SetActive(false);
  EXPECT_EQ(budget_->common_free(), before - 8) << "beyond its own part";
  share.Keep(-2);
  process_.open = 20 + 30;
  share.SetActive(false);
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
        while (count < 25 && share.Take(count % 3 == 0)) ++count;
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
    share.SetActive(false);
    EXPECT_EQ(budget->common_free(), before - 10);
  }
  share.SetActive(false);
  EXPECT_EQ(budget->common_free(), before);
}

}  // namespace
}  // namespace virtbay
