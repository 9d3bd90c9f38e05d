#include "framework/device/slot_waits.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "framework/base/clock.h"

namespace virtbay {
namespace {

TEST(SlotWaits, CountsWaitsThatGoOn) {
  SlotWaits waits;
  EXPECT_EQ(waits.Read().times, 0u);
  EXPECT_EQ(waits.Read().ns, 0u);
  const uint64_t before = MonotonicNs();
  const uint64_t first = waits.Begin();
  const uint64_t second = waits.Begin();
  EXPECT_EQ(waits.Read().times, 2u);
  const uint64_t now = MonotonicNs();
  while (MonotonicNs() == now) {
  }
  EXPECT_GT(waits.Read().ns, 0u);
  waits.End(first);
  waits.End(second);
  const uint64_t in_all = waits.Read().ns;
  EXPECT_GT(in_all, 0u);
  EXPECT_LE(in_all, 2 * (MonotonicNs() - before));
  EXPECT_EQ(waits.Read().ns, in_all) << "nothing waits any more";
  EXPECT_EQ(waits.Read().times, 2u);
}

TEST(SlotWaits, AReaderNeverSeesTimeGoBack) {
  SlotWaits waits;
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; i < 200'000; ++i) {
      const uint64_t since = waits.Begin();
      const uint64_t other = waits.Begin();
      waits.End(since);
      waits.End(other);
    }
    stop = true;
  });
  SlotWaits::Totals last;
  bool over = false;
  while (!over && !HasFailure()) {
    over = stop;
    const SlotWaits::Totals totals = waits.Read();
    EXPECT_GE(totals.ns, last.ns);
    EXPECT_GE(totals.times, last.times);
    EXPECT_LE(totals.ns, uint64_t{1} << 50);
    last = totals;
  }
  writer.join();
  EXPECT_EQ(waits.Read().times, 400'000u);
}

}  // namespace
}  // namespace virtbay
