// A device's named counters.
#include "framework/device/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace virtbay {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(MetricsTest, TheFirstCallSaysWhatItIs) {
  Metrics metrics;
  uint64_t* const cell = metrics.Cell("open", "", MetricKind::kGauge);
  EXPECT_EQ(metrics.Cell("open", "", MetricKind::kCounter), cell);
  metrics.Cell("opened", "");
  EXPECT_THAT(metrics.Kinds(),
              ElementsAre(Pair("open", MetricKind::kGauge), Pair("opened", MetricKind::kCounter)));
}

TEST(MetricsTest, TheSameNameIsTheSameCell) {
  Metrics metrics;
  uint64_t* const cell = metrics.Cell("lookups", "first help");
  ASSERT_NE(cell, nullptr);
  EXPECT_EQ(*cell, 0u);
  EXPECT_EQ(metrics.Cell("lookups", "another help"), cell);
  EXPECT_NE(metrics.Cell("lookup", ""), cell);
  *cell = 7;
  EXPECT_THAT(metrics.Values(), ElementsAre(Pair("lookup", 0), Pair("lookups", 7)));
  EXPECT_THAT(metrics.Help(), ElementsAre(Pair("lookup", ""), Pair("lookups", "first help")));
}

TEST(MetricsTest, NamesAreLowerSnake) {
  Metrics metrics;
  for (const char* good : {"a", "a1", "a_b_c", "bytes_total", "z9_"}) {
    EXPECT_NE(metrics.Cell(good, ""), nullptr) << good;
  }
  EXPECT_NE(metrics.Cell(std::string(64, 'a'), ""), nullptr);
  for (const char* bad :
       {"", "A", "aB", "_a", "1a", "a-b", "a b", "a\n", "\xc3\xa4", "a{b=\"c\"}"}) {
    EXPECT_EQ(metrics.Cell(bad, ""), nullptr) << bad;
  }
  EXPECT_EQ(metrics.Cell(std::string(65, 'a'), ""), nullptr);
  EXPECT_EQ(metrics.Cell(absl::string_view("a\0b", 3), ""), nullptr);
}

TEST(MetricsTest, ThereIsRoomForSoManyAndNoMore) {
  Metrics metrics;
  std::set<uint64_t*> cells;
  for (uint32_t i = 0; i < Metrics::kMaxCells; ++i) {
    uint64_t* const cell = metrics.Cell(absl::StrCat("cell", i), "");
    ASSERT_NE(cell, nullptr);
    EXPECT_TRUE(cells.insert(cell).second);
  }
  EXPECT_EQ(metrics.Cell("one_more", ""), nullptr);
  EXPECT_EQ(metrics.Cell("cell7", ""), metrics.Cell("cell7", "")) << "the others are still there";
  EXPECT_EQ(metrics.Values().size(), Metrics::kMaxCells);
}

TEST(MetricsTest, CellsMayBeMadeChangedAndReadAtOnce) {
  Metrics metrics;
  constexpr int kThreads = 4;
  constexpr int kRounds = 2000;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kRounds; ++i) {
        uint64_t* const cell = metrics.Cell(absl::StrCat("shared", i % 10), "help");
        __atomic_fetch_add(cell, 1, __ATOMIC_RELAXED);
        if (t == 0 && i % 100 == 0) {
          metrics.Values();
          metrics.Help();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (const auto& [name, value] : metrics.Values()) sum += value;
  EXPECT_EQ(sum, uint64_t{kThreads} * kRounds);
}

}  // namespace
}  // namespace virtbay
