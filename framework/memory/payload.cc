#include "framework/memory/payload.h"

#include <algorithm>

namespace virtbay {
namespace {

// Calls body(pointer, bytes) for each piece of [offset, offset + len), in order; returns the bytes
// that were there.
template <typename Body>
size_t Walk(std::span<const iovec> segments, uint64_t offset, size_t len, Body body) {
  size_t done = 0;
  for (const iovec& segment : segments) {
    if (offset >= segment.iov_len) {
      offset -= segment.iov_len;
      continue;
    }
    const size_t n = std::min(segment.iov_len - static_cast<size_t>(offset), len - done);
    body(static_cast<std::byte*>(segment.iov_base) + offset, n);
    offset = 0;
    done += n;
    if (done == len) break;
  }
  return done;
}

}  // namespace

namespace payload_internal {

size_t CopyFromMany(std::span<const iovec> segments, uint64_t offset, void* to, size_t len) {
  std::byte* next = static_cast<std::byte*>(to);
  return Walk(segments, offset, len, [&](const std::byte* piece, size_t n) {
    CopyBytes(next, piece, n);
    next += n;
  });
}

size_t CopyToMany(std::span<const iovec> segments, uint64_t offset, const void* from, size_t len) {
  const std::byte* next = static_cast<const std::byte*>(from);
  return Walk(segments, offset, len, [&](std::byte* piece, size_t n) {
    CopyBytes(piece, next, n);
    next += n;
  });
}

}  // namespace payload_internal

size_t SliceSegments(std::span<const iovec> segments, uint64_t offset, uint64_t len,
                     std::span<iovec> to) {
  if (len == 0 || len > SIZE_MAX) return 0;
  size_t count = 0;
  // Walks the whole range even when `to` is full: a range beyond the end is refused, not cut.
  const size_t there =
      Walk(segments, offset, static_cast<size_t>(len), [&](std::byte* piece, size_t n) {
        if (count < to.size()) to[count++] = iovec{piece, n};
      });
  return there == len ? count : 0;
}

}  // namespace virtbay
