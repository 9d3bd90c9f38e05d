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

std::vector<GuestSpan> Chain::GuestParts(const MemoryMap& from, uint32_t* readable) const {
  std::vector<GuestSpan> parts;
  *readable = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const auto* at = static_cast<const std::byte*>(segments_.data()[i].iov_base);
    // Neighbours here may have been joined to one segment, wherever they lie in the guest.
    for (uint64_t left = segments_.data()[i].iov_len; left > 0;) {
      const auto region = std::find_if(
          from.regions().begin(), from.regions().end(), [at](const MemoryRegion& candidate) {
            return candidate.mapping != nullptr && at >= candidate.host() &&
                   static_cast<uint64_t>(at - candidate.host()) < candidate.size;
          });
      if (region == from.regions().end()) {
        *readable = 0;
        return {};
      }
      const auto offset = static_cast<uint64_t>(at - region->host());
      const uint64_t run = std::min(left, region->size - offset);
      parts.push_back({region->guest_address + offset, run});
      if (i < readable_) ++*readable;
      at += run;
      left -= run;
    }
  }
  return parts;
}

ChainError Chain::MoveTo(const MemoryMap& from, const MemoryMap& to) {
  uint32_t readable = 0;
  const bool empty = segments_.size() == 0;
  const std::vector<GuestSpan> parts = GuestParts(from, &readable);
  Begin(head_, ring_descriptors_);
  ChainError error = parts.empty() && !empty ? ChainError::kUnmappedAddress : ChainError::kNone;
  for (size_t i = 0; i < parts.size() && error == ChainError::kNone; ++i) {
    error = AddBuffer(to, parts[i].address, parts[i].size, i >= readable, this);
  }
  if (error != ChainError::kNone) Begin(head_, ring_descriptors_);
  return error;
}

}  // namespace virtbay
