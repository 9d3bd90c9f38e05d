#include "framework/memory/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "framework/base/unique_fd.h"
#include "framework/memory/slot_allocator.h"
#include "framework/memory/slot_pool.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay {
namespace {

using ::virtbay::testing::StatusIs;

Arena MakeArena(uint64_t size) {
  auto arena = Arena::Create("test", size);
  EXPECT_OK(arena);
  return *std::move(arena);
}

// Whether the kernel can read a byte there.
bool Readable(const std::byte* at) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  const ssize_t n = write(write_end.get(), at, 1);
  if (n < 0) {
    EXPECT_EQ(errno, EFAULT);
  }
  return n == 1;
}

TEST(Arena, RoundsUpToSegments) {
  EXPECT_EQ(MakeArena(1).size(), kMappingMax);
  EXPECT_EQ(MakeArena(kMappingMax).size(), kMappingMax);
  const Arena arena = MakeArena(kMappingMax + 1);
  EXPECT_EQ(arena.size(), 2 * kMappingMax);
  EXPECT_EQ(arena.slots(), 2 * kSlotsPerSegment);
  std::memset(arena.data(), 0xab, arena.size());
}

TEST(Arena, RefusesImpossibleSizes) {
  EXPECT_THAT(Arena::Create("a", 0), StatusIs(absl::StatusCode::kInvalidArgument, "arena 'a'"));
  EXPECT_THAT(Arena::Create("a", (uint64_t{4} << 30) + 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Arena::Create("a", UINT64_MAX), StatusIs(absl::StatusCode::kInvalidArgument));
  // The largest costs address space only.
  const Arena arena = MakeArena(uint64_t{4} << 30);
  EXPECT_EQ(arena.slots(), 1u << 21);
  arena.data()[arena.size() - 1] = std::byte{1};
}

TEST(Arena, HasGuardPagesOnBothSides) {
  const Arena arena = MakeArena(kMappingMax);
  EXPECT_TRUE(Readable(arena.data()));
  EXPECT_TRUE(Readable(arena.data() + arena.size() - 1));
  EXPECT_FALSE(Readable(arena.data() - 1));
  EXPECT_FALSE(Readable(arena.data() + arena.size()));
}

TEST(Arena, MovesAndUnmaps) {
  Arena arena = MakeArena(kMappingMax);
  std::byte* const data = arena.data();
  Arena moved = std::move(arena);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(arena.data(), nullptr);  // NOLINT(bugprone-use-after-move): that is the test
  moved = MakeArena(2 * kMappingMax);
  EXPECT_EQ(moved.size(), 2 * kMappingMax);
  EXPECT_TRUE(Readable(moved.data()));
}

TEST(Arena, NameShowsInTheMaps) {
  const auto arena = Arena::Create("share-a", 1);
  ASSERT_OK(arena);
  EXPECT_THAT(testing::ReadFile("/proc/self/maps"),
              ::testing::HasSubstr("memfd:virtbay-arena:share-a"));
  EXPECT_OK(Arena::Create(std::string(1000, 'n'), 1));
}

TEST(SlotAllocator, HandsOutEverySlotOnce) {
  const Arena arena = MakeArena(3 * kMappingMax);
  SlotAllocator allocator(arena);
  std::set<std::byte*> seen;
  for (uint32_t i = 0; i < allocator.slots(); ++i) {
    std::byte* const slot = allocator.Allocate(1);
    ASSERT_NE(slot, nullptr);
    EXPECT_EQ((slot - arena.data()) % kSlotSize, 0);
    EXPECT_TRUE(seen.insert(slot).second);
  }
  EXPECT_EQ(*seen.begin(), arena.data());
  EXPECT_EQ(*seen.rbegin(), arena.data() + arena.size() - kSlotSize);
  EXPECT_EQ(allocator.Allocate(1), nullptr);
  EXPECT_EQ(allocator.account().used(), allocator.slots());
  for (std::byte* slot : seen) allocator.Free(slot, 1);
  EXPECT_EQ(allocator.account().used(), 0u);
  EXPECT_EQ(allocator.account().high_water(), allocator.slots());
}

TEST(SlotAllocator, CountsOutOfRange) {
  const Arena arena = MakeArena(1);
  SlotAllocator allocator(arena);
  EXPECT_EQ(allocator.Allocate(0), nullptr);
  EXPECT_EQ(allocator.Allocate(kSlotsPerSegment + 1), nullptr);
  EXPECT_EQ(allocator.Allocate(UINT32_MAX), nullptr);
  EXPECT_EQ(allocator.account().used(), 0u);
  allocator.Free(nullptr, 3);
}

TEST(SlotAllocator, RunsStayInsideASegment) {
  const Arena arena = MakeArena(2 * kMappingMax);
  SlotAllocator allocator(arena);
  std::byte* const a = allocator.Allocate(100);
  std::byte* const b = allocator.Allocate(100);
  ASSERT_NE(a, nullptr);
  ASSERT_NE(b, nullptr);
  // 28 are left at the end of each segment: 56 in all, but no run of 29.
  EXPECT_EQ(allocator.Allocate(29), nullptr);
  std::byte* const c = allocator.Allocate(28);
  ASSERT_NE(c, nullptr);
  allocator.Free(a, 100);
  allocator.Free(c, 28);
  std::byte* const whole = allocator.Allocate(kSlotsPerSegment);
  ASSERT_NE(whole, nullptr);
  EXPECT_EQ((whole - arena.data()) % kMappingMax, 0);
}

// Against a plain model, with every run length.
TEST(SlotAllocator, AgreesWithAModel) {
  const Arena arena = MakeArena(4 * kMappingMax);
  SlotAllocator allocator(arena);
  std::vector<bool> model(allocator.slots(), false);
  std::map<uint32_t, uint32_t> runs;  // first slot -> count
  std::mt19937 random(1);
  uint32_t used = 0;
  const auto fits = [&](uint32_t count) {
    for (uint32_t first = 0; first < model.size(); ++first) {
      if (first % kSlotsPerSegment + count > kSlotsPerSegment) continue;
      uint32_t n = 0;
      while (n < count && !model[first + n]) ++n;
      if (n == count) return true;
    }
    return false;
  };
  for (int step = 0; step < 4000; ++step) {
    if (random() % 5 < 3 || runs.empty()) {
      const uint32_t count = random() % 2 == 0 ? 1 + random() % 4 : 1 + random() % kSlotsPerSegment;
      std::byte* const data = allocator.Allocate(count);
      ASSERT_EQ(data != nullptr, fits(count)) << "run of " << count;
      if (data == nullptr) continue;
      const uint32_t first = static_cast<uint32_t>(data - arena.data()) / kSlotSize;
      ASSERT_LE(first % kSlotsPerSegment + count, kSlotsPerSegment);
      for (uint32_t i = first; i < first + count; ++i) {
        ASSERT_FALSE(model[i]);
        model[i] = true;
      }
      runs[first] = count;
      used += count;
    } else {
      auto run = std::next(runs.begin(), static_cast<std::ptrdiff_t>(random() % runs.size()));
      allocator.Free(arena.data() + size_t{run->first} * kSlotSize, run->second);
      for (uint32_t i = 0; i < run->second; ++i) model[run->first + i] = false;
      used -= run->second;
      runs.erase(run);
    }
    ASSERT_EQ(allocator.account().used(), used);
  }
}

TEST(SlotAllocator, ThreadsNeverShareASlot) {
  const Arena arena = MakeArena(2 * kMappingMax);
  SlotAllocator allocator(arena);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&allocator, t] {
      SlotCache cache(&allocator);
      std::mt19937 random(static_cast<unsigned>(t));
      for (int i = 0; i < 3000; ++i) {
        const uint32_t count = random() % 4 == 0 ? 1 + random() % 16 : 1;
        std::byte* const data = cache.Allocate(count);
        if (data == nullptr) continue;
        const auto mark = static_cast<unsigned char>(t + 1);
        std::memset(data, mark, count * kSlotSize);
        for (uint32_t at = 0; at < count * kSlotSize; at += 512) {
          ASSERT_EQ(std::to_integer<unsigned char>(data[at]), mark);
        }
        cache.Free(data, count);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(allocator.account().used(), 0u);
}

TEST(SlotAllocator, ManySinglesAtOnce) {
  const Arena arena = MakeArena(1);
  SlotAllocator allocator(arena);
  std::vector<std::byte*> slots(200, nullptr);
  EXPECT_EQ(allocator.AllocateSingles(slots), kSlotsPerSegment);
  EXPECT_EQ(std::set<std::byte*>(slots.begin(), slots.begin() + 128).size(), 128u);
  EXPECT_EQ(allocator.AllocateSingles(slots), 0u);
  allocator.FreeSingles({slots.data(), 0});
  EXPECT_EQ(allocator.account().used(), 128u);
}

TEST(SlotCache, LastInFirstOut) {
  const Arena arena = MakeArena(1);
  SlotAllocator allocator(arena);
  SlotCache cache(&allocator);
  std::byte* const a = cache.Allocate(1);
  std::byte* const b = cache.Allocate(1);
  ASSERT_NE(a, nullptr);
  ASSERT_NE(a, b);
  EXPECT_EQ(allocator.account().used() - cache.stocked(), 2u) << "what is in use";
  cache.Free(a, 1);
  EXPECT_EQ(allocator.account().used() - cache.stocked(), 1u);
  EXPECT_EQ(cache.Allocate(1), a);
  cache.Free(a, 1);
  cache.Free(b, 1);
  cache.Free(nullptr, 1);
  EXPECT_GT(allocator.account().used(), 0u);  // the stock
  EXPECT_EQ(allocator.account().used(), cache.stocked());
  cache.Trim();
  EXPECT_EQ(cache.stocked(), 0u);
  EXPECT_EQ(allocator.account().used(), 0u);
}

TEST(SlotCache, UsesTheWholeArenaAndGivesItBack) {
  const Arena arena = MakeArena(1);
  SlotAllocator allocator(arena);
  {
    SlotCache cache(&allocator);
    std::set<std::byte*> slots;
    for (uint32_t i = 0; i < kSlotsPerSegment; ++i) {
      std::byte* const slot = cache.Allocate(1);
      ASSERT_NE(slot, nullptr);
      slots.insert(slot);
    }
    EXPECT_EQ(slots.size(), kSlotsPerSegment);
    EXPECT_EQ(cache.Allocate(1), nullptr);
    for (std::byte* slot : slots) cache.Free(slot, 1);
    // The stock is bounded: others get the rest.
    EXPECT_LE(allocator.account().used(), 64u);
  }
  EXPECT_EQ(allocator.account().used(), 0u);
}

TEST(SlotCache, ASharedPoolIsAskedForEverySlot) {
  const Arena arena = MakeArena(kMappingMax);
  SlotAllocator allocator(arena);
  SlotAccount first_account, second_account;
  {
    SlotCache first(&allocator, &first_account);
    SlotCache second(&allocator, &second_account);
    std::byte* const one = first.Allocate(1);
    std::byte* const run = first.Allocate(16);
    std::byte* const other = second.Allocate(1);
    ASSERT_NE(one, nullptr);
    ASSERT_NE(run, nullptr);
    ASSERT_NE(other, nullptr);
    EXPECT_EQ(first_account.used(), 17u) << "nothing is kept in stock";
    EXPECT_EQ(second_account.used(), 1u);
    EXPECT_EQ(allocator.account().used(), 18u);
    second.Free(other, 1);
    EXPECT_EQ(second_account.used(), 0u);
    first.Free(one, 1);
    first.Free(run, 16);
    EXPECT_EQ(first_account.used(), 0u);
    EXPECT_EQ(allocator.account().used(), 0u);
    // All that there is, to the last slot, and what the one has the other lacks.
    std::vector<std::byte*> all;
    for (uint32_t i = 0; i < kSlotsPerSegment; ++i) all.push_back(first.Allocate(1));
    EXPECT_EQ(std::set<std::byte*>(all.begin(), all.end()).size(), kSlotsPerSegment);
    EXPECT_EQ(second.Allocate(1), nullptr);
    first.Free(all.back(), 1);
    EXPECT_EQ(second.Allocate(1), all.back());
    second.Free(all.back(), 1);
    all.pop_back();
    for (std::byte* slot : all) first.Free(slot, 1);
  }
  EXPECT_EQ(first_account.high_water(), kSlotsPerSegment);
  EXPECT_EQ(second_account.high_water(), 1u);
  EXPECT_EQ(allocator.account().used(), 0u);
}

TEST(SlotPool, SizesAreRoundedUp) {
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<SlotPool> pool, SlotPool::Create("p", 1));
  EXPECT_EQ(pool->arena().size(), 2u << 20);
  EXPECT_EQ(pool->slots().slots(), 1024u);
  EXPECT_THAT(SlotPool::Create("p", 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(SlotPool::Create("p", UINT64_MAX), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SlotCache, StockDoesNotBreakUpRuns) {
  const Arena arena = MakeArena(1);
  SlotAllocator allocator(arena);
  SlotCache cache(&allocator);
  cache.Free(cache.Allocate(1), 1);
  ASSERT_GT(allocator.account().used(), 0u);
  std::byte* const whole = cache.Allocate(kSlotsPerSegment);
  EXPECT_EQ(whole, arena.data());
  cache.Free(whole, kSlotsPerSegment);
}

}  // namespace
}  // namespace virtbay
