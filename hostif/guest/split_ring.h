// SplitRing: the driver's side of a split virtqueue (virtio 1.3 2.7).
// A value inside a DriverQueue; one thread at a time drives it. The device may run in another
// process and is not trusted with more than the memory: what it writes is checked here.
// No system call, lock or allocation after construction.
#ifndef VIRTBAY_HOSTIF_GUEST_SPLIT_RING_H_
#define VIRTBAY_HOSTIF_GUEST_SPLIT_RING_H_

// The header's legacy part is not C++.
#ifndef VIRTIO_RING_NO_LEGACY
#define VIRTIO_RING_NO_LEGACY
#endif
#include <linux/virtio_ring.h>

#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/base/status.h"
#include "hostif/guest/driver_ring.h"
#include "hostif/guest/guest_memory.h"

namespace virtbay::guest {

class SplitRing {
 public:
  // Allocates the ring (and its indirect tables) in guest memory. InvalidArgument for a bad size,
  // ResourceExhausted when the memory has no room. [control]
  static absl::StatusOr<SplitRing> Create(GuestMemory* memory, const RingOptions& options) {
    if (options.size == 0 || options.size > 32768 || !std::has_single_bit(options.size)) {
      return absl::InvalidArgumentError("a split ring's size is a power of two up to 32768");
    }
    const uint64_t n = options.size;
    SplitRing ring;
    ring.options_ = options;
    // Alignments of virtio 1.3 2.7, but each part in cache lines of its own: the two sides write
    // different parts.
    VIRTBAY_RETURN_IF_ERROR(ring.desc_range_.Allocate(memory, n * sizeof(vring_desc), 4096));
    VIRTBAY_RETURN_IF_ERROR(ring.avail_range_.Allocate(memory, 6 + 2 * n, 128));
    VIRTBAY_RETURN_IF_ERROR(ring.used_range_.Allocate(memory, 6 + 8 * n, 4096));
    if (options.indirect_max != 0) {
      VIRTBAY_RETURN_IF_ERROR(
          ring.tables_range_.Allocate(memory, n * options.indirect_max * sizeof(vring_desc), 4096));
      ring.tables_ = reinterpret_cast<vring_desc*>(ring.tables_range_.range.host);
    }
    ring.desc_ = reinterpret_cast<vring_desc*>(ring.desc_range_.range.host);
    ring.avail_ = reinterpret_cast<uint16_t*>(ring.avail_range_.range.host);
    ring.used_ = ring.used_range_.range.host;
    ring.mask_ = static_cast<uint16_t>(n - 1);
    ring.states_.resize(n);
    ring.Reset();
    return ring;
  }

  // Makes the ring as new: zeroes it and forgets every buffer. The device must not run.
  void Reset() {
    for (uint32_t i = 0; i < options_.size; ++i) {
      desc_[i] = vring_desc{};
      states_[i] = State();
      states_[i].next = static_cast<uint16_t>((i + 1) & mask_);
    }
    for (uint32_t i = 0; i < options_.size + 3u; ++i) avail_[i] = 0;
    for (uint32_t i = 0; i < 6u + 8u * options_.size; ++i) used_[i] = std::byte{0};
    free_head_ = 0;
    free_count_ = options_.size;
    in_flight_ = 0;
    next_avail_ = published_ = last_used_ = disarmed_at_ = 0;
    order_.Reset(options_.in_order ? options_.size : uint16_t{0});
    armed_ = true;  // zeroed suppression fields ask for a call
    device_errors_ = 0;
  }

  // Puts a buffer on the ring, readable segments first, without showing it to the device yet
  // (virtio 1.3 2.7.13.1). False when no descriptors are left or there is no segment.
  bool Add(std::span<const Segment> readable, std::span<const Segment> writable, uint64_t token) {
    const size_t count = readable.size() + writable.size();
    if (count == 0 || free_count_ == 0) return false;
    const uint16_t head = free_head_;
    State& state = states_[head];
    if (count > 1 && count <= options_.indirect_max) {
      vring_desc* const table = tables_ + size_t{head} * options_.indirect_max;
      size_t i = 0;
      const auto put = [table, &i, count](const Segment& segment, uint16_t flags) {
        const bool more = i + 1 < count;
        table[i] =
            vring_desc{.addr = segment.address,
                       .len = segment.length,
                       .flags = static_cast<uint16_t>(flags | (more ? VRING_DESC_F_NEXT : 0)),
                       .next = static_cast<uint16_t>(more ? i + 1 : 0)};
        ++i;
      };
      for (const Segment& segment : readable) put(segment, 0);
      for (const Segment& segment : writable) put(segment, VRING_DESC_F_WRITE);
      desc_[head] = vring_desc{.addr = tables_range_.range.address +
                                       uint64_t{head} * options_.indirect_max * sizeof(vring_desc),
                               .len = static_cast<uint32_t>(count * sizeof(vring_desc)),
                               .flags = VRING_DESC_F_INDIRECT,
                               .next = 0};
      free_head_ = state.next;
      state.last = head;
      state.length = 1;
    } else {
      if (count > free_count_) return false;
      uint16_t at = head;
      uint16_t last = head;
      size_t i = 0;
      const auto put = [this, &at, &last, &i, count](const Segment& segment, uint16_t flags) {
        const bool more = ++i < count;
        last = at;
        at = states_[at].next;
        desc_[last] =
            vring_desc{.addr = segment.address,
                       .len = segment.length,
                       .flags = static_cast<uint16_t>(flags | (more ? VRING_DESC_F_NEXT : 0)),
                       .next = more ? at : uint16_t{0}};
      };
      for (const Segment& segment : readable) put(segment, 0);
      for (const Segment& segment : writable) put(segment, VRING_DESC_F_WRITE);
      free_head_ = at;
      state.last = last;
      state.length = static_cast<uint16_t>(count);
    }
    state.token = token;
    if (options_.in_order) order_.Add(head, writable);
    free_count_ -= state.length;
    ++in_flight_;
    avail_[2 + (next_avail_ & mask_)] = head;
    ++next_avail_;
    return true;
  }

  // Shows everything added to the device (virtio 1.3 2.7.13.3); true when it wants a kick
  // (2.7.13.4.1, 2.7.7.2).
  bool Publish() {
    const uint16_t before = published_;
    if (before == next_avail_) return false;
    // Sequentially consistent so that the device's suppression fields are read after the index is
    // out: else both sides could miss each other.
    Shared(avail_[1]).store(next_avail_, std::memory_order_seq_cst);
    published_ = next_avail_;
    if (options_.event_idx) {
      const uint16_t event = Shared(avail_event()).load(std::memory_order_seq_cst);
      return vring_need_event(event, published_, before) != 0;
    }
    return (Shared(used_flags()).load(std::memory_order_seq_cst) & VRING_USED_F_NO_NOTIFY) == 0;
  }

  bool HasUsed() const {
    return Shared(used_index()).load(std::memory_order_acquire) != last_used_;
  }

  // Takes used buffers (virtio 1.3 2.7.14), at most used.size(). Entries that name no buffer in
  // flight are skipped and counted in device_errors().
  size_t TakeUsed(std::span<UsedBuffer> used) {
    const uint16_t index = Shared(used_index()).load(std::memory_order_acquire);
    const uint16_t ready = static_cast<uint16_t>(index - last_used_);
    if (ready > options_.size) {
      ++device_errors_;
      return 0;
    }
    size_t taken = 0;
    uint16_t left = ready;
    while (left > 0 && taken < used.size()) {
      uint16_t id = 0;
      uint32_t written = 0;
      if (!options_.in_order || !order_.batch_open()) {
        const vring_used_elem element = used_element(last_used_);
        if (element.id >= options_.size || states_[element.id].length == 0) {
          ++device_errors_;
          ++last_used_;
          --left;
          continue;
        }
        id = static_cast<uint16_t>(element.id);
        written = element.len;
        if (options_.in_order) order_.OpenBatch(id, written);
      }
      // An entry stands for all the buffers before it that have none (virtio 1.3 2.7.9).
      if (options_.in_order) order_.Next(&id, &written);
      ++last_used_;
      --left;
      State& state = states_[id];
      used[taken++] = UsedBuffer{.token = state.token, .written = written, .id = id};
      free_count_ += state.length;
      state.length = 0;
      --in_flight_;
      // In order, descriptors are used one behind the other for ever (virtio 1.3 2.7.5.2).
      if (options_.in_order) continue;
      states_[state.last].next = free_head_;
      free_head_ = id;
    }
    return taken;
  }

  // Asks for a call at the next used buffer (virtio 1.3 2.7.7.1); false when one is there already,
  // so that the caller must not sleep.
  bool ArmCalls() {
    if (options_.event_idx) {
      Shared(used_event()).store(last_used_, std::memory_order_seq_cst);
    } else {
      Shared(avail_[0]).store(0, std::memory_order_seq_cst);
    }
    armed_ = true;
    return Shared(used_index()).load(std::memory_order_seq_cst) == last_used_;
  }
  // Asks for no calls. With event-idx this is an index that will not be reached soon: a caller that
  // polls for long repeats it now and then (cheap when nothing is to be done).
  void DisarmCalls() {
    if (options_.event_idx) {
      if (armed_ || static_cast<uint16_t>(last_used_ - disarmed_at_) >= 0x4000) {
        disarmed_at_ = last_used_;
        Shared(used_event())
            .store(static_cast<uint16_t>(last_used_ - 1), std::memory_order_relaxed);
      }
    } else if (armed_) {
      Shared(avail_[0]).store(VRING_AVAIL_F_NO_INTERRUPT, std::memory_order_relaxed);
    }
    armed_ = false;
  }

  // QueueConfig's base of a new ring.
  static constexpr uint32_t first_base() { return 0; }
  // The same of a device that has gone, as far as the driver can tell: nothing was in flight.
  uint32_t reconnect_base() const { return RawUsedIndex(); }
  RingAddresses addresses() const {
    return {desc_range_.range.address, avail_range_.range.address, used_range_.range.address};
  }
  uint16_t size() const { return options_.size; }
  uint32_t in_flight() const { return in_flight_; }
  uint32_t free_descriptors() const { return free_count_; }
  // Used entries that named no buffer in flight, and impossible used indices.
  uint64_t device_errors() const { return device_errors_; }

  // Raw access for tests of a device against a hostile driver: every field of the shared memory,
  // past all bookkeeping above. Slots are taken modulo the ring size.
  vring_desc& raw_descriptor(uint16_t index) { return desc_[index & mask_]; }
  void RawSetAvail(uint16_t slot, uint16_t head) { avail_[2 + (slot & mask_)] = head; }
  void RawSetAvailIndex(uint16_t index) {
    Shared(avail_[1]).store(index, std::memory_order_seq_cst);
  }
  void RawSetAvailFlags(uint16_t flags) { Shared(avail_[0]).store(flags); }
  void RawSetUsedEvent(uint16_t event) { Shared(used_event()).store(event); }
  void RawSetUsedIndex(uint16_t index) { Shared(used_index()).store(index); }
  uint16_t RawAvailIndex() const { return Shared(avail_[1]).load(); }
  uint16_t RawUsedIndex() const { return Shared(used_index()).load(std::memory_order_acquire); }
  uint16_t RawUsedFlags() const { return Shared(used_flags()).load(); }
  uint16_t RawAvailEvent() const { return Shared(avail_event()).load(); }
  vring_used_elem RawUsed(uint16_t slot) const { return used_element(slot); }

 private:
  // Per descriptor: the free list's (and chain's) next, and for a head what Add recorded.
  struct State {
    uint64_t token = 0;
    uint16_t next = 0;
    uint16_t last = 0;    // of the chain
    uint16_t length = 0;  // descriptors; 0: not the head of a buffer in flight
  };

  SplitRing() = default;

  static std::atomic_ref<uint16_t> Shared(uint16_t& field) { return std::atomic_ref(field); }

  // Layout of virtio 1.3 2.7.6 and 2.7.8: avail is flags, idx, ring[], used_event; used is flags,
  // idx, ring[] of {id, len}, avail_event.
  uint16_t& used_event() const { return avail_[2 + options_.size]; }
  uint16_t& used_flags() const { return *reinterpret_cast<uint16_t*>(used_); }
  uint16_t& used_index() const { return *reinterpret_cast<uint16_t*>(used_ + 2); }
  uint16_t& avail_event() const {
    return *reinterpret_cast<uint16_t*>(used_ + 4 + 8 * size_t{options_.size});
  }
  vring_used_elem used_element(uint16_t slot) const {
    return reinterpret_cast<const vring_used_elem*>(used_ + 4)[slot & mask_];
  }

  vring_desc* desc_ = nullptr;
  uint16_t* avail_ = nullptr;
  std::byte* used_ = nullptr;
  vring_desc* tables_ = nullptr;
  std::vector<State> states_;
  RingOptions options_;
  uint16_t mask_ = 0;
  uint16_t free_head_ = 0;
  uint16_t next_avail_ = 0;
  uint16_t published_ = 0;
  uint16_t last_used_ = 0;
  uint16_t disarmed_at_ = 0;
  bool armed_ = true;
  uint32_t free_count_ = 0;
  uint32_t in_flight_ = 0;
  uint64_t device_errors_ = 0;
  UsedOrder order_;
  OwnedRange desc_range_;
  OwnedRange avail_range_;
  OwnedRange used_range_;
  OwnedRange tables_range_;
};

static_assert(DriverRing<SplitRing>);

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_SPLIT_RING_H_
