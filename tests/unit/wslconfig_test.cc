// What a .wslconfig asks of a device host.
#include "hostif/wsl/wslconfig.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/status_matchers.h"

namespace virtbay::wsl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(WslConfig, Defaults) {
  ASSERT_OK_AND_ASSIGN(const WslConfig config, ParseWslConfig("", "f"));
  EXPECT_TRUE(config.virtio);
  EXPECT_FALSE(config.virtiofs);
  EXPECT_FALSE(config.proxy_network);
  EXPECT_TRUE(config.aggregate_shares);
  EXPECT_EQ(config.swiotlb, 0u);
  EXPECT_EQ(config.memory, std::nullopt);
  EXPECT_FALSE(config.serves_shares());
}

TEST(WslConfig, ARealFile) {
  ASSERT_OK_AND_ASSIGN(const WslConfig config,
                       ParseWslConfig(R"(# Settings apply across all distributions
[wsl2]
memory=4GB # Limits VM memory
processors=2
kernel=C:\\temp\\myCustomKernel
kernelModules=C:\Users\me\modules.vhdx
kernelCommandLine = vsyscall=emulate
swap=8GB
swapfile=C:\\temp\\wsl-swap.vhdx
localhostforwarding=true
nestedVirtualization=false
guiApplications="yes, # please"
VirtioFS = TRUE
networkingmode=Consomme

[Experimental]
sparseVhd=true
autoMemoryReclaim=gradual
SWIOTLB=16M
virtioFsAggregateShares=false
)",
                                      "f"));
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(config.memory, 4 * kGiB);
  EXPECT_TRUE(config.serves_shares());
  EXPECT_TRUE(config.serves_network());
  EXPECT_EQ(config.swiotlb, 16 * kMiB);
  EXPECT_FALSE(config.aggregate_shares);
}

TEST(WslConfig, NetworkingModes) {
  for (const auto& [mode, proxy] : {std::pair<const char*, bool>{"virtioproxy", true},
                                    {"VirtioProxy", true},
                                    {"consomme", true},
                                    {"nat", false},
                                    {"NAT", false},
                                    {"mirrored", false},
                                    {"bridged", false},
                                    {"none", false}}) {
    for (const char* section : {"wsl2", "experimental"}) {
      ASSERT_OK_AND_ASSIGN(
          const WslConfig config,
          ParseWslConfig(std::string("[") + section + "]\nnetworkingMode=" + mode, "f"));
      EXPECT_EQ(config.proxy_network, proxy) << mode;
    }
  }
}

TEST(WslConfig, TheFirstOfTwoCounts) {
  ASSERT_OK_AND_ASSIGN(
      const WslConfig config,
      ParseWslConfig("[wsl2]\nvirtiofs=true\nnetworkingMode=nat\nVIRTIOFS=x\n[experimental]\n"
                     "networkingMode=consomme\n",
                     "f"));
  EXPECT_TRUE(config.virtiofs);
  EXPECT_FALSE(config.proxy_network);
  EXPECT_THAT(config.warnings,
              ElementsAre(HasSubstr("f:4: wsl2.virtiofs: given before, in line 2"),
                          HasSubstr("f:6: experimental.networkingMode: given before, in line 3")));
}

TEST(WslConfig, RefusesWithLineAndKey) {
  for (const auto& [text, reason] : {
           std::pair<const char*, const char*>{"[wsl2]\nvirtiofs=maybe\n",
                                               "f:2: wsl2.virtiofs: 'maybe' is neither"},
           {"[wsl2]\n\nvirtiofs=\n", "f:3: wsl2.virtiofs: ''"},
           {"[wsl2]\nmemory=lots\n", "f:2: wsl2.memory: 'lots' is not a size"},
           {"[wsl2]\nmemory=4 GB\n", "f:2: wsl2.memory: '4 GB'"},
           {"[wsl2]\nmemory=-1\n", "f:2: wsl2.memory: '-1'"},
           {"[wsl2]\nmemory=99999999999999999999\n", "f:2: wsl2.memory: "},
           {"[wsl2]\nNETWORKINGMODE=vpn\n", "f:2: wsl2.networkingMode: 'vpn' is none of"},
           {"[experimental]\nswiotlb=some\n", "f:2: experimental.swiotlb: 'some'"},
           {"[experimental]\nswiotlb=0x4000000\n", "f:2: experimental.swiotlb: "},
           {"[experimental]\nswiotlb=4GB\n", "f:2: experimental.swiotlb: '4GB' is 4 GiB or more"},
           {"[experimental]\nvirtioFsAggregateShares=2\n",
            "f:2: experimental.virtioFsAggregateShares: '2'"},
           {"[wsl2]\nmemory=\"4GB\n", "f:2: wsl2.memory: a quote is missing"},
           {"[wsl2]\nmemory=4\\GB\n", "f:2: wsl2.memory: a backslash"},
           {"[wsl2]\nvirtio=\n", "f:2: wsl2.virtio: "},
           {"[wsl2\n", "f:1: "},
       }) {
    EXPECT_THAT(ParseWslConfig(text, "f"), StatusIs(kInvalidArgument, reason)) << text;
  }
}

TEST(WslConfig, WithoutVirtioThereIsNothing) {
  ASSERT_OK_AND_ASSIGN(
      const WslConfig config,
      ParseWslConfig("[wsl2]\nvirtio=false\nvirtiofs=true\nnetworkingMode=consomme\n"
                     "[experimental]\nswiotlb=64M\n",
                     "f"));
  EXPECT_FALSE(config.serves_shares());
  EXPECT_FALSE(config.serves_network());
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 0u);
  EXPECT_THAT(config.warnings, ElementsAre(HasSubstr("swiotlb has no effect")));
}

TEST(WslConfig, MemoryStrings) {
  for (const auto& [text, bytes] : {std::pair<const char*, uint64_t>{"0", 0},
                                    {"1", 1},
                                    {"1B", 1},
                                    {"1K", 1024},
                                    {"1KB", 1024},
                                    {"4096K", 4 * kMiB},
                                    {"64M", 64 * kMiB},
                                    {"100MB", 100 * kMiB},
                                    {"8GB", 8 * kGiB},
                                    {"8gb", 8 * kGiB},
                                    {"9g", 9 * kGiB},
                                    {"1TB", kGiB << 10},
                                    {"2T", kGiB << 11},
                                    {"18446744073709551615", UINT64_MAX}}) {
    EXPECT_EQ(ParseMemory(text), bytes) << text;
  }
  for (const char* text : {"", "K", "M4", "1 M", " 1M", "1M ", "1MiB", "1BB", "1P", "+1", "-1",
                           "1.5G", "0x10", "18446744073709551616", "16777216T"}) {
    EXPECT_EQ(ParseMemory(text), std::nullopt) << text;
  }
}

TEST(WslConfig, ThePoolFollowsTheRule) {
  WslConfig config;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 0u) << "nothing needs it";
  config.virtiofs = true;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 64 * kMiB);
  EXPECT_EQ(PoolSize(config, 2 * kGiB), 0u) << "half of the host's memory is too little";
  EXPECT_EQ(PoolSize(config, 2 * (kGiB + 64 * kMiB)), 64 * kMiB);
  config.memory = kGiB + 64 * kMiB - 1;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 0u);
  config.memory = kGiB + 64 * kMiB;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 64 * kMiB);
  EXPECT_EQ(PoolSize(config, kGiB), 0u) << "a guest never has more than the host";
  config.swiotlb = 3 * kMiB;
  config.memory = 512 * kMiB;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 4 * kMiB) << "set: whatever the memory, whole 2 MiB";
  config.virtiofs = false;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 4 * kMiB);
  config.swiotlb = 0;
  config.proxy_network = true;
  config.memory = 8 * kGiB;
  EXPECT_EQ(PoolSize(config, 64 * kGiB), 64 * kMiB);
  config.memory = 1;
  EXPECT_EQ(GuestMemory(config, 64 * kGiB), 256 * kMiB);
  EXPECT_EQ(GuestMemory(config, 128 * kMiB), 128 * kMiB);
}

}  // namespace
}  // namespace virtbay::wsl
