// The guest's bounce pool and its slices.
#include "hostif/swiotlb/guest_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hostif/swiotlb/option.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"

namespace virtbay::swiotlb {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::LogCapture;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

constexpr uint64_t kMiB = 1 << 20;
constexpr GuestCapabilities kGuest{0x1000'0000, 64 * kMiB};

size_t Count(const LogCapture& log, const std::string& part) {
  size_t count = 0;
  for (const std::string& line : log.lines()) {
    if (line.find(part) != std::string::npos) ++count;
  }
  return count;
}
size_t Warnings(const LogCapture& log) { return Count(log, "hv_pci_swiotlb"); }

TEST(GuestPool, IsAppliedOnce) {
  LogCapture log;
  GuestPool pool(log.log(), /*requested=*/true);
  EXPECT_FALSE(pool.available());
  EXPECT_THAT(pool.Take("a", 0), StatusIs(kFailedPrecondition));
  EXPECT_OK(pool.Apply(kGuest));
  EXPECT_TRUE(pool.available());
  EXPECT_OK(pool.Apply(kGuest)) << "the same again";
  EXPECT_THAT(pool.Apply({0x2000'0000, 64 * kMiB}), StatusIs(kAlreadyExists));
  EXPECT_THAT(pool.Apply({0x1000'0000, 32 * kMiB}), StatusIs(kAlreadyExists));
  EXPECT_EQ(Warnings(log), 0u);
}

TEST(GuestPool, AGuestWithoutOneIsWarnedOfOnceAndOnlyIfItWasAskedFor) {
  for (const bool requested : {true, false}) {
    LogCapture log;
    GuestPool pool(log.log(), requested);
    EXPECT_OK(pool.Apply({0, 0}));
    EXPECT_OK(pool.Apply({0, 0}));
    EXPECT_FALSE(pool.available());
    EXPECT_EQ(Warnings(log), requested ? 1u : 0u);
  }
}

TEST(GuestPool, ThatThereIsNoneChangesNothing) {
  LogCapture log;
  GuestPool pool(log.log(), /*requested=*/true);
  EXPECT_OK(pool.Apply({0, 0}));
  EXPECT_OK(pool.Apply({0, 64 * kMiB}));
  EXPECT_FALSE(pool.available());
  EXPECT_OK(pool.Apply(kGuest)) << "a report that came too early denies nobody the pool";
  EXPECT_TRUE(pool.available());
  ASSERT_OK(pool.Take("a", 0));
  EXPECT_FALSE(log.Contains("which stays"));
  for (int i = 0; i < 3; ++i) {
    EXPECT_OK(pool.Apply({0, 0}));
    EXPECT_OK(pool.Apply({0x1000'0000, 0}));
  }
  EXPECT_TRUE(pool.available());
  ASSERT_OK(pool.Take("b", 0));
  EXPECT_EQ(Count(log, "no bounce pool after 0x10000000,67108864, which stays"), 1u);
  EXPECT_OK(pool.Apply(kGuest));
  EXPECT_THAT(pool.Apply({0x2000'0000, 64 * kMiB}), StatusIs(kAlreadyExists));
  EXPECT_EQ(Warnings(log), 1u);
}

TEST(GuestPool, ADeviceThatWantsASliceMakesItsLackWorthAWarning) {
  LogCapture before;
  GuestPool early(before.log(), /*requested=*/false);
  early.Request();
  EXPECT_EQ(Warnings(before), 0u) << "nothing is known of the guest yet";
  EXPECT_OK(early.Apply({0, 0}));
  early.Request();
  EXPECT_EQ(Warnings(before), 1u);

  LogCapture after;
  GuestPool late(after.log(), /*requested=*/false);
  EXPECT_OK(late.Apply({0, 0}));
  EXPECT_EQ(Warnings(after), 0u);
  late.Request();
  late.Request();
  EXPECT_EQ(Warnings(after), 1u);

  LogCapture with;
  GuestPool there(with.log(), /*requested=*/false);
  there.Request();
  EXPECT_OK(there.Apply(kGuest));
  EXPECT_EQ(Warnings(with), 0u);
}

TEST(GuestPool, DevicesThatComeBeforeThePoolAreWorthOneWarning) {
  LogCapture log;
  GuestPool pool(log.log(), /*requested=*/false);
  EXPECT_FALSE(pool.Want("a", 0));
  EXPECT_EQ(Count(log, "device a: wants the guest's bounce pool, and the guest has not reported"),
            1u);
  EXPECT_EQ(Count(log, "every request's header and reply is copied once more"), 1u);
  EXPECT_FALSE(pool.Want("huge", 1024 * kMiB));
  EXPECT_FALSE(pool.Want("gone", 1024 * kMiB));
  EXPECT_OK(pool.Apply({0, 0}));
  EXPECT_EQ(Count(log, "warn"), 1u);
  pool.Release("gone");

  // What comes of them when there is one after all.
  ASSERT_OK(pool.Apply(kGuest));
  EXPECT_EQ(Count(log, "device a: was added before the guest's bounce pool was known"), 1u);
  EXPECT_EQ(Count(log,
                  "device huge: does without the guest's bounce pool, in which there are no "
                  "1073741824 bytes in one piece; 67108864 are left"),
            1u);
  EXPECT_EQ(Count(log, "device gone"), 0u);
  EXPECT_TRUE(pool.Want("b", 0));
  EXPECT_THAT(pool.Take("huge", 1024 * kMiB),
              StatusIs(kResourceExhausted,
                       "device huge: no 1073741824 bytes in one piece in the guest's bounce pool; "
                       "67108864 are left"));
}

TEST(GuestPool, AnAbandonedSliceIsNobodysAnyMore) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply(kGuest));
  ASSERT_OK_AND_ASSIGN(const Aperture lost, pool.Take("a", 16 * kMiB));
  pool.Abandon("a");
  pool.Abandon("a");
  pool.Abandon("nobody");
  pool.Release("a");
  EXPECT_EQ(pool.free_bytes(), 48 * kMiB);
  EXPECT_THAT(pool.Take("b", 64 * kMiB), StatusIs(kResourceExhausted));
  ASSERT_OK_AND_ASSIGN(const Aperture slice, pool.Take("a", 48 * kMiB));
  EXPECT_EQ(slice.base, lost.base + lost.size) << "the name is free, the memory is not";
  pool.Release("a");
  EXPECT_EQ(pool.free_bytes(), 48 * kMiB);
}

TEST(GuestPool, IsSharedWholeOrInSlices) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  EXPECT_THAT(pool.TakeAll("a"), StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_OK(pool.Apply(kGuest));
  for (const char* device : {"a", "b"}) {
    ASSERT_OK_AND_ASSIGN(const Aperture all, pool.TakeAll(device));
    EXPECT_EQ(all.base, kGuest.swiotlb_base);
    EXPECT_EQ(all.size, kGuest.swiotlb_size);
  }
  EXPECT_THAT(pool.TakeAll("a"), StatusIs(kAlreadyExists));
  EXPECT_THAT(pool.Take("a", 0), StatusIs(kAlreadyExists));
  EXPECT_THAT(pool.Take("c", 0), StatusIs(absl::StatusCode::kFailedPrecondition, "device a"));
  pool.Release("a");
  EXPECT_THAT(pool.Take("c", 0), StatusIs(absl::StatusCode::kFailedPrecondition, "device b"));
  pool.Release("b");
  ASSERT_OK(pool.Take("c", 0).status());
  EXPECT_THAT(pool.TakeAll("a"),
              StatusIs(kFailedPrecondition,
                       "device a: cannot have 0x10000000,67108864 of the guest's memory: device c "
                       "has 0x10000000,8388608"));
  pool.Abandon("c");
  EXPECT_THAT(pool.TakeAll("a"), StatusIs(absl::StatusCode::kFailedPrecondition, "may still"));
}

TEST(GuestPool, ASharerThatMayStillWriteLeavesNoSlices) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply(kGuest));
  ASSERT_OK(pool.TakeAll("a").status());
  pool.Abandon("a");
  EXPECT_THAT(pool.Take("b", 0), StatusIs(absl::StatusCode::kFailedPrecondition, "may still"));
  EXPECT_OK(pool.TakeAll("a")) << "the others share with it in any case";
}

TEST(GuestPool, ExhaustionNamesWhatIsLeftAndItsLargestPiece) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply(kGuest));
  for (const char* device : {"a", "b", "c", "d"}) ASSERT_OK(pool.Take(device, 16 * kMiB));
  pool.Release("a");
  pool.Release("c");
  EXPECT_EQ(
      std::string(pool.Take("e", 20 * kMiB).status().message()),
      "device e: no 20971520 bytes in one piece in the guest's bounce pool; 33554432 are left, "
      "at most 16777216 of them in one piece");
}

TEST(GuestPool, RangesGivenByHandMeetNoOther) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  const Aperture range{0x5c00'0000, 32 * kMiB};
  ASSERT_OK(pool.Claim("a", range, /*shared=*/false));
  EXPECT_THAT(pool.Claim("a", {0x1000'0000, kMiB}, false), StatusIs(kAlreadyExists));
  for (const bool shared : {false, true}) {
    EXPECT_EQ(std::string(pool.Claim("b", range, shared).message()),
              "device b: cannot have 0x5c000000,33554432 of the guest's memory: device a has "
              "0x5c000000,33554432");
    for (const Aperture& other : {Aperture{0x5c00'0000 - 4096, 8192},
                                  {0x5c00'0000 + 32 * kMiB - 4096, 8192},
                                  {0x5c00'0000 + kMiB, 4096},
                                  {0x5000'0000, 1024 * kMiB}}) {
      EXPECT_THAT(pool.Claim("b", other, shared), StatusIs(kFailedPrecondition, "device a has"))
          << other.base;
    }
  }
  EXPECT_OK(pool.Claim("below", {0x5c00'0000 - 4096, 4096}, false));
  EXPECT_OK(pool.Claim("above", {0x5c00'0000 + 32 * kMiB, 4096}, false));
  pool.Release("a");
  EXPECT_OK(pool.Claim("b", range, false));
}

TEST(GuestPool, RangesGivenByHandAreSharedByThoseThatSaySo) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  const Aperture range{kGuest.swiotlb_base, kGuest.swiotlb_size};
  ASSERT_OK(pool.Claim("a", range, /*shared=*/true));
  ASSERT_OK(pool.Claim("b", range, true));
  EXPECT_THAT(pool.Claim("c", range, false), StatusIs(kFailedPrecondition, "device c: "));
  EXPECT_THAT(pool.Claim("c", {range.base, range.size - 4096}, true),
              StatusIs(kFailedPrecondition, "device a has 0x10000000,67108864"));
  ASSERT_OK(pool.Apply(kGuest));
  EXPECT_OK(pool.TakeAll("c")) << "the same room, and all of them say that they share it";
  EXPECT_THAT(pool.Take("d", 0), StatusIs(kFailedPrecondition, "device a has all of it"));
  pool.Abandon("a");
  EXPECT_TRUE(log.Contains("is lost to devices that do not share it"));
  pool.Release("b");
  pool.Release("c");
  EXPECT_THAT(pool.Claim("d", {range.base, 4096}, false),
              StatusIs(kFailedPrecondition,
                       "device a, which was removed, may still write to 0x10000000,67108864"));
  EXPECT_OK(pool.Claim("a", range, true));
}

TEST(GuestPool, SlicesGoAroundRangesGivenByHand) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  // Neither begins nor ends where a slice does, and one reaches into the pool from before it.
  ASSERT_OK(pool.Claim("before", {kGuest.swiotlb_base - 4096, 8192}, false));
  ASSERT_OK(pool.Claim("in", {kGuest.swiotlb_base + 20 * kMiB - 4096, 8192}, false));
  ASSERT_OK(pool.Claim("elsewhere", {0x8000'0000, 4096}, false));
  ASSERT_OK(pool.Apply(kGuest));
  EXPECT_EQ(pool.free_bytes(), 58 * kMiB);
  ASSERT_OK_AND_ASSIGN(const Aperture first, pool.Take("a", 16 * kMiB));
  EXPECT_EQ(first.base, kGuest.swiotlb_base + 2 * kMiB);
  ASSERT_OK_AND_ASSIGN(const Aperture second, pool.Take("b", 2 * kMiB));
  EXPECT_EQ(second.base, kGuest.swiotlb_base + 22 * kMiB);
  EXPECT_THAT(pool.Claim("late", {second.base, 4096}, false),
              StatusIs(kFailedPrecondition, "device b has 0x11600000,2097152"));
  EXPECT_THAT(pool.TakeAll("all"), StatusIs(kFailedPrecondition, "device a has"));
  pool.Release("in");
  ASSERT_OK_AND_ASSIGN(const Aperture third, pool.Take("c", 2 * kMiB));
  EXPECT_EQ(third.base, kGuest.swiotlb_base + 18 * kMiB);
}

TEST(GuestPool, RefusesWhatCannotBeOne) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  for (const GuestCapabilities& guest : {GuestCapabilities{0x1000'0001, 64 * kMiB},
                                         {0x1000'0000, 64 * kMiB + 1},
                                         {UINT64_MAX - 4095, 8192},
                                         {0x1000'0000, kMiB},
                                         {0x1010'0000, 2 * kMiB}}) {
    EXPECT_THAT(pool.Apply(guest), StatusIs(kInvalidArgument)) << guest.swiotlb_base;
  }
  EXPECT_OK(pool.Apply(kGuest)) << "nothing was applied before";
}

TEST(GuestPool, SharesAreEqualAlignedAndPrivate) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply(kGuest));
  for (int i = 0; i < 8; ++i) {
    ASSERT_OK_AND_ASSIGN(const Aperture slice, pool.Take(absl::StrCat("d", i), 0));
    EXPECT_EQ(slice.size, 8 * kMiB);
    EXPECT_EQ(slice.base, kGuest.swiotlb_base + static_cast<uint64_t>(i) * 8 * kMiB);
  }
  EXPECT_EQ(pool.free_bytes(), 0u);
  const auto none = pool.Take("late", 3 * kMiB);
  EXPECT_THAT(none, StatusIs(kResourceExhausted));
  EXPECT_THAT(std::string(none.status().message()),
              HasSubstr("device late: no 4194304 bytes in one piece in the guest's bounce pool; 0 "
                        "are left, at most 0"));
  EXPECT_THAT(pool.Take("d3", 0), StatusIs(kAlreadyExists));
  pool.Release("d3");
  pool.Release("d3");
  pool.Release("nobody");
  ASSERT_OK_AND_ASSIGN(const Aperture again, pool.Take("late", 3 * kMiB));
  EXPECT_EQ(again.base, kGuest.swiotlb_base + 24 * kMiB);
  EXPECT_EQ(again.size, 4 * kMiB) << "rounded up to 2 MiB";
  EXPECT_THAT(pool.Take("huge", UINT64_MAX), StatusIs(kResourceExhausted));
}

TEST(GuestPool, SaysWhatAPoolLosesThatIsNotAligned) {
  LogCapture aligned;
  GuestPool whole(aligned.log(), false);
  ASSERT_OK(whole.Apply(kGuest));
  EXPECT_FALSE(aligned.Contains("whole units"));
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply({0x1010'0000, 62 * kMiB + 4096}));
  EXPECT_TRUE(log.Contains("the guest's bounce pool is 0x10100000,65015808"));
  EXPECT_TRUE(
      log.Contains("come from 0x10200000,62914560, since they are made of whole units of 2 "
                   "MiB: 2101248 bytes of it"));
}

TEST(GuestPool, SlicesNeverOverlap) {
  LogCapture log;
  GuestPool pool(log.log(), false);
  ASSERT_OK(pool.Apply({0x1010'0000, 62 * kMiB}));  // its ends are not aligned
  std::mt19937 random(1);
  std::map<std::string, Aperture> held;
  for (int i = 0; i < 5000; ++i) {
    const std::string name = absl::StrCat("d", random() % 24);
    if (held.contains(name)) {
      pool.Release(name);
      held.erase(name);
      continue;
    }
    if (random() % 4 == 0) {
      const Aperture range{0x1000'0000 + random() % (64 * kMiB / 4096) * 4096,
                           (1 + random() % 1024) * 4096};
      const absl::Status claimed = pool.Claim(name, range, false);
      const bool apart = std::all_of(held.begin(), held.end(), [&](const auto& other) {
        return range.base + range.size <= other.second.base ||
               other.second.base + other.second.size <= range.base;
      });
      EXPECT_EQ(claimed.ok(), apart) << claimed;
      if (apart) held[name] = range;
      continue;
    }
    const auto slice = pool.Take(name, (random() % 9) * kMiB);
    if (!slice.ok()) continue;
    EXPECT_EQ(slice->base % kPoolUnit, 0u);
    EXPECT_GE(slice->base, 0x1010'0000u);
    EXPECT_LE(slice->base + slice->size, 0x1010'0000u + 62 * kMiB);
    for (const auto& [other, there] : held) {
      EXPECT_TRUE(slice->base + slice->size <= there.base ||
                  there.base + there.size <= slice->base);
    }
    held[name] = *slice;
  }
  for (const auto& [name, slice] : held) pool.Release(name);
  EXPECT_EQ(pool.free_bytes(), 60 * kMiB);
}

}  // namespace
}  // namespace virtbay::swiotlb
