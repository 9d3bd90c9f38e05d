// The device side of both ring layouts against the driver side of hostif/guest over random chains,
// two threads that sleep by the notification rules, and a driver that rewrites everything
// meanwhile.
#include <poll.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "framework/base/sanitized.h"
#include "framework/virtq/packed_ring.h"
#include "framework/virtq/split_ring.h"
#include "hostif/guest/driver_queue.h"
#include "hostif/guest/guest_memory.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::guest::DriverQueue;
using ::virtbay::guest::GuestMemory;
using ::virtbay::guest::GuestRange;
using ::virtbay::guest::Segment;
using ::virtbay::guest::UsedBuffer;

constexpr uint64_t kKiB = 1024;

uint64_t Total(std::span<const iovec> segments) {
  uint64_t total = 0;
  for (const iovec& segment : segments) total += segment.iov_len;
  return total;
}

// ---- against the driver side of hostif/guest ----------------------------------------------------

struct PairOptions {
  uint16_t size;
  uint16_t indirect_max;
  bool event_idx;
  bool packed = false;
  bool in_order = false;
};

std::ostream& operator<<(std::ostream& out, const PairOptions& o) {
  return out << "size " << o.size << ", indirect " << o.indirect_max << ", event_idx "
             << o.event_idx << (o.packed ? ", packed" : ", split")
             << (o.in_order ? ", in order" : "");
}

class DifferentialTest : public ::testing::TestWithParam<PairOptions> {};

guest::QueueOptions DriverOptions(const PairOptions& options) {
  return {.ring = {.size = options.size,
                   .indirect_max = options.indirect_max,
                   .event_idx = options.event_idx,
                   .packed = options.packed,
                   .in_order = options.in_order}};
}

// The device side of any layout and mode behind one interface.
class DeviceRing {
 public:
  static absl::StatusOr<DeviceRing> Create(const MemoryMap& map, const guest::RingAddresses& at,
                                           const PairOptions& options) {
    const RingAddresses where{options.size, at.descriptors, at.avail, at.used};
    const bool indirect = options.indirect_max != 0;
    DeviceRing ring;
    if (options.packed) {
      VIRTBAY_ASSIGN_OR_RETURN(const auto memory, PackedRingMemory::Create(map, where));
      ring.Make<PackedRing>(memory, kPackedFreshPosition, options, indirect);
    } else {
      VIRTBAY_ASSIGN_OR_RETURN(const auto memory, SplitRingMemory::Create(map, where));
      ring.Make<SplitRing>(memory, 0, options, indirect);
    }
    return ring;
  }
  template <typename F>
  auto With(F f) {
    return std::visit(f, *ring_);
  }

 private:
  template <template <bool, bool> class Ring, typename Memory>
  void Make(const Memory& memory, uint32_t position, const PairOptions& options, bool indirect) {
    if (options.event_idx) {
      if (options.in_order) {
        ring_.emplace(Ring<true, true>(memory, position, indirect));
      } else {
        ring_.emplace(Ring<true, false>(memory, position, indirect));
      }
    } else if (options.in_order) {
      ring_.emplace(Ring<false, true>(memory, position, indirect));
    } else {
      ring_.emplace(Ring<false, false>(memory, position, indirect));
    }
  }

  std::optional<std::variant<SplitRing<false>, SplitRing<true>, SplitRing<false, true>,
                             SplitRing<true, true>, PackedRing<false>, PackedRing<true>,
                             PackedRing<false, true>, PackedRing<true, true>>>
      ring_;
};

UsedEntry Used(const Chain& chain, uint32_t written) {
  return {chain.head(), static_cast<uint16_t>(chain.ring_descriptors()), written,
          chain.writable_bytes() == 0};
}

TEST_P(DifferentialTest, BothSidesSeeTheSameBytes) {
  const PairOptions options = GetParam();
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(4096 * kKiB));
  ASSERT_OK_AND_ASSIGN(auto driver, DriverQueue::Create(memory.get(), DriverOptions(options)));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(DeviceRing device,
                       DeviceRing::Create(*map, driver->ring().addresses(), options));
  ASSERT_OK_AND_ASSIGN(const GuestRange data, memory->Allocate(1024 * kKiB));

  struct Buffer {
    std::vector<Segment> readable, writable;
    std::string sent;
    uint32_t room = 0;
    uint32_t written = 0;
    std::string reply;
  };
  std::mt19937_64 random(options.size * 1000u + options.indirect_max * 2u + options.event_idx);
  const auto dice = [&](uint64_t n) { return random() % n; };
  std::deque<Buffer> buffers;  // index = token - first
  uint64_t first = 0;
  std::vector<Chain> held;  // popped by the device, not answered

  // Each buffer in flight owns a stripe of the data area; stripes are reused in turn.
  constexpr uint64_t kStripe = 2048;
  const uint64_t stripes = data.size / kStripe;
  std::vector<bool> stripe_used(stripes);

  // More than 65536 chains, so that every index wraps.
  constexpr uint64_t kChains = 70'000;
  uint64_t added = 0;
  uint64_t answered = 0;
  uint64_t taken = 0;
  while (taken < kChains) {
    switch (dice(4)) {
      case 0: {  // the driver adds a few
        for (uint64_t n = dice(options.size) + 1; n > 0 && added < kChains; --n) {
          const uint64_t stripe = added % stripes;
          if (stripe_used[stripe]) break;
          Buffer buffer;
          uint64_t at = data.address + stripe * kStripe;
          const uint64_t most = std::max<uint64_t>(options.size, options.indirect_max);
          const uint64_t segments = 1 + dice(std::min<uint64_t>(most, 12));
          const uint64_t readable = dice(segments + 1);
          for (uint64_t i = 0; i < segments; ++i) {
            const uint32_t len = static_cast<uint32_t>(dice(6) == 0 ? 0 : dice(kStripe / 12));
            if (i < readable) {
              for (uint32_t b = 0; b < len; ++b) buffer.sent.push_back(static_cast<char>(random()));
              std::memcpy(memory->Translate(at, kStripe / 12),
                          buffer.sent.data() + buffer.sent.size() - len, len);
              buffer.readable.push_back({at, len});
            } else {
              buffer.writable.push_back({at, len});
              buffer.room += len;
            }
            at += len;
          }
          if (!driver->ring().Add(buffer.readable, buffer.writable, added)) break;
          stripe_used[stripe] = true;
          buffers.push_back(std::move(buffer));
          ++added;
        }
        driver->ring().Publish();
        break;
      }
      case 1: {  // the device takes what is there
        const int32_t available = device.With([](auto& ring) { return ring.Available(); });
        ASSERT_GE(available, 0);
        for (int32_t n = available == 0
                             ? 0
                             : static_cast<int32_t>(dice(static_cast<uint64_t>(available) + 1));
             n > 0 && device.With([](auto& ring) { return ring.More(); }); --n) {
          Chain chain;
          ASSERT_EQ(device.With([&](auto& ring) { return ring.Pop(*map, &chain); }),
                    ChainError::kNone);
          // Chains come in the order of Add; answers may not.
          const Buffer& buffer = buffers[answered + held.size() - first];
          std::string got;
          for (const iovec& part : chain.readable()) {
            got.append(static_cast<const char*>(part.iov_base), part.iov_len);
          }
          ASSERT_EQ(got, buffer.sent);
          ASSERT_EQ(chain.readable_bytes(), buffer.sent.size());
          ASSERT_EQ(chain.writable_bytes(), buffer.room);
          ASSERT_EQ(Total(chain.writable()), buffer.room);
          held.push_back(std::move(chain));
        }
        break;
      }
      case 2: {  // the device answers some, in order (so that a chain's number is known)
        const uint64_t count = held.empty() ? 0 : dice(held.size()) + 1;
        for (uint64_t i = 0; i < count; ++i) {
          Buffer& buffer = buffers[answered - first];
          const Chain& chain = held[i];
          buffer.written = static_cast<uint32_t>(dice(buffer.room + 1));
          uint32_t left = buffer.written;
          for (const iovec& part : chain.writable()) {
            const uint32_t n = std::min(left, static_cast<uint32_t>(part.iov_len));
            for (uint32_t b = 0; b < n; ++b) {
              const char byte = static_cast<char>(random());
              buffer.reply.push_back(byte);
              static_cast<char*>(part.iov_base)[b] = byte;
            }
            left -= n;
          }
          ASSERT_EQ(left, 0u);
          device.With([&](auto& ring) { ring.PushUsed(Used(chain, buffer.written)); });
          ++answered;
        }
        held.erase(held.begin(), held.begin() + static_cast<std::ptrdiff_t>(count));
        ASSERT_EQ(device.With([](auto& ring) { return ring.PublishUsed(); }), count);
        break;
      }
      default: {  // the driver takes answers
        std::array<UsedBuffer, 16> used;
        const size_t count = driver->TakeUsed(used);
        for (size_t i = 0; i < count; ++i) {
          ASSERT_EQ(used[i].token, taken);
          const Buffer& buffer = buffers.front();
          ASSERT_EQ(used[i].written, buffer.written);
          std::string got;
          for (const Segment& part : buffer.writable) {
            if (part.length == 0) continue;
            got.append(reinterpret_cast<const char*>(memory->Translate(part.address, part.length)),
                       part.length);
          }
          ASSERT_EQ(got.substr(0, buffer.written), buffer.reply);
          stripe_used[taken % stripes] = false;
          buffers.pop_front();
          ++first;
          ++taken;
        }
      }
    }
  }
  EXPECT_EQ(driver->ring().device_errors(), 0u);
  EXPECT_EQ(driver->ring().in_flight(), 0u);
  EXPECT_EQ(driver->ring().free_descriptors(), options.size);
}

// Two threads that sleep whenever the rules allow it: a notification too few on either side stops
// them for ever (and Wait then reports it).
TEST_P(DifferentialTest, NoNotificationIsLost) {
  const PairOptions options = GetParam();
  constexpr uint32_t kChains = kSanitized ? 5'000 : 20'000;
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(4096 * kKiB));
  ASSERT_OK_AND_ASSIGN(auto driver, DriverQueue::Create(memory.get(), DriverOptions(options)));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(DeviceRing device,
                       DeviceRing::Create(*map, driver->ring().addresses(), options));
  ASSERT_OK_AND_ASSIGN(const GuestRange data, memory->Allocate(64));

  const int kick = driver->kick_fd();
  const int call = driver->call_fd();
  std::atomic<bool> lost{false};
  std::thread device_thread([&] {
    Chain chain;
    uint32_t done = 0;
    while (done < kChains) {
      device.With([](auto& ring) { ring.DisableKicks(); });
      int32_t available = device.With([](auto& ring) { return ring.Available(); });
      for (; available > 0 && device.With([](auto& ring) { return ring.More(); });
           --available, ++done) {
        device.With([&](auto& ring) {
          if (ring.Pop(*map, &chain) != ChainError::kNone) lost = true;
          ring.PushUsed(Used(chain, 0));
        });
      }
      const bool notify =
          device.With([](auto& ring) { return ring.PublishUsed() > 0 && ring.ShouldNotify(); });
      const uint64_t one = 1;
      if (notify && write(call, &one, sizeof(one)) != sizeof(one)) lost = true;
      if (done == kChains || device.With([](auto& ring) { return ring.EnableKicks(); })) continue;
      pollfd wait{.fd = kick, .events = POLLIN, .revents = 0};
      if (poll(&wait, 1, 30'000) != 1) {
        lost = true;
        return;
      }
      uint64_t count = 0;
      if (read(kick, &count, sizeof(count)) != sizeof(count)) lost = true;
    }
  });

  std::mt19937_64 random(7);
  const std::array<Segment, 2> out{{{data.address, 8}, {data.address + 8, 8}}};
  const std::span<const Segment> readable(out.data(), options.size > 1 ? 2 : 1);
  uint32_t added = 0;
  uint32_t taken = 0;
  absl::Status status;
  while (taken < kChains && status.ok() && !lost) {
    for (uint64_t n = random() % 5 + 1; n > 0 && added < kChains; --n) {
      if (!driver->Add(readable, {}, added)) break;
      ++added;
    }
    driver->Publish();
    if (driver->ring().in_flight() > 0 && random() % 2 == 0) {
      status = driver->Wait(guest::WaitMode::kSleep);
    }
    std::array<UsedBuffer, 32> used;
    taken += static_cast<uint32_t>(driver->TakeUsed(used));
  }
  EXPECT_OK(status);
  driver->Kick();  // a device that would wait for ever after a failure here
  device_thread.join();
  EXPECT_FALSE(lost);
  EXPECT_EQ(taken, kChains);
}

// The same where each notification is needed: both sides have nothing else to do when they sleep,
// so that none makes up for another that was lost.
TEST_P(DifferentialTest, EachNotificationCounts) {
  const PairOptions options = GetParam();
  constexpr uint32_t kRounds = kSanitized ? 10'000 : 60'000;
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(4096 * kKiB));
  ASSERT_OK_AND_ASSIGN(auto driver, DriverQueue::Create(memory.get(), DriverOptions(options)));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(DeviceRing device,
                       DeviceRing::Create(*map, driver->ring().addresses(), options));
  ASSERT_OK_AND_ASSIGN(const GuestRange data, memory->Allocate(64));

  const int kick = driver->kick_fd();
  const int call = driver->call_fd();
  std::atomic<bool> failed{false};
  std::atomic<bool> stop{false};
  std::thread device_thread([&] {
    std::mt19937 random(3);
    Chain chain;
    while (!stop && !failed) {
      device.With([](auto& ring) { ring.DisableKicks(); });
      while (device.With([](auto& ring) { return ring.Available(); }) > 0) {
        device.With([&](auto& ring) {
          if (ring.Pop(*map, &chain) != ChainError::kNone) failed = true;
          ring.PushUsed(Used(chain, 0));
        });
      }
      // The driver falls asleep at any moment of what follows.
      for (auto n = random() % 256; n > 0; --n) CpuRelax();
      const bool notify =
          device.With([](auto& ring) { return ring.PublishUsed() > 0 && ring.ShouldNotify(); });
      const uint64_t one = 1;
      if (notify && write(call, &one, sizeof(one)) != sizeof(one)) failed = true;
      for (auto n = random() % 256; n > 0; --n) CpuRelax();
      if (device.With([](auto& ring) { return ring.EnableKicks(); })) continue;
      pollfd wait{.fd = kick, .events = POLLIN, .revents = 0};
      if (poll(&wait, 1, 20'000) != 1) {
        failed = true;
        return;
      }
      uint64_t count = 0;
      if (read(kick, &count, sizeof(count)) != sizeof(count)) failed = true;
    }
  });

  std::mt19937 random(7);
  const Segment out{data.address, 8};
  const uint16_t most = std::min<uint16_t>(options.size, 4);
  absl::Status status;
  for (uint32_t round = 0; round < kRounds && status.ok() && !failed; ++round) {
    auto left = static_cast<uint32_t>(random() % most + 1);
    for (uint32_t n = 0; n < left; ++n) ASSERT_TRUE(driver->Add({&out, 1}, {}, n));
    driver->Publish();
    while (left > 0 && status.ok()) {
      for (auto n = random() % 256; n > 0; --n) CpuRelax();
      status = driver->Wait(guest::WaitMode::kSleep, absl::Seconds(20));
      std::array<UsedBuffer, 4> used;
      left -= static_cast<uint32_t>(driver->TakeUsed(used));
    }
  }
  EXPECT_OK(status) << "the device's notification was lost";
  stop = true;
  driver->Kick();
  device_thread.join();
  EXPECT_FALSE(failed) << "the driver's notification was lost";
}

// What the two rules of virtio 1.3 2.7.7 and 2.7.10 say, over a whole turn of the indexes and every
// wish of the driver.
TEST(NotificationRuleTest, ShouldNotifyIsTheSpecifications) {
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(256 * kKiB));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(const GuestRange range, memory->Allocate(8192, 4096));
  constexpr uint16_t kSize = 16;
  const RingAddresses where{kSize, range.address, range.address + 1024, range.address + 2048};
  ASSERT_OK_AND_ASSIGN(const SplitRingMemory ring_memory, SplitRingMemory::Create(*map, where));
  uint16_t* const flags = ring_memory.avail;
  uint16_t* const used_event = ring_memory.avail + 2 + kSize;
  SplitRing<true> event(ring_memory, 0, false);
  std::mt19937 random(11);
  uint16_t before = 0;
  for (uint32_t i = 0; i < 300'000; ++i) {
    const auto count = static_cast<uint16_t>(random() % kSize + 1);
    // Near the entries of this burst, and anywhere.
    const auto wish = static_cast<uint16_t>(i % 4 == 0 ? random() : before - 2 + random() % 20);
    *used_event = wish;
    *flags = static_cast<uint16_t>(random());  // means nothing here
    for (uint16_t n = 0; n < count; ++n) event.PushUsed(0, 0);
    ASSERT_EQ(event.PublishUsed(), count);
    // Whether the entry that the driver wants to hear of is among the new ones.
    bool wanted = false;
    for (uint16_t n = 0; n < count; ++n) wanted |= static_cast<uint16_t>(before + n) == wish;
    ASSERT_EQ(event.ShouldNotify(), wanted) << before << " +" << count << ", event " << wish;
    before = static_cast<uint16_t>(before + count);
  }
  SplitRing<false> plain(ring_memory, 0, false);
  for (const bool quiet : {false, true}) {
    *flags = quiet ? VRING_AVAIL_F_NO_INTERRUPT : 0;
    *used_event = static_cast<uint16_t>(plain.used_index());  // means nothing here
    plain.PushUsed(0, 0);
    ASSERT_EQ(plain.PublishUsed(), 1u);
    EXPECT_EQ(plain.ShouldNotify(), !quiet);
  }
}

// Every mode over both layouts.
std::vector<PairOptions> Pairs() {
  std::vector<PairOptions> pairs;
  for (const bool packed : {false, true}) {
    for (const bool in_order : {false, true}) {
      for (PairOptions options :
           {PairOptions{1, 0, false}, PairOptions{2, 0, true}, PairOptions{8, 4, false},
            PairOptions{16, 0, true}, PairOptions{64, 16, true}, PairOptions{256, 128, false},
            PairOptions{256, 0, true}, PairOptions{1024, 8, true}}) {
        options.packed = packed;
        options.in_order = in_order;
        pairs.push_back(options);
      }
    }
  }
  // A packed ring's size is any.
  pairs.push_back({3, 0, true, true, false});
  pairs.push_back({100, 8, true, true, true});
  return pairs;
}

INSTANTIATE_TEST_SUITE_P(Rings, DifferentialTest, ::testing::ValuesIn(Pairs()));

// Guest memory of three regions: two that touch, and one behind a hole.
constexpr uint64_t kLow = 0x10000;
constexpr uint64_t kLowSize = 256 * kKiB;
constexpr uint64_t kAdjacent = kLow + kLowSize;
constexpr uint64_t kAdjacentSize = 64 * kKiB;
constexpr uint64_t kFar = kAdjacent + kAdjacentSize + 64 * kKiB;
constexpr uint64_t kFarSize = 64 * kKiB;

constexpr uint64_t kDescriptors = kLow;
constexpr uint64_t kAvail = kLow + 0x4000;
constexpr uint64_t kUsed = kLow + 0x5000;
constexpr uint64_t kTable = kLow + 0x10000;
constexpr uint64_t kBuffer = kLow + 0x20000;

// ---- a driver that changes everything all the time ----------------------------------------------

// Whatever a thread writes over descriptors, tables and rings meanwhile: no buffer that comes out
// of a ring ever reaches beyond the memory map, and no walk goes on for ever.
TEST(SplitRingRaceTest, NothingOutsideTheMapEverComesOut) {
  constexpr uint16_t kRing = 16;
  ASSERT_OK_AND_ASSIGN(auto memory,
                       GuestMemory::Create({{.address = kLow, .size = kLowSize},
                                            {.address = kAdjacent, .size = kAdjacentSize},
                                            {.address = kFar, .size = kFarSize}}));
  ASSERT_OK_AND_ASSIGN(const MemoryMapRef map, memory->ToMemoryMap());
  ASSERT_OK_AND_ASSIGN(const SplitRingMemory ring_memory,
                       SplitRingMemory::Create(*map, {kRing, kDescriptors, kAvail, kUsed}));
  const auto word = [&](uint64_t address) {
    return std::atomic_ref<uint64_t>(
        *reinterpret_cast<uint64_t*>(memory->Translate(address, sizeof(uint64_t))));
  };
  const auto half = [&](uint64_t address) {
    return std::atomic_ref<uint16_t>(
        *reinterpret_cast<uint16_t*>(memory->Translate(address, sizeof(uint16_t))));
  };

  std::atomic<bool> stop{false};
  std::thread scribbler([&] {
    std::mt19937_64 random(99);
    // Values that are nearly right get further than noise does.
    const uint64_t addresses[] = {
        kBuffer, kTable,       kAdjacent - 8, kFar + kFarSize - 4, UINT64_MAX, kLow,
        0,       kDescriptors, kUsed + 4,     kAdjacent + 16,      kTable + 8, kFar};
    constexpr uint64_t kFlags[] = {0, 1, 1, 1, 2, 3, 3, 3, 4, 4, 5};
    const uint32_t lengths[] = {0, 1, 8, 16, 32, 64, 4096, 0xffff, 0x7fffffff, UINT32_MAX};
    while (!stop.load(std::memory_order_relaxed)) {
      const uint64_t dice = random();
      const uint64_t table = (dice & 1) != 0 ? kDescriptors : kTable;
      const uint64_t at = table + 16 * ((dice >> 1) % kRing);
      if ((dice & 0x100) != 0) {
        word(at).store(addresses[(dice >> 10) % std::size(addresses)], std::memory_order_relaxed);
      } else {
        const uint64_t flags = kFlags[(dice >> 40) % std::size(kFlags)];
        const uint64_t next = (dice >> 44) % (kRing + 2);
        word(at + 8).store(lengths[(dice >> 10) % std::size(lengths)] | flags << 32 | next << 48,
                           std::memory_order_relaxed);
      }
      if ((dice & 0x600) == 0) {
        half(kAvail + 4 + 2 * ((dice >> 20) % kRing))
            .store(static_cast<uint16_t>((dice >> 24) % (kRing + 1)), std::memory_order_relaxed);
      }
    }
  });

  const auto inside = [&](const iovec& part) {
    const auto* begin = static_cast<const std::byte*>(part.iov_base);
    for (const MemoryRegion& region : map->regions()) {
      if (begin >= region.host() && begin < region.host() + region.size) {
        return part.iov_len <= static_cast<size_t>(region.host() + region.size - begin);
      }
    }
    return false;
  };
  SplitRing<true> ring(ring_memory, 0, true);
  Chain chain;
  // The noise goes on until it has led to every outcome of a walk.
  constexpr ChainError kOutcomes[] = {
      ChainError::kNone,          ChainError::kUnmappedAddress,
      ChainError::kBadIndirect,   ChainError::kReadableAfterWritable,
      ChainError::kLoop,          ChainError::kNextOutOfRange,
      ChainError::kHeadOutOfRange};
  std::array<uint64_t, 16> seen{};
  const auto seen_all = [&] {
    return std::all_of(std::begin(kOutcomes), std::end(kOutcomes),
                       [&](ChainError error) { return seen[static_cast<size_t>(error)] > 0; });
  };
  for (uint32_t i = 0; i < 300'000 || (!seen_all() && i < 30'000'000); ++i) {
    half(kAvail + 2).store(static_cast<uint16_t>(ring.next_avail() + kRing));
    ASSERT_EQ(ring.Available(), kRing);
    uint16_t head = 0;
    const ChainError peeked = ring.PeekHead(&head);
    if (peeked != ChainError::kNone) {
      ++seen[static_cast<size_t>(peeked)];
      std::this_thread::yield();
      continue;
    }
    ASSERT_LT(head, kRing);
    const ChainError error = ring.PopHead(*map, head, &chain);
    ++seen[static_cast<size_t>(error)];
    ASSERT_LE(chain.segment_count(), 2u * (kRing + 4096 / 16));
    for (const iovec& part : chain.readable()) ASSERT_TRUE(inside(part));
    for (const iovec& part : chain.writable()) ASSERT_TRUE(inside(part));
    ring.PushUsed(head, 0);
    ring.PublishUsed();
    ring.ShouldNotify();
  }
  stop = true;
  scribbler.join();
  for (const ChainError error : kOutcomes) {
    EXPECT_GT(seen[static_cast<size_t>(error)], 0u) << ChainErrorName(error);
  }
}

}  // namespace
}  // namespace virtbay
