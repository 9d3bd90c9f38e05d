// Chain: one descriptor chain after its snapshot and checks: host iovecs, readable ones first.
// Owned by the queue's in-flight entry, reused for chain after chain; [queue].
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_CHAIN_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_CHAIN_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "framework/memory/memory_map.h"
#include "framework/virtq/segment_list.h"

namespace virtbay {

// Why a chain or a ring was refused; kNone is a good one.
enum class ChainError : uint8_t {
  kNone,
  // The head is known, so the chain can be completed with nothing written.
  kUnmappedAddress,  // a buffer outside the device's memory
  kReadableAfterWritable,
  kLengthOverflow,  // more than 4 GiB - 1 one way
  kTooManyDescriptors,
  kBadIndirect,  // table length, nesting or NEXT beside INDIRECT (virtio 1.3 2.7.5.3)
  // The ring itself cannot be trusted any more.
  kAvailIndex,  // avail index moved by more than the ring's size
  kHeadOutOfRange,
  kNextOutOfRange,
  kLoop,
  kHeadInFlight,  // a head or buffer id that the device still holds
  kIdOutOfRange,  // packed: buffer id
  kUnfinished,    // packed: a descriptor of the chain is not available
};

// The longest chain that is accepted through an indirect table: what QEMU and Linux use at most,
// whatever the ring's size.
inline constexpr uint32_t kMaxChainDescriptors = 1024;

// True for the errors after which the ring must stop.
inline bool BreaksRing(ChainError error) { return error >= ChainError::kAvailIndex; }
const char* ChainErrorName(ChainError error);

class Chain {
 public:
  // Packed: the buffer id.
  uint16_t head() const { return head_; }
  std::span<const iovec> readable() const { return {segments_.data(), readable_}; }
  std::span<const iovec> writable() const {
    return {segments_.data() + readable_, segments_.size() - readable_};
  }
  uint32_t readable_bytes() const { return readable_bytes_; }
  uint32_t writable_bytes() const { return writable_bytes_; }
  // Entries of the ring's own descriptors that it occupies; one with an indirect table.
  uint32_t ring_descriptors() const { return ring_descriptors_; }
  void set_ring_descriptors(uint32_t count) { ring_descriptors_ = static_cast<uint16_t>(count); }

  void Begin(uint16_t head, uint32_t ring_descriptors = 0) {
    head_ = head;
    readable_ = 0;
    readable_bytes_ = 0;
    writable_bytes_ = 0;
    set_ring_descriptors(ring_descriptors);
    segments_.clear();
  }
  // Appends a checked buffer; the capacity that this needs is kept, so that a queue in steady state
  // allocates nothing.
  ChainError AddReadable(std::byte* data, uint64_t len) {
    if (segments_.size() != readable_) return ChainError::kReadableAfterWritable;
    uint32_t total = 0;
    if (__builtin_add_overflow(readable_bytes_, len, &total)) return ChainError::kLengthOverflow;
    readable_bytes_ = total;
    if (readable_ == 0 || !Extends(data, len)) {
      segments_.push_back(iovec{data, len});
      ++readable_;
    }
    return ChainError::kNone;
  }
  ChainError AddWritable(std::byte* data, uint64_t len) {
    uint32_t total = 0;
    if (__builtin_add_overflow(writable_bytes_, len, &total)) return ChainError::kLengthOverflow;
    writable_bytes_ = total;
    if (segments_.size() == readable_ || !Extends(data, len)) {
      segments_.push_back(iovec{data, len});
    }
    return ChainError::kNone;
  }
  size_t segment_count() const { return segments_.size(); }

  // The same buffers, at the same guest addresses, in another map; what was read of the ring before
  // is not read again. kUnmappedAddress where `to` does not have them: the chain is empty then.
  ChainError MoveTo(const MemoryMap& from, const MemoryMap& to);
  // Its buffers at their guest addresses, by the map that it was made with; *readable: how many of
  // them, the first, are readable. Empty when the map is another.
  std::vector<GuestSpan> GuestParts(const MemoryMap& from, uint32_t* readable) const;

 private:
  // Drivers describe a buffer page by page; where the pages are neighbours here, one segment serves
  // them, which spares the kernel a step per page when it copies.
  bool Extends(std::byte* data, uint64_t len) {
    iovec& last = segments_.back();
    if (static_cast<std::byte*>(last.iov_base) + last.iov_len != data) return false;
    last.iov_len += len;
    return true;
  }

  SegmentList segments_;
  uint32_t readable_ = 0;  // segments
  uint32_t readable_bytes_ = 0;
  uint32_t writable_bytes_ = 0;
  uint16_t head_ = 0;
  uint16_t ring_descriptors_ = 0;  // at most the ring's size, 32768
};
static_assert(sizeof(Chain) == 64, "a cache line");

// AddBuffer where it is empty, or not whole in one region.
ChainError AddSplitBuffer(const MemoryMap& map, uint64_t address, uint64_t len, bool writable,
                          Chain* chain);

// Adds guest [address, +len) to the chain, in as many segments as it has regions.
inline ChainError AddBuffer(const MemoryMap& map, uint64_t address, uint64_t len, bool writable,
                            Chain* chain) {
  std::byte* const data = map.TranslateWhole(address, len);
  if (data == nullptr) [[unlikely]]
    return AddSplitBuffer(map, address, len, writable, chain);
  return writable ? chain->AddWritable(data, len) : chain->AddReadable(data, len);
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_CHAIN_H_
