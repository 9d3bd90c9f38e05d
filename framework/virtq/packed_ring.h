// PackedRing: the device side of a packed virtqueue (virtio 1.3 2.8).
// Owned by a queue, used on its thread only. Everything behind the three pointers is
// guest-controlled: a descriptor is copied once and checked in private storage, and what has to be
// known of it later (its id, how many places it takes) is never read from the ring again.
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_PACKED_RING_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_PACKED_RING_H_

// The header's legacy helpers are not valid C++.
#ifndef VIRTIO_RING_NO_LEGACY
#define VIRTIO_RING_NO_LEGACY
#endif
#include <linux/virtio_ring.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/memory/memory_map.h"
#include "framework/virtq/chain.h"
#include "framework/virtq/ring.h"

namespace virtbay {

inline constexpr uint16_t kPackedAvail = 1u << VRING_PACKED_DESC_F_AVAIL;
inline constexpr uint16_t kPackedUsed = 1u << VRING_PACKED_DESC_F_USED;

// A place in a packed ring with the wrap counter of its lap, as in the low 16 bits of a position
// (and in an event's off_wrap).
struct PackedCursor {
  uint16_t index = 0;
  bool wrap = true;

  uint16_t Encode() const { return static_cast<uint16_t>(index | (wrap ? 0x8000u : 0u)); }
  static PackedCursor Decode(uint16_t bits) {
    return {static_cast<uint16_t>(bits & 0x7fff), (bits & 0x8000) != 0};
  }
  // Precondition: count <= size.
  void Advance(uint16_t count, uint16_t size) {
    const uint32_t next = uint32_t{index} + count;
    const bool over = next >= size;
    index = static_cast<uint16_t>(over ? next - size : next);
    wrap ^= over;
  }
};

// The position of a ring that nobody has used.
inline constexpr uint32_t kPackedFreshPosition = 0x8000'8000;

// The three parts as host pointers, checked to be mapped whole and aligned.
struct PackedRingMemory {
  uint16_t size = 0;
  vring_packed_desc* descriptors = nullptr;  // guest-controlled
  uint32_t* driver_event = nullptr;          // guest-controlled: off_wrap, flags
  uint32_t* device_event = nullptr;          // written here: off_wrap, flags

  // InvalidArgument: size 0 or above 32768, a part misaligned, unmapped, not in one region, or
  // overlapping another part.
  static absl::StatusOr<PackedRingMemory> Create(const MemoryMap& map, const RingAddresses& where);

  // VirtqRing's position for a base from the front-end: bits 0 to 15 say what was taken, as in
  // PackedCursor, and bits 16 to 31 what was given back, the same where they are 0. A base of 0
  // for a ring that was never used comes from a front-end that has no notion of wrap counters, and
  // means its beginning. InvalidArgument for a place beyond the ring or ones that cannot be.
  absl::StatusOr<uint32_t> StartPosition(uint32_t base) const;
  // Whether a ring that stopped at `position`, with chains that it had not given back, goes on here
  // when it is to start at `base`. Their first descriptor, still as the driver made it, tells such
  // a ring from one that was made anew in the same place.
  bool GoesOn(uint32_t base, uint32_t position) const;

  uint16_t Flags(uint16_t index, std::memory_order order) const {
    return std::atomic_ref<uint16_t>(descriptors[index].flags).load(order);
  }
};

// The guest ranges of a packed ring's three parts: descriptor ring, driver and device event
// suppression (virtio 1.3 2.8).
std::vector<GuestSpan> PackedRingParts(const RingAddresses& where);

// One descriptor in private storage.
struct PackedSnapshot {
  uint64_t address;
  uint32_t len;
  uint16_t id;
  uint16_t flags;
};

// In two loads, whatever the driver does meanwhile.
inline PackedSnapshot ReadPacked(vring_packed_desc* table, uint32_t index) {
  std::array<uint64_t, 2> words{};
  auto* source = reinterpret_cast<uint64_t*>(&table[index]);
  words[0] = std::atomic_ref<uint64_t>(source[0]).load(std::memory_order_relaxed);
  words[1] = std::atomic_ref<uint64_t>(source[1]).load(std::memory_order_relaxed);
  PackedSnapshot snapshot{};
  static_assert(sizeof(snapshot) == sizeof(vring_packed_desc));
  std::memcpy(&snapshot, words.data(), sizeof(snapshot));
  return snapshot;
}

// virtio 1.3 2.8.1: available in that lap and not used yet.
inline bool PackedIsAvailable(uint16_t flags, bool wrap) {
  return ((flags & kPackedAvail) != 0) == wrap && ((flags & kPackedUsed) != 0) != wrap;
}

// Copies the chain that begins at `from` and finds its buffer id, which its last descriptor has;
// `room` is how many of the ring's descriptors the device does not hold. Every error breaks the
// ring.
ChainError SnapshotPackedChain(const PackedRingMemory& ring, PackedCursor from, uint16_t room,
                               std::vector<PackedSnapshot>* chain, uint16_t* id);
// Checks and translates what was copied.
ChainError WalkPackedChain(std::span<const PackedSnapshot> descriptors, const MemoryMap& map,
                           bool indirect_allowed, uint16_t id, Chain* chain);

// kInOrder: VIRTIO_F_IN_ORDER, with chains pushed in the order in which they were popped.
template <bool kEventIdx, bool kInOrder = false>
class PackedRing {
 public:
  using Memory = PackedRingMemory;

  // `position` as StartPosition gives it.
  PackedRing(const PackedRingMemory& memory, uint32_t position, bool indirect)
      : m_(memory),
        indirect_(indirect),
        avail_(PackedCursor::Decode(static_cast<uint16_t>(position))),
        used_(PackedCursor::Decode(static_cast<uint16_t>(position >> 16))) {
    held_ = static_cast<uint16_t>(avail_.index - used_.index +
                                  (avail_.wrap != used_.wrap ? m_.size : 0));
    snapshot_.reserve(kMaxChainDescriptors < m_.size ? kMaxChainDescriptors : m_.size);
  }

  // The same ring in another memory map.
  void Rebind(const PackedRingMemory& memory) { m_ = memory; }

  // A packed ring says that the next one is there, not how many are.
  int32_t Available() { return More() ? m_.size : 0; }
  bool More() {
    return PackedIsAvailable(m_.Flags(avail_.index, std::memory_order_acquire), avail_.wrap);
  }

  // A chain of one descriptor, as those of network frames, does without the general way, which
  // costs as much as all the rest of taking it.
  ChainError PeekHead(uint16_t* id) {
    first_ = ReadPacked(m_.descriptors, avail_.index);
    single_ = (first_.flags & VRING_DESC_F_NEXT) == 0 && held_ < m_.size &&
              PackedIsAvailable(first_.flags, avail_.wrap);
    if (single_) [[likely]] {
      *id = first_.id;
      return first_.id < m_.size ? ChainError::kNone : ChainError::kIdOutOfRange;
    }
    return SnapshotPackedChain(m_, avail_, static_cast<uint16_t>(m_.size - held_), &snapshot_, id);
  }

  // Four descriptors share a cache line, and a chain's lie one behind the other.
  void Prefetch(uint16_t ahead) {
    const uint32_t index = uint32_t{avail_.index} + ahead;
    __builtin_prefetch(&m_.descriptors[index < m_.size ? index : 0]);
  }

  ChainError PopHead(const MemoryMap& map, uint16_t id, Chain* chain) {
    const auto count = static_cast<uint16_t>(snapshot().size());
    avail_.Advance(count, m_.size);
    held_ = static_cast<uint16_t>(held_ + count);
    if (single_ && (first_.flags & VRING_DESC_F_INDIRECT) == 0) [[likely]] {
      chain->Begin(id, 1);
      return AddBuffer(map, first_.address, first_.len, (first_.flags & VRING_DESC_F_WRITE) != 0,
                       chain);
    }
    return WalkPackedChain(snapshot(), map, indirect_, id, chain);
  }
  // Both. Precondition: More().
  ChainError Pop(const MemoryMap& map, Chain* chain) {
    uint16_t id = 0;
    const ChainError error = PeekHead(&id);
    if (error != ChainError::kNone) return error;
    return PopHead(map, id, chain);
  }

  void PushUsed(const UsedEntry& used) {
    PackedCursor at = used_;
    if constexpr (kInOrder) {
      // virtio 1.3 2.8.16: one descriptor, the last one's, stands for a run, in the place of the
      // first. Drivers take what is skipped as written whole, so only chains without room are.
      if (run_open_) at = run_;
      run_ = at;
      run_open_ = used.read_only;
    }
    vring_packed_desc& descriptor = m_.descriptors[at.index];
    const auto flags =
        static_cast<uint16_t>((at.wrap ? kPackedAvail | kPackedUsed : 0) |
                              (used.written > 0 ? uint32_t{VRING_DESC_F_WRITE} : 0u));
    // The driver looks at one place after the other, so the first one's flags show them all.
    if (pending_ == 0 || at.index == first_index_) {
      first_index_ = at.index;
      first_flags_ = flags;
      StoreRelaxed(descriptor.id, used.head);
      StoreRelaxed(descriptor.len, used.written);
    } else {
      static_assert(offsetof(vring_packed_desc, len) == 8 &&
                    offsetof(vring_packed_desc, flags) == 14);
      StoreRelaxed(reinterpret_cast<uint64_t*>(&descriptor)[1],
                   used.written | uint64_t{used.head} << 32 | uint64_t{flags} << 48);
    }
    ++pending_;
    pending_places_ += used.descriptors;
    held_ = static_cast<uint16_t>(held_ - used.descriptors);
    used_.Advance(used.descriptors, m_.size);
  }

  // virtio 1.3 2.8.14. Returns how many chains the driver sees now.
  uint32_t PublishUsed() {
    if (pending_ == 0) return 0;
    std::atomic_ref<uint16_t>(m_.descriptors[first_index_].flags)
        .store(first_flags_, std::memory_order_release);
    const uint32_t count = pending_;
    pending_ = 0;
    notify_places_ = pending_places_;
    pending_places_ = 0;
    if constexpr (kInOrder) run_open_ = false;
    return count;
  }

  bool ShouldNotify() {
    // The driver re-checks after it enabled notifications; the fence pairs with its own.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const uint32_t event =
        std::atomic_ref<uint32_t>(*m_.driver_event).load(std::memory_order_relaxed);
    const uint32_t flags = event >> 16 & 3;
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if constexpr (kEventIdx) {
      if (flags == VRING_PACKED_EVENT_FLAG_DESC) {
        // Places from the beginning of this lap, so those of the last one are negative.
        const PackedCursor wanted = PackedCursor::Decode(static_cast<uint16_t>(event));
        const int32_t at = wanted.index - (wanted.wrap == used_.wrap ? 0 : int32_t{m_.size});
        const int32_t end = used_.index;
        return at >= end - static_cast<int32_t>(notify_places_) && at < end;
      }
    }
    return true;
  }

  bool EnableKicks() {
    uint32_t event = uint32_t{VRING_PACKED_EVENT_FLAG_ENABLE} << 16;
    if constexpr (kEventIdx) {
      event = uint32_t{VRING_PACKED_EVENT_FLAG_DESC} << 16 | avail_.Encode();
    }
    StoreRelaxed(*m_.device_event, event);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return More();
  }

  // Also with event-idx, where a place that was passed comes round again with the lap after next.
  void DisableKicks() {
    StoreRelaxed(*m_.device_event, uint32_t{VRING_PACKED_EVENT_FLAG_DISABLE} << 16);
  }

  uint32_t position() const { return avail_.Encode() | uint32_t{used_.Encode()} << 16; }
  uint32_t base() const { return position(); }
  bool used_pending() const { return pending_ != 0; }
  uint16_t size() const { return m_.size; }
  // The chain that PeekHead saw.
  std::span<const PackedSnapshot> snapshot() const {
    return single_ ? std::span<const PackedSnapshot>(&first_, 1) : snapshot_;
  }

 private:
  template <typename T>
  static void StoreRelaxed(T& field, T value) {
    std::atomic_ref<T>(field).store(value, std::memory_order_relaxed);
  }

  PackedRingMemory m_;
  bool indirect_;
  PackedCursor avail_;
  PackedCursor used_;
  uint16_t held_ = 0;  // descriptors between the two
  uint16_t first_index_ = 0;
  uint16_t first_flags_ = 0;
  uint32_t pending_ = 0;         // pushed and not shown
  uint32_t pending_places_ = 0;  // the descriptors that these take up
  uint32_t notify_places_ = 0;   // of the last time they were shown
  // The chain that PeekHead saw: `first_` alone, or all of it.
  bool single_ = false;
  PackedSnapshot first_{};
  std::vector<PackedSnapshot> snapshot_;
  // kInOrder: the entry of the run that is being pushed.
  PackedCursor run_;
  bool run_open_ = false;
};

static_assert(VirtqRing<PackedRing<false>> && VirtqRing<PackedRing<true, true>>);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_PACKED_RING_H_
