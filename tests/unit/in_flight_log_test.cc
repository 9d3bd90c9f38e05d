// The in-flight log of both ring layouts: a device side that is killed between any two of its steps
// and made anew goes on so that every chain is answered once; and whatever a front-end writes into
// the log costs it its ring at most.
#include "framework/virtq/in_flight_log.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "hostif/guest/guest_memory.h"
#include "hostif/guest/layout_ring.h"
#include "tests/support/status_matchers.h"

namespace virtbay {
namespace {

using ::virtbay::guest::GuestMemory;
using ::virtbay::guest::LayoutRing;
using ::virtbay::guest::Segment;
using ::virtbay::guest::UsedBuffer;
using ::virtbay::testing::StatusIs;

constexpr uint16_t kSize = 16;

SharedArea MakeArea(uint64_t size) {
  const UniqueFd fd(memfd_create("log", MFD_CLOEXEC));
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return {};
  auto mapping = GuestMapping::Create(fd.get(), 0, size);
  return mapping.ok() ? SharedArea{*mapping, 0, size} : SharedArea{};
}

struct Split {
  using Memory = SplitRingMemory;
  using Log = SplitLog;
  using Header = SplitLogHeader;
  using Entry = SplitLogEntry;
  template <bool kInOrder>
  using Ring = SplitRing<true, kInOrder>;
  static constexpr bool kPacked = false;
  static constexpr uint32_t kFresh = 0;
};
struct Packed {
  using Memory = PackedRingMemory;
  using Log = PackedLog;
  using Header = PackedLogHeader;
  using Entry = PackedLogEntry;
  template <bool kInOrder>
  using Ring = PackedRing<true, kInOrder>;
  static constexpr bool kPacked = true;
  static constexpr uint32_t kFresh = kPackedFreshPosition;
};

template <typename Layout>
class InFlightLogTest : public ::testing::Test {
 protected:
  using Ring = LoggedRing<typename Layout::template Ring<false>, typename Layout::Log>;
  using Pending = std::vector<typename Layout::Log::Pending>;

  InFlightLogTest() {
    memory_ = GuestMemory::Create(uint64_t{4} << 20).value();
    map_ = memory_->ToMemoryMap().value();
    driver_.emplace(
        LayoutRing::Create(
            memory_.get(),
            {.size = kSize, .indirect_max = 0, .event_idx = true, .packed = Layout::kPacked})
            .value());
    buffers_ = memory_->Allocate(4096, 4096).value();
    const guest::RingAddresses at = driver_->addresses();
    ring_memory_ =
        Layout::Memory::Create(*map_, {kSize, at.descriptors, at.avail, at.used}).value();
    area_ = MakeArea(InFlightLogSize(Layout::kPacked, kSize));
  }

  // A device process begins; what the log had in flight comes first.
  absl::Status Start(uint32_t position = Layout::kFresh) {
    Pending pending;
    auto log = Layout::Log::Open(area_, ring_memory_, &position, &pending);
    if (!log.ok()) return log.status();
    position_ = position;
    ring_.emplace(typename Layout::template Ring<false>(ring_memory_, position, true),
                  *std::move(log));
    held_.clear();
    for (const auto& one : pending) {
      Chain chain;
      const ChainError error = one.Walk(ring_memory_, *map_, true, &chain);
      if (error != ChainError::kNone) return absl::InternalError(ChainErrorName(error));
      held_.push_back(UsedEntry{chain.head(), static_cast<uint16_t>(chain.ring_descriptors()),
                                Token(chain), false});
    }
    return absl::OkStatus();
  }
  // What the driver wrote into the chain's buffer's length.
  static uint32_t Token(const Chain& chain) { return chain.writable_bytes(); }

  // A chain of `pieces` descriptors whose token is also its length.
  bool Add(uint32_t token, uint32_t pieces = 1) {
    std::vector<Segment> segments(pieces, Segment{buffers_.address, 1});
    segments.back().length = token - (pieces - 1);
    if (!driver_->Add({}, segments, token)) return false;
    driver_->Publish();
    return true;
  }
  // Takes all that is there.
  void Pop(size_t most = SIZE_MAX) {
    for (; most > 0 && ring_->Available() > 0 && ring_->More(); --most) {
      Chain chain;
      uint16_t head = 0;
      ASSERT_EQ(ring_->PeekHead(&head), ChainError::kNone);
      ASSERT_EQ(ring_->PopHead(*map_, head, &chain), ChainError::kNone);
      held_.push_back(UsedEntry{chain.head(), static_cast<uint16_t>(chain.ring_descriptors()),
                                Token(chain), false});
    }
  }
  void Push(size_t index) {
    ring_->PushUsed(held_[index]);
    held_.erase(held_.begin() + static_cast<std::ptrdiff_t>(index));
  }
  std::vector<uint32_t> Tokens() const {
    std::vector<uint32_t> tokens;
    for (const UsedEntry& used : held_) tokens.push_back(used.written);
    return tokens;
  }
  std::vector<uint32_t> Answers() {
    std::vector<uint32_t> tokens;
    std::array<UsedBuffer, kSize> used;
    for (size_t n; (n = driver_->TakeUsed(used)) > 0;) {
      for (size_t i = 0; i < n; ++i) {
        EXPECT_EQ(used[i].written, used[i].token);
        tokens.push_back(static_cast<uint32_t>(used[i].token));
      }
    }
    EXPECT_EQ(driver_->device_errors(), 0u);
    return tokens;
  }
  std::vector<std::byte> CopyLog() const { return {area_.data(), area_.data() + area_.size}; }
  void PutLog(const std::vector<std::byte>& bytes) {
    std::memcpy(area_.data(), bytes.data(), bytes.size());
  }
  typename Layout::Header& header() {
    return *reinterpret_cast<typename Layout::Header*>(area_.data());
  }
  typename Layout::Entry& entry(uint16_t index) {
    return reinterpret_cast<typename Layout::Entry*>(area_.data() +
                                                     sizeof(typename Layout::Header))[index];
  }

  std::unique_ptr<GuestMemory> memory_;
  MemoryMapRef map_;
  std::optional<LayoutRing> driver_;
  guest::GuestRange buffers_;
  typename Layout::Memory ring_memory_;
  SharedArea area_;
  std::optional<Ring> ring_;
  uint32_t position_ = 0;
  std::vector<UsedEntry> held_;  // what the plugin has
};

using Layouts = ::testing::Types<Split, Packed>;
TYPED_TEST_SUITE(InFlightLogTest, Layouts);

TYPED_TEST(InFlightLogTest, GoesOnInTheOrderOfArrival) {
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 4; ++i) ASSERT_TRUE(this->Add(10 * i, i));
  this->Pop();
  this->Push(1);
  this->ring_->PublishUsed();
  ASSERT_TRUE(this->Add(50));
  // Killed, and started by a front-end that knows no better place.
  ASSERT_OK(this->Start());
  EXPECT_EQ(this->Tokens(), (std::vector<uint32_t>{10, 30, 40}));
  this->Pop();
  EXPECT_EQ(this->Tokens(), (std::vector<uint32_t>{10, 30, 40, 50}));
  while (!this->held_.empty()) this->Push(0);
  this->ring_->PublishUsed();
  EXPECT_EQ(this->Answers(), (std::vector<uint32_t>{20, 10, 30, 40, 50}));
}

TYPED_TEST(InFlightLogTest, WhatWasNotShownIsInFlightStill) {
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 3; ++i) ASSERT_TRUE(this->Add(10 * i, 2));
  this->Pop();
  this->Push(2);
  this->Push(0);
  ASSERT_OK(this->Start());
  EXPECT_EQ(this->Tokens(), (std::vector<uint32_t>{10, 20, 30}));
  EXPECT_TRUE(this->Answers().empty());
}

TYPED_TEST(InFlightLogTest, WhatWasShownHasEndedThoughTheLogDoesNotSaySo) {
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 4; ++i) ASSERT_TRUE(this->Add(10 * i, i));
  this->Pop();
  this->Push(2);
  this->Push(0);
  // As it is between the store that shows the batch and what follows it.
  std::vector<std::byte> before = this->CopyLog();
  if constexpr (TypeParam::kPacked) {
    auto& header = *reinterpret_cast<PackedLogHeader*>(before.data());
    const uint32_t used = this->ring_->position() >> 16;
    header.used_index = used & 0x7fff;
    header.used_wrap = (used & 0x8000) != 0;
  }
  this->ring_->PublishUsed();
  this->PutLog(before);
  ASSERT_OK(this->Start());
  EXPECT_EQ(this->Tokens(), (std::vector<uint32_t>{20, 40}));
  while (!this->held_.empty()) this->Push(0);
  this->ring_->PublishUsed();
  EXPECT_EQ(this->Answers(), (std::vector<uint32_t>{30, 10, 20, 40}));
}

// Kills at random places, for many laps: between chains, before and after the store that shows.
TYPED_TEST(InFlightLogTest, AnswersEveryChainOnceHoweverOftenItIsKilled) {
  std::mt19937 random(5);
  const auto below = [&](uint32_t n) { return static_cast<uint32_t>(random() % n); };
  ASSERT_OK(this->Start());
  uint32_t next = 10;
  uint32_t answered = 0;
  std::set<uint32_t> open;
  uint32_t kills = 0;
  while (answered < 20'000) {
    for (uint32_t i = below(6); i > 0; --i) {
      if (!this->Add(next, 1 + below(3))) break;
      open.insert(next++);
    }
    this->Pop(below(6));
    for (uint32_t i = below(5); i > 0 && !this->held_.empty(); --i) {
      this->Push(below(static_cast<uint32_t>(this->held_.size())));
    }
    const uint32_t how = below(8);
    if (how == 0) {  // before anything is shown
      ASSERT_OK(this->Start());
      ++kills;
    } else {
      std::vector<std::byte> before = this->CopyLog();
      if constexpr (TypeParam::kPacked) {
        auto& header = *reinterpret_cast<PackedLogHeader*>(before.data());
        const uint32_t used = this->ring_->position() >> 16;
        header.used_index = used & 0x7fff;
        header.used_wrap = (used & 0x8000) != 0;
      }
      this->ring_->PublishUsed();
      if (how == 1) this->PutLog(before);
      if (how <= 2) {
        ASSERT_OK(this->Start());
        ++kills;
      }
    }
    for (const uint32_t token : this->Answers()) {
      ASSERT_EQ(open.erase(token), 1u) << "answered twice";
      ++answered;
    }
    // What waits in the ring or is held is all that is open.
    ASSERT_LE(this->held_.size(), open.size());
  }
  while (!open.empty()) {
    this->Pop();
    while (!this->held_.empty()) this->Push(0);
    this->ring_->PublishUsed();
    const std::vector<uint32_t> answers = this->Answers();
    ASSERT_FALSE(answers.empty()) << open.size() << " were lost";
    for (const uint32_t token : answers) ASSERT_EQ(open.erase(token), 1u);
  }
  EXPECT_GT(kills, 1000u);
}

TYPED_TEST(InFlightLogTest, ARingThatWasMadeAnewBeginsAnew) {
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 3; ++i) {
    ASSERT_TRUE(this->Add(10 * i));
    this->Pop();
    this->Push(0);
    this->ring_->PublishUsed();
  }
  this->driver_->Reset();
  ForgetInFlight(this->area_);
  ASSERT_OK(this->Start());
  EXPECT_EQ(this->position_, TypeParam::kFresh);
  ASSERT_TRUE(this->Add(10));
  this->Pop();
  EXPECT_EQ(this->Tokens(), (std::vector<uint32_t>{10}));
}

TYPED_TEST(InFlightLogTest, ARegionThatIsTooSmallIsNone) {
  this->area_.size = sizeof(typename TypeParam::Header) + sizeof(typename TypeParam::Entry) * 15;
  EXPECT_THAT(this->Start(), StatusIs(absl::StatusCode::kInvalidArgument));
  this->area_ = MakeArea(4096);
  this->area_.offset = 4;
  this->area_.size -= 4;
  EXPECT_THAT(this->Start(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TYPED_TEST(InFlightLogTest, AnUnknownVersionIsRefused) {
  this->header().version = 2;
  EXPECT_THAT(this->Start(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TYPED_TEST(InFlightLogTest, ContradictionsAreRefused) {
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 3; ++i) ASSERT_TRUE(this->Add(10 * i, 2));
  this->Pop();
  this->Push(0);
  this->ring_->PublishUsed();
  const std::vector<std::byte> good = this->CopyLog();
  const auto refused = [&](auto&& change) {
    this->PutLog(good);
    change();
    EXPECT_THAT(this->Start(), StatusIs(absl::StatusCode::kInvalidArgument));
  };
  refused([&] { this->header().descriptors = kSize * 2; });
  if constexpr (TypeParam::kPacked) {
    const uint16_t first = [&] {
      for (uint16_t i = 0; i < kSize; ++i) {
        if (this->entry(i).in_flight != 0) return i;
      }
      return uint16_t{0};
    }();
    refused([&] { this->header().old_used_index = kSize; });
    refused([&] { this->header().used_wrap = 2; });
    refused([&] { this->header().old_free_head = first; });  // free and in flight
    refused([&] { this->header().old_free_head = kSize; });  // free entries get lost
    refused([&] { this->entry(first).next = first; });       // a circle
    refused([&] { this->entry(first).last = first; });       // not its last one
    refused([&] { this->entry(first).count = 3; });
    refused([&] { this->entry(first).count = 0; });
    refused([&] { this->entry(this->entry(first).last).id = kSize; });
    refused([&] { this->entry(first).flags = 0; });  // ends too soon
  } else {
    refused([&] { this->header().used_index = 0x7000; });
    refused([&] {
      this->header().used_index = 0;
      this->header().last_batch_head = kSize;
    });
    refused([&] {
      this->header().used_index = 0;
      this->header().last_batch_head = 15;  // not in flight
    });
  }
  this->PutLog(good);
  EXPECT_OK(this->Start());
}

// Never more than an error of the ring, and what is taken up is within it.
TYPED_TEST(InFlightLogTest, AnyBytesAreHarmless) {
  std::mt19937 random(7);
  ASSERT_OK(this->Start());
  for (uint32_t i = 1; i <= 5; ++i) ASSERT_TRUE(this->Add(10 * i, 1 + i % 3));
  this->Pop();
  this->Push(1);
  this->ring_->PublishUsed();
  const std::vector<std::byte> good = this->CopyLog();
  uint32_t taken = 0;
  for (int round = 0; round < 20'000; ++round) {
    this->PutLog(good);
    for (uint32_t i = 1 + static_cast<uint32_t>(random() % 8); i > 0; --i) {
      this->area_.data()[random() % this->area_.size] = static_cast<std::byte>(random() % 18);
    }
    typename TestFixture::Pending pending;
    uint32_t position = TypeParam::kFresh;
    const auto log = TypeParam::Log::Open(this->area_, this->ring_memory_, &position, &pending);
    if (!log.ok()) continue;
    ++taken;
    ASSERT_LE(pending.size(), kSize);
    std::set<uint16_t> heads;
    for (const auto& one : pending) {
      ASSERT_LT(one.head, kSize);
      ASSERT_TRUE(heads.insert(one.head).second);
      Chain chain;
      static_cast<void>(one.Walk(this->ring_memory_, *this->map_, true, &chain));
    }
    // And it can be used.
    auto ring = typename TestFixture::Ring(
        typename TypeParam::template Ring<false>(this->ring_memory_, position, true), *log);
    for (const auto& one : pending) ring.PushUsed(UsedEntry{one.head, 1, 0, false});
    ring.PublishUsed();
  }
  EXPECT_GT(taken, 0u);
}

}  // namespace
}  // namespace virtbay
