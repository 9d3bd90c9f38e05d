// The texts around a guest's bounce pool.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "hostif/swiotlb/option.h"
#include "tests/support/status_matchers.h"

namespace virtbay::swiotlb {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::StatusIs;

constexpr uint64_t kMiB = 1 << 20;

TEST(SwiotlbOption, Parses) {
  for (const auto& [text, base, size] :
       {std::tuple<const char*, uint64_t, uint64_t>{"0x10000000,67108864", 0x1000'0000, 64 * kMiB},
        {"0x10000000,64m", 0x1000'0000, 64 * kMiB},
        {"0X1c0000000,64M", 0x1'c000'0000, 64 * kMiB},
        {"0x0,4096k", 0, 4 * kMiB},
        {"0x40000000,1g", 0x4000'0000, 1024 * kMiB},
        {"0x40000000,0x4000000", 0x4000'0000, 64 * kMiB}}) {
    const auto pool = ParseOption(text);
    ASSERT_TRUE(pool.ok()) << text << " " << pool.status();
    EXPECT_EQ(pool->base, base) << text;
    EXPECT_EQ(pool->size, size) << text;
  }
  EXPECT_EQ(FormatOption({0x1000'0000, 64 * kMiB}), "0x10000000,67108864");
}

TEST(SwiotlbOption, RefusesEverythingElse) {
  for (const char* text : {"",
                           ",",
                           "lowmem",
                           "0x10000000",
                           "0x10000000,",
                           ",1048576",
                           "10000000,1048576",
                           "0x,1048576",
                           "0x1000,0",
                           "0x1001,1m",
                           "0x1000,1048577",
                           "0x1000,-1048576",
                           "0x1000,1048576 ",
                           " 0x1000,1048576",
                           "0x1000,1m,1m",
                           "0x1000,1048576mm",
                           "0x1000,m",
                           "0xg000,1048576",
                           "0x1000,18014398509481985k",
                           "0xfffffffffff00000,2m",
                           "0xfffffffffff00000,1m",
                           "0x10000000000000000,1048576",
                           "0x1000,99999999999999999999"}) {
    EXPECT_THAT(ParseOption(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
    EXPECT_THAT(ParsePool(text), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(std::string(ParseOption("0x1001,1m").status().message()),
              HasSubstr("whole 4 KiB pages"));
  EXPECT_EQ(ParseOption("0x1000,1m,some").status().message(),
            "'0x1000,1m,some': is not of the form 0xBASE,SIZE");
}

TEST(SwiotlbOption, RefusesWhatNoDeviceCanWorkWith) {
  for (const char* small : {"0x1000,4096", "0x1000,252k"}) {
    EXPECT_TRUE(ParsePool(small).ok()) << small;
    EXPECT_THAT(ParseOption(small),
                StatusIs(absl::StatusCode::kInvalidArgument, "is smaller than 256 KiB"));
  }
  EXPECT_TRUE(ParseOption("0x1000,256k").ok());
}

TEST(SwiotlbSize, FollowsTheGuestsMemory) {
  EXPECT_EQ(DefaultPoolSize(0), 0u);
  EXPECT_EQ(DefaultPoolSize(1024 * kMiB), 0u);
  EXPECT_EQ(DefaultPoolSize(1088 * kMiB - 1), 0u);
  EXPECT_EQ(DefaultPoolSize(1088 * kMiB), 64 * kMiB);
  EXPECT_EQ(DefaultPoolSize(UINT64_MAX), 64 * kMiB);
  EXPECT_EQ(RoundPoolSize(0), 0u);
  EXPECT_EQ(RoundPoolSize(1), 2 * kMiB);
  EXPECT_EQ(RoundPoolSize(2 * kMiB), 2 * kMiB);
  EXPECT_EQ(RoundPoolSize(2 * kMiB + 1), 4 * kMiB);
  EXPECT_EQ(RoundPoolSize(UINT64_MAX), 0u);
}

TEST(SwiotlbCommandLine, AsksForBothOrNothing) {
  EXPECT_EQ(KernelCommandLine(0), "");
  EXPECT_EQ(KernelCommandLine(64 * kMiB), "swiotlb=force hv_pci_swiotlb=67108864");
}

}  // namespace
}  // namespace virtbay::swiotlb
