// Split against packed: the same chains, good and bad, through a ring of each layout, with the same
// results in the same order.
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "framework/virtq/packed_ring.h"
#include "framework/virtq/split_ring.h"
#include "hostif/guest/driver_queue.h"
#include "hostif/guest/guest_memory.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::guest::DriverQueue;
using ::virtbay::guest::GuestMemory;
using ::virtbay::guest::Segment;
using ::virtbay::guest::UsedBuffer;

constexpr uint64_t kMemory = uint64_t{1} << 20;
constexpr uint64_t kBase = 0x10'0000;

// What the device saw of one chain: guest addresses, so that both can be compared.
struct Seen {
  ChainError error = ChainError::kNone;
  std::vector<std::pair<uint64_t, uint64_t>> readable, writable;
  uint64_t readable_bytes = 0;
  uint64_t writable_bytes = 0;

  bool operator==(const Seen&) const = default;
};

// A driver and a device of one layout over the same guest addresses.
template <typename Ring>
class Rig {
 public:
  using Memory = typename Ring::Memory;
  static constexpr bool kPacked = std::is_same_v<Memory, PackedRingMemory>;

  absl::Status Init(uint16_t size, uint16_t indirect_max, bool event_idx, bool in_order) {
    VIRTBAY_ASSIGN_OR_RETURN(memory_, GuestMemory::Create(kMemory, kBase));
    VIRTBAY_ASSIGN_OR_RETURN(rings_, GuestMemory::Create(kMemory, kBase + 4 * kMemory));
    VIRTBAY_ASSIGN_OR_RETURN(
        driver_, DriverQueue::Create(rings_.get(), {.ring = {.size = size,
                                                             .indirect_max = indirect_max,
                                                             .event_idx = event_idx,
                                                             .packed = kPacked,
                                                             .in_order = in_order}}));
    VIRTBAY_ASSIGN_OR_RETURN(const MemoryMapRef data, memory_->ToMemoryMap());
    VIRTBAY_ASSIGN_OR_RETURN(const MemoryMapRef rings, rings_->ToMemoryMap());
    std::vector<MemoryRegion> regions = data->regions();
    regions.push_back(rings->regions()[0]);
    VIRTBAY_ASSIGN_OR_RETURN(map_, MemoryMap::Create(std::move(regions)));
    const guest::RingAddresses at = driver_->ring().addresses();
    VIRTBAY_ASSIGN_OR_RETURN(const Memory memory,
                             Memory::Create(*map_, {size, at.descriptors, at.avail, at.used}));
    device_.emplace(memory, kPacked ? kPackedFreshPosition : 0u, indirect_max != 0);
    return absl::OkStatus();
  }

  DriverQueue& driver() { return *driver_; }
  Ring& device() { return *device_; }

  bool HasNext() { return device_->Available() > 0 && device_->More(); }
  Seen Pop() {
    Chain chain;
    Seen seen;
    seen.error = device_->Pop(*map_, &chain);
    // Of a chain that is refused it says no more than which one that is.
    if (seen.error == ChainError::kNone) {
      for (const iovec& part : chain.readable()) seen.readable.push_back(Where(part));
      for (const iovec& part : chain.writable()) seen.writable.push_back(Where(part));
      seen.readable_bytes = chain.readable_bytes();
      seen.writable_bytes = chain.writable_bytes();
    }
    held_.emplace_back(std::move(chain), seen.error);
    return seen;
  }
  size_t held() const { return held_.size(); }
  // Answers the index-th of those that are held.
  void Answer(size_t index, uint32_t written) {
    const auto& [chain, error] = held_[index];
    device_->PushUsed({chain.head(), static_cast<uint16_t>(chain.ring_descriptors()), written,
                       error == ChainError::kNone && chain.writable_bytes() == 0});
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  std::vector<std::pair<uint64_t, uint32_t>> Take() {
    std::array<UsedBuffer, 8> used;
    std::vector<std::pair<uint64_t, uint32_t>> taken;
    const size_t count = driver_->TakeUsed(used);
    for (size_t i = 0; i < count; ++i) taken.emplace_back(used[i].token, used[i].written);
    return taken;
  }

 private:
  std::pair<uint64_t, uint64_t> Where(const iovec& part) const {
    const auto* at = static_cast<const std::byte*>(part.iov_base);
    for (const MemoryRegion& region : map_->regions()) {
      if (at >= region.host() && at < region.host() + region.size) {
        return {region.guest_address + static_cast<uint64_t>(at - region.host()), part.iov_len};
      }
    }
    return {0, part.iov_len};
  }

  std::unique_ptr<GuestMemory> memory_;
  std::unique_ptr<GuestMemory> rings_;
  std::unique_ptr<DriverQueue> driver_;
  MemoryMapRef map_;
  std::optional<Ring> device_;
  std::vector<std::pair<Chain, ChainError>> held_;
};

// One pair of rings through `turns` random steps. The driver's direct chains take up the same
// descriptors in both, so that both are full at the same time.
template <bool kEventIdx, bool kInOrder>
void Compare(uint32_t seed, uint32_t turns) {
  SCOPED_TRACE(::testing::Message()
               << "seed " << seed << ", event_idx " << kEventIdx << ", in order " << kInOrder);
  std::mt19937_64 random(seed);
  const auto dice = [&](uint64_t n) { return random() % n; };
  const auto size = static_cast<uint16_t>(1u << dice(9));
  const auto indirect_max = static_cast<uint16_t>(dice(2) == 0 ? 0 : 1 + dice(16));
  Rig<SplitRing<kEventIdx, kInOrder>> split;
  Rig<PackedRing<kEventIdx, kInOrder>> packed;
  ASSERT_OK(split.Init(size, indirect_max, kEventIdx, kInOrder));
  ASSERT_OK(packed.Init(size, indirect_max, kEventIdx, kInOrder));
  uint64_t added = 0;
  uint64_t taken = 0;
  uint64_t refused = 0;
  for (uint32_t turn = 0; turn < turns; ++turn) {
    switch (dice(5)) {
      case 0:
      case 1: {
        // Mostly good buffers; some beyond memory, some in the wrong order of directions.
        std::vector<Segment> readable, writable;
        const uint64_t segments = 1 + dice(8);
        for (uint64_t i = 0; i < segments; ++i) {
          const Segment segment{dice(40) == 0 ? 0x10 : kBase + dice(kMemory - 5000),
                                static_cast<uint32_t>(dice(8) == 0 ? 0 : dice(5000))};
          (dice(2) == 0 ? readable : writable).push_back(segment);
        }
        const bool fits = split.driver().Add(readable, writable, added);
        ASSERT_EQ(packed.driver().Add(readable, writable, added), fits);
        if (fits) ++added;
        break;
      }
      case 2:
        split.driver().Publish();
        packed.driver().Publish();
        break;
      case 3:
        while (split.HasNext()) {
          ASSERT_TRUE(packed.HasNext());
          const Seen seen = split.Pop();
          ASSERT_EQ(packed.Pop(), seen);
          ASSERT_FALSE(BreaksRing(seen.error)) << ChainErrorName(seen.error);
          refused += seen.error != ChainError::kNone;
          if (dice(4) == 0) break;
        }
        ASSERT_EQ(split.HasNext(), packed.HasNext());
        break;
      default: {
        ASSERT_EQ(split.held(), packed.held());
        for (uint64_t n = dice(split.held() + 1); n > 0; --n) {
          const size_t which = kInOrder ? 0 : dice(split.held());
          const auto written = static_cast<uint32_t>(kInOrder ? 0 : dice(100'000));
          split.Answer(which, written);
          packed.Answer(which, written);
        }
        ASSERT_EQ(split.device().PublishUsed(), packed.device().PublishUsed());
        for (;;) {
          const auto used = split.Take();
          ASSERT_EQ(packed.Take(), used);
          if (used.empty()) break;
          taken += used.size();
        }
        ASSERT_EQ(split.driver().ring().in_flight(), packed.driver().ring().in_flight());
        ASSERT_EQ(split.driver().ring().free_descriptors(),
                  packed.driver().ring().free_descriptors());
      }
    }
  }
  EXPECT_EQ(split.driver().ring().device_errors(), 0u);
  EXPECT_EQ(packed.driver().ring().device_errors(), 0u);
  EXPECT_GT(taken, turns / 100);
  if (size > 4) {
    EXPECT_GT(refused, 0u) << "bad chains were among them";
  }
}

TEST(LayoutTest, SplitAndPackedAgree) {
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    Compare<false, false>(seed, 4000);
    Compare<true, false>(seed + 1000, 4000);
    Compare<false, true>(seed + 2000, 4000);
    Compare<true, true>(seed + 3000, 4000);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace virtbay
