// RecordRing: the requests of one queue on their way from its thread to whoever records: bytes of
// any number for each, one producer, one consumer, no lock; what does not fit is counted and
// dropped. Shared by the Queue, whose thread calls what is [queue], and the DeviceRecord
// ([control]).
#ifndef VIRTBAY_FRAMEWORK_DEVICE_RECORD_RING_H_
#define VIRTBAY_FRAMEWORK_DEVICE_RECORD_RING_H_

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "virtbay/record.h"

namespace virtbay {

class RecordRing {
 public:
  RecordRing(uint32_t queue, const RecordOptions& options);

  // [queue] Ids below this one are of requests that were taken before.
  void BeginAt(uint64_t first_id) { first_id_ = first_id; }
  // [queue]
  void Request(uint64_t id, std::span<const iovec> readable, std::span<const iovec> writable);
  void Complete(uint64_t id, std::span<const iovec> writable, uint32_t written);
  // kStop, or kReset: [control] then, while no thread serves the queue.
  void Mark(RecordKind kind);

  // [control] Appends what was recorded since the last call.
  void Take(std::vector<RequestRecord>* out);
  // [any]
  uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

 private:
  // What goes before the lengths of the pieces and the bytes.
  struct Head {
    uint64_t ns;
    uint64_t id;
    uint32_t written;
    uint32_t readable;  // pieces
    uint32_t writable;
    uint32_t bytes;
    RecordKind kind;
  };

  // False: no room, which is counted.
  bool Begin(uint64_t size);
  void Put(const void* data, size_t size);
  void PutLengths(std::span<const iovec> pieces);
  void PutBytes(std::span<const iovec> pieces, uint64_t size);
  void End() { written_.store(at_, std::memory_order_release); }
  void Get(uint64_t* at, void* data, size_t size) const;

  const uint32_t queue_;
  const uint32_t most_bytes_;
  const uint64_t mask_;
  const std::unique_ptr<std::byte[]> bytes_;
  // The thread's.
  alignas(64) std::atomic<uint64_t> written_{0};
  uint64_t at_ = 0;
  uint64_t read_seen_ = 0;
  uint64_t first_id_ = 1;
  std::atomic<uint64_t> dropped_{0};
  // The reader's.
  alignas(64) std::atomic<uint64_t> read_{0};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_RECORD_RING_H_
