#include "framework/memory/mapping_registry.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "framework/base/unique_fd.h"
#include "framework/memory/memory_map.h"

namespace virtbay {
namespace {

TEST(MappingRegistry, FindsWhatIsRecorded) {
  const auto registry = std::make_unique<MappingRegistry>();
  std::atomic<bool> poisoned{false};
  MappingRegistry::Range found;
  EXPECT_FALSE(registry->Find(0x1000, &found));
  EXPECT_FALSE(registry->Find(0, &found));
  MappingRegistry::Entry entry = registry->Add({0x1000, 0x3000, 4096, &poisoned});
  ASSERT_TRUE(entry);
  EXPECT_TRUE(registry->Find(0x1000, &found));
  EXPECT_TRUE(registry->Find(0x2fff, &found));
  EXPECT_EQ(found.begin, 0x1000u);
  EXPECT_EQ(found.end, 0x3000u);
  EXPECT_EQ(found.page_size, 4096u);
  EXPECT_EQ(found.poisoned, &poisoned);
  EXPECT_FALSE(registry->Find(0xfff, &found));
  EXPECT_FALSE(registry->Find(0x3000, &found));

  MappingRegistry::Entry moved = std::move(entry);
  EXPECT_FALSE(entry);  // NOLINT(bugprone-use-after-move): that is the test
  EXPECT_TRUE(registry->Find(0x1000, &found));
  moved.Release();
  EXPECT_FALSE(registry->Find(0x1000, &found));
  moved.Release();
}

TEST(MappingRegistry, FullTableIsNoError) {
  const auto registry = std::make_unique<MappingRegistry>();
  std::atomic<bool> poisoned{false};
  std::vector<MappingRegistry::Entry> entries;
  for (uintptr_t i = 0; i < MappingRegistry::kCapacity; ++i) {
    entries.push_back(registry->Add({(i + 1) << 12, (i + 2) << 12, 4096, &poisoned}));
    ASSERT_TRUE(entries.back());
  }
  const uintptr_t beyond = (MappingRegistry::kCapacity + 1) << 12;
  EXPECT_FALSE(registry->Add({beyond, beyond + 1, 1, &poisoned}));
  MappingRegistry::Range found;
  EXPECT_TRUE(registry->Find(MappingRegistry::kCapacity << 12, &found));
  entries[7].Release();
  EXPECT_TRUE(registry->Add({beyond, beyond + 1, 1, &poisoned}));
}

// With a guard, memory that it cannot watch is not mapped: its front-end could end the process.
TEST(MappingRegistry, NothingIsMappedBeyondAFullTable) {
  const auto registry = std::make_unique<MappingRegistry>();
  std::atomic<bool> poisoned{false};
  std::vector<MappingRegistry::Entry> entries;
  for (uintptr_t i = 0; i < MappingRegistry::kCapacity; ++i) {
    entries.push_back(registry->Add({(i + 1) << 12, (i + 2) << 12, 4096, &poisoned}));
  }
  const UniqueFd fd(memfd_create("full", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(fd.get(), 8192), 0);
  MappingRegistry* const before = MappingRegistry::Current();
  MappingRegistry::SetCurrent(registry.get());
  const auto refused = GuestMapping::Create(fd.get(), 0, 8192);
  entries[3].Release();
  auto taken = GuestMapping::Create(fd.get(), 0, 8192);
  MappingRegistry::SetCurrent(before);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(taken.ok()) << taken.status();
  taken = nullptr;  // before its registry
}

// A reader never sees half of one range and half of another.
TEST(MappingRegistry, ReadersSeeWholeRanges) {
  const auto registry = std::make_unique<MappingRegistry>();
  std::atomic<bool> poisoned{false};
  std::atomic<bool> stop{false};
  constexpr uintptr_t kAddress = 0x1000'0000;
  const auto begin_of = [](uintptr_t k) { return kAddress - k * 0x100; };
  std::vector<std::thread> writers;
  for (uintptr_t t = 0; t < 2; ++t) {
    writers.emplace_back([&, t] {
      for (uintptr_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
        const uintptr_t k = 1 + t + 2 * (i % 1000);
        const MappingRegistry::Entry entry =
            registry->Add({begin_of(k), kAddress + k, static_cast<size_t>(k), &poisoned});
      }
    });
  }
  uint64_t seen = 0;
  for (int i = 0; i < 20000 || seen == 0; ++i) {
    MappingRegistry::Range found;
    if (!registry->Find(kAddress, &found)) continue;
    ++seen;
    const uintptr_t k = found.page_size;
    ASSERT_EQ(found.begin, begin_of(k));
    ASSERT_EQ(found.end, kAddress + k);
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
}

}  // namespace
}  // namespace virtbay
