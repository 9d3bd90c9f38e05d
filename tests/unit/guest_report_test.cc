// What the host makes of the line that a guest reports.
#include "hostif/swiotlb/guest_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace virtbay::swiotlb {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

constexpr char kFull[] =
    R"({"command":"guest","swiotlb":"0x10000000,67108864","restricted_pools":[)"
    R"({"node":"/reserved-memory/a","swiotlb":"0x5c000000,33554432","slots_used":3,"devices":["/d"]},)"
    R"({"node":"/reserved-memory/b","swiotlb":"none","reason":"?","devices":[]}],)"
    R"("global_pool":{"slots":32768,"slots_used":12},"truncated":true,"later":[1]})";

TEST(GuestReport, Full) {
  ASSERT_OK_AND_ASSIGN(const GuestReport report, ParseGuestReport(kFull));
  EXPECT_EQ(report.capabilities, (GuestCapabilities{0x1000'0000, 64u << 20}));
  EXPECT_EQ(report.reason, "");
  ASSERT_EQ(report.restricted.size(), 2u);
  EXPECT_EQ(report.restricted[0].node, "/reserved-memory/a");
  EXPECT_EQ(report.restricted[0].pool->base, 0x5c00'0000u);
  EXPECT_THAT(report.restricted[0].devices, ElementsAre("/d"));
  EXPECT_FALSE(report.restricted[1].pool.has_value());
  EXPECT_EQ(report.global_slots, 32768u);
  EXPECT_EQ(report.global_slots_used, 12u);
}

TEST(GuestReport, NoneIsAReportToo) {
  ASSERT_OK_AND_ASSIGN(
      const GuestReport report,
      ParseGuestReport(R"({"command":"guest","swiotlb":"none","reason":"no\nsuch \u0001file"})"));
  EXPECT_EQ(report.capabilities, GuestCapabilities());
  EXPECT_EQ(report.reason, "no?such ?file");
}

TEST(GuestReport, RefusesByKey) {
  for (
      const auto& [line, reason] : {
          std::pair<const char*, const char*>{"", "JSON"},
          {"{", "JSON"},
          {"[]", "JSON"},
          {"\"guest\"", "JSON"},
          {"{}", "command: "},
          {R"({"command":"list","swiotlb":"none"})", "command: "},
          {R"({"command":["guest"],"swiotlb":"none"})", "command: "},
          {R"({"command":"guest"})", "swiotlb: "},
          {R"({"command":"guest","swiotlb":0})", "swiotlb: "},
          {R"({"command":"guest","swiotlb":""})", "swiotlb: "},
          {R"({"command":"guest","swiotlb":"0x1000,0"})", "size is 0"},
          {R"({"command":"guest","swiotlb":"0x1001,4096"})", "whole 4 KiB pages"},
          {R"({"command":"guest","swiotlb":"0x1000,8G"})", "above 4 GiB"},
          {R"({"command":"guest","swiotlb":"0xfffffffffffff000,8192"})", "last address"},
          {R"({"command":"guest","swiotlb":"none","reason":5})", "reason: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":{}})", "restricted_pools: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":[1]})", "restricted_pools: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":[{}]})", "swiotlb: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":[{"swiotlb":"none","node":1}]})",
           "node: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":[{"swiotlb":"none","devices":"x"}]})",
           "devices: "},
          {R"({"command":"guest","swiotlb":"none","restricted_pools":[{"swiotlb":"none","devices":[1]}]})",
           "devices: "},
          {R"({"command":"guest","swiotlb":"none","global_pool":[]})", "global_pool: "},
          {R"({"command":"guest","swiotlb":"none","global_pool":{"slots":-1}})", "slots: "},
          {R"({"command":"guest","swiotlb":"none","global_pool":{"slots":1e99}})", "slots: "},
      }) {
    EXPECT_THAT(ParseGuestReport(line), StatusIs(kInvalidArgument, reason)) << line;
  }
}

TEST(GuestReport, AKeyThatIsGivenTwiceIsRefused) {
  EXPECT_THAT(
      ParseGuestReport(R"({"command":"guest","swiotlb":"none","swiotlb":"0x10000000,67108864"})"),
      StatusIs(kInvalidArgument, "'swiotlb': given twice"));
  EXPECT_THAT(ParseGuestReport(R"({"command":"guest","swiotlb":"none","restricted_pools":[
                                  {"swiotlb":"none","node":"a","node":"b"}]})"),
              StatusIs(kInvalidArgument, "'node': given twice"));
}

TEST(GuestReport, IsBounded) {
  const std::string head = R"({"command":"guest","swiotlb":"none",)";
  EXPECT_THAT(
      ParseGuestReport(absl::StrCat(head, R"("reason":")", std::string(70'000, 'x'), "\"}")),
      StatusIs(kInvalidArgument, "longer than"));
  ASSERT_OK_AND_ASSIGN(
      const GuestReport report,
      ParseGuestReport(absl::StrCat(head, R"("reason":")", std::string(60'000, 'x'), "\"}")));
  EXPECT_EQ(report.reason.size(), 256u);
  std::string pools;
  for (int i = 0; i < 257; ++i) absl::StrAppend(&pools, i == 0 ? "" : ",", R"({"swiotlb":"none"})");
  EXPECT_THAT(ParseGuestReport(absl::StrCat(head, R"("restricted_pools":[)", pools, "]}")),
              StatusIs(kInvalidArgument, "at most 256"));
  for (const char* bracket : {"[", "{\"a\":"}) {
    std::string deep = absl::StrCat(head, "\"x\":");
    for (int i = 0; i < 10'000; ++i) deep += bracket;
    EXPECT_THAT(ParseGuestReport(deep), StatusIs(kInvalidArgument, "deeper")) << bracket;
  }
}

// Any damage to a good line: an answer, never more.
TEST(GuestReport, DamagedLines) {
  std::mt19937 random(1);
  const std::string good = kFull;
  for (int i = 0; i < 20'000; ++i) {
    std::string line = good;
    for (size_t n = random() % 4; n > 0; --n) {
      const size_t at = random() % line.size();
      switch (random() % 3) {
        case 0:
          line[at] = static_cast<char>(random());
          break;
        case 1:
          line.erase(at, random() % 8);
          break;
        default:
          line.insert(at, line.substr(random() % line.size(), random() % 8));
      }
      if (line.empty()) line.push_back('{');
    }
    const auto report = ParseGuestReport(line);
    if (!report.ok()) continue;
    EXPECT_LE(report->capabilities.swiotlb_size, uint64_t{1} << 32);
    EXPECT_EQ(report->capabilities.swiotlb_size % 4096, 0u);
  }
}

}  // namespace
}  // namespace virtbay::swiotlb
