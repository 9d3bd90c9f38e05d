// SplitRing: the device side of a split virtqueue (virtio 1.3 2.7).
// Owned by a queue, used on its thread only. Everything behind the three pointers is
// guest-controlled: touched through atomic_ref, each field read once and checked in private
// storage.
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_SPLIT_RING_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_SPLIT_RING_H_

// The header's legacy helpers are not valid C++.
#define VIRTIO_RING_NO_LEGACY
#include <linux/virtio_ring.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/memory/memory_map.h"
#include "framework/virtq/chain.h"
#include "framework/virtq/ring.h"

namespace virtbay {

// The three parts as host pointers, checked to be mapped whole and aligned.
struct SplitRingMemory {
  uint16_t size = 0;
  vring_desc* descriptors = nullptr;  // guest-controlled
  uint16_t* avail = nullptr;          // guest-controlled: flags, idx, ring[size], used_event
  uint16_t* used_head = nullptr;      // written here: flags, idx; guest may scribble
  vring_used_elem* used = nullptr;
  uint16_t* avail_event = nullptr;

  // What the used ring's index field says now.
  uint16_t used_index() const {
    return std::atomic_ref<uint16_t>(used_head[1]).load(std::memory_order_relaxed);
  }

  // InvalidArgument: size not a power of two up to 32768, a part misaligned, unmapped, not in one
  // region, or overlapping another part.
  static absl::StatusOr<SplitRingMemory> Create(const MemoryMap& map, const RingAddresses& where);

  // VirtqRing's position for a base from the front-end; InvalidArgument for one beyond 16 bits.
  absl::StatusOr<uint32_t> StartPosition(uint32_t base) const;
  // Whether a ring that stopped at `position` goes on here when it is to start at `base`. The used
  // index tells such a ring from one that was made anew in the same place.
  bool GoesOn(uint32_t base, uint32_t position) const {
    return base == (position & 0xffff) && used_index() == position >> 16;
  }
};

// The guest ranges of a split ring's three parts: descriptor table, avail, used (virtio 1.3 2.7),
// with the two event fields.
std::vector<GuestSpan> SplitRingParts(const RingAddresses& where);

// Walks and checks the chain at `head`; common to both kinds of SplitRing.
ChainError WalkSplitChain(const SplitRingMemory& ring, const MemoryMap& map, bool indirect_allowed,
                          uint16_t head, Chain* chain);

// kInOrder: VIRTIO_F_IN_ORDER, with chains pushed in the order in which they were popped.
template <bool kEventIdx, bool kInOrder = false>
class SplitRing {
 public:
  using Memory = SplitRingMemory;

  // Goes on at avail index `base` (the low half of a position), and at the used index in memory.
  SplitRing(const SplitRingMemory& memory, uint32_t base, bool indirect)
      : m_(memory),
        mask_(static_cast<uint16_t>(memory.size - 1)),
        indirect_(indirect),
        next_avail_(static_cast<uint16_t>(base)),
        // The driver's view of used survives a restart; only avail is given by SET_VRING_BASE.
        used_index_(LoadRelaxed(m_.used_head[1])),
        published_(used_index_) {}

  // The same ring in another memory map.
  void Rebind(const SplitRingMemory& memory) { m_ = memory; }

  int32_t Available() {
    const uint16_t index = LoadAcquire(m_.avail[1]);
    const uint16_t waiting = static_cast<uint16_t>(index - next_avail_);
    return waiting > m_.size ? -1 : static_cast<int32_t>(waiting);
  }
  static constexpr bool More() { return true; }

  ChainError PeekHead(uint16_t* head) {
    *head = LoadRelaxed(m_.avail[2 + (next_avail_ & mask_)]);
    return *head < m_.size ? ChainError::kNone : ChainError::kHeadOutOfRange;
  }

  // Begins to fetch the descriptor of the chain `ahead` places behind the next one; the driver's
  // core has written it last, so it is far away.
  void Prefetch(uint16_t ahead) {
    const uint16_t head = LoadRelaxed(m_.avail[2 + ((next_avail_ + ahead) & mask_)]);
    __builtin_prefetch(&m_.descriptors[head & mask_]);
  }

  // Precondition: Available() > 0.
  ChainError Pop(const MemoryMap& map, Chain* chain) {
    uint16_t head = 0;
    const ChainError error = PeekHead(&head);
    if (error != ChainError::kNone) return error;
    return PopHead(map, head, chain);
  }
  // Pop with the head that PeekHead gave, so that the guest's word is not read twice.
  ChainError PopHead(const MemoryMap& map, uint16_t head, Chain* chain) {
    ++next_avail_;
    return WalkSplitChain(m_, map, indirect_, head, chain);
  }

  void PushUsed(const UsedEntry& used) {
    uint16_t slot = used_index_;
    if constexpr (kInOrder) {
      // virtio 1.3 2.7.9: one entry, the last one's, stands for a run, in the place of the first.
      // Drivers take what is skipped as written whole, so only chains without room are.
      if (run_open_) slot = run_slot_;
      run_slot_ = slot;
      run_open_ = used.read_only;
    }
    vring_used_elem& element = m_.used[slot & mask_];
    StoreRelaxed(element.id, uint32_t{used.head});
    StoreRelaxed(element.len, used.written);
    ++used_index_;
  }
  void PushUsed(uint16_t head, uint32_t written) {
    PushUsed(UsedEntry{.head = head, .descriptors = 1, .written = written, .read_only = false});
  }

  // virtio 1.3 2.7.8: entries before the index. Returns how many entries became visible.
  uint32_t PublishUsed() {
    const uint16_t count = static_cast<uint16_t>(used_index_ - published_);
    if (count == 0) return 0;
    if constexpr (kInOrder) run_open_ = false;
    std::atomic_ref<uint16_t>(m_.used_head[1]).store(used_index_, std::memory_order_release);
    notify_from_ = published_;
    published_ = used_index_;
    return count;
  }

  bool ShouldNotify() {
    // The driver re-checks after it enabled notifications; the fence pairs with its own.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if constexpr (kEventIdx) {
      const uint16_t event = LoadRelaxed(m_.avail[2 + m_.size]);
      return vring_need_event(event, published_, notify_from_) != 0;
    } else {
      return (LoadRelaxed(m_.avail[0]) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
    }
  }

  bool EnableKicks() {
    if constexpr (kEventIdx) {
      StoreRelaxed(*m_.avail_event, next_avail_);
    } else {
      StoreRelaxed(m_.used_head[0], uint16_t{0});
    }
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return LoadAcquire(m_.avail[1]) != next_avail_;
  }

  void DisableKicks() {
    // With event-idx an old avail_event is silent until the index wraps round to it; it need not be
    // written, which saves dirtying the driver's cache line.
    if constexpr (!kEventIdx) StoreRelaxed(m_.used_head[0], uint16_t{VRING_USED_F_NO_NOTIFY});
  }

  uint16_t next_avail() const { return next_avail_; }
  uint16_t used_index() const { return used_index_; }
  uint32_t position() const { return next_avail_ | uint32_t{used_index_} << 16; }
  uint32_t base() const { return next_avail_; }
  bool used_pending() const { return used_index_ != published_; }
  uint16_t size() const { return m_.size; }

 private:
  template <typename T>
  static T LoadRelaxed(T& field) {
    return std::atomic_ref<T>(field).load(std::memory_order_relaxed);
  }
  static uint16_t LoadAcquire(uint16_t& field) {
    return std::atomic_ref<uint16_t>(field).load(std::memory_order_acquire);
  }
  template <typename T>
  static void StoreRelaxed(T& field, T value) {
    std::atomic_ref<T>(field).store(value, std::memory_order_relaxed);
  }

  SplitRingMemory m_;
  uint16_t mask_;
  bool indirect_;
  uint16_t next_avail_;
  uint16_t used_index_;
  uint16_t published_;
  uint16_t notify_from_ = 0;
  // kInOrder: the entry of the run that is being pushed.
  uint16_t run_slot_ = 0;
  bool run_open_ = false;
};

static_assert(VirtqRing<SplitRing<false>> && VirtqRing<SplitRing<true, true>>);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_SPLIT_RING_H_
