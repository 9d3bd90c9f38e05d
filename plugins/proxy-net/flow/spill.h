// Spill: the bytes of one flow that came inside its window and that the host's socket has not taken
// yet, in order or not. They are found by their sequence number, in chunks of a ChunkPool.
// The span from the first byte held to the last one is at most kMaxSpan. Owned by a flow; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SPILL_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SPILL_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "plugins/proxy-net/flow/chunk_pool.h"

namespace virtbay::proxy_net {

class Spill {
 public:
  static constexpr uint32_t kSlots = 256;  // of 8 KiB: a span of 2 MiB less one chunk
  static constexpr uint32_t kMaxSpan = (kSlots - 1) << ChunkPool::kShift;

  // [any] Chunks that a window of so many bytes can come to need: it may begin within one.
  static constexpr uint32_t ChunksFor(uint32_t window) {
    return ((window + ChunkPool::kSize - 1) >> ChunkPool::kShift) + 1;
  }

  // [queue] Contiguous room for bytes from `sequence` on, at most `length`, at least one.
  std::span<uint8_t> Room(ChunkPool& pool, uint32_t sequence, uint32_t length);
  // [queue] The bytes from `sequence` on, in pieces; how many pieces there are. Covers less than
  // `length` when `out` is full.
  uint32_t Gather(ChunkPool& pool, uint32_t sequence, uint32_t length, std::span<iovec> out) const;
  // [queue] Gives back the chunks that lie between `from` and `to`; `all`: also the one with `to`,
  // in which nothing is held any more.
  void Release(ChunkPool& pool, uint32_t from, uint32_t to, bool all);
  // [queue] Gives back every chunk.
  void Clear(ChunkPool& pool);

  // [queue] Chunks held.
  uint32_t chunks() const { return held_; }

 private:
  static uint32_t SlotOf(uint32_t sequence) { return (sequence >> ChunkPool::kShift) % kSlots; }
  void ReleaseSlot(ChunkPool& pool, uint32_t slot);

  uint32_t held_ = 0;
  uint16_t chunk_[kSlots] = {};  // chunk number + 1; 0: none
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SPILL_H_
