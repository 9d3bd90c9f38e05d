#include "framework/memory/memory_map.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "framework/base/unique_fd.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::StatusIs;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

UniqueFd Memfd(uint64_t size, unsigned flags = MFD_CLOEXEC) {
  UniqueFd fd(memfd_create("memory-map-test", flags));
  EXPECT_TRUE(fd.valid());
  EXPECT_EQ(ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

std::shared_ptr<const GuestMapping> Mapping(uint64_t size) {
  const UniqueFd fd = Memfd(size);
  auto mapping = GuestMapping::Create(fd.get(), 0, size);
  EXPECT_OK(mapping);
  return *mapping;
}

TEST(GuestMapping, SeesTheFileAtAnyOffset) {
  const UniqueFd fd = Memfd(5 * 4096);
  ASSERT_EQ(pwrite(fd.get(), "guest", 5, 2 * 4096 + 100), 5);
  ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 2 * 4096 + 100, 4096));
  EXPECT_EQ(mapping->size(), 4096u);
  EXPECT_EQ(std::memcmp(mapping->data(), "guest", 5), 0);
  std::memcpy(mapping->data() + 4091, "reply", 5);  // the last bytes: on the next page of the file
  char text[5];
  ASSERT_EQ(pread(fd.get(), text, 5, 2 * 4096 + 100 + 4091), 5);
  EXPECT_EQ(std::memcmp(text, "reply", 5), 0);
  EXPECT_FALSE(mapping->poisoned());
}

TEST(GuestMapping, OutlivesTheDescriptor) {
  UniqueFd fd = Memfd(4096);
  ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 0, 4096));
  fd.reset();
  mapping->data()[4095] = std::byte{1};
  EXPECT_EQ(mapping->data()[4095], std::byte{1});
}

TEST(GuestMapping, RefusesRangesThatAreNotInTheFile) {
  const UniqueFd fd = Memfd(8192);
  EXPECT_THAT(GuestMapping::Create(fd.get(), 0, 0), StatusIs(kInvalid));
  EXPECT_THAT(GuestMapping::Create(fd.get(), 0, 8193), StatusIs(kInvalid, "beyond its file"));
  EXPECT_THAT(GuestMapping::Create(fd.get(), 8192, 1), StatusIs(kInvalid, "beyond its file"));
  EXPECT_THAT(GuestMapping::Create(fd.get(), UINT64_MAX - 10, 4096), StatusIs(kInvalid));
  EXPECT_THAT(GuestMapping::Create(fd.get(), 4096, UINT64_MAX), StatusIs(kInvalid));
  EXPECT_THAT(GuestMapping::Create(fd.get(), 0, uint64_t{1} << 63), StatusIs(kInvalid));
  EXPECT_OK(GuestMapping::Create(fd.get(), 8191, 1));
}

TEST(GuestMapping, RefusesWhatCannotBeMapped) {
  EXPECT_FALSE(GuestMapping::Create(-1, 0, 4096).ok());
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  EXPECT_FALSE(GuestMapping::Create(read_end.get(), 0, 4096).ok());
  const UniqueFd read_only(open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(GuestMapping::Create(read_only.get(), 0, 4096),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST(GuestMapping, SealsAgainstShrinkingWhereItCan) {
  const UniqueFd fd = Memfd(8192, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  ASSERT_OK_AND_ASSIGN(const auto mapping, GuestMapping::Create(fd.get(), 0, 8192));
  EXPECT_NE(fcntl(fd.get(), F_GET_SEALS) & F_SEAL_SHRINK, 0);
  EXPECT_NE(ftruncate(fd.get(), 0), 0);
  // Growing is the front-end's business (memory hotplug).
  EXPECT_EQ(ftruncate(fd.get(), 16384), 0);
}

TEST(GuestMapping, HugePages) {
  UniqueFd fd(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB));
  if (!fd.valid()) {
    EXPECT_TRUE(errno == ENOSYS || errno == EINVAL || errno == ENODEV) << errno;
    return;  // a kernel without huge pages
  }
  constexpr uint64_t kHuge = uint64_t{2} << 20;
  ASSERT_EQ(ftruncate(fd.get(), 2 * kHuge), 0);
  // The offset is in the middle of a huge page; without pages reserved it is an error, not a fault.
  const auto mapping = GuestMapping::Create(fd.get(), kHuge + 4096, 8192);
  if (mapping.ok()) {
    (*mapping)->data()[0] = std::byte{7};
    EXPECT_EQ((*mapping)->data()[0], std::byte{7});
  } else {
    EXPECT_THAT(mapping.status().message(), ::testing::HasSubstr("mmap"));
  }
}

MemoryRegion Region(uint64_t guest, uint64_t user, uint64_t size) {
  return {guest, user, size, Mapping(size)};
}

TEST(MemoryMap, TranslatesInsideOneRegion) {
  // Given out of order; the second and third touch.
  ASSERT_OK_AND_ASSIGN(
      const MemoryMapRef map,
      MemoryMap::Create({Region(0x10000, 0x7000'0000, 0x2000), Region(0x1000, 0x5000'0000, 0x1000),
                         Region(0x12000, 0x6000'0000, 0x1000)}));
  EXPECT_EQ(map->total_size(), 0x4000u);
  ASSERT_EQ(map->regions().size(), 3u);
  EXPECT_EQ(map->regions()[0].guest_address, 0x1000u);

  std::byte* data = nullptr;
  EXPECT_EQ(map->Translate(0x1000, 16, &data), 16u);
  EXPECT_EQ(data, map->regions()[0].host());
  EXPECT_EQ(map->Translate(0x1ff0, 0x100, &data), 0x10u);
  EXPECT_EQ(data, map->regions()[0].host() + 0xff0);
  EXPECT_EQ(map->Translate(0x2000, 1, &data), 0u);
  EXPECT_EQ(map->Translate(0xfff, 1, &data), 0u);
  EXPECT_EQ(map->Translate(0xffff, 1, &data), 0u);
  // Adjacent regions are not joined.
  EXPECT_EQ(map->Translate(0x11ff8, 16, &data), 8u);
  EXPECT_EQ(map->Translate(0x12000, 16, &data), 16u);
  EXPECT_EQ(data, map->regions()[2].host());
  EXPECT_EQ(map->Translate(UINT64_MAX, 1, &data), 0u);

  EXPECT_EQ(map->TranslateWhole(0x1000, 0x1000), map->regions()[0].host());
  EXPECT_EQ(map->TranslateWhole(0x1000, 0x1001), nullptr);
  EXPECT_EQ(map->TranslateWhole(0x1000, 0), nullptr);
  EXPECT_EQ(map->TranslateWhole(0x11ff8, 16), nullptr);
  EXPECT_EQ(map->TranslateWhole(0x1001, UINT64_MAX), nullptr);
  EXPECT_FALSE(map->poisoned());
}

TEST(MemoryMap, UserAddresses) {
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map,
                       MemoryMap::Create({Region(0x1000, 0x7000'0000, 0x1000),
                                          Region(0x10000, 0x5000'0000, 0x1000)}));
  EXPECT_THAT(map->UserToGuest(0x5000'0010, 0x20), IsOkAndHolds(0x10010u));
  EXPECT_THAT(map->UserToGuest(0x7000'0000, 0x1000), IsOkAndHolds(0x1000u));
  EXPECT_THAT(map->UserToGuest(0x7000'0000, 0x1001), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(map->UserToGuest(0x7000'1000, 0), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(map->UserToGuest(0x7000'0001, UINT64_MAX), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(map->UserToGuest(0, 1), StatusIs(absl::StatusCode::kOutOfRange));
}

TEST(MemoryMap, LastByteOfTheAddressSpace) {
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map,
                       MemoryMap::Create({Region(UINT64_MAX - 0xfff, UINT64_MAX - 0xfff, 0x1000)}));
  std::byte* data = nullptr;
  EXPECT_EQ(map->Translate(UINT64_MAX, 8, &data), 1u);
  EXPECT_EQ(data, map->regions()[0].host() + 0xfff);
  EXPECT_THAT(map->UserToGuest(UINT64_MAX, 1), IsOkAndHolds(UINT64_MAX));
}

TEST(MemoryMap, EmptyMapTranslatesNothing) {
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, MemoryMap::Create({}));
  std::byte* data = nullptr;
  EXPECT_EQ(map->Translate(0, 1, &data), 0u);
  EXPECT_EQ(map->total_size(), 0u);
}

TEST(MemoryMap, RefusesBadTables) {
  EXPECT_THAT(MemoryMap::Create({Region(0x1000, 0x1000, 0x1000), Region(0x1fff, 0x9000, 0x1000)}),
              StatusIs(kInvalid, "overlaps the region at guest address 0x1000"));
  EXPECT_THAT(MemoryMap::Create({Region(0x1000, 0x1000, 0x1000), Region(0x9000, 0x1800, 0x1000)}),
              StatusIs(kInvalid, "in user addresses"));
  EXPECT_THAT(MemoryMap::Create({Region(0x1000, 0, 0x1000), Region(0x1000, 0x9000, 0x1000)}),
              StatusIs(kInvalid, "overlaps"));
  EXPECT_THAT(MemoryMap::Create({Region(UINT64_MAX, 0, 0x1000)}), StatusIs(kInvalid, "wraps"));
  EXPECT_THAT(MemoryMap::Create({Region(0, UINT64_MAX - 1, 0x1000)}), StatusIs(kInvalid, "wraps"));
  MemoryRegion region = Region(0, 0, 0x1000);
  region.size = 0x1001;
  EXPECT_THAT(MemoryMap::Create({region}), StatusIs(kInvalid, "larger than its mapping"));
  region.size = 0;
  EXPECT_THAT(MemoryMap::Create({region}), StatusIs(kInvalid, "empty"));
  EXPECT_THAT(MemoryMap::Create({{0, 0, 0x1000, nullptr}}), StatusIs(kInvalid));
}

TEST(MemoryMap, HoldsAsManyRegionsAsVhostUserHas) {
  const auto mapping = Mapping(0x1000);
  std::vector<MemoryRegion> regions;
  for (uint64_t i = 0; i < 509; ++i) {
    regions.push_back({i * 0x2000, 0x1'0000'0000 - i * 0x1000, 0x1000, mapping});
  }
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, MemoryMap::Create(regions));
  for (uint64_t i = 0; i < 509; ++i) {
    EXPECT_NE(map->TranslateWhole(i * 0x2000, 0x1000), nullptr);
    EXPECT_EQ(map->TranslateWhole(i * 0x2000 + 0x1000, 1), nullptr);
  }
  regions.push_back({1 << 30, 0x2'0000'0000, 0x1000, mapping});
  EXPECT_THAT(MemoryMap::Create(regions), StatusIs(kInvalid, "at most 509"));
}

TEST(MemoryMap, KeepsItsMappings) {
  ASSERT_OK_AND_ASSIGN(MemoryMapRef map, MemoryMap::Create({Region(0, 0, 0x1000)}));
  const MemoryMapRef held = map;
  const std::weak_ptr<const GuestMapping> mapping = map->regions()[0].mapping;
  map.reset();
  EXPECT_FALSE(mapping.expired());
  *held->TranslateWhole(0, 1) = std::byte{1};
}

}  // namespace
}  // namespace virtbay
