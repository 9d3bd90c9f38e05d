// Fuzz target: the device side of both ring layouts over guest memory that the input fills: rings,
// tables, event fields. What comes out of a ring has to lie in the memory, and a ring's books have
// to add up, whatever it is told.
//
// The input is a list of steps:
//   0 OFFSET(2) LENGTH(1) BYTES   written to guest memory
//   1 COUNT(1)                    takes so many chains at most
//   2 INDEX(1)                    gives one back, and shows it
//   3 MODE(1) BASE(4)             a ring: bit 0 packed, 1 event-idx, 2 indirect, 3 in order, 4 to 7
//                                 its size, of a packed one any
//   4                             asks for kicks
//   5                             looks whether the driver wants a call
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "framework/base/unique_fd.h"
#include "framework/memory/memory_map.h"
#include "framework/virtq/packed_ring.h"
#include "framework/virtq/split_ring.h"

namespace {

using virtbay::Chain;
using virtbay::ChainError;
using virtbay::GuestMapping;
using virtbay::MemoryMap;
using virtbay::MemoryMapRef;
using virtbay::PackedRing;
using virtbay::PackedRingMemory;
using virtbay::RingAddresses;
using virtbay::SplitRing;
using virtbay::SplitRingMemory;
using virtbay::UniqueFd;

constexpr uint64_t kMemory = 0x10000;

[[noreturn]] void Finding(const char* what) {
  std::fprintf(stderr, "virtq_fuzz: %s\n", what);
  abort();
}

class Subject {
 public:
  Subject() {
    UniqueFd fd(memfd_create("fuzz", MFD_CLOEXEC));
    if (!fd || ftruncate(fd.get(), kMemory) != 0) Finding("no memory");
    auto mapping = GuestMapping::Create(fd.get(), 0, kMemory);
    if (!mapping.ok()) Finding("no mapping");
    memory_ = (*mapping)->data();
    auto map = MemoryMap::Create({{0, 0, kMemory, *std::move(mapping)}});
    if (!map.ok()) Finding("no map");
    map_ = *std::move(map);
  }

  void Run(std::span<const uint8_t> input) {
    std::memset(memory_, 0, kMemory);
    ring_.emplace<std::monostate>();
    held_.clear();
    while (!input.empty()) {
      const uint8_t step = input[0] % 6;
      input = input.subspan(1);
      if (step == 0) {
        Write(&input);
      } else if (step == 3) {
        const uint8_t mode = Byte(&input);
        Start(mode, Word(&input));
      } else {
        const uint8_t argument = step < 3 ? Byte(&input) : uint8_t{0};
        std::visit(
            [&](auto& ring) {
              if constexpr (!std::is_same_v<std::decay_t<decltype(ring)>, std::monostate>) {
                Use(ring, step, argument);
              }
            },
            ring_);
      }
    }
  }

 private:
  static uint8_t Byte(std::span<const uint8_t>* input) {
    if (input->empty()) return 0;
    const uint8_t byte = input->front();
    *input = input->subspan(1);
    return byte;
  }
  static uint32_t Word(std::span<const uint8_t>* input) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= uint32_t{Byte(input)} << (8 * i);
    return word;
  }

  void Write(std::span<const uint8_t>* input) {
    const uint32_t low = Byte(input);
    const uint64_t offset = low | uint32_t{Byte(input)} << 8;
    const size_t said = Byte(input);
    const size_t length = std::min(said, input->size());
    const size_t room = std::min<size_t>(length, kMemory - offset);
    std::memcpy(memory_ + offset, input->data(), room);
    *input = input->subspan(length);
  }

  void Start(uint8_t mode, uint32_t base) {
    const uint32_t size = (mode >> 4) + 1u;
    const bool indirect = (mode & 4) != 0;
    RingAddresses where{8, 0, 0x1000, 0x2000};
    ring_.emplace<std::monostate>();
    held_.clear();
    in_order_ = (mode & 8) != 0;
    const bool event_idx = (mode & 2) != 0;
    if ((mode & 1) != 0) {
      if (mode >> 4 != 0) where.size = static_cast<uint16_t>(size);
      auto memory = PackedRingMemory::Create(*map_, where);
      if (!memory.ok()) Finding("a good packed ring was refused");
      const auto position = memory->StartPosition(base);
      if (position.ok()) Make<PackedRing>(*memory, *position, event_idx, indirect);
    } else {
      auto memory = SplitRingMemory::Create(*map_, where);
      if (!memory.ok()) Finding("a good split ring was refused");
      const auto position = memory->StartPosition(base);
      if (position.ok()) Make<SplitRing>(*memory, *position, event_idx, indirect);
    }
    size_ = where.size;
  }
  template <template <bool, bool> class Ring, typename Memory>
  void Make(const Memory& memory, uint32_t position, bool event_idx, bool indirect) {
    if (event_idx) {
      if (in_order_) {
        ring_.emplace<Ring<true, true>>(memory, position, indirect);
      } else {
        ring_.emplace<Ring<true, false>>(memory, position, indirect);
      }
    } else if (in_order_) {
      ring_.emplace<Ring<false, true>>(memory, position, indirect);
    } else {
      ring_.emplace<Ring<false, false>>(memory, position, indirect);
    }
  }

  template <typename Ring>
  void Use(Ring& ring, uint8_t step, uint8_t argument) {
    switch (step) {
      case 1:
        for (uint32_t i = 0; i < argument; ++i) {
          if (!Take(ring)) return;
        }
        return;
      case 2:
        Give(ring, argument);
        return;
      case 4:
        ring.DisableKicks();
        ring.EnableKicks();
        return;
      default:
        ring.ShouldNotify();
    }
  }

  template <typename Ring>
  bool Take(Ring& ring) {
    if (ring.Available() <= 0 || !ring.More()) return false;
    ring.Prefetch(1);
    uint16_t head = 0;
    const uint32_t before = ring.position();
    if (ring.PeekHead(&head) != ChainError::kNone) {
      if (ring.position() != before) Finding("a chain that was refused is taken");
      return false;
    }
    if (head >= size_) Finding("a head beyond the ring");
    // As the in-flight table does.
    for (const auto& [chain, error] : held_) {
      if (chain.head() == head) return false;
    }
    Chain chain;
    const ChainError error = ring.PopHead(*map_, head, &chain);
    if (BreaksRing(error)) return false;
    if (chain.head() != head) Finding("the chain is another one's");
    if (chain.ring_descriptors() > size_) Finding("too many descriptors");
    uint64_t bytes = 0;
    for (const auto part : {chain.readable(), chain.writable()}) {
      for (const iovec& segment : part) {
        const auto* const at = static_cast<const std::byte*>(segment.iov_base);
        if (at < memory_ || at >= memory_ + kMemory ||
            segment.iov_len > static_cast<size_t>(memory_ + kMemory - at)) {
          Finding("a buffer outside of memory");
        }
        bytes += segment.iov_len;
      }
    }
    if (bytes != uint64_t{chain.readable_bytes()} + chain.writable_bytes()) {
      Finding("the sums are wrong");
    }
    held_.emplace_back(std::move(chain), error);
    uint32_t places = 0;
    for (const auto& [one, outcome] : held_) places += one.ring_descriptors();
    if (held_.size() > size_ || (kIsPacked<Ring> && places > size_)) {
      Finding("more is held than the ring has");
    }
    return true;
  }

  template <typename Ring>
  void Give(Ring& ring, uint8_t index) {
    if (held_.empty()) return;
    const auto at = held_.begin() + (in_order_ ? 0 : index % static_cast<int>(held_.size()));
    const auto& [chain, error] = *at;
    ring.PushUsed({chain.head(), static_cast<uint16_t>(chain.ring_descriptors()),
                   chain.writable_bytes(),
                   error == ChainError::kNone && chain.writable_bytes() == 0});
    held_.erase(at);
    // Two of three are shown with the one after them.
    if (index % 3 == 0 && ring.PublishUsed() == 0) Finding("nothing was shown");
  }

  template <typename Ring>
  static constexpr bool kIsPacked = std::is_same_v<typename Ring::Memory, PackedRingMemory>;

  std::byte* memory_ = nullptr;
  MemoryMapRef map_;
  std::variant<std::monostate, SplitRing<false>, SplitRing<true>, SplitRing<false, true>,
               SplitRing<true, true>, PackedRing<false>, PackedRing<true>, PackedRing<false, true>,
               PackedRing<true, true>>
      ring_;
  uint16_t size_ = 0;
  bool in_order_ = false;
  std::vector<std::pair<Chain, ChainError>> held_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Subject subject;
  subject.Run({data, size});
  return 0;
}
