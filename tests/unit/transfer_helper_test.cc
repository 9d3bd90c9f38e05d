// Large reads by two threads give what one preadv2 gives.
#include "framework/device/transfer_helper.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "framework/base/unique_fd.h"

namespace virtbay {
namespace {

constexpr uint32_t kMiB = 1 << 20;

class TransferHelperTest : public testing::Test {
 protected:
  void SetUp() override {
    fd_ = UniqueFd(memfd_create("helper", MFD_CLOEXEC));
    ASSERT_TRUE(fd_);
    content_.resize(9 * kMiB / 4 + 123);
    for (size_t i = 0; i < content_.size(); ++i) {
      content_[i] = static_cast<std::byte>((i * 31) ^ (i >> 12) ^ (i >> 20));
    }
    ASSERT_EQ(pwrite(fd_.get(), content_.data(), content_.size(), 0),
              static_cast<ssize_t>(content_.size()));
  }

  // A target of `total` bytes in pieces of `segment` that do not lie next to each other.
  std::vector<iovec> Chain(uint32_t total, uint32_t segment) {
    target_.assign(2 * size_t{total} + segment, std::byte{0xee});
    std::vector<iovec> chain;
    for (uint32_t at = 0; at < total; at += segment) {
      chain.push_back({target_.data() + 2 * size_t{at}, std::min(segment, total - at)});
    }
    return chain;
  }
  static std::vector<std::byte> Gather(const std::vector<iovec>& chain) {
    std::vector<std::byte> all;
    for (const iovec& part : chain) {
      const auto* from = static_cast<const std::byte*>(part.iov_base);
      all.insert(all.end(), from, from + part.iov_len);
    }
    return all;
  }

  UniqueFd fd_;
  std::vector<std::byte> content_;
  std::vector<std::byte> target_;
  TransferHelper helper_{"test+", TransferHelper::Way::kTogether};
};

TEST_F(TransferHelperTest, ReadsWhatIsThereIntoTheRightPlaces) {
  for (const uint32_t segment : {4096u, 4096u * 33, 4 * kMiB}) {
    for (const uint32_t offset : {0u, 16u, 5000u}) {
      for (const uint32_t len : {kMiB / 2, kMiB, kMiB + 1, 2 * kMiB - 4097}) {
        for (const uint32_t position : {0u, 777u}) {
          const std::vector<iovec> chain = Chain(offset + len, segment);
          ASSERT_EQ(helper_.Read(fd_.get(), chain, offset, len, position, 0), len);
          const std::vector<std::byte> all = Gather(chain);
          ASSERT_EQ(memcmp(all.data() + offset, content_.data() + position, len), 0)
              << segment << " " << offset << " " << len << " " << position;
          for (uint32_t i = 0; i < offset; ++i) ASSERT_EQ(all[i], std::byte{0xee});
        }
      }
    }
  }
}

TEST_F(TransferHelperTest, StopsAtTheEndOfTheFile) {
  const auto size = static_cast<uint32_t>(content_.size());
  const std::vector<iovec> chain = Chain(2 * kMiB, 65536);
  for (const uint32_t left : {1u, 4096u, 128u * 1024, 128u * 1024 + 1, kMiB + 5}) {
    EXPECT_EQ(helper_.Read(fd_.get(), chain, 0, 2 * kMiB, size - left, 0), left);
  }
  EXPECT_EQ(helper_.Read(fd_.get(), chain, 0, 2 * kMiB, size, 0), 0);
}

TEST_F(TransferHelperTest, GivesTheErrorOfTheFirstPieceOnly) {
  std::vector<iovec> chain = Chain(kMiB, kMiB);
  EXPECT_EQ(helper_.Read(-1, chain, 0, kMiB, 0, 0), -EBADF);
  // A target that is gone from its fourth piece on.
  void* const hole =
      mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(hole, MAP_FAILED);
  ASSERT_EQ(munmap(static_cast<std::byte*>(hole) + 384 * 1024, kMiB - 384 * 1024), 0);
  chain = {{hole, kMiB}};
  EXPECT_EQ(helper_.Read(fd_.get(), chain, 0, kMiB, 0, 0), 384 * 1024);
  EXPECT_EQ(memcmp(hole, content_.data(), 384 * 1024), 0);
  munmap(hole, 384 * 1024);
  EXPECT_EQ(helper_.Read(fd_.get(), std::vector<iovec>{{nullptr, kMiB}}, 0, kMiB, 0, 0), -EFAULT);
}

TEST_F(TransferHelperTest, ManyInARowNeverMixUp) {
  const std::vector<iovec> chain = Chain(kMiB / 2, kMiB / 2);
  for (uint32_t i = 0; i < 2000; ++i) {
    const uint32_t position = (i * 7919) % (kMiB + 1000);
    // Every other one ends early, so that claims are cut off while the helper wakes up.
    if (i % 2 != 0) {
      ASSERT_EQ(helper_.Read(-1, chain, 0, kMiB / 2, position, 0), -EBADF);
      continue;
    }
    ASSERT_EQ(helper_.Read(fd_.get(), chain, 0, kMiB / 2, position, 0), kMiB / 2);
    ASSERT_EQ(memcmp(target_.data(), content_.data() + position, kMiB / 2), 0) << i;
  }
  cpu_set_t cpus;
  ASSERT_EQ(sched_getaffinity(0, sizeof(cpus), &cpus), 0);
  if (CPU_COUNT(&cpus) > 1) {
    EXPECT_GT(helper_.CpuNs(), 0u);
  }
}

TEST_F(TransferHelperTest, EitherWayReadsTheSame) {
  TransferHelper chooses("chooses+");
  const std::vector<iovec> chain = Chain(kMiB, 65536);
  for (uint32_t i = 0; i < 200; ++i) {
    ASSERT_EQ(chooses.Read(fd_.get(), chain, 0, kMiB, i * 37, 0), kMiB);
    ASSERT_EQ(memcmp(Gather(chain).data(), content_.data() + i * 37, kMiB), 0) << i;
  }
}

TEST_F(TransferHelperTest, AVeryLongReadHasFewPieces) {
  EXPECT_EQ(TransferHelper::Pieces(kMiB), 8u);
  EXPECT_LE(TransferHelper::Pieces(UINT32_MAX), 64u);
}

}  // namespace
}  // namespace virtbay
