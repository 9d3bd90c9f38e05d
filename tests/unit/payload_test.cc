#include "framework/memory/payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <random>
#include <vector>

namespace virtbay {
namespace {

// A chain cut from a flat buffer, with gaps between the pieces, and what its bytes are.
struct Chain {
  std::vector<unsigned char> memory;
  std::vector<iovec> segments;
  std::vector<unsigned char> flat;

  explicit Chain(const std::vector<size_t>& sizes) {
    constexpr size_t kGap = 8;
    memory.assign(std::accumulate(sizes.begin(), sizes.end(), (sizes.size() + 1) * kGap), 0xee);
    size_t at = kGap;
    unsigned char next = 1;
    for (const size_t size : sizes) {
      segments.push_back({memory.data() + at, size});
      for (size_t i = 0; i < size; ++i) {
        memory[at + i] = next;
        flat.push_back(next++);
      }
      at += size + kGap;
    }
  }
  // The chain's bytes as they are now.
  std::vector<unsigned char> Bytes() const {
    std::vector<unsigned char> bytes;
    for (const iovec& s : segments) {
      const auto* p = static_cast<const unsigned char*>(s.iov_base);
      bytes.insert(bytes.end(), p, p + s.iov_len);
    }
    return bytes;
  }
};

TEST(Payload, EveryLengthInOneSegment) {
  for (size_t len = 0; len <= 200; ++len) {
    Chain chain({210});
    std::vector<unsigned char> to(len + 2, 0x55);
    EXPECT_EQ(CopyFromSegments(chain.segments, 7, to.data() + 1, len), len);
    EXPECT_TRUE(std::equal(to.begin() + 1, to.end() - 1, chain.flat.begin() + 7)) << len;
    EXPECT_EQ(to.front(), 0x55);
    EXPECT_EQ(to.back(), 0x55);

    const std::vector<unsigned char> from(len, 0xa0);
    const auto memory = chain.memory;
    EXPECT_EQ(CopyToSegments(chain.segments, 3, from.data(), len), len);
    for (size_t i = 0; i < memory.size(); ++i) {
      const bool written = i >= 8 + 3 && i < 8 + 3 + len;
      ASSERT_EQ(chain.memory[i], written ? 0xa0 : memory[i]) << len << " at " << i;
    }
  }
}

TEST(Payload, EndsWhereTheSegmentsEnd) {
  Chain chain({3, 0, 5});
  unsigned char to[16] = {};
  EXPECT_EQ(CopyFromSegments(chain.segments, 0, to, 16), 8u);
  EXPECT_EQ(CopyFromSegments(chain.segments, 6, to, 16), 2u);
  EXPECT_EQ(CopyFromSegments(chain.segments, 8, to, 16), 0u);
  EXPECT_EQ(CopyFromSegments(chain.segments, UINT64_MAX, to, 16), 0u);
  EXPECT_EQ(CopyToSegments(chain.segments, 7, to, 16), 1u);
  EXPECT_EQ(CopyToSegments(chain.segments, UINT64_MAX - 3, to, 16), 0u);
  EXPECT_EQ(CopyFromSegments({}, 0, to, 1), 0u);
  EXPECT_EQ(CopyFromSegments({}, 0, to, 0), 0u);
  EXPECT_EQ(CopyToSegments(chain.segments, 0, to, 0), 0u);
}

TEST(Payload, AgreesWithAModel) {
  std::mt19937 random(2);
  for (int round = 0; round < 3000; ++round) {
    std::vector<size_t> sizes(1 + random() % 6);
    for (size_t& size : sizes) size = random() % 90;
    Chain chain(sizes);
    const size_t total = chain.flat.size();
    const size_t offset = random() % (total + 4);
    const size_t len = random() % (total + 8);
    const size_t there = offset >= total ? 0 : std::min(len, total - offset);

    std::vector<unsigned char> to(len + 1, 0x55);
    ASSERT_EQ(CopyFromSegments(chain.segments, offset, to.data(), len), there);
    ASSERT_TRUE(
        std::equal(to.begin(), to.begin() + static_cast<std::ptrdiff_t>(there),
                   chain.flat.begin() + static_cast<std::ptrdiff_t>(offset * (there != 0))));
    ASSERT_EQ(to[there], 0x55);

    std::vector<unsigned char> from(len);
    for (unsigned char& c : from) c = static_cast<unsigned char>(random());
    std::vector<unsigned char> expected = chain.flat;
    std::copy_n(from.begin(), there,
                expected.begin() + static_cast<std::ptrdiff_t>(offset * (there != 0)));
    ASSERT_EQ(CopyToSegments(chain.segments, offset, from.data(), len), there);
    ASSERT_EQ(chain.Bytes(), expected);
    // Nothing between the segments was touched.
    ASSERT_EQ(static_cast<size_t>(std::count(chain.memory.begin(), chain.memory.begin() + 8, 0xee)),
              8u);

    std::array<iovec, 8> slice;
    const size_t count = SliceSegments(chain.segments, offset, len, slice);
    if (len == 0 || there != len) {
      ASSERT_EQ(count, 0u);
      continue;
    }
    std::vector<unsigned char> bytes;
    for (size_t i = 0; i < count; ++i) {
      ASSERT_NE(slice[i].iov_len, 0u);
      const auto* p = static_cast<const unsigned char*>(slice[i].iov_base);
      bytes.insert(bytes.end(), p, p + slice[i].iov_len);
    }
    ASSERT_TRUE(std::equal(bytes.begin(), bytes.end(),
                           expected.begin() + static_cast<std::ptrdiff_t>(offset)));
    ASSERT_EQ(bytes.size(), len);
  }
}

TEST(Payload, SliceIsCutWhenThereIsNoRoom) {
  Chain chain({10, 10, 10, 10});
  std::array<iovec, 2> slice;
  EXPECT_EQ(SliceSegments(chain.segments, 5, 35, slice), 2u);
  EXPECT_EQ(slice[0].iov_len, 5u);
  EXPECT_EQ(slice[1].iov_len, 10u);
  // Beyond the end is refused even where the part that fits would not reach it.
  EXPECT_EQ(SliceSegments(chain.segments, 5, 36, slice), 0u);
  EXPECT_EQ(SliceSegments(chain.segments, 0, UINT64_MAX, slice), 0u);
  EXPECT_EQ(SliceSegments(chain.segments, UINT64_MAX, UINT64_MAX, slice), 0u);
  EXPECT_EQ(SliceSegments(chain.segments, 0, 0, slice), 0u);
  EXPECT_EQ(SliceSegments(chain.segments, 0, 10, {}), 0u);
}

}  // namespace
}  // namespace virtbay
