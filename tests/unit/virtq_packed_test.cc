// The device side of a packed ring alone: what a hostile driver can put into memory, wrap counters,
// notification arithmetic, places to go on from, and placement.
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "framework/base/sanitized.h"
#include "framework/virtq/packed_ring.h"
#include "hostif/guest/guest_memory.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::guest::GuestMemory;
using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::StatusIs;

constexpr uint64_t kKiB = 1024;
constexpr uint16_t kNext = VRING_DESC_F_NEXT;
constexpr uint16_t kWrite = VRING_DESC_F_WRITE;
constexpr uint16_t kIndirect = VRING_DESC_F_INDIRECT;

// Guest memory of three regions: two that touch, and one behind a hole.
constexpr uint64_t kLow = 0x10000;
constexpr uint64_t kLowSize = 256 * kKiB;
constexpr uint64_t kAdjacent = kLow + kLowSize;
constexpr uint64_t kAdjacentSize = 64 * kKiB;
constexpr uint64_t kFar = kAdjacent + kAdjacentSize + 64 * kKiB;
constexpr uint64_t kFarSize = 64 * kKiB;

constexpr uint64_t kDescriptors = kLow;
constexpr uint64_t kDriver = kLow + 0x4000;
constexpr uint64_t kDevice = kLow + 0x5000;
constexpr uint64_t kTable = kLow + 0x10000;
constexpr uint64_t kBuffer = kLow + 0x20000;

constexpr uint32_t kDesc = uint32_t{VRING_PACKED_EVENT_FLAG_DESC} << 16;
constexpr uint32_t kDisable = uint32_t{VRING_PACKED_EVENT_FLAG_DISABLE} << 16;

// A ring that a test fills by hand; of seven descriptors, since a power of two is not asked for.
class PackedRingTest : public ::testing::Test {
 protected:
  static constexpr uint16_t kSize = 7;

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(memory_,
                         GuestMemory::Create({{.address = kLow, .size = kLowSize},
                                              {.address = kAdjacent, .size = kAdjacentSize},
                                              {.address = kFar, .size = kFarSize}}));
    ASSERT_OK_AND_ASSIGN(map_, memory_->ToMemoryMap());
    ASSERT_OK_AND_ASSIGN(ring_memory_,
                         PackedRingMemory::Create(*map_, {kSize, kDescriptors, kDriver, kDevice}));
  }

  template <typename T>
  T& At(uint64_t address) {
    return *reinterpret_cast<T*>(memory_->Translate(address, sizeof(T)));
  }
  vring_packed_desc& Slot(uint16_t index) {
    return At<vring_packed_desc>(kDescriptors + 16u * index);
  }
  // Available in the lap of that wrap counter.
  void Put(uint16_t index, uint64_t address, uint32_t len, uint16_t id, uint16_t flags,
           bool wrap = true) {
    Slot(index) = {.addr = address,
                   .len = len,
                   .id = id,
                   .flags = static_cast<uint16_t>(flags | (wrap ? kPackedAvail : kPackedUsed))};
  }
  void PutIndirect(uint16_t index, uint64_t address, uint32_t len, uint16_t flags) {
    At<vring_packed_desc>(kTable + 16u * index) = {
        .addr = address, .len = len, .id = 0, .flags = flags};
  }
  uint32_t& driver_event() { return At<uint32_t>(kDriver); }
  uint32_t device_event() { return At<uint32_t>(kDevice); }

  PackedRing<false> Fresh(bool indirect = true) {
    return PackedRing<false>(ring_memory_, kPackedFreshPosition, indirect);
  }
  ChainError Pop(bool indirect = true) {
    PackedRing<false> ring = Fresh(indirect);
    return ring.More() ? ring.Pop(*map_, &chain_) : ChainError::kNone;
  }
  static UsedEntry Used(uint16_t id, uint16_t descriptors, uint32_t written,
                        bool read_only = false) {
    return {id, descriptors, written, read_only};
  }

  std::unique_ptr<GuestMemory> memory_;
  MemoryMapRef map_;
  PackedRingMemory ring_memory_;
  Chain chain_;
};

// ---- good chains --------------------------------------------------------------------------------

TEST_F(PackedRingTest, ReadsAChainOfSeveralDescriptors) {
  Put(0, kBuffer, 16, 99, kNext);  // the id is the last one's
  Put(1, kBuffer + 100, 7, 98, kNext);
  Put(2, kFar, 4096, 5, kWrite);
  PackedRing<false> ring = Fresh();
  EXPECT_GT(ring.Available(), 0);
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 5);
  EXPECT_EQ(chain_.ring_descriptors(), 3u);
  ASSERT_EQ(chain_.readable().size(), 2u);
  ASSERT_EQ(chain_.writable().size(), 1u);
  EXPECT_EQ(chain_.readable()[0].iov_base, map_->TranslateWhole(kBuffer, 16));
  EXPECT_EQ(chain_.readable()[1].iov_base, map_->TranslateWhole(kBuffer + 100, 7));
  EXPECT_EQ(chain_.writable()[0].iov_base, map_->TranslateWhole(kFar, 4096));
  EXPECT_EQ(chain_.readable_bytes(), 23u);
  EXPECT_EQ(chain_.writable_bytes(), 4096u);
  EXPECT_EQ(ring.Available(), 0);
  EXPECT_EQ(ring.position() & 0xffff, 0x8003u);
}

TEST_F(PackedRingTest, AChainGoesOnAtTheBeginningOfTheNextLap) {
  PackedRing<false> ring(ring_memory_, 0x8005'8005, true);
  Put(5, kBuffer, 8, 0, kNext);
  Put(6, kBuffer + 64, 8, 0, kNext);
  Put(0, kBuffer + 128, 8, 3, kWrite, /*wrap=*/false);
  ASSERT_TRUE(ring.More());
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 3);
  EXPECT_EQ(chain_.ring_descriptors(), 3u);
  EXPECT_EQ(ring.position(), 0x8005'0001u);
  ring.PushUsed(Used(3, 3, 8));
  EXPECT_EQ(Slot(5).flags, kNext | kPackedAvail) << "unseen until published";
  EXPECT_EQ(ring.PublishUsed(), 1u);
  EXPECT_EQ(Slot(5).flags, kPackedAvail | kPackedUsed | kWrite);
  EXPECT_EQ(Slot(5).id, 3);
  EXPECT_EQ(Slot(5).len, 8u);
  EXPECT_EQ(ring.position(), 0x0001'0001u);
}

TEST_F(PackedRingTest, ReadsAChainOfEveryDescriptor) {
  for (uint16_t i = 0; i < kSize; ++i) {
    Put(i, kBuffer + 2 * i, 1, 0, i + 1 < kSize ? kNext : uint16_t{0});
  }
  EXPECT_EQ(Pop(), ChainError::kNone);
  EXPECT_EQ(chain_.readable().size(), kSize);
  EXPECT_EQ(chain_.ring_descriptors(), kSize);
}

TEST_F(PackedRingTest, ReadsAnIndirectTable) {
  Put(0, kTable, 3 * 16, 2, kIndirect | kWrite);
  // Flags but WRITE mean nothing there, and some drivers leave them.
  PutIndirect(0, kBuffer, 10, kNext | kPackedAvail);
  PutIndirect(1, kBuffer + 64, 20, kWrite | kNext | kPackedUsed);
  PutIndirect(2, kBuffer + 128, 30, kWrite | kNext);
  EXPECT_EQ(Pop(), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 2);
  EXPECT_EQ(chain_.ring_descriptors(), 1u);
  EXPECT_EQ(chain_.readable_bytes(), 10u);
  EXPECT_EQ(chain_.writable_bytes(), 50u);
}

TEST_F(PackedRingTest, TakesDescriptorsBeforeAnIndirectOne) {
  Put(0, kBuffer, 8, 0, kNext);
  Put(1, kTable, 16, 6, kIndirect);
  PutIndirect(0, kBuffer + 64, 8, kWrite);
  EXPECT_EQ(Pop(), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 6);
  EXPECT_EQ(chain_.ring_descriptors(), 2u);
  EXPECT_EQ(chain_.readable_bytes(), 8u);
  EXPECT_EQ(chain_.writable_bytes(), 8u);
}

TEST_F(PackedRingTest, OnlyTheRightLapIsAvailable) {
  for (const bool wrap : {true, false}) {
    PackedRing<false> ring(ring_memory_, wrap ? 0x8000'8000u : 0u, true);
    for (const uint16_t flags : {uint16_t{0}, kPackedAvail, kPackedUsed,
                                 static_cast<uint16_t>(kPackedAvail | kPackedUsed)}) {
      Slot(0) = {.addr = kBuffer, .len = 8, .id = 0, .flags = flags};
      const bool expected = flags == (wrap ? kPackedAvail : kPackedUsed);
      EXPECT_EQ(ring.More(), expected) << wrap << " " << flags;
      EXPECT_EQ(ring.Available() > 0, expected);
    }
  }
}

TEST_F(PackedRingTest, GoesRoundManyTimes) {
  PackedRing<false> ring = Fresh();
  bool wrap = true;
  uint16_t at = 0;
  for (uint32_t i = 0; i < 10'000; ++i) {
    const auto id = static_cast<uint16_t>(i % kSize);
    Put(at, kBuffer, 8, id, 0, wrap);
    ASSERT_TRUE(ring.More());
    ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
    ASSERT_EQ(chain_.head(), id);
    ASSERT_FALSE(ring.More());
    ring.PushUsed(Used(id, 1, 0));
    ASSERT_EQ(ring.PublishUsed(), 1u);
    ASSERT_EQ(Slot(at).flags, wrap ? kPackedAvail | kPackedUsed : 0) << "nothing was written";
    if (++at == kSize) {
      at = 0;
      wrap = !wrap;
    }
  }
}

// ---- chains of a hostile driver -----------------------------------------------------------------

TEST_F(PackedRingTest, AChainWithoutEndBreaksTheRing) {
  for (uint16_t i = 0; i < kSize; ++i) Put(i, kBuffer, 8, 0, kNext);
  EXPECT_EQ(Pop(), ChainError::kLoop);
  // Also when it goes on into the next lap.
  PackedRing<false> ring(ring_memory_, 0x8003'8003, true);
  for (uint16_t i = 0; i < kSize; ++i) Put(i, kBuffer, 8, 0, kNext, i >= 3);
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kLoop);
  EXPECT_TRUE(BreaksRing(ChainError::kLoop));
}

TEST_F(PackedRingTest, AChainThatIsNotAvailableToItsEndBreaksTheRing) {
  // What follows is zero, used, or of the wrong lap.
  Put(0, kBuffer, 8, 0, kNext);
  for (const uint16_t flags :
       {uint16_t{0}, static_cast<uint16_t>(kPackedAvail | kPackedUsed), kPackedUsed}) {
    Slot(1) = {.addr = kBuffer, .len = 8, .id = 0, .flags = flags};
    EXPECT_EQ(Pop(), ChainError::kUnfinished) << flags;
  }
  EXPECT_TRUE(BreaksRing(ChainError::kUnfinished));
}

// The class of SPDK issue 3860, as are the next one and that of a chain without an end.
TEST_F(PackedRingTest, AnIdOutOfRangeBreaksTheRing) {
  for (const uint16_t id : {kSize, uint16_t{kSize + 1}, uint16_t{0x8000}, uint16_t{0xffff}}) {
    Put(0, kBuffer, 8, id, 0);
    EXPECT_EQ(Pop(), ChainError::kIdOutOfRange) << id;
    PackedRing<false> ring = Fresh();
    uint16_t seen = 0;
    EXPECT_EQ(ring.PeekHead(&seen), ChainError::kIdOutOfRange);
    EXPECT_EQ(ring.position(), kPackedFreshPosition) << "not taken";
  }
  EXPECT_TRUE(BreaksRing(ChainError::kIdOutOfRange));
}

TEST_F(PackedRingTest, PlacesThatTheDeviceHoldsAreNotTakenTwice) {
  PackedRing<false> ring = Fresh();
  for (uint16_t i = 0; i < kSize; ++i) {
    Put(i, kBuffer, 8, i, 0);
    ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  }
  // The next lap, with nothing given back.
  Put(0, kBuffer, 8, 0, 0, /*wrap=*/false);
  ASSERT_TRUE(ring.More());
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kAvailIndex);
  // One was given back, and a chain of two comes.
  ring.PushUsed(Used(3, 1, 0));
  ring.PublishUsed();
  Put(0, kBuffer, 8, 3, kNext, /*wrap=*/false);
  Put(1, kBuffer, 8, 3, 0, /*wrap=*/false);
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kAvailIndex);
  Put(0, kBuffer, 8, 3, 0, /*wrap=*/false);
  EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  EXPECT_TRUE(BreaksRing(ChainError::kAvailIndex));
}

// CVE-2018-1059: a range of which only a part is mapped.
TEST_F(PackedRingTest, BadBuffersAreTheChainsOwnTrouble) {
  struct {
    const char* what;
    uint64_t address;
    uint32_t len;
  } const cases[] = {
      {"below everything", 0, 1},
      {"begins before memory", kLow - 1, 2},
      {"in the hole", kAdjacent + kAdjacentSize, 1},
      {"runs into the hole", kAdjacent + kAdjacentSize - 8, 9},
      {"runs out of memory", kFar + kFarSize - 1, 2},
      {"longer than everything", kLow, UINT32_MAX},
      {"wraps round", UINT64_MAX, 2},
  };
  for (const auto& c : cases) {
    for (const uint16_t flags : {uint16_t{0}, kWrite}) {
      // In front of good ones, so that the id is found all the same.
      Put(0, c.address, c.len, 0, static_cast<uint16_t>(flags | kNext));
      Put(1, kBuffer, 8, 4, kWrite);
      EXPECT_EQ(Pop(), ChainError::kUnmappedAddress) << c.what;
      EXPECT_EQ(chain_.head(), 4);
      EXPECT_EQ(chain_.ring_descriptors(), 2u);
      Put(0, kTable, 16, 5, kIndirect);
      PutIndirect(0, c.address, c.len, flags);
      EXPECT_EQ(Pop(), ChainError::kUnmappedAddress) << c.what;
      EXPECT_EQ(chain_.head(), 5);
    }
  }
  Put(0, kBuffer, 8, 0, kWrite | kNext);
  Put(1, kBuffer, 8, 6, 0);
  EXPECT_EQ(Pop(), ChainError::kReadableAfterWritable);
  EXPECT_EQ(chain_.head(), 6);
}

TEST_F(PackedRingTest, BadIndirectTablesAreRefused) {
  PutIndirect(0, kBuffer, 8, 0);
  struct {
    const char* what;
    uint64_t address;
    uint32_t len;
    uint16_t flags;
    ChainError error;
  } const cases[] = {
      {"empty", kTable, 0, kIndirect, ChainError::kBadIndirect},
      {"one byte short", kTable, 15, kIndirect, ChainError::kBadIndirect},
      {"one byte over", kTable, 17, kIndirect, ChainError::kBadIndirect},
      {"NEXT beside INDIRECT", kTable, 16, kIndirect | kNext, ChainError::kBadIndirect},
      {"too long", kTable, (kMaxChainDescriptors + 1) * 16, kIndirect,
       ChainError::kTooManyDescriptors},
      {"as long as can be", kTable, UINT32_MAX - 15, kIndirect, ChainError::kTooManyDescriptors},
      {"unaligned", kTable + 4, 16, kIndirect, ChainError::kBadIndirect},
      {"unmapped", kFar + kFarSize, 16, kIndirect, ChainError::kUnmappedAddress},
      {"partly unmapped", kFar + kFarSize - 16, 32, kIndirect, ChainError::kUnmappedAddress},
      {"over two regions", kAdjacent - 16, 32, kIndirect, ChainError::kUnmappedAddress},
      {"wraps round", UINT64_MAX - 15, 32, kIndirect, ChainError::kUnmappedAddress},
  };
  for (const auto& c : cases) {
    Put(0, c.address, c.len, 1, c.flags);
    Put(1, kBuffer, 8, 1, 0);
    EXPECT_EQ(Pop(), c.error) << c.what;
    EXPECT_EQ(chain_.head(), 1) << c.what;
    EXPECT_EQ(chain_.ring_descriptors(), (c.flags & kNext) != 0 ? 2u : 1u) << c.what;
    EXPECT_FALSE(BreaksRing(c.error)) << c.what;
  }
  // A table in a table, and one that was not negotiated.
  Put(0, kTable, 32, 1, kIndirect);
  PutIndirect(1, kTable, 32, kIndirect);
  EXPECT_EQ(Pop(), ChainError::kBadIndirect);
  PutIndirect(1, kBuffer, 8, 0);
  EXPECT_EQ(Pop(/*indirect=*/false), ChainError::kBadIndirect);
  EXPECT_EQ(Pop(/*indirect=*/true), ChainError::kNone);
}

// ---- used descriptors ---------------------------------------------------------------------------

TEST_F(PackedRingTest, UsedDescriptorsShowTogether) {
  PackedRing<false> ring = Fresh();
  for (uint16_t i = 0; i < 5; ++i) Put(i, kBuffer, 8, i, i == 1 ? kNext : uint16_t{0});
  for (int i = 0; i < 4; ++i) ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  // Out of order: the places go by the order of use, with those that each chain takes up.
  ring.PushUsed(Used(2, 2, 64));
  ring.PushUsed(Used(4, 1, 0));
  EXPECT_TRUE(ring.used_pending());
  EXPECT_EQ(Slot(0).flags, kPackedAvail) << "unseen until published";
  EXPECT_EQ(ring.PublishUsed(), 2u);
  EXPECT_EQ(Slot(0).id, 2);
  EXPECT_EQ(Slot(0).len, 64u);
  EXPECT_EQ(Slot(0).flags, kPackedAvail | kPackedUsed | kWrite);
  EXPECT_EQ(Slot(2).id, 4);
  EXPECT_EQ(Slot(2).flags, kPackedAvail | kPackedUsed);
  EXPECT_EQ(ring.position(), 0x8003'8005u);
  EXPECT_FALSE(ring.used_pending());
  EXPECT_EQ(ring.PublishUsed(), 0u);
}

TEST_F(PackedRingTest, InOrderOneUsedDescriptorStandsForARun) {
  PackedRing<false, true> ring(ring_memory_, kPackedFreshPosition, true);
  for (uint16_t i = 0; i < 6; ++i) Put(i, kBuffer, 8, i, 0);
  for (int i = 0; i < 6; ++i) ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  ring.PushUsed(Used(0, 1, 0, /*read_only=*/true));
  ring.PushUsed(Used(1, 1, 0, /*read_only=*/true));
  ring.PushUsed(Used(2, 1, 30));
  ring.PushUsed(Used(3, 1, 40));
  EXPECT_EQ(ring.PublishUsed(), 4u);
  EXPECT_EQ(Slot(0).id, 2) << "the last of the run";
  EXPECT_EQ(Slot(0).len, 30u);
  EXPECT_EQ(Slot(0).flags, kPackedAvail | kPackedUsed | kWrite);
  EXPECT_EQ(Slot(1).flags, kPackedAvail) << "skipped";
  EXPECT_EQ(Slot(2).flags, kPackedAvail) << "skipped";
  EXPECT_EQ(Slot(3).id, 3) << "a buffer with room is not skipped";
  EXPECT_EQ(Slot(3).flags, kPackedAvail | kPackedUsed | kWrite);
  // A run ends where it is published.
  ring.PushUsed(Used(4, 1, 0, /*read_only=*/true));
  EXPECT_EQ(ring.PublishUsed(), 1u);
  ring.PushUsed(Used(5, 1, 0, /*read_only=*/true));
  EXPECT_EQ(ring.PublishUsed(), 1u);
  EXPECT_EQ(Slot(4).id, 4);
  EXPECT_EQ(Slot(5).id, 5);
  EXPECT_EQ(ring.position(), 0x8006'8006u);
}

// ---- notifications ------------------------------------------------------------------------------

TEST_F(PackedRingTest, CallsFollowTheDriversFlags) {
  for (const uint32_t off_wrap : {0u, 0x8000u, 0xffffu}) {
    PackedRing<false> ring = Fresh();
    Put(0, kBuffer, 8, 0, 0);
    ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
    ring.PushUsed(Used(0, 1, 0));
    ring.PublishUsed();
    driver_event() = off_wrap;
    EXPECT_TRUE(ring.ShouldNotify());
    driver_event() = kDisable | off_wrap;
    EXPECT_FALSE(ring.ShouldNotify());
    driver_event() = (kDisable | 0xfffc'0000u) | off_wrap;  // other bits mean nothing
    EXPECT_FALSE(ring.ShouldNotify());
    driver_event() = kDesc | off_wrap;  // not negotiated
    EXPECT_TRUE(ring.ShouldNotify());
  }
}

TEST_F(PackedRingTest, KicksFollowTheDevicesFlags) {
  PackedRing<false> plain = Fresh();
  plain.DisableKicks();
  EXPECT_EQ(device_event(), kDisable);
  EXPECT_FALSE(plain.EnableKicks());
  EXPECT_EQ(device_event(), 0u);
  PackedRing<true> event(ring_memory_, 0x0003'0003, true);
  event.DisableKicks();
  EXPECT_EQ(device_event(), kDisable);
  EXPECT_FALSE(event.EnableKicks());
  EXPECT_EQ(device_event(), kDesc | 3u);
  Put(3, kBuffer, 8, 0, 0, /*wrap=*/false);
  EXPECT_TRUE(event.EnableKicks()) << "a chain came in between";
  PackedRing<true> other_lap(ring_memory_, 0x8004'8004, true);
  EXPECT_FALSE(other_lap.EnableKicks());
  EXPECT_EQ(device_event(), kDesc | 0x8004u);
}

// Every wish of the driver against every burst: a call exactly when the burst passes the place.
TEST_F(PackedRingTest, EventIdxCallsExactlyWhenTheEventIsPassed) {
  for (uint32_t start = 0; start < 2u * kSize; ++start) {
    for (uint32_t burst = 1; burst <= kSize; ++burst) {
      for (uint32_t event = 0; event < 2u * kSize; ++event) {
        // Counted in places over two laps, after which everything is as it was.
        const auto encode = [](uint32_t place) {
          return place % kSize | (place / kSize % 2 == 0 ? 0x8000u : 0u);
        };
        const uint32_t end = start + burst;  // what was taken
        PackedRing<true> ring(ring_memory_, encode(start) << 16 | encode(end), true);
        driver_event() = kDesc | encode(event);
        for (uint32_t i = 0; i < burst; ++i) ring.PushUsed(Used(0, 1, 0));
        ring.PublishUsed();
        bool passed = false;
        for (uint32_t i = start; i < end; ++i) passed |= i % (2 * kSize) == event;
        EXPECT_EQ(ring.ShouldNotify(), passed) << start << " +" << burst << ", " << event;
      }
    }
  }
}

// ---- where it goes on ---------------------------------------------------------------------------

TEST_F(PackedRingTest, ABaseSaysWhereToGoOn) {
  EXPECT_THAT(ring_memory_.StartPosition(0x8000), IsOkAndHolds(0x8000'8000u));
  EXPECT_THAT(ring_memory_.StartPosition(0x0003), IsOkAndHolds(0x0003'0003u));
  EXPECT_THAT(ring_memory_.StartPosition(0x8002'8005), IsOkAndHolds(0x8002'8005u));
  EXPECT_THAT(ring_memory_.StartPosition(0x8005'0002), IsOkAndHolds(0x8005'0002u));
  EXPECT_THAT(ring_memory_.StartPosition(0x8005'0005), IsOkAndHolds(0x8005'0005u)) << "a whole lap";
  // Beyond the ring, given back before it was taken, or more than a lap ago.
  for (const uint32_t base : {0x8007u, 0x7fffu, 0xffff'ffffu, 0x8007'8000u, 0x8005'8002u,
                              0x8002'0005u, 0x0005'8004u + 0x0001'0000u - 0x0003'0000u}) {
    EXPECT_THAT(ring_memory_.StartPosition(base), StatusIs(absl::StatusCode::kInvalidArgument))
        << std::hex << base;
  }
}

TEST_F(PackedRingTest, AFrontEndWithoutWrapCountersBeginsAtTheBeginning) {
  // User-mode Linux says 0 for a new ring: nothing is there, or the driver's first chain.
  EXPECT_THAT(ring_memory_.StartPosition(0), IsOkAndHolds(kPackedFreshPosition));
  Put(0, kBuffer, 8, 0, 0);
  EXPECT_THAT(ring_memory_.StartPosition(0), IsOkAndHolds(kPackedFreshPosition));
  // One that went round once stands at 0 in truth.
  Slot(0).flags = kPackedAvail | kPackedUsed;
  EXPECT_THAT(ring_memory_.StartPosition(0), IsOkAndHolds(0u));
  Put(0, kBuffer, 8, 0, 0, /*wrap=*/false);
  EXPECT_THAT(ring_memory_.StartPosition(0), IsOkAndHolds(0u));
}

TEST_F(PackedRingTest, ARingThatGoesOnIsToldFromOneMadeAnew) {
  PackedRing<false> ring = Fresh();
  for (uint16_t i = 0; i < 3; ++i) Put(i, kBuffer, 8, i, 0);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  ring.PushUsed(Used(1, 1, 0));
  ring.PublishUsed();
  const uint32_t position = ring.position();
  EXPECT_EQ(position, 0x8001'8003u);
  EXPECT_TRUE(ring_memory_.GoesOn(0x8001'8003, position));
  EXPECT_TRUE(ring_memory_.GoesOn(0x8003, position)) << "front-ends may keep the low half only";
  EXPECT_FALSE(ring_memory_.GoesOn(0x8002, position));
  EXPECT_FALSE(ring_memory_.GoesOn(0x8002'8003, position));
  EXPECT_FALSE(ring_memory_.GoesOn(0x0003, position));
  Slot(1) = {};
  EXPECT_FALSE(ring_memory_.GoesOn(0x8003, position)) << "made anew";
  // It goes on with what it holds counted.
  Put(1, kBuffer, 8, 1, 0);
  PackedRing<false> next(ring_memory_, position, true);
  for (uint16_t i = 3; i < kSize; ++i) Put(i, kBuffer, 8, i, 0);
  Put(0, kBuffer, 8, 1, 0, /*wrap=*/false);
  Put(1, kBuffer, 8, 0, 0, /*wrap=*/false);
  for (uint16_t i = 3; i < kSize + 1; ++i) ASSERT_EQ(next.Pop(*map_, &chain_), ChainError::kNone);
  EXPECT_EQ(next.Pop(*map_, &chain_), ChainError::kAvailIndex);
}

TEST_F(PackedRingTest, AChainMovesToAnotherMap) {
  // Contents that lie elsewhere in another map; the ring is not looked at again.
  Put(0, kBuffer, 16, 0, kNext);
  Put(1, kAdjacent - 100, 300, 5, kWrite);
  ASSERT_EQ(Pop(), ChainError::kNone);
  ASSERT_EQ(chain_.writable().size(), 2u);
  std::memset(&Slot(0), 0xff, 32);
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef other, memory_->ToMemoryMap());
  ASSERT_NE(other->TranslateWhole(kBuffer, 16), map_->TranslateWhole(kBuffer, 16));
  EXPECT_EQ(chain_.MoveTo(*map_, *other), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 5);
  EXPECT_EQ(chain_.ring_descriptors(), 2u);
  EXPECT_EQ(chain_.readable_bytes(), 16u);
  EXPECT_EQ(chain_.writable_bytes(), 300u);
  ASSERT_EQ(chain_.readable().size(), 1u);
  EXPECT_EQ(chain_.readable()[0].iov_base, other->TranslateWhole(kBuffer, 16));
  ASSERT_EQ(chain_.writable().size(), 2u);
  EXPECT_EQ(chain_.writable()[1].iov_base, other->TranslateWhole(kAdjacent, 200));
  // A map without one of its buffers refuses it.
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef less, other->Window({{kLow, kLowSize}}));
  EXPECT_EQ(chain_.MoveTo(*other, *less), ChainError::kUnmappedAddress);
  EXPECT_EQ(chain_.segment_count(), 0u);
  EXPECT_EQ(chain_.ring_descriptors(), 2u) << "it still has to be given back";
}

// ---- placement ----------------------------------------------------------------------------------

class PackedPlacementTest : public PackedRingTest {
 protected:
  absl::Status Create(uint16_t size, uint64_t descriptors, uint64_t driver, uint64_t device) {
    return PackedRingMemory::Create(*map_, {size, descriptors, driver, device}).status();
  }
};

TEST_F(PackedPlacementTest, SizesAreOneTo32768) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(1024 * kKiB, 0));
  ASSERT_OK_AND_ASSIGN(map_, memory->ToMemoryMap());
  for (const int size : {1, 2, 3, 255, 32767, 32768}) {
    EXPECT_OK(Create(static_cast<uint16_t>(size), 0, 16 * 32768, 16 * 32768 + 4)) << size;
  }
  for (const int size : {0, 32769, 65535}) {
    EXPECT_THAT(Create(static_cast<uint16_t>(size), 0, 1024 * kKiB - 8, 1024 * kKiB - 4),
                StatusIs(absl::StatusCode::kInvalidArgument, "packed ring size"))
        << size;
  }
}

TEST_F(PackedPlacementTest, PartsAreAlignedMappedAndApart) {
  EXPECT_THAT(Create(8, kLow + 8, kDriver, kDevice),
              StatusIs(absl::StatusCode::kInvalidArgument, "descriptor ring"));
  EXPECT_THAT(Create(8, kLow, kDriver + 2, kDevice),
              StatusIs(absl::StatusCode::kInvalidArgument, "driver event suppression"));
  EXPECT_THAT(Create(8, kLow, kDriver, kDevice + 2),
              StatusIs(absl::StatusCode::kInvalidArgument, "device event suppression"));
  const uint64_t end = kFar + kFarSize;
  EXPECT_OK(Create(8, end - 128, kDriver, kDevice));
  EXPECT_THAT(Create(8, end - 112, kDriver, kDevice),
              StatusIs(absl::StatusCode::kInvalidArgument, "not in the memory map"));
  EXPECT_OK(Create(8, kLow, end - 4, kDevice));
  EXPECT_THAT(Create(8, kLow, end, kDevice), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Create(8, kLow, kDriver, end), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Create(8, kLow, kLow + 124, kDevice),
              StatusIs(absl::StatusCode::kInvalidArgument, "overlap"));
  EXPECT_THAT(Create(8, kLow, kDriver, kDriver),
              StatusIs(absl::StatusCode::kInvalidArgument, "overlap"));
  EXPECT_OK(Create(8, kLow, kLow + 128, kLow + 132));
}

// ---- a driver that changes everything all the time ----------------------------------------------

// Whatever a thread writes over descriptors and tables meanwhile: no buffer that comes out of a
// ring ever reaches beyond the memory map, no id beyond the ring, and no walk goes on for ever.
TEST(PackedRingRaceTest, NothingOutsideTheMapEverComesOut) {
  constexpr uint16_t kRing = 16;
  ASSERT_OK_AND_ASSIGN(auto memory,
                       GuestMemory::Create({{.address = kLow, .size = kLowSize},
                                            {.address = kAdjacent, .size = kAdjacentSize},
                                            {.address = kFar, .size = kFarSize}}));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(const PackedRingMemory ring_memory,
                       PackedRingMemory::Create(*map, {kRing, kDescriptors, kDriver, kDevice}));
  const auto word = [&](uint64_t address) {
    return std::atomic_ref<uint64_t>(
        *reinterpret_cast<uint64_t*>(memory->Translate(address, sizeof(uint64_t))));
  };

  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    std::mt19937_64 random(99);
    // Values that are nearly right get further than noise does.
    const uint64_t addresses[] = {kBuffer, kTable, kAdjacent - 8, kFar + kFarSize - 4, UINT64_MAX,
                                  kLow,    0,      kDescriptors,  kAdjacent + 16,      kTable + 8,
                                  kFar};
    constexpr uint64_t kFlags[] = {0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5};
    const uint32_t lengths[] = {0, 1, 8, 16, 32, 64, 4096, 0xffff, 0x7fffffff, UINT32_MAX};
    while (!stop.load(std::memory_order_relaxed)) {
      const uint64_t dice = random();
      const uint64_t table = (dice & 1) != 0 ? kDescriptors : kTable;
      const uint64_t at = table + 16 * ((dice >> 1) % kRing);
      if ((dice & 0x100) != 0) {
        word(at).store(addresses[(dice >> 10) % std::size(addresses)], std::memory_order_relaxed);
      } else {
        const uint64_t flags = kFlags[(dice >> 40) % std::size(kFlags)] |
                               ((dice & 0x200) != 0 ? kPackedAvail : kPackedUsed);
        const uint64_t id = (dice >> 44) % (kRing + 2);
        word(at + 8).store(lengths[(dice >> 10) % std::size(lengths)] | id << 32 | flags << 48,
                           std::memory_order_relaxed);
      }
    }
  });

  const auto inside = [&](const iovec& part) {
    const auto* begin = static_cast<const std::byte*>(part.iov_base);
    for (const MemoryRegion& region : map->regions()) {
      if (begin >= region.host() && begin < region.host() + region.size) {
        return part.iov_len <= static_cast<size_t>(region.host() + region.size - begin);
      }
    }
    return false;
  };
  PackedRing<true> ring(ring_memory, kPackedFreshPosition, true);
  Chain chain;
  // The noise goes on until it has led to every outcome of a walk.
  constexpr ChainError kOutcomes[] = {ChainError::kNone,        ChainError::kUnmappedAddress,
                                      ChainError::kBadIndirect, ChainError::kReadableAfterWritable,
                                      ChainError::kUnfinished,  ChainError::kIdOutOfRange};
  std::array<uint64_t, 16> seen{};
  const auto seen_all = [&] {
    return std::all_of(std::begin(kOutcomes), std::end(kOutcomes),
                       [&](ChainError error) { return seen[static_cast<size_t>(error)] > 0; });
  };
  constexpr uint32_t kLooks = kSanitized ? 30'000 : 300'000;
  for (uint32_t looks = 0; looks < kLooks || (!seen_all() && looks < 30'000'000);) {
    if (!ring.More()) {
      std::this_thread::yield();
      continue;
    }
    ++looks;
    uint16_t id = 0;
    const ChainError peeked = ring.PeekHead(&id);
    if (peeked != ChainError::kNone) {
      ++seen[static_cast<size_t>(peeked)];
      std::this_thread::yield();
      continue;
    }
    ASSERT_LT(id, kRing);
    const ChainError error = ring.PopHead(*map, id, &chain);
    ++seen[static_cast<size_t>(error)];
    ASSERT_LE(chain.ring_descriptors(), kRing);
    ASSERT_LE(chain.segment_count(), 2u * (kRing + 4096 / 16));
    for (const iovec& part : chain.readable()) ASSERT_TRUE(inside(part));
    for (const iovec& part : chain.writable()) ASSERT_TRUE(inside(part));
    ring.PushUsed({id, static_cast<uint16_t>(chain.ring_descriptors()), 0, false});
    ring.PublishUsed();
    ring.ShouldNotify();
  }
  stop = true;
  scribbler.join();
  for (const ChainError error : kOutcomes) {
    EXPECT_GT(seen[static_cast<size_t>(error)], 0u) << ChainErrorName(error);
  }
}

}  // namespace
}  // namespace virtbay
