#include "framework/device/record_ring.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <utility>

#include "framework/base/clock.h"

namespace virtbay {
namespace {

uint64_t Sum(std::span<const iovec> pieces) {
  uint64_t sum = 0;
  for (const iovec& piece : pieces) sum += piece.iov_len;
  return sum;
}

}  // namespace

RecordRing::RecordRing(uint32_t queue, const RecordOptions& options)
    : queue_(queue),
      most_bytes_(options.bytes),
      mask_(std::bit_ceil(std::max<uint64_t>(options.room, 4096)) - 1),
      // Not initialised: pages that are never reached cost nothing.
      bytes_(std::make_unique_for_overwrite<std::byte[]>(mask_ + 1)) {}

bool RecordRing::Begin(uint64_t size) {
  at_ = written_.load(std::memory_order_relaxed);
  if (at_ + size - read_seen_ > mask_ + 1) {
    read_seen_ = read_.load(std::memory_order_acquire);
    if (at_ + size - read_seen_ > mask_ + 1) {
      dropped_.store(dropped_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
      return false;
    }
  }
  return true;
}

void RecordRing::Put(const void* data, size_t size) {
  if (size == 0) return;
  const auto* from = static_cast<const std::byte*>(data);
  const size_t offset = at_ & mask_;
  const size_t first = std::min<size_t>(size, mask_ + 1 - offset);
  std::memcpy(bytes_.get() + offset, from, first);
  std::memcpy(bytes_.get(), from + first, size - first);
  at_ += size;
}

void RecordRing::PutLengths(std::span<const iovec> pieces) {
  for (const iovec& piece : pieces) {
    const auto length = static_cast<uint32_t>(piece.iov_len);
    Put(&length, sizeof(length));
  }
}

void RecordRing::PutBytes(std::span<const iovec> pieces, uint64_t size) {
  for (const iovec& piece : pieces) {
    const uint64_t part = std::min<uint64_t>(size, piece.iov_len);
    Put(piece.iov_base, part);
    size -= part;
    if (size == 0) return;
  }
}

void RecordRing::Request(uint64_t id, std::span<const iovec> readable,
                         std::span<const iovec> writable) {
  const Head head = {.ns = MonotonicNs(),
                     .id = id,
                     .written = 0,
                     .readable = static_cast<uint32_t>(readable.size()),
                     .writable = static_cast<uint32_t>(writable.size()),
                     .bytes = static_cast<uint32_t>(std::min<uint64_t>(Sum(readable), most_bytes_)),
                     .kind = RecordKind::kRequest};
  const size_t lengths = sizeof(uint32_t) * (readable.size() + writable.size());
  if (!Begin(sizeof(head) + lengths + head.bytes)) return;
  Put(&head, sizeof(head));
  PutLengths(readable);
  PutLengths(writable);
  PutBytes(readable, head.bytes);
  End();
}

void RecordRing::Complete(uint64_t id, std::span<const iovec> writable, uint32_t written) {
  const uint64_t size = std::min<uint64_t>({Sum(writable), written, most_bytes_});
  const Head head = {.ns = MonotonicNs(),
                     .id = id >= first_id_ ? id : 0,
                     .written = written,
                     .readable = 0,
                     .writable = 0,
                     .bytes = static_cast<uint32_t>(size),
                     .kind = RecordKind::kComplete};
  if (!Begin(sizeof(head) + size)) return;
  Put(&head, sizeof(head));
  PutBytes(writable, size);
  End();
}

void RecordRing::Mark(RecordKind kind) {
  const Head head = {.ns = MonotonicNs(),
                     .id = 0,
                     .written = 0,
                     .readable = 0,
                     .writable = 0,
                     .bytes = 0,
                     .kind = kind};
  if (!Begin(sizeof(head))) return;
  Put(&head, sizeof(head));
  End();
}

void RecordRing::Get(uint64_t* at, void* data, size_t size) const {
  if (size == 0) return;
  auto* to = static_cast<std::byte*>(data);
  const size_t offset = *at & mask_;
  const size_t first = std::min<size_t>(size, mask_ + 1 - offset);
  std::memcpy(to, bytes_.get() + offset, first);
  std::memcpy(to + first, bytes_.get(), size - first);
  *at += size;
}

void RecordRing::Take(std::vector<RequestRecord>* out) {
  const uint64_t end = written_.load(std::memory_order_acquire);
  uint64_t at = read_.load(std::memory_order_relaxed);
  while (at != end) {
    Head head;
    Get(&at, &head, sizeof(head));
    RequestRecord& record = out->emplace_back();
    record.ns = head.ns;
    record.id = head.id;
    record.queue = queue_;
    record.written = head.written;
    record.kind = head.kind;
    record.readable.resize(head.readable);
    Get(&at, record.readable.data(), head.readable * sizeof(uint32_t));
    record.writable.resize(head.writable);
    Get(&at, record.writable.data(), head.writable * sizeof(uint32_t));
    record.bytes.resize(head.bytes);
    Get(&at, record.bytes.data(), head.bytes);
  }
  read_.store(at, std::memory_order_release);
}

}  // namespace virtbay
