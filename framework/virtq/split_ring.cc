#include "framework/virtq/split_ring.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

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

ChainError AddBuffer(const MemoryMap& map, const Snapshot& d, Chain* chain) {
  uint64_t address = d.address;
  uint64_t left = d.len;
  while (left > 0) {
    std::byte* data = nullptr;
    const uint64_t run = map.Translate(address, left, &data);
    if (run == 0) return ChainError::kUnmappedAddress;
    const ChainError error = (d.flags & VRING_DESC_F_WRITE) != 0 ? chain->AddWritable(data, run)
                                                                 : chain->AddReadable(data, run);
    if (error != ChainError::kNone) return error;
    left -= run;
    // Memory may reach to the last address there is; a buffer does not go on at 0.
    if (left > 0 && address + run < address) return ChainError::kUnmappedAddress;
    address += run;
  }
  return ChainError::kNone;
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
      result = AddBuffer(map, d, chain);
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

// By last bytes: the end of a part at the top of memory is not a number.
bool Overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len) {
  return a <= b + (b_len - 1) && b <= a + (a_len - 1);
}

}  // namespace

const char* ChainErrorName(ChainError error) {
  switch (error) {
    case ChainError::kNone:
      return "none";
    case ChainError::kUnmappedAddress:
      return "buffer outside the device's memory";
    case ChainError::kReadableAfterWritable:
      return "readable descriptor after a writable one";
    case ChainError::kLengthOverflow:
      return "sum of lengths beyond 4 GiB";
    case ChainError::kTooManyDescriptors:
      return "too many descriptors";
    case ChainError::kBadIndirect:
      return "bad indirect table";
    case ChainError::kAvailIndex:
      return "avail index moved by more than the ring's size";
    case ChainError::kHeadOutOfRange:
      return "head index out of range";
    case ChainError::kNextOutOfRange:
      return "next index out of range";
    case ChainError::kLoop:
      return "descriptor loop";
    case ChainError::kHeadInFlight:
      return "head is already in flight";
  }
  return "unknown";
}

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
  struct Part {
    const char* name;
    uint64_t address;
    uint64_t size;
    uint64_t alignment;
    std::byte* data;
  };
  std::array<Part, 3> parts{{
      {"descriptor table", spans[0].address, spans[0].size, 16, nullptr},
      {"avail ring", spans[1].address, spans[1].size, 2, nullptr},
      {"used ring", spans[2].address, spans[2].size, 4, nullptr},
  }};
  for (Part& part : parts) {
    if (part.address % part.alignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat(part.name, " at 0x", absl::Hex(part.address),
                                                     " is not aligned to ", part.alignment));
    }
    part.data = map.TranslateWhole(part.address, part.size);
    // The host address must be as aligned as the guest's: a region may start anywhere.
    if (part.data == nullptr || reinterpret_cast<uintptr_t>(part.data) % part.alignment != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(part.name, " at 0x", absl::Hex(part.address), " is not in the memory map"));
    }
  }
  for (size_t i = 0; i < parts.size(); ++i) {
    for (size_t j = i + 1; j < parts.size(); ++j) {
      if (Overlap(parts[i].address, parts[i].size, parts[j].address, parts[j].size)) {
        return absl::InvalidArgumentError(
            absl::StrCat(parts[i].name, " and ", parts[j].name, " overlap"));
      }
    }
  }
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

ChainError WalkSplitChain(const SplitRingMemory& ring, const MemoryMap& map, bool indirect_allowed,
                          uint16_t head, Chain* chain) {
  chain->Begin(head);
  return WalkTable(map, ring.descriptors, ring.size, head, &ring, indirect_allowed, chain);
}

}  // namespace virtbay
