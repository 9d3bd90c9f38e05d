#include "framework/virtq/packed_ring.h"

#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/virtq/placement.h"

namespace virtbay {
namespace {

// The one read of a descriptor: two 8-byte loads, so that a guest that changes it meanwhile gets
// some mixture of its own making, which is then checked like any other.
// virtio 1.3 2.8.7: the table's entries one after the other; of their flags only WRITE means
// anything, and some drivers leave others there. An error in it is the chain's own trouble.
ChainError WalkIndirect(const MemoryMap& map, const PackedSnapshot& d, Chain* chain) {
  if ((d.flags & VRING_DESC_F_NEXT) != 0) return ChainError::kBadIndirect;
  if (d.len == 0 || d.len % sizeof(vring_packed_desc) != 0) return ChainError::kBadIndirect;
  const uint32_t count = d.len / static_cast<uint32_t>(sizeof(vring_packed_desc));
  if (count > kMaxChainDescriptors) return ChainError::kTooManyDescriptors;
  std::byte* data = map.TranslateWhole(d.address, d.len);
  if (data == nullptr) return ChainError::kUnmappedAddress;
  if (reinterpret_cast<uintptr_t>(data) % alignof(uint64_t) != 0) return ChainError::kBadIndirect;
  for (uint32_t i = 0; i < count; ++i) {
    const PackedSnapshot entry = ReadPacked(reinterpret_cast<vring_packed_desc*>(data), i);
    if ((entry.flags & VRING_DESC_F_INDIRECT) != 0) return ChainError::kBadIndirect;
    const bool writable = (entry.flags & VRING_DESC_F_WRITE) != 0;
    const ChainError error = AddBuffer(map, entry.address, entry.len, writable, chain);
    if (error != ChainError::kNone) return error;
  }
  return ChainError::kNone;
}

}  // namespace

std::vector<GuestSpan> PackedRingParts(const RingAddresses& where) {
  return {{where.descriptors, sizeof(vring_packed_desc) * uint64_t{where.size}},
          {where.driver_area, sizeof(vring_packed_desc_event)},
          {where.device_area, sizeof(vring_packed_desc_event)}};
}

absl::StatusOr<PackedRingMemory> PackedRingMemory::Create(const MemoryMap& map,
                                                          const RingAddresses& where) {
  if (where.size == 0 || where.size > 32768) {
    return absl::InvalidArgumentError(
        absl::StrCat("packed ring size ", where.size, " is not one from 1 to 32768"));
  }
  // virtio 1.3 2.8.10: sizes and alignments.
  const std::vector<GuestSpan> spans = PackedRingParts(where);
  std::array<RingPart, 3> parts{{
      {"descriptor ring", spans[0], 16, nullptr},
      {"driver event suppression", spans[1], 4, nullptr},
      {"device event suppression", spans[2], 4, nullptr},
  }};
  VIRTBAY_RETURN_IF_ERROR(PlaceRing(map, parts));
  PackedRingMemory memory;
  memory.size = where.size;
  memory.descriptors = reinterpret_cast<vring_packed_desc*>(parts[0].data);
  memory.driver_event = reinterpret_cast<uint32_t*>(parts[1].data);
  memory.device_event = reinterpret_cast<uint32_t*>(parts[2].data);
  return memory;
}

absl::StatusOr<uint32_t> PackedRingMemory::StartPosition(uint32_t base) const {
  if (base == 0) {
    // What the first place looks like before anything was given back: nothing, or available for
    // the first time.
    const uint16_t flags = Flags(0, std::memory_order_relaxed);
    if ((flags & kPackedUsed) == 0) return kPackedFreshPosition;
  }
  const auto taken = static_cast<uint16_t>(base);
  const uint16_t given = base >> 16 != 0 ? static_cast<uint16_t>(base >> 16) : taken;
  const PackedCursor avail = PackedCursor::Decode(taken);
  const PackedCursor used = PackedCursor::Decode(given);
  // What was given back was taken before, and at most one lap ago.
  const bool possible =
      avail.wrap == used.wrap ? used.index <= avail.index : used.index >= avail.index;
  if (avail.index >= size || used.index >= size || !possible) {
    return absl::InvalidArgumentError(
        absl::StrCat("base 0x", absl::Hex(base), " is no place in a packed ring of ", size));
  }
  return taken | uint32_t{given} << 16;
}

bool PackedRingMemory::GoesOn(uint32_t base, uint32_t position) const {
  if ((base & 0xffff) != (position & 0xffff)) return false;
  if (base >> 16 != 0 && base != position) return false;
  const PackedCursor used = PackedCursor::Decode(static_cast<uint16_t>(position >> 16));
  return used.index < size &&
         PackedIsAvailable(Flags(used.index, std::memory_order_relaxed), used.wrap);
}

ChainError SnapshotPackedChain(const PackedRingMemory& ring, PackedCursor from, uint16_t room,
                               std::vector<PackedSnapshot>* chain, uint16_t* id) {
  chain->clear();
  for (;;) {
    // A lap ahead of what was given back: the driver has used places that are not its own.
    if (chain->size() == room) {
      return room == ring.size ? ChainError::kLoop : ChainError::kAvailIndex;
    }
    const PackedSnapshot d = ReadPacked(ring.descriptors, from.index);
    if (!PackedIsAvailable(d.flags, from.wrap)) return ChainError::kUnfinished;
    chain->push_back(d);
    from.Advance(1, ring.size);
    if ((d.flags & VRING_DESC_F_NEXT) != 0) continue;
    *id = d.id;
    return d.id < ring.size ? ChainError::kNone : ChainError::kIdOutOfRange;
  }
}

ChainError WalkPackedChain(std::span<const PackedSnapshot> descriptors, const MemoryMap& map,
                           bool indirect_allowed, uint16_t id, Chain* chain) {
  chain->Begin(id, static_cast<uint32_t>(descriptors.size()));
  for (const PackedSnapshot& d : descriptors) {
    ChainError error = ChainError::kNone;
    if ((d.flags & VRING_DESC_F_INDIRECT) == 0) {
      error = AddBuffer(map, d.address, d.len, (d.flags & VRING_DESC_F_WRITE) != 0, chain);
    } else {
      error = indirect_allowed ? WalkIndirect(map, d, chain) : ChainError::kBadIndirect;
    }
    if (error != ChainError::kNone) return error;
  }
  return ChainError::kNone;
}

}  // namespace virtbay
