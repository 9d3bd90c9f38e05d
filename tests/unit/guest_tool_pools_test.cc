// virtbay-guest's view of a guest: made-up sysfs, debugfs and device trees, sane and not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "hostif/swiotlb/guest/file.h"
#include "hostif/swiotlb/guest/pools.h"
#include "tests/support/temp_dir.h"

namespace virtbay::guest_tool {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using ::virtbay::testing::TempDir;

class FakeGuest {
 public:
  std::string root() const { return dir_.path(); }
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories((dir_ / path).parent_path());
    dir_.Write(path, content);
  }
  void HvPci(const std::string& name, const std::string& content) {
    Write("sys/bus/vmbus/drivers/hv_pci/" + name, content);
  }
  void Node(const std::string& node, const std::string& property, const std::string& content) {
    Write("sys/firmware/devicetree/base" + node + "/" + property, content);
  }
  // The tree of docs/wsl.md: two pools, each for a device of its own.
  void TwoPools() {
    Node("/reserved-memory", "#address-cells", Cells({2}));
    Node("/reserved-memory", "#size-cells", Cells({2}));
    for (const uint32_t i : {0u, 1u}) {
      const std::string node =
          i == 0 ? "/reserved-memory/dmapool@5c000000" : "/reserved-memory/dmapool@5e000000";
      Node(node, "compatible", std::string("restricted-dma-pool\0", 20));
      Node(node, "reg", Cells({0, 0x5c00'0000 + i * 0x200'0000, 0, 0x200'0000}));
      Node(node, "phandle", Cells({0x8001 + i}));
      const std::string device = i == 0 ? "/virtio_mmio@a000000" : "/virtio_mmio@a000200";
      Node(device, "compatible", std::string("virtio,mmio\0", 12));
      Node(device, "memory-region", Cells({0x8001 + i}));
    }
  }
  static std::string Cells(const std::vector<uint32_t>& values) {
    std::string bytes;
    for (const uint32_t value : values) {
      for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(value >> shift);
    }
    return bytes;
  }

 private:
  TempDir dir_;
};

TEST(HvPciPool, AsTheKernelWritesIt) {
  for (const auto& [base, size, expected_base, expected_size] :
       {std::tuple<const char*, const char*, uint64_t, uint64_t>{"0x10000000\n", "67108864\n",
                                                                 0x1000'0000, 64u << 20},
        {"0x10000000", "67108864", 0x1000'0000, 64u << 20},
        {"0xBFE00000\n", "0x200000\n", 0xbfe0'0000, 2u << 20},
        {"0xfffff000\n", "4096\n", 0xffff'f000, 4096},
        {"0x1000\n", "4294963200\n", 0x1000, 0xffff'f000}}) {
    FakeGuest guest;
    guest.HvPci("swiotlb_base", base);
    guest.HvPci("swiotlb_size", size);
    const Pool pool = ReadHvPciPool(guest.root());
    EXPECT_EQ(pool.base, expected_base) << base << pool.reason;
    EXPECT_EQ(pool.size, expected_size) << size << pool.reason;
    EXPECT_EQ(pool.reason, "");
  }
  EXPECT_EQ(FormatOption({0x1000'0000, 64u << 20, ""}), "swiotlb=0x10000000,67108864");
  EXPECT_EQ(FormatOption({0, 0, "none"}), "");
}

TEST(HvPciPool, AnythingElseIsNoneWithAReason) {
  const std::string good_base = "0x10000000\n";
  const std::string good_size = "67108864\n";
  for (const auto& [base, size, reason] :
       {std::tuple<std::string, std::string, const char*>{"", good_size, "swiotlb_base: is empty"},
        {"\n", good_size, "swiotlb_base: is empty"},
        {good_base, "", "swiotlb_size: is empty"},
        {good_base, "\n", "swiotlb_size: is empty"},
        {"10000000\n", good_size, "not a hexadecimal"},
        {"0x\n", good_size, "not a hexadecimal"},
        {"0x1000000g\n", good_size, "not a hexadecimal"},
        {"-0x1000\n", good_size, "not a hexadecimal"},
        {"0x-1000\n", good_size, "not a hexadecimal"},
        {" 0x10000000\n", good_size, "not a hexadecimal"},
        {"0x10000000 \n", good_size, "not a hexadecimal"},
        {"0x10000000\n\n", good_size, "not a hexadecimal"},
        {"0x10000000\r\n", good_size, "not a hexadecimal"},
        {"0x10000000\n0x20000000\n", good_size, "not a hexadecimal"},
        {std::string("0x10000000\0", 11), good_size, "not a hexadecimal"},
        {"0x10000000000000000\n", good_size, "not a hexadecimal"},
        {"(null)\n", good_size, "not a hexadecimal"},
        {std::string(65, '0'), good_size, "longer than 64 bytes"},
        {std::string(1 << 20, '0'), good_size, "longer than 64 bytes"},
        {"0x0\n", good_size, "swiotlb_base: is 0"},
        {"0x10000001\n", good_size, "swiotlb_base: is not the address of a page"},
        {"0x100000000\n", good_size, "above 4 GiB"},
        {"0xfffff000\n", "8192\n", "above 4 GiB"},
        {"0xffffffffffffe000\n", "8192\n", "above 4 GiB"},
        {good_base, "0\n", "swiotlb_size: is 0"},
        {good_base, "64M\n", "swiotlb_size: is not a number"},
        {good_base, "-1\n", "swiotlb_size: is not a number"},
        {good_base, "67108864x\n", "swiotlb_size: is not a number"},
        {good_base, "67108864.0\n", "swiotlb_size: is not a number"},
        {good_base, "18446744073709551616\n", "swiotlb_size: is not a number"},
        {good_base, "67108865\n", "swiotlb_size: is not a number of whole pages"},
        {good_base, "4294967296\n", "above 4 GiB"},
        {good_base, "18446744073709547520\n", "above 4 GiB"},
        {good_base, std::string(100, '1'), "longer than 64 bytes"}}) {
    FakeGuest guest;
    guest.HvPci("swiotlb_base", base);
    guest.HvPci("swiotlb_size", size);
    const Pool pool = ReadHvPciPool(guest.root());
    EXPECT_EQ(pool.base, 0u) << base << size;
    EXPECT_EQ(pool.size, 0u) << base << size;
    EXPECT_THAT(pool.reason, HasSubstr(reason)) << base << size;
  }
}

TEST(HvPciPool, FilesThatAreMissingOrNoFiles) {
  FakeGuest guest;
  EXPECT_THAT(ReadHvPciPool(guest.root()).reason, HasSubstr("has set no pool aside"));
  EXPECT_THAT(ReadHvPciPool(guest.root() + "/missing").reason, HasSubstr("no pool aside"));
  guest.HvPci("swiotlb_base", "0x10000000\n");
  EXPECT_THAT(ReadHvPciPool(guest.root()).reason, HasSubstr("swiotlb_size: there is no such file"));
  std::filesystem::create_directory(guest.root() + "/sys/bus/vmbus/drivers/hv_pci/swiotlb_size");
  EXPECT_THAT(ReadHvPciPool(guest.root()).reason, HasSubstr("swiotlb_size: is not a regular file"));
  FakeGuest fifo;
  fifo.HvPci("swiotlb_size", "4096\n");
  ASSERT_EQ(::mkfifo((fifo.root() + "/sys/bus/vmbus/drivers/hv_pci/swiotlb_base").c_str(), 0600),
            0);
  EXPECT_THAT(ReadHvPciPool(fifo.root()).reason, HasSubstr("not a regular file")) << "and no wait";
}

TEST(RestrictedPools, WithTheirDevices) {
  FakeGuest guest;
  guest.TwoPools();
  guest.Node("/reserved-memory/other@1000", "compatible", std::string("shared-dma-pool\0", 16));
  guest.Node("/pcie@10000000/dev@1,0", "memory-region", FakeGuest::Cells({0x7777, 0x8002}));
  const Report report = ReadReport(guest.root());
  EXPECT_FALSE(report.truncated);
  ASSERT_EQ(report.restricted.size(), 2u);
  EXPECT_EQ(report.restricted[0].node, "/reserved-memory/dmapool@5c000000");
  EXPECT_EQ(report.restricted[0].pool.base, 0x5c00'0000u);
  EXPECT_EQ(report.restricted[0].pool.size, 0x200'0000u);
  EXPECT_THAT(report.restricted[0].devices, ElementsAre("/virtio_mmio@a000000"));
  EXPECT_EQ(report.restricted[1].pool.base, 0x5e00'0000u);
  EXPECT_THAT(report.restricted[1].devices,
              ElementsAre("/pcie@10000000/dev@1,0", "/virtio_mmio@a000200"));
}

TEST(RestrictedPools, FromProcWhereThatIsThePlace) {
  FakeGuest guest;
  guest.TwoPools();
  std::filesystem::create_directory(guest.root() + "/proc");
  std::filesystem::rename(guest.root() + "/sys/firmware/devicetree/base", guest.root() + "/tree");
  std::filesystem::create_symlink("../tree", guest.root() + "/proc/device-tree");
  EXPECT_EQ(ReadReport(guest.root()).restricted.size(), 2u);
}

TEST(RestrictedPools, CellsOfOtherWidths) {
  FakeGuest guest;
  // Nothing said: 2 and 1.
  guest.Node("/reserved-memory/a@1", "compatible", std::string("x\0restricted-dma-pool\0", 22));
  guest.Node("/reserved-memory/a@1", "reg", FakeGuest::Cells({1, 0x1000, 0x2000}));
  const auto pools = ReadReport(guest.root()).restricted;
  ASSERT_EQ(pools.size(), 1u);
  EXPECT_EQ(pools[0].pool.base, 0x1'0000'1000u) << "a restricted pool may be anywhere";
  EXPECT_EQ(pools[0].pool.size, 0x2000u);
  EXPECT_THAT(pools[0].note, HasSubstr("above 4 GiB"));
  EXPECT_THAT(FormatJson(ReadReport(guest.root())),
              HasSubstr(R"("swiotlb":"0x100001000,8192","note":"it reaches above 4 GiB: )"));
  guest.Node("/reserved-memory/a@1", "reg", FakeGuest::Cells({0, 0xffff'f000, 0x2000}));
  EXPECT_THAT(ReadReport(guest.root()).restricted[0].note, HasSubstr("above 4 GiB"));
  guest.Node("/reserved-memory/a@1", "reg", FakeGuest::Cells({0, 0xffff'e000, 0x2000}));
  EXPECT_EQ(ReadReport(guest.root()).restricted[0].note, "");
  guest.Node("/reserved-memory", "#address-cells", FakeGuest::Cells({1}));
  guest.Node("/reserved-memory/a@1", "reg", FakeGuest::Cells({0x4000'0000, 0x2000}));
  EXPECT_EQ(ReadReport(guest.root()).restricted[0].pool.base, 0x4000'0000u);
}

TEST(RestrictedPools, WhatCannotBeReadHasAReason) {
  for (const auto& [reg, reason] :
       {std::pair<std::string, const char*>{"", "whole entries"},
        {"abc", "whole entries"},
        {FakeGuest::Cells({0, 0x1000, 0}), "whole entries"},
        {FakeGuest::Cells({0, 0x1000, 0, 0}), "size is 0"},
        {FakeGuest::Cells({0, 0x1001, 0, 0x1000}), "whole pages"},
        {FakeGuest::Cells({0, 0x1000, 0, 0x1001}), "whole pages"},
        {FakeGuest::Cells({0, 0x1000, 2, 0}), "above 4 GiB"},
        {FakeGuest::Cells({0xffff'ffff, 0xffff'f000, 0, 0x2000}), "wraps"},
        {FakeGuest::Cells({0, 0x1000, 0, 0x1000, 0, 0x8000, 0, 0x1000}), "more than one range"},
        {std::string(8192, '\0'), "no usable reg"}}) {
    FakeGuest guest;
    guest.TwoPools();
    guest.Node("/reserved-memory/dmapool@5c000000", "reg", reg);
    const auto pools = ReadReport(guest.root()).restricted;
    ASSERT_EQ(pools.size(), 2u);
    EXPECT_EQ(pools[0].pool.size, 0u) << reason;
    EXPECT_THAT(pools[0].pool.reason, HasSubstr(reason));
    EXPECT_EQ(pools[1].pool.size, 0x200'0000u) << "the other one is none the worse";
  }
  for (const uint32_t cells : {0u, 4u, 0xffff'ffffu}) {
    FakeGuest guest;
    guest.TwoPools();
    guest.Node("/reserved-memory", "#address-cells", FakeGuest::Cells({cells}));
    EXPECT_THAT(ReadReport(guest.root()).restricted[0].pool.reason, HasSubstr("cells"));
  }
}

TEST(RestrictedPools, ADisabledOneIsNone) {
  FakeGuest guest;
  guest.TwoPools();
  guest.Node("/reserved-memory/dmapool@5c000000", "status", std::string("disabled\0", 9));
  guest.Node("/reserved-memory/dmapool@5e000000", "status", std::string("okay\0", 5));
  const auto pools = ReadReport(guest.root()).restricted;
  ASSERT_EQ(pools.size(), 1u);
  EXPECT_EQ(pools[0].node, "/reserved-memory/dmapool@5e000000");
}

TEST(RestrictedPools, LinksAndDepthEndTheWalk) {
  FakeGuest guest;
  guest.TwoPools();
  const std::string tree = guest.root() + "/sys/firmware/devicetree/base";
  std::filesystem::create_directory_symlink(tree, tree + "/loop");
  EXPECT_FALSE(ReadReport(guest.root()).truncated);
  std::string deep;
  for (int i = 0; i < 40; ++i) deep += "/n";
  guest.Node(deep, "memory-region", FakeGuest::Cells({0x8001}));
  const Report report = ReadReport(guest.root());
  EXPECT_TRUE(report.truncated);
  EXPECT_THAT(report.restricted[0].devices, ElementsAre("/virtio_mmio@a000000"));
}

TEST(Report, FitsALineWhateverTheTreeHolds) {
  FakeGuest guest;
  guest.Node("/reserved-memory", "#size-cells", FakeGuest::Cells({2}));
  for (uint32_t i = 0; i < 80; ++i) {
    const std::string node = "/reserved-memory/" + std::string(200, 'p') + std::to_string(i);
    guest.Node(node, "compatible", std::string("restricted-dma-pool\0", 20));
    guest.Node(node, "reg", FakeGuest::Cells({0, i * 0x1000, 0, 0x1000}));
    guest.Node(node, "phandle", FakeGuest::Cells({i}));
    for (int k = 0; k < 10; ++k) {
      guest.Node("/" + std::string(180, 'd') + std::to_string(i) + "_" + std::to_string(k),
                 "memory-region", FakeGuest::Cells({i}));
    }
  }
  const Report report = ReadReport(guest.root());
  EXPECT_TRUE(report.truncated);
  const std::string line = FormatJson(report);
  EXPECT_LE(line.size(), kMaxLine);
  EXPECT_GT(line.size(), kMaxLine / 2);
  EXPECT_THAT(line, HasSubstr("\"truncated\":true"));
}

TEST(Report, GlobalPoolAndUseOfThePools) {
  FakeGuest guest;
  guest.TwoPools();
  EXPECT_FALSE(ReadReport(guest.root()).global.has_value());
  guest.Write("sys/kernel/debug/swiotlb/io_tlb_nslabs", "32768\n");
  EXPECT_EQ(ReadReport(guest.root()).global->slots, 32768u);
  EXPECT_FALSE(ReadReport(guest.root()).global->slots_used.has_value());
  guest.Write("sys/kernel/debug/swiotlb/io_tlb_used", "12\n");
  // Linux 6.1 and later kernels keep these in different places.
  guest.Write("sys/kernel/debug/dmapool@5c000000/io_tlb_used", "32\n");
  guest.Write("sys/kernel/debug/swiotlb/dmapool@5e000000/io_tlb_used", "nonsense\n");
  const Report report = ReadReport(guest.root());
  EXPECT_EQ(report.global->slots_used, 12u);
  EXPECT_EQ(report.restricted[0].slots_used, 32u);
  EXPECT_FALSE(report.restricted[1].slots_used.has_value());
  EXPECT_EQ(report.restricted[1].slots_used_reason, "io_tlb_used: is not a number");
  EXPECT_EQ(FormatJson(report),
            R"({"command":"guest","swiotlb":"none","reason":"the kernel has set no pool aside for )"
            R"(hv_pci devices: there is no )" +
                guest.root() +
                R"(/sys/bus/vmbus/drivers/hv_pci/swiotlb_base","restricted_pools":[)"
                R"({"node":"/reserved-memory/dmapool@5c000000","swiotlb":"0x5c000000,33554432",)"
                R"("slots_used":32,"devices":["/virtio_mmio@a000000"]},)"
                R"({"node":"/reserved-memory/dmapool@5e000000","swiotlb":"0x5e000000,33554432",)"
                R"("slots_used_reason":"io_tlb_used: is not a number",)"
                R"("devices":["/virtio_mmio@a000200"]}],)"
                R"("global_pool":{"slots":32768,"slots_used":12}})");
}

TEST(Report, AbsurdUseOfAPoolHasAReason) {
  for (const auto& [text, reason] :
       {std::pair<std::string, const char*>{"", "io_tlb_used: is not a number"},
        {"-1\n", "io_tlb_used: is not a number"},
        {"0x20\n", "io_tlb_used: is not a number"},
        {"18446744073709551616\n", "io_tlb_used: is not a number"},
        {"16385\n", "io_tlb_used: is above 16384, the slots there can be"},
        {std::string(100, '1'), "longer than 64 bytes"}}) {
    FakeGuest guest;
    guest.TwoPools();
    guest.Write("sys/kernel/debug/swiotlb/io_tlb_nslabs", "16384\n");
    guest.Write("sys/kernel/debug/swiotlb/io_tlb_used", text);
    guest.Write("sys/kernel/debug/dmapool@5c000000/io_tlb_used", text);
    guest.Write("sys/kernel/debug/dmapool@5e000000/io_tlb_used", "16384\n");
    const Report report = ReadReport(guest.root());
    EXPECT_FALSE(report.restricted[0].slots_used.has_value()) << text;
    EXPECT_THAT(report.restricted[0].slots_used_reason, HasSubstr(reason)) << text;
    EXPECT_EQ(report.restricted[1].slots_used, 16384u) << "all of them";
    EXPECT_EQ(report.global->slots, 16384u);
    EXPECT_FALSE(report.global->slots_used.has_value()) << text;
    EXPECT_THAT(report.global->reason, HasSubstr(reason)) << text;
  }
  FakeGuest guest;
  guest.Write("sys/kernel/debug/swiotlb/io_tlb_nslabs", "many\n");
  guest.Write("sys/kernel/debug/swiotlb/io_tlb_used", "12\n");
  EXPECT_THAT(FormatJson(ReadReport(guest.root())),
              HasSubstr(R"("global_pool":{"reason":"io_tlb_nslabs: is not a number"}})"));
}

TEST(Report, NamesOfAnyBytesStayOneLineOfAscii) {
  Report report;
  RestrictedPool pool;
  pool.node = "/a\"\\\n\x7f\xff";
  pool.pool.reason = "b\t";
  pool.devices.emplace_back("c\x01");
  report.restricted.push_back(pool);
  const std::string line = FormatJson(report);
  for (const char c : line) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << line;
  EXPECT_THAT(line, HasSubstr(R"("node":"/a\"\\\u000a\u007f\u00ff")"));
}

TEST(Pool, AnyTexts) {
  std::mt19937 random(1);
  constexpr char kAlphabet[] = "0129x\n -M";
  int good = 0;
  for (int i = 0; i < 200000; ++i) {
    std::string texts[2] = {"0x1", "8"};
    for (std::string& text : texts) {
      for (size_t length = random() % 5; length > 0; --length) {
        text += kAlphabet[random() % (sizeof(kAlphabet) - 1)];
      }
    }
    texts[0] += "000";
    const Pool pool = ParsePool(texts[0], texts[1]);
    EXPECT_EQ(pool.size == 0, !pool.reason.empty());
    EXPECT_EQ(pool.size == 0, pool.base == 0);
    EXPECT_EQ(pool.base % 4096 + pool.size % 4096, 0u);
    EXPECT_LE(pool.base + pool.size, uint64_t{1} << 32);
    good += pool.size != 0;
  }
  EXPECT_GT(good, 0);
}

TEST(ReadFile, IsBounded) {
  TempDir dir;
  const std::string path = dir.Write("f", "1234");
  EXPECT_EQ(ReadFile(path, 4).text, "1234");
  EXPECT_THAT(ReadFile(path, 3).why, HasSubstr("longer than 3 bytes"));
  EXPECT_EQ(ReadFile(path, 3).text, "");
  EXPECT_TRUE(ReadFile(path + "/x", 4).missing);
  EXPECT_THAT(ReadFile(dir.path(), 4).why, HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace virtbay::guest_tool
