#include "framework/virtq/split_ring.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/virtq/placement.h"

namespace virtbay {
namespace {

// One descriptor in private storage.
struct Snapshot {
  uint64_t address;
  uint32_t len;
  uint16_t flags;
  uint16_t next;
};

// The one read of a descriptor: two 8-byte loads, so that a guest that changes it meanwhile gets
// some mixture of its own making, which is then checked like any other.
Snapshot Read(vring_desc* table, uint32_t index) {
  std::array<uint64_t, 2> words{};
  auto* source = reinterpret_cast<uint64_t*>(&table[index]);
  words[0] = std::atomic_ref<uint64_t>(source[0]).load(std::memory_order_relaxed);
  words[1] = std::atomic_ref<uint64_t>(source[1]).load(std::memory_order_relaxed);
  Snapshot snapshot{};
  static_assert(sizeof(snapshot) == sizeof(vring_desc));
  std::memcpy(&snapshot, words.data(), sizeof(snapshot));
  return snapshot;
}

// Follows NEXT through a table of `size` entries. An error inside an indirect table never breaks
// the ring: only the chain's own bytes are at stake there.
ChainError WalkTable(const MemoryMap& map, vring_desc* table, uint32_t size, uint32_t index,
                     const SplitRingMemory* ring, bool indirect_allowed, Chain* chain);

ChainError WalkIndirect(const MemoryMap& map, const Snapshot& d, Chain* chain) {
  if ((d.flags & VRING_DESC_F_NEXT) != 0) return ChainError::kBadIndirect;
  if (d.len == 0 || d.len % sizeof(vring_desc) != 0) return ChainError::kBadIndirect;
  const uint32_t count = d.len / static_cast<uint32_t>(sizeof(vring_desc));
  if (count > kMaxChainDescriptors) return ChainError::kTooManyDescriptors;
  std::byte* data = map.TranslateWhole(d.address, d.len);
  if (data == nullptr) return ChainError::kUnmappedAddress;
  if (reinterpret_cast<uintptr_t>(data) % alignof(uint64_t) != 0) return ChainError::kBadIndirect;
  return WalkTable(map, reinterpret_cast<vring_desc*>(data), count, 0, nullptr, false, chain);
}

ChainError WalkTable(const MemoryMap& map, vring_desc* table, uint32_t size, uint32_t index,
                     const SplitRingMemory* ring, bool indirect_allowed, Chain* chain) {
  ChainError result = ChainError::kNone;
  for (uint32_t seen = 0;; ++seen) {
    if (seen == size) return ring != nullptr ? ChainError::kLoop : ChainError::kBadIndirect;
    const Snapshot d = Read(table, index);
    if ((d.flags & VRING_DESC_F_INDIRECT) != 0) {
      if (!indirect_allowed) return ChainError::kBadIndirect;
      if (result == ChainError::kNone) result = WalkIndirect(map, d, chain);
      if (result == ChainError::kBadIndirect) return result;
    } else if (result == ChainError::kNone) {
      result = AddBuffer(map, d.address, d.len, (d.flags & VRING_DESC_F_WRITE) != 0, chain);
    }
    if ((d.flags & VRING_DESC_F_NEXT) == 0) {
      if (ring != nullptr) chain->set_ring_descriptors(seen + 1);
      return result;
    }
    // A bad buffer does not end the walk: a loop or a wild index behind it still breaks the ring.
    if (d.next >= size)
      return ring != nullptr ? ChainError::kNextOutOfRange : ChainError::kBadIndirect;
    index = d.next;
  }
}

}  // namespace

std::vector<GuestSpan> SplitRingParts(const RingAddresses& where) {
  const uint64_t size = where.size;
  return {{where.descriptors, 16 * size},
          {where.driver_area, 6 + 2 * size},
          {where.device_area, 6 + 8 * size}};
}

absl::StatusOr<SplitRingMemory> SplitRingMemory::Create(const MemoryMap& map,
                                                        const RingAddresses& where) {
  if (where.size == 0 || where.size > 32768 || (where.size & (where.size - 1)) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring size ", where.size, " is not a power of two up to 32768"));
  }
  // virtio 1.3 2.7: sizes and alignments.
  const std::vector<GuestSpan> spans = SplitRingParts(where);
  std::array<RingPart, 3> parts{{
      {"descriptor table", spans[0], 16, nullptr},
      {"avail ring", spans[1], 2, nullptr},
      {"used ring", spans[2], 4, nullptr},
  }};
  VIRTBAY_RETURN_IF_ERROR(PlaceRing(map, parts));
  SplitRingMemory memory;
  memory.size = where.size;
  memory.descriptors = reinterpret_cast<vring_desc*>(parts[0].data);
  memory.avail = reinterpret_cast<uint16_t*>(parts[1].data);
  memory.used_head = reinterpret_cast<uint16_t*>(parts[2].data);
  memory.used = reinterpret_cast<vring_used_elem*>(parts[2].data + 4);
  memory.avail_event =
      reinterpret_cast<uint16_t*>(parts[2].data + 4 + sizeof(vring_used_elem) * where.size);
  return memory;
}

absl::StatusOr<uint32_t> SplitRingMemory::StartPosition(uint32_t base) const {
  if (base > UINT16_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("index ", base, " does not fit into 16 bits"));
  }
  // The driver's view of used survives a restart; only avail is given.
  return base | uint32_t{used_index()} << 16;
}

ChainError WalkSplitChain(const SplitRingMemory& ring, const MemoryMap& map, bool indirect_allowed,
                          uint16_t head, Chain* chain) {
  chain->Begin(head);
  return WalkTable(map, ring.descriptors, ring.size, head, &ring, indirect_allowed, chain);
}

}  // namespace virtbay
