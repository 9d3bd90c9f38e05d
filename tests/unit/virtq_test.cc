// The device side of a split ring alone: what a hostile driver can put into memory, notification
// arithmetic, and placement.
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "framework/virtq/split_ring.h"
#include "hostif/guest/guest_memory.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::guest::GuestMemory;
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
constexpr uint64_t kAvail = kLow + 0x4000;
constexpr uint64_t kUsed = kLow + 0x5000;
constexpr uint64_t kTable = kLow + 0x10000;
constexpr uint64_t kBuffer = kLow + 0x20000;

// A ring of eight descriptors that a test fills by hand.
class SplitRingTest : public ::testing::Test {
 protected:
  static constexpr uint16_t kSize = 8;

  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(memory_,
                         GuestMemory::Create({{.address = kLow, .size = kLowSize},
                                              {.address = kAdjacent, .size = kAdjacentSize},
                                              {.address = kFar, .size = kFarSize}}));
    ASSERT_OK_AND_ASSIGN(map_, memory_->ToMemoryMap());
    ASSERT_OK_AND_ASSIGN(ring_memory_,
                         SplitRingMemory::Create(*map_, {kSize, kDescriptors, kAvail, kUsed}));
  }

  template <typename T>
  T& At(uint64_t address) {
    return *reinterpret_cast<T*>(memory_->Translate(address, sizeof(T)));
  }
  void Put(uint64_t table, uint16_t index, uint64_t address, uint32_t len, uint16_t flags,
           uint16_t next = 0) {
    At<vring_desc>(table + 16u * index) = {
        .addr = address, .len = len, .flags = flags, .next = next};
  }
  void Descriptor(uint16_t index, uint64_t address, uint32_t len, uint16_t flags,
                  uint16_t next = 0) {
    Put(kDescriptors, index, address, len, flags, next);
  }
  void SetAvail(uint16_t slot, uint16_t head) { At<uint16_t>(kAvail + 4 + 2u * slot) = head; }
  void SetAvailIndex(uint16_t index) { At<uint16_t>(kAvail + 2) = index; }
  uint16_t& used_event() { return At<uint16_t>(kAvail + 4 + 2u * kSize); }
  uint16_t& avail_event() { return At<uint16_t>(kUsed + 4 + 8u * kSize); }
  uint16_t used_flags() { return At<uint16_t>(kUsed); }
  uint16_t used_index() { return At<uint16_t>(kUsed + 2); }
  vring_used_elem used(uint16_t slot) { return At<vring_used_elem>(kUsed + 4 + 8u * slot); }

  // Pops the chain at `head` with a fresh ring.
  ChainError Walk(uint16_t head, bool indirect = true) {
    return WalkSplitChain(ring_memory_, *map_, indirect, head, &chain_);
  }

  std::unique_ptr<GuestMemory> memory_;
  MemoryMapRef map_;
  SplitRingMemory ring_memory_;
  Chain chain_;
};

// ---- good chains --------------------------------------------------------------------------------

TEST_F(SplitRingTest, ReadsAChainOfSeveralDescriptors) {
  Descriptor(3, kBuffer, 16, kNext, 1);
  Descriptor(1, kBuffer + 100, 7, kNext, 6);
  Descriptor(6, kFar, 4096, kWrite, 77);  // `next` without NEXT means nothing
  EXPECT_EQ(Walk(3), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 3);
  ASSERT_EQ(chain_.readable().size(), 2u);
  ASSERT_EQ(chain_.writable().size(), 1u);
  EXPECT_EQ(chain_.readable()[0].iov_base, map_->TranslateWhole(kBuffer, 16));
  EXPECT_EQ(chain_.readable()[1].iov_base, map_->TranslateWhole(kBuffer + 100, 7));
  EXPECT_EQ(chain_.writable()[0].iov_base, map_->TranslateWhole(kFar, 4096));
  EXPECT_EQ(chain_.readable_bytes(), 23u);
  EXPECT_EQ(chain_.writable_bytes(), 4096u);
}

TEST_F(SplitRingTest, ReadsAChainOfEveryDescriptor) {
  for (uint16_t i = 0; i < kSize; ++i) {
    Descriptor(i, kBuffer + 2 * i, 1, i + 1 < kSize ? kNext : uint16_t{0},
               static_cast<uint16_t>(i + 1));
  }
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_EQ(chain_.readable().size(), kSize);
}

TEST_F(SplitRingTest, JoinsNeighboursOfTheSameDirectionOnly) {
  Descriptor(0, kBuffer, 16, kNext, 1);
  Descriptor(1, kBuffer + 16, 16, kNext, 2);
  Descriptor(2, kBuffer + 32, 16, kNext | kWrite, 3);
  Descriptor(3, kBuffer + 48, 16, kWrite);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  ASSERT_EQ(chain_.readable().size(), 1u);
  EXPECT_EQ(chain_.readable()[0].iov_len, 32u);
  ASSERT_EQ(chain_.writable().size(), 1u);
  EXPECT_EQ(chain_.writable()[0].iov_len, 32u);
  EXPECT_EQ(chain_.readable_bytes(), 32u);
  EXPECT_EQ(chain_.writable_bytes(), 32u);
}

TEST_F(SplitRingTest, ReadsAnIndirectTable) {
  Descriptor(2, kTable, 3 * 16, kIndirect);
  Put(kTable, 0, kBuffer, 10, kNext, 2);
  Put(kTable, 2, kBuffer + 64, 20, kNext | kWrite, 1);
  Put(kTable, 1, kBuffer + 128, 30, kWrite);
  EXPECT_EQ(Walk(2), ChainError::kNone);
  EXPECT_EQ(chain_.head(), 2);
  EXPECT_EQ(chain_.readable_bytes(), 10u);
  EXPECT_EQ(chain_.writable_bytes(), 50u);
  ASSERT_EQ(chain_.writable().size(), 2u);
  EXPECT_EQ(chain_.writable()[0].iov_len, 20u);
}

TEST_F(SplitRingTest, TakesDescriptorsBeforeAnIndirectOne) {
  Descriptor(0, kBuffer, 8, kNext, 1);
  Descriptor(1, kTable, 16, kIndirect);
  Put(kTable, 0, kBuffer + 64, 8, kWrite);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_EQ(chain_.readable_bytes(), 8u);
  EXPECT_EQ(chain_.writable_bytes(), 8u);
}

TEST_F(SplitRingTest, IgnoresTheWriteFlagOfAnIndirectDescriptor) {
  Descriptor(0, kTable, 16, kIndirect | kWrite);
  Put(kTable, 0, kBuffer, 8, 0);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_EQ(chain_.readable_bytes(), 8u);
}

// The class of CVE-2019-14835: more segments than the ring has descriptors.
TEST_F(SplitRingTest, AnIndirectTableMayBeLargerThanTheRing) {
  constexpr uint16_t kCount = kMaxChainDescriptors;
  Descriptor(0, kTable, kCount * 16, kIndirect);
  for (uint16_t i = 0; i < kCount; ++i) {
    Put(kTable, i, kBuffer, 4, i + 1 < kCount ? kNext : uint16_t{0}, static_cast<uint16_t>(i + 1));
  }
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_EQ(chain_.segment_count(), kCount);
  EXPECT_EQ(chain_.readable_bytes(), 4u * kCount);
}

TEST_F(SplitRingTest, ABufferOverTwoTouchingRegionsBecomesTwoSegments) {
  Descriptor(0, kAdjacent - 100, 300, 0);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  ASSERT_EQ(chain_.readable().size(), 2u);
  EXPECT_EQ(chain_.readable()[0].iov_len, 100u);
  EXPECT_EQ(chain_.readable()[1].iov_len, 200u);
  EXPECT_EQ(chain_.readable()[0].iov_base, map_->TranslateWhole(kAdjacent - 100, 100));
  EXPECT_EQ(chain_.readable()[1].iov_base, map_->TranslateWhole(kAdjacent, 200));
}

TEST_F(SplitRingTest, ZeroLengthDescriptorsAddNothing) {
  Descriptor(0, kBuffer, 0, kNext, 1);
  Descriptor(1, UINT64_MAX, 0, kNext, 2);  // its address means nothing either
  Descriptor(2, kBuffer, 0, kWrite);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_EQ(chain_.segment_count(), 0u);
  EXPECT_EQ(chain_.readable_bytes(), 0u);
  EXPECT_EQ(chain_.writable_bytes(), 0u);
}

TEST_F(SplitRingTest, AChainIsForgottenByTheNext) {
  Descriptor(0, kBuffer, 8, kNext, 1);
  Descriptor(1, kBuffer, 8, kWrite);
  ASSERT_EQ(Walk(0), ChainError::kNone);
  Descriptor(2, kBuffer, 3, 0);
  ASSERT_EQ(Walk(2), ChainError::kNone);
  EXPECT_EQ(chain_.readable_bytes(), 3u);
  EXPECT_EQ(chain_.writable_bytes(), 0u);
  EXPECT_EQ(chain_.segment_count(), 1u);
}

// ---- chains of a hostile driver -----------------------------------------------------------------

TEST_F(SplitRingTest, ALoopBreaksTheRing) {
  Descriptor(0, kBuffer, 8, kNext, 1);
  Descriptor(1, kBuffer, 8, kNext, 2);
  Descriptor(2, kBuffer, 8, kNext, 1);
  EXPECT_EQ(Walk(0), ChainError::kLoop);
  Descriptor(5, kBuffer, 8, kNext, 5);
  EXPECT_EQ(Walk(5), ChainError::kLoop);
  EXPECT_TRUE(BreaksRing(ChainError::kLoop));
}

TEST_F(SplitRingTest, ANextOutOfRangeBreaksTheRing) {
  for (const uint16_t next : {kSize, uint16_t{kSize + 1}, uint16_t{0x8000}, uint16_t{0xffff}}) {
    Descriptor(0, kBuffer, 8, kNext, next);
    EXPECT_EQ(Walk(0), ChainError::kNextOutOfRange) << next;
  }
  EXPECT_TRUE(BreaksRing(ChainError::kNextOutOfRange));
}

TEST_F(SplitRingTest, ALoopBehindABadBufferStillBreaksTheRing) {
  Descriptor(0, 0xdead0000, 8, kNext, 1);
  Descriptor(1, kBuffer, 8, kNext, 0);
  EXPECT_EQ(Walk(0), ChainError::kLoop);
  Descriptor(1, kBuffer, 8, kNext, kSize);
  EXPECT_EQ(Walk(0), ChainError::kNextOutOfRange);
}

TEST_F(SplitRingTest, AHeadOutOfRangeIsSeenBeforeAnythingIsRead) {
  SplitRing<false> ring(ring_memory_, 0, true);
  for (const uint16_t head : {kSize, uint16_t{0xffff}}) {
    SetAvail(0, head);
    SetAvailIndex(1);
    ASSERT_EQ(ring.Available(), 1);
    EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kHeadOutOfRange);
    EXPECT_EQ(ring.next_avail(), 0) << "not taken";
  }
  EXPECT_TRUE(BreaksRing(ChainError::kHeadOutOfRange));
}

// CVE-2018-1059: a range of which only a part is mapped.
TEST_F(SplitRingTest, BuffersOutsideMemoryAreRefused) {
  struct {
    const char* what;
    uint64_t address;
    uint32_t len;
  } const cases[] = {
      {"below everything", 0, 1},
      {"ends where memory begins", kLow - 8, 8},
      {"begins before memory", kLow - 1, 2},
      {"in the hole", kAdjacent + kAdjacentSize, 1},
      {"runs into the hole", kAdjacent + kAdjacentSize - 8, 9},
      {"spans the hole", kAdjacent + kAdjacentSize - 8, 64 * 1024 + 16},
      {"begins behind everything", kFar + kFarSize, 1},
      {"runs out of memory", kFar + kFarSize - 1, 2},
      {"longer than everything", kLow, UINT32_MAX},
      {"wraps round", UINT64_MAX, 2},
      {"wraps round into memory", UINT64_MAX - 7, 8 + static_cast<uint32_t>(kLow) + 8},
  };
  for (const auto& c : cases) {
    for (const uint16_t flags : {uint16_t{0}, kWrite}) {
      Descriptor(0, c.address, c.len, flags);
      EXPECT_EQ(Walk(0), ChainError::kUnmappedAddress) << c.what;
      // The same in an indirect table.
      Descriptor(1, kTable, 16, kIndirect);
      Put(kTable, 0, c.address, c.len, flags);
      EXPECT_EQ(Walk(1), ChainError::kUnmappedAddress) << c.what;
    }
  }
  EXPECT_FALSE(BreaksRing(ChainError::kUnmappedAddress));
  // The last byte of each region is memory.
  for (const uint64_t last : {kAdjacent + kAdjacentSize - 1, kFar + kFarSize - 1}) {
    Descriptor(0, last, 1, kWrite);
    EXPECT_EQ(Walk(0), ChainError::kNone);
  }
}

TEST_F(SplitRingTest, AReadableDescriptorAfterAWritableOneIsRefused) {
  Descriptor(0, kBuffer, 8, kWrite | kNext, 1);
  Descriptor(1, kBuffer, 8, 0);
  EXPECT_EQ(Walk(0), ChainError::kReadableAfterWritable);
  EXPECT_FALSE(BreaksRing(ChainError::kReadableAfterWritable));
  Descriptor(2, kTable, 32, kIndirect);
  Put(kTable, 0, kBuffer, 8, kWrite | kNext, 1);
  Put(kTable, 1, kBuffer, 8, 0);
  EXPECT_EQ(Walk(2), ChainError::kReadableAfterWritable);
  // Also across the border of ring and table.
  Descriptor(0, kBuffer, 8, kWrite | kNext, 3);
  Descriptor(3, kTable, 16, kIndirect);
  Put(kTable, 0, kBuffer, 8, 0);
  EXPECT_EQ(Walk(0), ChainError::kReadableAfterWritable);
}

TEST_F(SplitRingTest, BadIndirectTablesAreRefused) {
  Put(kTable, 0, kBuffer, 8, 0);
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
      {"odd and huge", kTable, UINT32_MAX, kIndirect, ChainError::kBadIndirect},
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
    Descriptor(0, c.address, c.len, c.flags, 1);
    Descriptor(1, kBuffer, 8, 0);
    EXPECT_EQ(Walk(0), c.error) << c.what;
    EXPECT_FALSE(BreaksRing(c.error)) << c.what;
  }
}

TEST_F(SplitRingTest, IndirectIsRefusedWhereItWasNotNegotiated) {
  Descriptor(0, kTable, 16, kIndirect);
  Put(kTable, 0, kBuffer, 8, 0);
  EXPECT_EQ(Walk(0, /*indirect=*/false), ChainError::kBadIndirect);
  EXPECT_EQ(Walk(0, /*indirect=*/true), ChainError::kNone);
}

TEST_F(SplitRingTest, AnIndirectTableInATableIsRefused) {
  Descriptor(0, kTable, 32, kIndirect);
  Put(kTable, 0, kBuffer, 8, kNext, 1);
  Put(kTable, 1, kTable + 64, 16, kIndirect);
  Put(kTable + 64, 0, kBuffer, 8, 0);
  EXPECT_EQ(Walk(0), ChainError::kBadIndirect);
  // The table that refers to itself.
  Put(kTable, 1, kTable, 32, kIndirect);
  EXPECT_EQ(Walk(0), ChainError::kBadIndirect);
}

TEST_F(SplitRingTest, ALoopOrAWildNextInATableIsTheChainsOwnTrouble) {
  Descriptor(0, kTable, 32, kIndirect);
  Put(kTable, 0, kBuffer, 8, kNext, 1);
  Put(kTable, 1, kBuffer, 8, kNext, 0);
  EXPECT_EQ(Walk(0), ChainError::kBadIndirect);
  for (const uint16_t next : {uint16_t{2}, kSize, uint16_t{0xffff}}) {
    Put(kTable, 0, kBuffer, 8, kNext, next);
    EXPECT_EQ(Walk(0), ChainError::kBadIndirect) << next;
  }
  EXPECT_FALSE(BreaksRing(ChainError::kBadIndirect));
}

TEST_F(SplitRingTest, LengthSumsAreLimitedTo32Bits) {
  // One region of 2 GiB: no memory is behind it until someone touches it.
  constexpr uint64_t kTwoGiB = uint64_t{2} << 30;
  UniqueFd fd(memfd_create("sum", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(fd.get(), static_cast<off_t>(kTwoGiB)), 0);
  ASSERT_OK_AND_ASSIGN(auto huge, GuestMapping::Create(fd.get(), 0, kTwoGiB));
  std::vector<MemoryRegion> regions = map_->regions();
  constexpr uint64_t kHuge = uint64_t{1} << 40;
  regions.push_back({kHuge, kHuge, kTwoGiB, huge});
  ASSERT_OK_AND_ASSIGN(map_, MemoryMap::Create(std::move(regions)));

  for (const uint16_t direction : {uint16_t{0}, kWrite}) {
    Descriptor(0, kHuge, 0x8000'0000u, kNext | direction, 1);
    Descriptor(1, kHuge, 0x7fff'ffffu, direction);
    EXPECT_EQ(Walk(0), ChainError::kNone) << "4 GiB - 1 is the most";
    Descriptor(1, kHuge, 0x8000'0000u, direction);
    EXPECT_EQ(Walk(0), ChainError::kLengthOverflow);
    Descriptor(1, kHuge, 0x7fff'ffffu, kNext | direction, 2);
    Descriptor(2, kBuffer, 1, direction);
    EXPECT_EQ(Walk(0), ChainError::kLengthOverflow);
  }
  // Each direction counts for itself.
  Descriptor(0, kHuge, 0x8000'0000u, kNext, 1);
  Descriptor(1, kHuge, 0x8000'0000u, kWrite);
  EXPECT_EQ(Walk(0), ChainError::kNone);
  EXPECT_FALSE(BreaksRing(ChainError::kLengthOverflow));
}

TEST(SplitRingAddressTest, ABufferDoesNotWrapFromTheTopOfMemoryToItsBottom) {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kTop = UINT64_MAX - kPage + 1;
  UniqueFd fd(memfd_create("ends", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(fd.get(), 2 * kPage), 0);
  ASSERT_OK_AND_ASSIGN(auto bottom, GuestMapping::Create(fd.get(), 0, kPage));
  ASSERT_OK_AND_ASSIGN(auto top, GuestMapping::Create(fd.get(), kPage, kPage));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map,
                       MemoryMap::Create({{0, kPage, kPage, bottom}, {kTop, 0, kPage, top}}));
  std::array<vring_desc, 1> table{{{.addr = kTop, .len = kPage, .flags = 0, .next = 0}}};
  SplitRingMemory ring;
  ring.size = 1;
  ring.descriptors = table.data();
  Chain chain;
  EXPECT_EQ(WalkSplitChain(ring, *map, true, 0, &chain), ChainError::kNone);
  table[0].len = kPage + 1;
  EXPECT_EQ(WalkSplitChain(ring, *map, true, 0, &chain), ChainError::kUnmappedAddress);
}

// ---- indexes ------------------------------------------------------------------------------------

TEST_F(SplitRingTest, AvailIndexMayBeAheadByTheRingsSizeAtMost) {
  for (const uint32_t base : {0u, 5u, 0x7ffcu, 0xfffcu}) {
    SplitRing<false> ring(ring_memory_, static_cast<uint16_t>(base), true);
    for (uint32_t ahead = 0; ahead <= kSize; ++ahead) {
      SetAvailIndex(static_cast<uint16_t>(base + ahead));
      EXPECT_EQ(ring.Available(), static_cast<int32_t>(ahead)) << base;
    }
    for (const uint32_t ahead : {kSize + 1u, 0x7fffu, 0x8000u, 0xffffu}) {
      SetAvailIndex(static_cast<uint16_t>(base + ahead));
      EXPECT_LT(ring.Available(), 0) << base << " + " << ahead;
    }
  }
  EXPECT_TRUE(BreaksRing(ChainError::kAvailIndex));
}

TEST_F(SplitRingTest, IndexesWrapRoundAt65536) {
  Descriptor(0, kBuffer, 8, 0);
  SplitRing<false> ring(ring_memory_, 0xfffe, true);
  for (uint16_t slot = 0; slot < kSize; ++slot) SetAvail(slot, 0);
  SetAvailIndex(2);  // 0xfffe, 0xffff, 0, 1
  ASSERT_EQ(ring.Available(), 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(ring.Pop(*map_, &chain_), ChainError::kNone);
  EXPECT_EQ(ring.next_avail(), 2);
  EXPECT_EQ(ring.Available(), 0);
}

TEST_F(SplitRingTest, UsedEntriesShowTogetherAndWrapRound) {
  At<uint16_t>(kUsed + 2) = 0xffff;  // what a ring in use for long has
  SplitRing<false> ring(ring_memory_, 0, true);
  ring.PushUsed(3, 100);
  ring.PushUsed(4, 200);
  EXPECT_EQ(used_index(), 0xffff) << "unseen until published";
  EXPECT_TRUE(ring.used_pending());
  EXPECT_EQ(ring.PublishUsed(), 2u);
  EXPECT_EQ(used_index(), 1);
  EXPECT_EQ(used(7).id, 3u);
  EXPECT_EQ(used(7).len, 100u);
  EXPECT_EQ(used(0).id, 4u);
  EXPECT_EQ(used(0).len, 200u);
  EXPECT_FALSE(ring.used_pending());
  EXPECT_EQ(ring.PublishUsed(), 0u);
}

TEST_F(SplitRingTest, TheGuestCannotMoveTheDevicesUsedIndex) {
  SplitRing<false> ring(ring_memory_, 0, true);
  ring.PushUsed(1, 1);
  ring.PublishUsed();
  At<uint16_t>(kUsed + 2) = 0x4321;
  ring.PushUsed(2, 2);
  ring.PublishUsed();
  EXPECT_EQ(used_index(), 2);
  EXPECT_EQ(used(1).id, 2u);
}

// ---- notifications ------------------------------------------------------------------------------

TEST_F(SplitRingTest, CallsFollowTheDriversFlag) {
  SplitRing<false> ring(ring_memory_, 0, true);
  ring.PushUsed(0, 0);
  ring.PublishUsed();
  EXPECT_TRUE(ring.ShouldNotify());
  At<uint16_t>(kAvail) = VRING_AVAIL_F_NO_INTERRUPT;
  EXPECT_FALSE(ring.ShouldNotify());
  At<uint16_t>(kAvail) = 0xfffe;  // other bits mean nothing
  EXPECT_TRUE(ring.ShouldNotify());
}

TEST_F(SplitRingTest, KicksFollowTheDevicesFlag) {
  SplitRing<false> ring(ring_memory_, 0, true);
  ring.DisableKicks();
  EXPECT_EQ(used_flags(), VRING_USED_F_NO_NOTIFY);
  EXPECT_FALSE(ring.EnableKicks());
  EXPECT_EQ(used_flags(), 0);
  SetAvailIndex(1);
  EXPECT_TRUE(ring.EnableKicks()) << "a chain came in between";
}

TEST_F(SplitRingTest, EventIdxAsksForAKickAtTheNextChain) {
  SplitRing<true> ring(ring_memory_, 0xffff, true);
  SetAvailIndex(0xffff);
  EXPECT_FALSE(ring.EnableKicks());
  EXPECT_EQ(avail_event(), 0xffff);
  SetAvailIndex(0);
  EXPECT_TRUE(ring.EnableKicks());
  ring.DisableKicks();
  EXPECT_EQ(avail_event(), 0xffff) << "left alone: the index has passed it";
  EXPECT_EQ(used_flags(), 0) << "flags mean nothing with event-idx (virtio 1.3 2.7.10)";
}

// Every position of used_event against every burst: a call exactly when the burst passes it.
TEST_F(SplitRingTest, EventIdxCallsExactlyWhenTheEventIsPassed) {
  for (const uint32_t start : {0u, 0x7ffeu, 0xfff9u, 0xffffu}) {
    for (uint32_t burst = 1; burst <= kSize; ++burst) {
      for (int32_t event = -3; event < static_cast<int32_t>(kSize) + 3; ++event) {
        At<uint16_t>(kUsed + 2) = static_cast<uint16_t>(start);
        SplitRing<true> ring(ring_memory_, 0, true);
        used_event() = static_cast<uint16_t>(static_cast<int32_t>(start) + event);
        for (uint32_t i = 0; i < burst; ++i) ring.PushUsed(0, 0);
        ring.PublishUsed();
        // used_event n: call when entry n is used, i.e. the index moves beyond n.
        const bool passed = event >= 0 && event < static_cast<int32_t>(burst);
        EXPECT_EQ(ring.ShouldNotify(), passed) << start << " " << burst << " " << event;
      }
    }
  }
}

// ---- placement ----------------------------------------------------------------------------------

class PlacementTest : public SplitRingTest {
 protected:
  absl::Status Create(uint16_t size, uint64_t descriptors, uint64_t avail, uint64_t used) {
    return SplitRingMemory::Create(*map_, {size, descriptors, avail, used}).status();
  }
};

TEST_F(PlacementTest, SizesArePowersOfTwo) {
  for (const int wrong : {0, 3, 6, 255, 32767, 32769, 65535}) {
    const auto size = static_cast<uint16_t>(wrong);
    EXPECT_THAT(Create(size, kLow, kLow + 0x8000, kLow + 0x9000),
                StatusIs(absl::StatusCode::kInvalidArgument, "power of two"))
        << size;
  }
  EXPECT_OK(Create(1, kLow, kLow + 16, kLow + 24));
}

TEST_F(PlacementTest, TheLargestRingFits) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(1024 * kKiB, 0));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  EXPECT_OK(SplitRingMemory::Create(*map, {32768, 0, 16 * 32768, 20 * 32768}));
}

TEST_F(PlacementTest, PartsAreAligned) {
  EXPECT_THAT(Create(8, kLow + 8, kAvail, kUsed),
              StatusIs(absl::StatusCode::kInvalidArgument, "descriptor table"));
  EXPECT_THAT(Create(8, kLow, kAvail + 1, kUsed),
              StatusIs(absl::StatusCode::kInvalidArgument, "avail ring"));
  EXPECT_THAT(Create(8, kLow, kAvail, kUsed + 2),
              StatusIs(absl::StatusCode::kInvalidArgument, "used ring"));
}

TEST_F(PlacementTest, PartsAreAlignedHereToo) {
  // A region may begin anywhere in its file: the guest address is aligned, ours is not.
  UniqueFd fd(memfd_create("odd", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(fd.get(), 8192), 0);
  ASSERT_OK_AND_ASSIGN(auto odd, GuestMapping::Create(fd.get(), 2, 8000));
  ASSERT_OK_AND_ASSIGN(map_, MemoryMap::Create({{0x1000, 0x1000, 8000, odd}}));
  EXPECT_THAT(Create(8, 0x1000, 0x1400, 0x1800), StatusIs(absl::StatusCode::kInvalidArgument));
}

// CVE-2018-1059: the same of the ring itself.
TEST_F(PlacementTest, PartsAreMappedWhole) {
  // Each part in turn begins outside, ends outside, or spans two regions.
  const uint64_t ends[] = {kLow - 16, kFar + kFarSize - 16, kAdjacent + kAdjacentSize,
                           kAdjacent - 16, UINT64_MAX - 15};
  for (const uint64_t bad : ends) {
    EXPECT_THAT(Create(8, bad, kAvail, kUsed),
                StatusIs(absl::StatusCode::kInvalidArgument, "descriptor table"));
    EXPECT_THAT(Create(8, kLow, bad, kUsed),
                StatusIs(absl::StatusCode::kInvalidArgument, "avail ring"));
    EXPECT_THAT(Create(8, kLow, kAvail, bad),
                StatusIs(absl::StatusCode::kInvalidArgument, "used ring"));
  }
  // The event fields count: 6 + 2n and 6 + 8n bytes.
  const uint64_t end = kFar + kFarSize;
  EXPECT_OK(Create(8, kLow, end - 22, kUsed));
  EXPECT_THAT(Create(8, kLow, end - 20, kUsed), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(Create(8, kLow, kAvail, end - 72));
  EXPECT_THAT(Create(8, kLow, kAvail, end - 68), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PlacementTest, PartsDoNotOverlap) {
  EXPECT_THAT(Create(8, kLow, kLow, kUsed),
              StatusIs(absl::StatusCode::kInvalidArgument, "overlap"));
  EXPECT_THAT(Create(8, kLow, kLow + 126, kUsed),
              StatusIs(absl::StatusCode::kInvalidArgument, "descriptor table and avail ring"));
  EXPECT_OK(Create(8, kLow, kLow + 128, kUsed));
  EXPECT_THAT(Create(8, kLow, kAvail, kLow + 124),
              StatusIs(absl::StatusCode::kInvalidArgument, "descriptor table and used ring"));
  EXPECT_THAT(Create(8, kLow, kAvail, kAvail + 20),
              StatusIs(absl::StatusCode::kInvalidArgument, "avail ring and used ring"));
  EXPECT_OK(Create(8, kLow, kAvail, kAvail + 24));
}

TEST(SplitRingAddressTest, PartsAtTheTopOfMemoryDoNotOverlapEither) {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kTop = UINT64_MAX - kPage + 1;
  UniqueFd fd(memfd_create("top", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(fd.get(), kPage), 0);
  ASSERT_OK_AND_ASSIGN(auto mapping, GuestMapping::Create(fd.get(), 0, kPage));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, MemoryMap::Create({{kTop, 0, kPage, mapping}}));
  // The table's last byte is the last there is: its end is not representable.
  EXPECT_THAT(SplitRingMemory::Create(*map, {8, UINT64_MAX - 127, UINT64_MAX - 31, kTop}),
              StatusIs(absl::StatusCode::kInvalidArgument, "overlap"));
  EXPECT_OK(SplitRingMemory::Create(*map, {8, UINT64_MAX - 127, kTop + 128, kTop}));
}

TEST(ChainErrorTest, EveryErrorHasANameOfItsOwn) {
  std::vector<std::string> names;
  for (int i = 0; i <= static_cast<int>(ChainError::kUnfinished); ++i) {
    names.emplace_back(ChainErrorName(static_cast<ChainError>(i)));
  }
  for (size_t i = 0; i < names.size(); ++i) {
    EXPECT_NE(names[i], "unknown");
    for (size_t j = i + 1; j < names.size(); ++j) EXPECT_NE(names[i], names[j]);
  }
}

}  // namespace
}  // namespace virtbay
