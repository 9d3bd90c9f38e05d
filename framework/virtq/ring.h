// VirtqRing: what the queue runtime asks of a ring layout. SplitRing and PackedRing are the two;
// the runtime is compiled per layout and mode, and one of them is chosen once, at ring start. A
// ring is used by one queue thread only.
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_RING_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_RING_H_

#include <concepts>
#include <cstdint>

#include "framework/memory/memory_map.h"
#include "framework/virtq/chain.h"

namespace virtbay {

// Where the parts of a ring lie in guest memory (virtio 1.3 2.7 or 2.8).
struct RingAddresses {
  uint16_t size = 0;  // descriptors; a power of two for a split ring
  uint64_t descriptors = 0;
  uint64_t driver_area = 0;  // split: avail; packed: driver event suppression
  uint64_t device_area = 0;  // split: used; packed: device event suppression
};

// A chain that is given back to the driver.
struct UsedEntry {
  uint16_t head = 0;         // packed: the buffer id
  uint16_t descriptors = 1;  // of the ring, not of an indirect table
  uint32_t written = 0;
  bool read_only = false;  // nothing in it is device-writable
};

template <typename R>
concept VirtqRing = requires(R ring, const R const_ring, const MemoryMap& map, Chain& chain,
                             uint16_t index, const UsedEntry& used) {
  // At most how many chains wait, 0 only when there is none: one acquire load. A negative number:
  // the index lies (kAvailIndex).
  { ring.Available() } -> std::same_as<int32_t>;
  // Whether the next one is there, of those that Available said.
  { ring.More() } -> std::same_as<bool>;
  // Reads the next head (packed: the buffer id) without taking it.
  { ring.PeekHead(&index) } -> std::same_as<ChainError>;
  // Takes the chain that PeekHead saw: snapshot, check, translate.
  { ring.PopHead(map, index, &chain) } -> std::same_as<ChainError>;
  {ring.Prefetch(index)};
  // Adds a used entry that the driver does not see yet, then shows all of them with one store.
  {ring.PushUsed(used)};
  { ring.PublishUsed() } -> std::same_as<uint32_t>;
  // After PublishUsed: whether the driver wants to be notified.
  { ring.ShouldNotify() } -> std::same_as<bool>;
  // Kicks wanted or not. Enabling returns true when chains came meanwhile (look again).
  { ring.EnableKicks() } -> std::same_as<bool>;
  {ring.DisableKicks()};
  // Where it stands: what it has taken in the low 16 bits, what it has given back in the high ones
  // (indexes; of a packed ring 15 bits, and the lap's wrap counter above them). The next one goes
  // on from `base`, which is what the front-end gets to know of it.
  { const_ring.position() } -> std::same_as<uint32_t>;
  { const_ring.base() } -> std::same_as<uint32_t>;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_RING_H_
