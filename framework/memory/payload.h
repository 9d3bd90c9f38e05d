// Payload: bytes of a chain by offset, as iovecs in guest memory: slicing and copying.
// Stateless; used on the queue threads. The iovecs are framework-private copies of checked
// descriptors; the bytes behind them may change at any time (the guest writes them).
#ifndef VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_
#define VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>

namespace virtbay {

// Copies bytes [offset, offset + len) of the segments to `to`; returns the bytes copied, less than
// len only where the segments end.
size_t CopyFromSegments(std::span<const iovec> segments, uint64_t offset, void* to, size_t len);

// Copies `len` bytes to [offset, offset + len) of the segments; returns the bytes copied.
size_t CopyToSegments(std::span<const iovec> segments, uint64_t offset, const void* from,
                      size_t len);

// Fills `to` with iovecs for bytes [offset, offset + len) of the segments; returns how many, or 0
// when the range is empty or reaches beyond the segments. When the range needs more than to.size()
// entries it is cut there (the caller sees a short count, as with preadv2).
size_t SliceSegments(std::span<const iovec> segments, uint64_t offset, uint64_t len,
                     std::span<iovec> to);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_
