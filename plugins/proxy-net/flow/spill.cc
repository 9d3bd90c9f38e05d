#include "plugins/proxy-net/flow/spill.h"

#include <algorithm>

namespace virtbay::proxy_net {

std::span<uint8_t> Spill::Room(ChunkPool& pool, uint32_t sequence, uint32_t length) {
  uint16_t& chunk = chunk_[SlotOf(sequence)];
  if (chunk == 0) {
    chunk = static_cast<uint16_t>(pool.Take() + 1);
    ++held_;
  }
  const uint32_t at = sequence & (ChunkPool::kSize - 1);
  return pool.At(static_cast<uint16_t>(chunk - 1))
      .subspan(at, std::min(length, ChunkPool::kSize - at));
}

uint32_t Spill::Gather(ChunkPool& pool, uint32_t sequence, uint32_t length,
                       std::span<iovec> out) const {
  uint32_t pieces = 0;
  while (length > 0 && pieces < out.size()) {
    const uint16_t chunk = chunk_[SlotOf(sequence)];
    if (chunk == 0) break;
    const uint32_t at = sequence & (ChunkPool::kSize - 1);
    const uint32_t n = std::min(length, ChunkPool::kSize - at);
    out[pieces++] = {pool.At(static_cast<uint16_t>(chunk - 1)).data() + at, n};
    sequence += n;
    length -= n;
  }
  return pieces;
}

void Spill::ReleaseSlot(ChunkPool& pool, uint32_t slot) {
  if (chunk_[slot] == 0) return;
  pool.Give(static_cast<uint16_t>(chunk_[slot] - 1));
  chunk_[slot] = 0;
  --held_;
}

void Spill::Release(ChunkPool& pool, uint32_t from, uint32_t to, bool all) {
  if (held_ == 0) return;
  uint32_t slot = SlotOf(from);
  const uint32_t last = SlotOf(to);
  while (slot != last) {
    ReleaseSlot(pool, slot);
    slot = (slot + 1) % kSlots;
  }
  if (all) ReleaseSlot(pool, last);
}

void Spill::Clear(ChunkPool& pool) {
  for (uint32_t slot = 0; held_ > 0 && slot < kSlots; ++slot) ReleaseSlot(pool, slot);
}

}  // namespace virtbay::proxy_net
