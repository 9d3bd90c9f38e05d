// PackedRing: the driver's side of a packed virtqueue (virtio 1.3 2.8).
// A value inside a DriverQueue; one thread at a time drives it. The device may run in another
// process and is not trusted with more than the memory: what it writes is checked here.
// No system call, lock or allocation after construction.
#ifndef VIRTBAY_HOSTIF_GUEST_PACKED_RING_H_
#define VIRTBAY_HOSTIF_GUEST_PACKED_RING_H_

// The header's legacy part is not C++.
#ifndef VIRTIO_RING_NO_LEGACY
#define VIRTIO_RING_NO_LEGACY
#endif
#include <linux/virtio_ring.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/base/status.h"
#include "hostif/guest/driver_ring.h"
#include "hostif/guest/guest_memory.h"

namespace virtbay::guest {

class PackedRing {
 public:
  static constexpr uint16_t kAvail = 1u << VRING_PACKED_DESC_F_AVAIL;
  static constexpr uint16_t kUsed = 1u << VRING_PACKED_DESC_F_USED;

  // Allocates the ring (and its indirect tables) in guest memory. InvalidArgument for a bad size,
  // ResourceExhausted when the memory has no room. [control]
  static absl::StatusOr<PackedRing> Create(GuestMemory* memory, const RingOptions& options) {
    if (options.size == 0 || options.size > 32768) {
      return absl::InvalidArgumentError("a packed ring's size is one from 1 to 32768");
    }
    const uint64_t n = options.size;
    PackedRing ring;
    ring.options_ = options;
    // The two areas in cache lines of their own: each side writes one of them.
    VIRTBAY_RETURN_IF_ERROR(ring.desc_range_.Allocate(memory, n * sizeof(vring_packed_desc), 4096));
    VIRTBAY_RETURN_IF_ERROR(ring.driver_range_.Allocate(memory, 64, 64));
    VIRTBAY_RETURN_IF_ERROR(ring.device_range_.Allocate(memory, 64, 64));
    if (options.indirect_max != 0) {
      VIRTBAY_RETURN_IF_ERROR(ring.tables_range_.Allocate(
          memory, n * options.indirect_max * sizeof(vring_packed_desc), 4096));
      ring.tables_ = reinterpret_cast<vring_packed_desc*>(ring.tables_range_.range.host);
    }
    ring.desc_ = reinterpret_cast<vring_packed_desc*>(ring.desc_range_.range.host);
    ring.driver_event_ = reinterpret_cast<uint32_t*>(ring.driver_range_.range.host);
    ring.device_event_ = reinterpret_cast<uint32_t*>(ring.device_range_.range.host);
    ring.states_.resize(n);
    ring.Reset();
    return ring;
  }

  // Makes the ring as new: zeroes it and forgets every buffer. The device must not run.
  void Reset() {
    for (uint32_t i = 0; i < options_.size; ++i) {
      desc_[i] = vring_packed_desc{};
      states_[i] = State();
      states_[i].next_free = static_cast<uint16_t>(i + 1);
    }
    *driver_event_ = *device_event_ = 0;
    free_id_ = 0;
    free_count_ = options_.size;
    in_flight_ = 0;
    avail_ = used_ = first_ = Place();
    added_ = 0;
    armed_ = true;  // zeroed suppression fields ask for a call
    device_errors_ = 0;
    order_.Reset(options_.in_order ? options_.size : uint16_t{0});
  }

  // Puts a buffer on the ring, readable segments first, without showing it to the device yet
  // (virtio 1.3 2.8.21.1). False when no descriptors are left or there is no segment.
  bool Add(std::span<const Segment> readable, std::span<const Segment> writable, uint64_t token) {
    const size_t count = readable.size() + writable.size();
    if (count == 0 || free_count_ == 0) return false;
    const bool indirect = count > 1 && count <= options_.indirect_max;
    if (!indirect && count > free_count_) return false;
    const uint16_t id = free_id_;
    State& state = states_[id];
    const Place head = avail_;
    // The device looks at a buffer when its first descriptor is available, and at no place before
    // the ones in front of it: so only the very first one waits for Publish.
    uint16_t head_flags = 0;
    const auto put = [&](uint64_t address, uint32_t length, uint16_t flags) {
      vring_packed_desc& at = desc_[avail_.index];
      at.addr = address;
      at.len = length;
      at.id = id;
      flags = static_cast<uint16_t>(flags | (avail_.wrap ? kAvail : kUsed));
      if (avail_.index == head.index) {
        head_flags = flags;
      } else {
        Shared(at.flags).store(flags, std::memory_order_relaxed);
      }
      avail_.Advance(1, options_.size);
    };
    if (indirect) {
      vring_packed_desc* const table = tables_ + size_t{id} * options_.indirect_max;
      size_t i = 0;
      for (const Segment& segment : readable) {
        table[i++] = {.addr = segment.address, .len = segment.length, .id = 0, .flags = 0};
      }
      for (const Segment& segment : writable) {
        table[i++] = {
            .addr = segment.address, .len = segment.length, .id = 0, .flags = VRING_DESC_F_WRITE};
      }
      put(tables_range_.range.address +
              uint64_t{id} * options_.indirect_max * sizeof(vring_packed_desc),
          static_cast<uint32_t>(count * sizeof(vring_packed_desc)), VRING_DESC_F_INDIRECT);
      state.length = 1;
    } else {
      size_t left = count;
      const auto more = [&left]() -> uint16_t { return --left > 0 ? VRING_DESC_F_NEXT : 0; };
      for (const Segment& segment : readable) put(segment.address, segment.length, more());
      for (const Segment& segment : writable) {
        put(segment.address, segment.length, static_cast<uint16_t>(VRING_DESC_F_WRITE | more()));
      }
      state.length = static_cast<uint16_t>(count);
    }
    if (added_ == 0) {
      first_ = head;
      first_flags_ = head_flags;
    } else {
      Shared(desc_[head.index].flags).store(head_flags, std::memory_order_relaxed);
    }
    added_ += state.length;
    free_id_ = state.next_free;
    free_count_ -= state.length;
    ++in_flight_;
    state.token = token;
    if (options_.in_order) order_.Add(id, writable);
    return true;
  }

  // Shows everything added to the device; true when it wants a kick (virtio 1.3 2.8.21.3).
  bool Publish() {
    if (added_ == 0) return false;
    // Sequentially consistent so that the device's suppression area is read after the flags are
    // out: else both sides could miss each other.
    Shared(desc_[first_.index].flags).store(first_flags_, std::memory_order_seq_cst);
    const uint32_t event = Shared(*device_event_).load(std::memory_order_seq_cst);
    const int32_t count = static_cast<int32_t>(added_);
    added_ = 0;
    const uint32_t flags = event >> 16 & 3;
    if (flags == VRING_PACKED_EVENT_FLAG_DISABLE) return false;
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !options_.event_idx) return true;
    // Places from the beginning of this lap, so those of the last one are negative.
    const bool this_lap = (event >> 15 & 1) == (avail_.wrap ? 1u : 0u);
    const int32_t at = static_cast<int32_t>(event & 0x7fff) - (this_lap ? 0 : options_.size);
    return at >= avail_.index - count && at < avail_.index;
  }

  bool HasUsed() const {
    const uint16_t flags = Shared(desc_[used_.index].flags).load(std::memory_order_acquire);
    return IsUsed(flags) || (options_.in_order && order_.batch_open());
  }

  // Takes used buffers (virtio 1.3 2.8.22), at most used.size(). Descriptors that name no buffer in
  // flight are skipped and counted in device_errors().
  size_t TakeUsed(std::span<UsedBuffer> used) {
    size_t taken = 0;
    while (taken < used.size()) {
      uint16_t id = 0;
      uint32_t written = 0;
      if (!options_.in_order || !order_.batch_open()) {
        vring_packed_desc& descriptor = desc_[used_.index];
        const uint16_t flags = Shared(descriptor.flags).load(std::memory_order_acquire);
        if (!IsUsed(flags)) break;
        id = Shared(descriptor.id).load(std::memory_order_relaxed);
        written = (flags & VRING_DESC_F_WRITE) != 0
                      ? Shared(descriptor.len).load(std::memory_order_relaxed)
                      : 0;
        if (id >= options_.size || states_[id].length == 0) {
          ++device_errors_;
          used_.Advance(1, options_.size);
          continue;
        }
        if (options_.in_order) order_.OpenBatch(id, written);
      }
      // One stands for all the buffers before it that have none (virtio 1.3 2.8.16).
      if (options_.in_order) order_.Next(&id, &written);
      State& state = states_[id];
      used[taken++] = UsedBuffer{.token = state.token, .written = written, .id = id};
      used_.Advance(state.length, options_.size);
      free_count_ += state.length;
      state.length = 0;
      state.next_free = free_id_;
      free_id_ = id;
      --in_flight_;
    }
    return taken;
  }

  // Asks for a call at the next used buffer (virtio 1.3 2.8.10); false when one is there already,
  // so that the caller must not sleep.
  bool ArmCalls() {
    uint32_t event = 0;
    if (options_.event_idx) {
      event =
          uint32_t{VRING_PACKED_EVENT_FLAG_DESC} << 16 | used_.index | (used_.wrap ? 0x8000u : 0u);
    }
    Shared(*driver_event_).store(event, std::memory_order_seq_cst);
    armed_ = true;
    // Not to be moved in front of the store.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return !HasUsed();
  }
  // Asks for no calls.
  void DisarmCalls() {
    if (armed_) {
      Shared(*driver_event_)
          .store(uint32_t{VRING_PACKED_EVENT_FLAG_DISABLE} << 16, std::memory_order_relaxed);
    }
    armed_ = false;
  }

  // QueueConfig's base of a new ring: place 0 in the lap whose wrap counter is 1.
  static constexpr uint32_t first_base() { return 0x8000; }
  // The same of a device that has gone, as far as the driver can tell: nothing was in flight.
  uint32_t reconnect_base() const {
    const uint32_t place = used_.index | (used_.wrap ? 0x8000u : 0u);
    return place | place << 16;
  }
  RingAddresses addresses() const {
    return {desc_range_.range.address, driver_range_.range.address, device_range_.range.address};
  }
  uint16_t size() const { return options_.size; }
  uint32_t in_flight() const { return in_flight_; }
  uint32_t free_descriptors() const { return free_count_; }
  // Used descriptors that named no buffer in flight.
  uint64_t device_errors() const { return device_errors_; }

  // Raw access for tests of a device against a hostile driver. The next place that Add would fill,
  // with the flags that make it available, and a step to the one after it.
  vring_packed_desc& raw_descriptor(uint16_t index) { return desc_[index % options_.size]; }
  uint16_t RawNext() const { return avail_.index; }
  uint16_t RawAvailable() const { return avail_.wrap ? kAvail : kUsed; }
  void RawSkip() { avail_.Advance(1, options_.size); }
  void RawSetFlags(uint16_t index, uint16_t flags) {
    Shared(raw_descriptor(index).flags).store(flags, std::memory_order_seq_cst);
  }
  uint32_t RawDeviceEvent() const { return Shared(*device_event_).load(); }
  void RawSetDriverEvent(uint32_t event) { Shared(*driver_event_).store(event); }

 private:
  // A place and the wrap counter of its lap (virtio 1.3 2.8.1).
  struct Place {
    uint16_t index = 0;
    bool wrap = true;
    void Advance(uint16_t count, uint16_t size) {
      const uint32_t next = uint32_t{index} + count;
      const bool over = next >= size;
      index = static_cast<uint16_t>(over ? next - size : next);
      wrap ^= over;
    }
  };
  // Per buffer id.
  struct State {
    uint64_t token = 0;
    uint16_t next_free = 0;
    uint16_t length = 0;  // descriptors; 0: not in flight
  };

  PackedRing() = default;

  template <typename T>
  static std::atomic_ref<T> Shared(T& field) {
    return std::atomic_ref<T>(field);
  }
  bool IsUsed(uint16_t flags) const {
    return ((flags & kAvail) != 0) == used_.wrap && ((flags & kUsed) != 0) == used_.wrap;
  }

  vring_packed_desc* desc_ = nullptr;
  uint32_t* driver_event_ = nullptr;  // off_wrap in the low half, flags in the high one
  uint32_t* device_event_ = nullptr;
  vring_packed_desc* tables_ = nullptr;
  std::vector<State> states_;
  RingOptions options_;
  Place avail_;
  Place used_;
  Place first_;  // of what was added and not published
  uint16_t first_flags_ = 0;
  uint32_t added_ = 0;  // descriptors since Publish
  uint16_t free_id_ = 0;
  bool armed_ = true;
  uint32_t free_count_ = 0;
  uint32_t in_flight_ = 0;
  uint64_t device_errors_ = 0;
  UsedOrder order_;
  OwnedRange desc_range_;
  OwnedRange driver_range_;
  OwnedRange device_range_;
  OwnedRange tables_range_;
};

static_assert(DriverRing<PackedRing>);

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_PACKED_RING_H_
