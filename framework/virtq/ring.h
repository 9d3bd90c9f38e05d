// VirtqRing: what the queue runtime asks of a ring layout. SplitRing is one; a packed ring fits the
// same concept, so that the runtime is compiled per layout and chosen once, at ring start.
// A ring is used by one queue thread only.
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

template <typename R>
concept VirtqRing = requires(R ring, const MemoryMap& map, Chain& chain, uint16_t index) {
  // How many chains wait: one acquire load. A negative number: the index lies (kAvailIndex).
  { ring.Available() } -> std::same_as<int32_t>;
  // Reads the next head without taking it.
  { ring.PeekHead(&index) } -> std::same_as<ChainError>;
  // Takes the next chain: snapshot, check, translate.
  { ring.Pop(map, &chain) } -> std::same_as<ChainError>;
  // Adds a used entry that the driver does not see yet, then shows all of them with one store.
  {ring.PushUsed(index, uint32_t{})};
  { ring.PublishUsed() } -> std::same_as<uint32_t>;
  // After PublishUsed: whether the driver wants to be notified.
  { ring.ShouldNotify() } -> std::same_as<bool>;
  // Kicks wanted or not. Enabling returns true when chains came meanwhile (look again).
  { ring.EnableKicks() } -> std::same_as<bool>;
  {ring.DisableKicks()};
  { ring.next_avail() } -> std::same_as<uint16_t>;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_RING_H_
