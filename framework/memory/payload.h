// Payload: bytes of a chain by offset, as iovecs in guest memory: slicing and copying.
// Stateless; used on the queue threads. The iovecs are framework-private copies of checked
// descriptors; the bytes behind them may change at any time (the guest writes them).
#ifndef VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_
#define VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace virtbay {

namespace payload_internal {

// Headers and replies are mostly of 16 to 128 bytes: two overlapping fixed-size copies are a few
// instructions, where memcpy of an unknown length is a call and a jump table.
inline void CopyBytes(void* to, const void* from, size_t len) {
  std::byte* const t = static_cast<std::byte*>(to);
  const std::byte* const f = static_cast<const std::byte*>(from);
  if (len >= 16 && len <= 32) {
    std::byte head[16];
    std::byte tail[16];
    std::memcpy(head, f, 16);
    std::memcpy(tail, f + len - 16, 16);
    std::memcpy(t, head, 16);
    std::memcpy(t + len - 16, tail, 16);
  } else if (len > 32 && len <= 64) {
    std::byte head[32];
    std::byte tail[32];
    std::memcpy(head, f, 32);
    std::memcpy(tail, f + len - 32, 32);
    std::memcpy(t, head, 32);
    std::memcpy(t + len - 32, tail, 32);
  } else {
    std::memcpy(to, from, len);
  }
  // The source may be guest memory: without this the compiler may read it a second time in place of
  // the private copy, which is a double fetch.
  asm volatile("" ::: "memory");
}

size_t CopyFromMany(std::span<const iovec> segments, uint64_t offset, void* to, size_t len);
size_t CopyToMany(std::span<const iovec> segments, uint64_t offset, const void* from, size_t len);

// Whether [offset, offset + len) lies in the first segment.
inline bool InFirst(std::span<const iovec> segments, uint64_t offset, size_t len) {
  return !segments.empty() && offset <= segments[0].iov_len && len <= segments[0].iov_len - offset;
}

}  // namespace payload_internal

// Copies bytes [offset, offset + len) of the segments to `to`; returns the bytes copied, less than
// len only where the segments end.
inline size_t CopyFromSegments(std::span<const iovec> segments, uint64_t offset, void* to,
                               size_t len) {
  if (len == 0) return 0;
  if (!payload_internal::InFirst(segments, offset, len)) [[unlikely]] {
    return payload_internal::CopyFromMany(segments, offset, to, len);
  }
  payload_internal::CopyBytes(to, static_cast<const std::byte*>(segments[0].iov_base) + offset,
                              len);
  return len;
}

// Copies `len` bytes to [offset, offset + len) of the segments; returns the bytes copied.
inline size_t CopyToSegments(std::span<const iovec> segments, uint64_t offset, const void* from,
                             size_t len) {
  if (len == 0) return 0;
  if (!payload_internal::InFirst(segments, offset, len)) [[unlikely]] {
    return payload_internal::CopyToMany(segments, offset, from, len);
  }
  payload_internal::CopyBytes(static_cast<std::byte*>(segments[0].iov_base) + offset, from, len);
  return len;
}

// Fills `to` with iovecs for bytes [offset, offset + len) of the segments; returns how many, or 0
// when the range is empty or reaches beyond the segments. When the range needs more than to.size()
// entries it is cut there (the caller sees a short count, as with preadv2).
size_t SliceSegments(std::span<const iovec> segments, uint64_t offset, uint64_t len,
                     std::span<iovec> to);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_PAYLOAD_H_
