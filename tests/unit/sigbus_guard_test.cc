#include "framework/isolation/sigbus_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "framework/base/unique_fd.h"
#include "framework/memory/memory_map.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::testing::StatusIs;

constexpr uint64_t kPage = 4096;

// A memfd that takes no seals, as a front-end that means harm would make it.
UniqueFd Unsealable(uint64_t size) {
  UniqueFd fd(memfd_create("sigbus-test", MFD_CLOEXEC));
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

// The test's access must really happen.
unsigned char Touch(const std::byte* at) {
  return *reinterpret_cast<const volatile unsigned char*>(at);
}

std::atomic<int> g_earlier_calls{0};
std::atomic<void*> g_earlier_address{nullptr};

// A handler that an embedder had before: makes the page usable and counts.
void EarlierHandler(int, siginfo_t* info, void*) {
  g_earlier_calls.fetch_add(1);
  g_earlier_address.store(info->si_addr);
  if (info->si_code <= 0) return;
  const uintptr_t page = reinterpret_cast<uintptr_t>(info->si_addr) & ~uintptr_t{kPage - 1};
  mmap(reinterpret_cast<void*>(page), kPage, PROT_READ | PROT_WRITE,
       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

class SigbusGuard : public ::testing::Test {
 protected:
  void SetUp() override {
    g_earlier_calls = 0;
    struct sigaction action = {};
    action.sa_sigaction = &EarlierHandler;
    action.sa_flags = SA_SIGINFO;
    ASSERT_EQ(sigaction(SIGBUS, &action, &original_), 0);
    ASSERT_OK(InstallSigbusGuard());
  }
  void TearDown() override {
    EXPECT_OK(RemoveSigbusGuard());
    struct sigaction now = {};
    ASSERT_EQ(sigaction(SIGBUS, &original_, &now), 0);
    EXPECT_EQ(now.sa_sigaction, &EarlierHandler) << "the earlier handler was not put back";
  }
  struct sigaction original_ = {};
};

TEST_F(SigbusGuard, TruncatedMappingReadsZeroesAndIsPoisoned) {
  const UniqueFd fd = Unsealable(4 * kPage);
  const UniqueFd other_fd = Unsealable(kPage);
  ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 0, 4 * kPage));
  ASSERT_OK_AND_ASSIGN(const auto other, GuestMapping::Create(other_fd.get(), 0, kPage));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, MemoryMap::Create({{0, 0, 4 * kPage, mapping}}));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef other_map, MemoryMap::Create({{0, 0, kPage, other}}));
  std::memset(mapping->data(), 0xaa, 4 * kPage);
  ASSERT_EQ(ftruncate(fd.get(), kPage), 0);

  const uint64_t replaced = SigbusPagesReplaced();
  EXPECT_EQ(Touch(mapping->data()), 0xaa);
  EXPECT_FALSE(mapping->poisoned());
  EXPECT_FALSE(map->poisoned());
  EXPECT_EQ(Touch(mapping->data() + 2 * kPage + 17), 0);
  EXPECT_TRUE(mapping->poisoned());
  EXPECT_TRUE(map->poisoned());
  EXPECT_EQ(SigbusPagesReplaced(), replaced + 1);
  // Writes go on as well, and what is still the guest's stays so.
  mapping->data()[3 * kPage] = std::byte{5};
  EXPECT_EQ(Touch(mapping->data() + 3 * kPage), 5);
  EXPECT_EQ(Touch(mapping->data()), 0xaa);
  EXPECT_FALSE(other->poisoned());
  EXPECT_FALSE(other_map->poisoned());
  EXPECT_EQ(g_earlier_calls, 0);
}

TEST_F(SigbusGuard, ManyThreadsFaultAtOnce) {
  constexpr uint64_t kPages = 64;
  const UniqueFd fd = Unsealable(kPages * kPage);
  ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 0, kPages * kPage));
  ASSERT_EQ(ftruncate(fd.get(), 0), 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (uint64_t page = 0; page < kPages; ++page) {
        EXPECT_EQ(Touch(mapping->data() + page * kPage), 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(mapping->poisoned());
}

TEST_F(SigbusGuard, OtherFaultsGoToTheEarlierHandler) {
  const UniqueFd fd = Unsealable(kPage);
  void* const mine = mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mine, MAP_FAILED);
  ASSERT_EQ(ftruncate(fd.get(), 0), 0);
  EXPECT_EQ(Touch(static_cast<std::byte*>(mine) + 9), 0);
  EXPECT_EQ(g_earlier_calls, 1);
  EXPECT_EQ(g_earlier_address, static_cast<std::byte*>(mine) + 9);
  munmap(mine, kPage);
}

TEST_F(SigbusGuard, SentSignalsGoToTheEarlierHandler) {
  ASSERT_EQ(raise(SIGBUS), 0);
  EXPECT_EQ(g_earlier_calls, 1);
}

TEST_F(SigbusGuard, AReleasedMappingIsNotOursAnyMore) {
  const UniqueFd fd = Unsealable(kPage);
  const std::byte* data = nullptr;
  {
    ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 0, kPage));
    data = mapping->data();
  }
  // The same address again, by somebody else.
  ASSERT_EQ(mmap(const_cast<std::byte*>(data), kPage, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE,
                 fd.get(), 0),
            static_cast<const void*>(data));
  ASSERT_EQ(ftruncate(fd.get(), 0), 0);
  EXPECT_EQ(Touch(data), 0);
  EXPECT_EQ(g_earlier_calls, 1);
  munmap(const_cast<std::byte*>(data), kPage);
}

TEST_F(SigbusGuard, InstallingTwiceChangesNothing) {
  EXPECT_OK(InstallSigbusGuard());
  ASSERT_EQ(raise(SIGBUS), 0);
  EXPECT_EQ(g_earlier_calls, 1);
}

TEST_F(SigbusGuard, StaysWhenSomebodyInstalledOverIt) {
  struct sigaction action = {};
  struct sigaction ours = {};
  action.sa_handler = SIG_IGN;
  ASSERT_EQ(sigaction(SIGBUS, &action, &ours), 0);
  EXPECT_THAT(RemoveSigbusGuard(), StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_EQ(sigaction(SIGBUS, &ours, nullptr), 0);
}

TEST(SigbusGuardAbsent, NothingIsRecorded) {
  EXPECT_EQ(MappingRegistry::Current(), nullptr);
  EXPECT_OK(RemoveSigbusGuard());
}

// Where nobody handled SIGBUS before, a fault of the process's own ends it as ever.
TEST(SigbusGuardDeathTest, OtherFaultsEndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const UniqueFd fd = Unsealable(kPage);
  void* const mine = mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mine, MAP_FAILED);
  ASSERT_EQ(ftruncate(fd.get(), 0), 0);
  const auto run = [&](bool send) {
    signal(SIGBUS, SIG_DFL);
    if (!InstallSigbusGuard().ok()) _exit(0);
    if (send) {
      raise(SIGBUS);
    } else {
      Touch(static_cast<std::byte*>(mine));
    }
    _exit(0);
  };
  EXPECT_EXIT(run(false), ::testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(run(true), ::testing::KilledBySignal(SIGBUS), "");
  munmap(mine, kPage);
}

}  // namespace
}  // namespace virtbay
