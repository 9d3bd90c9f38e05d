#include "framework/virtq/chain.h"

#include <algorithm>
#include <vector>

namespace virtbay {

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
      return "head or buffer id is already in flight";
    case ChainError::kIdOutOfRange:
      return "buffer id out of range";
    case ChainError::kUnfinished:
      return "chain goes on in a descriptor that is not available";
  }
  return "unknown";
}

ChainError AddSplitBuffer(const MemoryMap& map, uint64_t address, uint64_t len, bool writable,
                          Chain* chain) {
  uint64_t left = len;
  while (left > 0) {
    std::byte* data = nullptr;
    const uint64_t run = map.Translate(address, left, &data);
    if (run == 0) return ChainError::kUnmappedAddress;
    const ChainError error =
        writable ? chain->AddWritable(data, run) : chain->AddReadable(data, run);
    if (error != ChainError::kNone) return error;
    left -= run;
    // Memory may reach to the last address there is; a buffer does not go on at 0.
    if (left > 0 && address + run < address) return ChainError::kUnmappedAddress;
    address += run;
  }
  return ChainError::kNone;
}

ChainError Chain::MoveTo(const MemoryMap& from, const MemoryMap& to) {
  const std::vector<iovec> old(segments_.data(), segments_.data() + segments_.size());
  const size_t readable = readable_;
  Begin(head_, ring_descriptors_);
  for (size_t i = 0; i < old.size(); ++i) {
    const auto* at = static_cast<const std::byte*>(old[i].iov_base);
    // Neighbours here may have been joined to one segment, wherever they lie in the guest.
    for (uint64_t left = old[i].iov_len; left > 0;) {
      const auto region = std::find_if(
          from.regions().begin(), from.regions().end(), [at](const MemoryRegion& candidate) {
            return candidate.mapping != nullptr && at >= candidate.host() &&
                   static_cast<uint64_t>(at - candidate.host()) < candidate.size;
          });
      ChainError error = ChainError::kUnmappedAddress;
      uint64_t run = 0;
      if (region != from.regions().end()) {
        const auto offset = static_cast<uint64_t>(at - region->host());
        run = std::min(left, region->size - offset);
        error = AddBuffer(to, region->guest_address + offset, run, i >= readable, this);
      }
      if (error != ChainError::kNone) {
        Begin(head_, ring_descriptors_);
        return error;
      }
      at += run;
      left -= run;
    }
  }
  return ChainError::kNone;
}

}  // namespace virtbay
