// The guest library's memory and driver queue, against a device side written by hand.
#include <poll.h>

#include <array>
#include <cstring>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "hostif/guest/driver_queue.h"
#include "hostif/guest/guest_memory.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/guest_hand_device.h"

namespace virtbay::guest {
namespace {

using ::virtbay::testing::IsOk;
using ::virtbay::testing::StatusIs;

constexpr uint64_t kMiB = 1u << 20;

// ---- memory -------------------------------------------------------------------------------------

TEST(GuestMemoryTest, AllocatesAlignedAndDisjointRanges) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(kMiB));
  std::set<uint64_t> pages;
  for (int i = 0; i < 256; ++i) {
    ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->Allocate(4096, 4096));
    EXPECT_EQ(range.address % 4096, 0u);
    EXPECT_GE(range.address, GuestMemory::kDefaultAddress);
    EXPECT_EQ(memory->Translate(range.address, 4096), range.host);
    EXPECT_TRUE(pages.insert(range.address).second);
  }
  EXPECT_EQ(memory->allocated(), kMiB);
  EXPECT_THAT(memory->Allocate(1), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(GuestMemoryTest, FreedNeighboursBecomeOneHole) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(kMiB));
  std::vector<GuestRange> ranges;
  for (int i = 0; i < 4; ++i) {
    ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->Allocate(kMiB / 4));
    ranges.push_back(range);
  }
  // In an order that merges with the hole before, the hole after, and both.
  for (const int i : {2, 1, 3, 0}) memory->Free(ranges[static_cast<size_t>(i)]);
  EXPECT_EQ(memory->allocated(), 0u);
  EXPECT_OK(memory->Allocate(kMiB));
}

TEST(GuestMemoryTest, FreeingTwiceIsHarmless) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(kMiB));
  ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->Allocate(kMiB / 2));
  memory->Free(range);
  memory->Free(range);
  EXPECT_OK(memory->Allocate(kMiB));
  EXPECT_THAT(memory->Allocate(1), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(GuestMemoryTest, ReuseKeepsAlignmentOverManyRounds) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(kMiB));
  std::vector<GuestRange> live;
  uint64_t seed = 1;
  for (int i = 0; i < 20'000; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint64_t dice = seed >> 33;
    if (live.empty() || (dice & 1) != 0) {
      const uint64_t alignment = uint64_t{1} << (dice % 13);
      const auto range = memory->Allocate(1 + (dice >> 4) % 9000, alignment);
      if (!range.ok()) continue;
      EXPECT_EQ(range->address % alignment, 0u);
      live.push_back(*range);
    } else {
      std::swap(live[dice % live.size()], live.back());
      memory->Free(live.back());
      live.pop_back();
    }
  }
  uint64_t sum = 0;
  for (const GuestRange& range : live) sum += range.size;
  EXPECT_EQ(memory->allocated(), sum);
  for (const GuestRange& range : live) memory->Free(range);
  EXPECT_OK(memory->Allocate(kMiB));
}

TEST(GuestMemoryTest, RegionsAreSeparate) {
  ASSERT_OK_AND_ASSIGN(
      auto memory, GuestMemory::Create(
                       {GuestRegionSpec{.address = 0, .size = kMiB},
                        GuestRegionSpec{.address = kMiB, .size = kMiB},
                        GuestRegionSpec{.address = 4 * kMiB, .size = kMiB, .file_offset = 8192}}));
  EXPECT_NE(memory->Translate(0, kMiB), nullptr);
  EXPECT_EQ(memory->Translate(kMiB - 8, 16), nullptr) << "reaches into the next region";
  EXPECT_EQ(memory->Translate(2 * kMiB, 1), nullptr) << "lies in a hole";
  EXPECT_EQ(memory->Translate(UINT64_MAX - 1, 4), nullptr);
  EXPECT_EQ(memory->Translate(4 * kMiB, UINT64_MAX), nullptr);
  // A range never spans two regions, even where they touch.
  EXPECT_THAT(memory->Allocate(2 * kMiB), StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK_AND_ASSIGN(const GuestRange third, memory->AllocateIn(4 * kMiB, kMiB));
  EXPECT_EQ(third.address, 4 * kMiB);
  EXPECT_THAT(memory->AllocateIn(3 * kMiB, 1), StatusIs(absl::StatusCode::kNotFound));
}

TEST(GuestMemoryTest, RefusesImpossibleRegions) {
  const auto create = [](uint64_t address, uint64_t size) {
    return GuestMemory::Create(size, address).status();
  };
  EXPECT_THAT(create(0, 0), StatusIs(absl::StatusCode::kInvalidArgument, "empty"));
  EXPECT_THAT(create(0, 4095), StatusIs(absl::StatusCode::kInvalidArgument, "4096"));
  EXPECT_THAT(create(1, 4096), StatusIs(absl::StatusCode::kInvalidArgument, "4096"));
  EXPECT_THAT(create(UINT64_MAX - 4095, 8192), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(GuestMemory::Create({GuestRegionSpec{.address = 0, .size = 8192},
                                   GuestRegionSpec{.address = 4096, .size = 8192}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "overlaps"));
}

TEST(GuestMemoryTest, RegionsComeAndGo) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(kMiB, 0));
  EXPECT_OK(memory->AddRegion({.address = 2 * kMiB, .size = kMiB}));
  ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->AllocateIn(2 * kMiB, 100));
  EXPECT_THAT(memory->RemoveRegion(2 * kMiB), StatusIs(absl::StatusCode::kFailedPrecondition));
  memory->Free(range);
  EXPECT_OK(memory->RemoveRegion(2 * kMiB));
  EXPECT_THAT(memory->RemoveRegion(2 * kMiB), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_EQ(memory->regions().size(), 1u);
}

TEST(GuestMemoryTest, TheMemoryMapShowsTheSameBytesElsewhere) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create({GuestRegionSpec{
                                        .address = 0x10000, .size = kMiB, .file_offset = 12288}}));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->Allocate(64));
  std::memcpy(range.host, "hello", 6);
  std::byte* const there = map->TranslateWhole(range.address, 64);
  ASSERT_NE(there, nullptr);
  EXPECT_NE(there, range.host);
  EXPECT_STREQ(reinterpret_cast<const char*>(there), "hello");
  ASSERT_OK_AND_ASSIGN(const uint64_t guest,
                       map->UserToGuest(reinterpret_cast<uint64_t>(range.host), 64));
  EXPECT_EQ(guest, range.address);
}

// ---- ring ---------------------------------------------------------------------------------------

struct RingCase {
  bool event_idx;
  uint16_t indirect;
};

class DriverQueueTest : public ::testing::TestWithParam<RingCase> {
 protected:
  void SetUp() override { Make(16); }

  void Make(uint16_t size) {
    device_.reset();
    queue_.reset();
    if (memory_ == nullptr) {
      ASSERT_OK_AND_ASSIGN(memory_, GuestMemory::Create(4 * kMiB));
      ASSERT_OK_AND_ASSIGN(buffer_, memory_->Allocate(kMiB, 4096));
    }
    QueueOptions options;
    options.ring = {
        .size = size, .indirect_max = GetParam().indirect, .event_idx = GetParam().event_idx};
    ASSERT_OK_AND_ASSIGN(queue_, DriverQueue::Create(memory_.get(), options));
    device_.emplace(*memory_, queue_->ring().addresses(), size, GetParam().event_idx);
  }

  // A segment at `offset` of the buffer that holds the text.
  Segment Text(uint64_t offset, const std::string& text) {
    std::memcpy(buffer_.host + offset, text.data(), text.size());
    return {buffer_.address + offset, static_cast<uint32_t>(text.size())};
  }
  Segment Space(uint64_t offset, uint32_t length) { return {buffer_.address + offset, length}; }

  std::vector<UsedBuffer> Take() {
    std::array<UsedBuffer, 64> used;
    return {used.begin(), used.begin() + static_cast<std::ptrdiff_t>(queue_->TakeUsed(used))};
  }

  std::unique_ptr<GuestMemory> memory_;
  GuestRange buffer_;
  std::unique_ptr<DriverQueue> queue_;
  std::optional<HandDevice> device_;
};

INSTANTIATE_TEST_SUITE_P(Rings, DriverQueueTest,
                         ::testing::Values(RingCase{false, 0}, RingCase{true, 0},
                                           RingCase{false, 8}, RingCase{true, 8}),
                         [](const auto& param_info) {
                           return std::string(param_info.param.event_idx ? "EventIdx" : "Flags") +
                                  (param_info.param.indirect != 0 ? "Indirect" : "Direct");
                         });

TEST_P(DriverQueueTest, CarriesAChainThereAndBack) {
  const std::array readable = {Text(0, "one "), Text(100, "two "), Text(200, "three")};
  const std::array writable = {Space(4096, 10), Space(8192, 20)};
  ASSERT_TRUE(queue_->Add(readable, writable, 77));
  EXPECT_FALSE(device_->HasAvail()) << "a chain is unseen until it is published";
  queue_->Publish();
  const auto chain = device_->Pop();
  ASSERT_TRUE(chain.has_value());
  EXPECT_EQ(chain->Text(), "one two three");
  EXPECT_EQ(chain->indirect, GetParam().indirect != 0);
  ASSERT_EQ(chain->writable.size(), 2u);
  EXPECT_EQ(chain->writable[1].length, 20u);
  EXPECT_EQ(chain->writable[1].data, buffer_.host + 8192);
  EXPECT_FALSE(device_->Pop().has_value());

  EXPECT_TRUE(Take().empty());
  device_->Push(chain->head, 15);
  const auto used = Take();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].token, 77u);
  EXPECT_EQ(used[0].written, 15u);
  EXPECT_EQ(queue_->ring().in_flight(), 0u);
  EXPECT_EQ(queue_->ring().free_descriptors(), 16u);
}

TEST_P(DriverQueueTest, ASingleDescriptorIsNeverIndirect) {
  const std::array writable = {Space(0, 10)};
  ASSERT_TRUE(queue_->Add({}, writable, 1));
  queue_->Publish();
  const auto chain = device_->Pop();
  ASSERT_TRUE(chain.has_value());
  EXPECT_FALSE(chain->indirect);
  EXPECT_TRUE(chain->readable.empty());
}

TEST_P(DriverQueueTest, RefusesWhatDoesNotFit) {
  EXPECT_FALSE(queue_->Add({}, {}, 0));
  const std::vector<Segment> too_many(17, Space(0, 1));
  EXPECT_FALSE(queue_->Add(too_many, {}, 0));
  const std::vector<Segment> one(1, Space(0, 1));
  for (uint64_t i = 0; i < 16; ++i) EXPECT_TRUE(queue_->Add(one, {}, i));
  EXPECT_FALSE(queue_->Add(one, {}, 16));
  EXPECT_EQ(queue_->ring().in_flight(), 16u);
}

TEST_P(DriverQueueTest, FallsBackToDirectWhereATableIsTooShort) {
  const std::vector<Segment> nine(9, Space(0, 1));
  ASSERT_TRUE(queue_->Add(nine, {}, 1));
  queue_->Publish();
  const auto chain = device_->Pop();
  ASSERT_TRUE(chain.has_value());
  EXPECT_FALSE(chain->indirect);
  EXPECT_EQ(chain->readable.size(), 9u);
}

TEST_P(DriverQueueTest, KeepsItsBooksOverManyTurnsOutOfOrder) {
  // Enough for the 16-bit indices to wrap, with chains of changing length, completed in an order
  // that scrambles the free list.
  std::vector<uint16_t> heads;
  std::vector<uint64_t> tokens;
  uint64_t token = 0;
  uint64_t finished = 0;
  uint64_t seed = 7;
  while (finished < 80'000) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const uint64_t dice = seed >> 33;
    const std::vector<Segment> segments(1 + dice % 5,
                                        Space(dice % 4096, static_cast<uint32_t>(1 + dice % 100)));
    if (queue_->Add(segments, {}, token)) {
      queue_->Publish();
      const auto chain = device_->Pop();
      ASSERT_TRUE(chain.has_value());
      ASSERT_EQ(chain->readable.size(), segments.size());
      heads.push_back(chain->head);
      tokens.push_back(token++);
      continue;
    }
    for (int i = 0; i < 3 && !heads.empty(); ++i) {
      const size_t pick = (dice >> (4 * i)) % heads.size();
      device_->Push(heads[pick], static_cast<uint32_t>(tokens[pick]));
      const auto used = Take();
      ASSERT_EQ(used.size(), 1u);
      ASSERT_EQ(used[0].token, tokens[pick]);
      ASSERT_EQ(used[0].written, static_cast<uint32_t>(tokens[pick]));
      heads.erase(heads.begin() + static_cast<std::ptrdiff_t>(pick));
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(pick));
      ++finished;
    }
  }
  EXPECT_EQ(queue_->ring().device_errors(), 0u);
}

TEST_P(DriverQueueTest, KicksOncePerBatchAndOnlyWhenAsked) {
  const std::array one = {Space(0, 1)};
  // A fresh ring wants to be kicked.
  for (uint64_t i = 0; i < 3; ++i) ASSERT_TRUE(queue_->Add(one, {}, i));
  queue_->Publish();
  EXPECT_EQ(queue_->stats().kicks, 1u);
  // The device looks by itself now.
  if (GetParam().event_idx) {
    device_->SetAvailEvent(static_cast<uint16_t>(queue_->ring().split().RawAvailIndex() - 1));
  } else {
    device_->SetNoKick(true);
  }
  for (uint64_t i = 3; i < 6; ++i) {
    ASSERT_TRUE(queue_->Add(one, {}, i));
    queue_->Publish();
  }
  EXPECT_EQ(queue_->stats().kicks, 1u);
  // And goes to sleep again.
  if (GetParam().event_idx) {
    device_->SetAvailEvent(queue_->ring().split().RawAvailIndex());
  } else {
    device_->SetNoKick(false);
  }
  ASSERT_TRUE(queue_->Add(one, {}, 6));
  queue_->Publish();
  EXPECT_EQ(queue_->stats().kicks, 2u);
  queue_->Publish();
  EXPECT_EQ(queue_->stats().kicks, 2u) << "nothing new was published";
  uint64_t count = 0;
  ASSERT_EQ(::read(queue_->kick_fd(), &count, sizeof(count)), 8);
  EXPECT_EQ(count, 2u);
}

TEST_P(DriverQueueTest, AsksForCallsOnlyWhileArmed) {
  const std::array one = {Space(0, 1)};
  const auto turn = [&] {
    ASSERT_TRUE(queue_->Add(one, {}, 1));
    queue_->Publish();
    device_->Push(device_->Pop()->head, 0);
  };
  EXPECT_TRUE(queue_->ring().ArmCalls());
  turn();
  EXPECT_TRUE(device_->WantsCall());
  EXPECT_FALSE(queue_->ring().ArmCalls()) << "a used buffer is there: no sleep";
  EXPECT_EQ(Take().size(), 1u);
  queue_->ring().DisarmCalls();
  for (int i = 0; i < 70'000; ++i) {
    turn();
    ASSERT_FALSE(device_->WantsCall()) << i;
    ASSERT_EQ(Take().size(), 1u);
    queue_->ring().DisarmCalls();
  }
  EXPECT_TRUE(queue_->ring().ArmCalls());
  turn();
  EXPECT_TRUE(device_->WantsCall());
}

TEST_P(DriverQueueTest, SleepsUntilTheCallAndSpinsWithoutOne) {
  const std::array one = {Space(0, 1)};
  for (const WaitMode mode : {WaitMode::kSleep, WaitMode::kPoll}) {
    for (int i = 0; i < 50; ++i) {
      ASSERT_TRUE(queue_->Add(one, {}, 5));
      queue_->Publish();
      std::thread device([this] {
        const auto chain = device_->Pop();
        device_->Push(chain->head, 0);
        if (device_->WantsCall()) {
          const uint64_t count = 1;
          ASSERT_EQ(::write(queue_->call_fd(), &count, sizeof(count)), 8);
        }
      });
      EXPECT_OK(queue_->Wait(mode));
      EXPECT_EQ(Take().size(), 1u);
      device.join();
    }
    if (mode == WaitMode::kSleep) queue_->ClearStats();
  }
  EXPECT_EQ(queue_->stats().calls, 0u) << "a polling driver is not woken";
}

TEST_P(DriverQueueTest, AWaitEndsInTimeAndOnHangUp) {
  const std::array one = {Space(0, 1)};
  ASSERT_TRUE(queue_->Add(one, {}, 5));
  queue_->Publish();
  for (const WaitMode mode : {WaitMode::kSleep, WaitMode::kPoll}) {
    EXPECT_THAT(queue_->Wait(mode, absl::Milliseconds(5)),
                StatusIs(absl::StatusCode::kDeadlineExceeded));
    const UniqueFd hangup(::eventfd(1, EFD_CLOEXEC));
    EXPECT_THAT(queue_->Wait(mode, absl::Seconds(30), hangup.get()),
                StatusIs(absl::StatusCode::kUnavailable));
  }
}

TEST_P(DriverQueueTest, ADeviceThatLiesIsCountedNotBelieved) {
  const std::array one = {Space(0, 1)};
  ASSERT_TRUE(queue_->Add(one, {}, 5));
  queue_->Publish();
  const auto chain = device_->Pop();
  device_->Push(99, 0);  // no such descriptor
  EXPECT_TRUE(Take().empty());
  device_->Push((chain->head + 1u) % 16, 0);  // not in flight
  EXPECT_TRUE(Take().empty());
  device_->Push(chain->head, 0);
  EXPECT_EQ(Take().size(), 1u);
  device_->Push(chain->head, 0);  // twice
  EXPECT_TRUE(Take().empty());
  EXPECT_EQ(queue_->ring().device_errors(), 3u);
  queue_->ring().split().RawSetUsedIndex(1000);  // further than the ring is long
  EXPECT_TRUE(Take().empty());
  EXPECT_EQ(queue_->ring().device_errors(), 4u);
}

TEST_P(DriverQueueTest, ResetMakesItNew) {
  const std::array one = {Space(0, 1)};
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(queue_->Add(one, one, i));
  queue_->Publish();
  device_->Push(device_->Pop()->head, 0);
  queue_->Reset();
  device_.emplace(*memory_, queue_->ring().addresses(), uint16_t{16}, GetParam().event_idx);
  EXPECT_EQ(queue_->ring().in_flight(), 0u);
  EXPECT_FALSE(device_->HasAvail());
  EXPECT_TRUE(Take().empty());
  pollfd kick{.fd = queue_->kick_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&kick, 1, 0), 0) << "an old kick must not wake the next device";
  ASSERT_TRUE(queue_->Add(one, one, 42));
  queue_->Publish();
  device_->Push(device_->Pop()->head, 1);
  const auto used = Take();
  ASSERT_EQ(used.size(), 1u);
  EXPECT_EQ(used[0].token, 42u);
}

TEST_P(DriverQueueTest, RawAccessWritesWhatItIsTold) {
  queue_->ring().split().raw_descriptor(3) = {.addr = 1, .len = 2, .flags = 3, .next = 4};
  queue_->ring().split().RawSetAvail(0, 3);
  queue_->ring().split().RawSetAvailIndex(1);
  EXPECT_EQ(device_->AvailIndex(), 1u);
  const auto addresses = queue_->ring().addresses();
  uint64_t address = 0;
  std::memcpy(&address, memory_->Translate(addresses.descriptors + 3 * 16, 8), 8);
  EXPECT_EQ(address, 1u);
}

TEST(SplitRingTest, GivesItsMemoryBack) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(4 * kMiB));
  {
    ASSERT_OK_AND_ASSIGN(SplitRing ring,
                         SplitRing::Create(memory.get(), {.size = 256, .indirect_max = 8}));
    EXPECT_GT(memory->allocated(), 0u);
    SplitRing moved = std::move(ring);
    EXPECT_EQ(moved.size(), 256);
  }
  EXPECT_EQ(memory->allocated(), 0u);
}

TEST(SplitRingTest, RefusesBadSizesAndTooLittleMemory) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(16384));
  for (const int size : {0, 3, 100, 65535}) {
    EXPECT_THAT(SplitRing::Create(memory.get(), {.size = static_cast<uint16_t>(size)}),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(SplitRing::Create(memory.get(), {.size = 32768}),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(memory->allocated(), 0u);
}

}  // namespace
}  // namespace virtbay::guest
