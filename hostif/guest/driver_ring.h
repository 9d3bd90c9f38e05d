// What the two ring layouts have in common on the driver's side: buffers, options, the DriverRing
// concept, and the order of buffers with VIRTIO_F_IN_ORDER.
// Values inside a ring; one thread at a time.
#ifndef VIRTBAY_HOSTIF_GUEST_DRIVER_RING_H_
#define VIRTBAY_HOSTIF_GUEST_DRIVER_RING_H_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "framework/base/status.h"
#include "hostif/guest/guest_memory.h"

namespace virtbay::guest {

// One piece of a buffer: guest-physical [address, +length).
struct Segment {
  uint64_t address = 0;
  uint32_t length = 0;
};

// A buffer that the device has given back.
struct UsedBuffer {
  uint64_t token = 0;    // what Add was given
  uint32_t written = 0;  // bytes the device says it wrote
  uint16_t id = 0;       // the head descriptor, or the buffer id
};

// Where the parts of a ring lie in guest memory, as a transport is told; of a packed ring avail and
// used are the event suppression areas of driver and device.
struct RingAddresses {
  uint64_t descriptors = 0;
  uint64_t avail = 0;
  uint64_t used = 0;
};

struct RingOptions {
  uint16_t size = 256;        // descriptors, up to 32768; of a split ring a power of two
  uint16_t indirect_max = 0;  // entries per indirect table (virtio 1.3 2.7.5.3); 0: none
  bool event_idx = true;      // VIRTIO_F_EVENT_IDX was negotiated
  bool packed = false;        // VIRTIO_F_RING_PACKED
  bool in_order = false;      // VIRTIO_F_IN_ORDER
};

// What DriverQueue asks of a ring layout.
template <typename Ring>
concept DriverRing = requires(Ring ring, const Ring const_ring, std::span<const Segment> segments,
                              std::span<UsedBuffer> used, uint64_t token) {
  { ring.Add(segments, segments, token) } -> std::same_as<bool>;
  { ring.Publish() } -> std::same_as<bool>;
  { ring.TakeUsed(used) } -> std::same_as<size_t>;
  { ring.ArmCalls() } -> std::same_as<bool>;
  {ring.DisarmCalls()};
  {ring.Reset()};
  { const_ring.HasUsed() } -> std::same_as<bool>;
  { const_ring.addresses() } -> std::same_as<RingAddresses>;
  { const_ring.size() } -> std::same_as<uint16_t>;
  { const_ring.in_flight() } -> std::same_as<uint32_t>;
  { const_ring.free_descriptors() } -> std::same_as<uint32_t>;
  { const_ring.device_errors() } -> std::same_as<uint64_t>;
  { const_ring.first_base() } -> std::same_as<uint32_t>;
};

// A guest range that is given back with the ring.
struct OwnedRange {
  OwnedRange() = default;
  OwnedRange(OwnedRange&& other) noexcept
      : memory(std::exchange(other.memory, nullptr)), range(other.range) {}
  OwnedRange& operator=(OwnedRange&& other) noexcept {
    std::swap(memory, other.memory);
    std::swap(range, other.range);
    return *this;
  }
  ~OwnedRange() {
    if (memory != nullptr) memory->Free(range);
  }

  absl::Status Allocate(GuestMemory* from, uint64_t size, uint64_t alignment) {
    VIRTBAY_ASSIGN_OR_RETURN(range, from->Allocate(size, alignment));
    memory = from;
    return absl::OkStatus();
  }

  GuestMemory* memory = nullptr;
  GuestRange range;
};

// VIRTIO_F_IN_ORDER: the buffers in the order of Add. The device names the last one of a batch; the
// ones before it that it skipped count as written whole (virtio 1.3 2.7.9, 2.8.16).
class UsedOrder {
 public:
  void Reset(uint16_t size) {
    buffers_.assign(size, Buffer());
    first_ = count_ = 0;
    open_ = false;
  }
  // Precondition: fewer than `size` are in flight.
  void Add(uint16_t id, std::span<const Segment> writable) {
    Buffer& buffer = buffers_[(first_ + count_++) % buffers_.size()];
    buffer = Buffer{id, 0};
    for (const Segment& segment : writable) buffer.room += segment.length;
  }
  bool batch_open() const { return open_; }
  // Precondition: `id` is in flight.
  void OpenBatch(uint16_t id, uint32_t written) {
    open_ = true;
    last_ = Buffer{id, written};
  }
  // Removes the next buffer of the batch.
  void Next(uint16_t* id, uint32_t* written) {
    const Buffer& buffer = buffers_[first_];
    first_ = (first_ + 1) % static_cast<uint32_t>(buffers_.size());
    --count_;
    *id = buffer.id;
    open_ = buffer.id != last_.id;
    *written = open_ ? buffer.room : last_.room;
  }

 private:
  struct Buffer {
    uint16_t id = 0;
    uint32_t room = 0;
  };

  std::vector<Buffer> buffers_;
  uint32_t first_ = 0;
  uint32_t count_ = 0;
  bool open_ = false;
  Buffer last_;  // of the open batch, with what the device says it wrote
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_DRIVER_RING_H_
