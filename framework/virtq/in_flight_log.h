// The in-flight log of a ring (vhost-user, "Inflight I/O tracking"): which chains were taken and
// not given back, in memory that a front-end keeps while this process is killed and started again.
// What is in it is hostile: it is read once, when the ring starts, and checked in private storage;
// from then on it is only written. Part of a LoggedRing; [queue].
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_IN_FLIGHT_LOG_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_IN_FLIGHT_LOG_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "framework/memory/shared_area.h"
#include "framework/virtq/packed_ring.h"
#include "framework/virtq/ring.h"
#include "framework/virtq/split_ring.h"

namespace virtbay {

inline constexpr uint16_t kInFlightLogVersion = 1;

// The region of one ring: a header, then one entry per descriptor.
struct SplitLogHeader {
  uint64_t features;
  uint16_t version;  // 0: not used yet
  uint16_t descriptors;
  uint16_t last_batch_head;
  uint16_t used_index;
};
struct SplitLogEntry {
  uint8_t in_flight;
  uint8_t padding[5];
  uint16_t next;  // of the batch that was given back last
  uint64_t counter;
};
static_assert(sizeof(SplitLogHeader) == 16 && sizeof(SplitLogEntry) == 16);

struct PackedLogHeader {
  uint64_t features;
  uint16_t version;  // 0: not used yet
  uint16_t descriptors;
  uint16_t free_head;
  uint16_t old_free_head;
  uint16_t used_index;
  uint16_t old_used_index;
  uint8_t used_wrap;
  uint8_t old_used_wrap;
  uint8_t padding[10];
};
struct PackedLogEntry {
  uint8_t in_flight;
  uint8_t padding;
  uint16_t next;  // of the chain, or of the free entries
  uint16_t last;  // of the chain; valid in its first entry, as are count and counter
  uint16_t count;
  uint64_t counter;
  uint16_t id;
  uint16_t flags;
  uint32_t len;
  uint64_t address;
};
static_assert(sizeof(PackedLogHeader) == 32 && sizeof(PackedLogEntry) == 32);
static_assert(offsetof(PackedLogHeader, free_head) == 12);
static_assert(offsetof(PackedLogHeader, used_index) == 16);

// Bytes of the region of a ring with so many descriptors; a multiple of kInFlightLogAlignment, at
// which regions of further rings follow.
inline constexpr uint64_t kInFlightLogAlignment = 64;
uint64_t InFlightLogSize(bool packed, uint16_t descriptors);

// Makes the log of a ring one that was never used. The ring must not run.
void ForgetInFlight(const SharedArea& area);

class SplitLog {
 public:
  // A chain that was in flight.
  struct Pending {
    uint16_t head = 0;
    ChainError Walk(const SplitRingMemory& ring, const MemoryMap& map, bool indirect,
                    Chain* chain) const {
      return WalkSplitChain(ring, map, indirect, head, chain);
    }
  };

  // Takes up the log of a ring that is to start at `position` unless the log knows better: then it
  // sets *position, and *pending to what was in flight, in the order in which it was taken.
  // InvalidArgument when the log is too small, misaligned, of an unknown version, or contradicts
  // itself or the ring.
  static absl::StatusOr<SplitLog> Open(const SharedArea& area, const SplitRingMemory& ring,
                                       uint32_t* position, std::vector<Pending>* pending);

  // There was a log: the driver may have missed a notification.
  bool goes_on() const { return goes_on_; }
  template <typename Ring>
  void Take(const Ring& /*ring*/, uint16_t head) {
    Store(entries_[head].counter, counter_++);
    Store(entries_[head].in_flight, uint8_t{1});
  }
  // The chain is part of the batch that is shown next.
  void Put(const UsedEntry& used) {
    Store(entries_[used.head].next, last_batch_head_);
    last_batch_head_ = used.head;
    Store(header_->last_batch_head, last_batch_head_);
    batch_.push_back(used.head);
  }
  // Before and after the batch is shown, with the ring's position behind it.
  void BeforeShow(uint32_t /*position*/) {}
  void AfterShow(uint32_t position) {
    for (const uint16_t head : batch_) Store(entries_[head].in_flight, uint8_t{0});
    batch_.clear();
    Store(header_->used_index, static_cast<uint16_t>(position >> 16));
  }

 private:
  // In program order for whoever reads what a killed process has left.
  template <typename T>
  static void Store(T& field, T value) {
    std::atomic_ref<T>(field).store(value, std::memory_order_release);
  }

  SplitLogHeader* header_ = nullptr;  // front-end-controlled, as are the entries
  SplitLogEntry* entries_ = nullptr;
  uint64_t counter_ = 0;
  uint16_t last_batch_head_ = 0;
  bool goes_on_ = false;
  std::vector<uint16_t> batch_;
};

class PackedLog {
 public:
  struct Pending {
    uint16_t head = 0;  // the buffer id
    std::vector<PackedSnapshot> descriptors;
    ChainError Walk(const PackedRingMemory& /*ring*/, const MemoryMap& map, bool indirect,
                    Chain* chain) const {
      return WalkPackedChain(descriptors, map, indirect, head, chain);
    }
  };

  static absl::StatusOr<PackedLog> Open(const SharedArea& area, const PackedRingMemory& ring,
                                        uint32_t* position, std::vector<Pending>* pending);

  bool goes_on() const { return goes_on_; }
  template <typename Ring>
  void Take(const Ring& ring, uint16_t id) {
    TakeChain(ring.snapshot(), id);
  }
  void Put(const UsedEntry& used);
  void BeforeShow(uint32_t position) { StorePlaces(static_cast<uint16_t>(position >> 16), shown_); }
  void AfterShow(uint32_t position);

 private:
  static constexpr uint16_t kNone = 0xffff;

  // What a chain of the log occupies.
  struct Entry {
    uint16_t next = 0;
    uint16_t last = 0;
  };

  void TakeChain(std::span<const PackedSnapshot> chain, uint16_t id);
  template <typename T>
  static void Store(T& field, T value) {
    std::atomic_ref<T>(field).store(value, std::memory_order_release);
  }
  // Each is one store, so that nobody ever sees half of it.
  void StoreHeads(uint16_t free_head, uint16_t old_free_head);
  void StorePlaces(uint16_t used, uint16_t old_used);  // as PackedCursor encodes them

  std::byte* base_ = nullptr;  // the header; front-end-controlled, as are the entries
  PackedLogEntry* shared_ = nullptr;
  std::vector<Entry> entries_;
  std::vector<uint16_t> entry_of_id_;
  std::vector<uint16_t> batch_;
  uint64_t counter_ = 0;
  uint16_t free_head_ = 0;
  uint16_t old_free_head_ = 0;
  uint16_t shown_ = 0;
  bool goes_on_ = false;
};

// A ring with a log.
template <typename Ring, typename RingLog>
class LoggedRing : public Ring {
 public:
  LoggedRing(Ring ring, RingLog log) : Ring(std::move(ring)), log_(std::move(log)) {}

  ChainError PopHead(const MemoryMap& map, uint16_t head, Chain* chain) {
    log_.Take(*this, head);
    return Ring::PopHead(map, head, chain);
  }
  void PushUsed(const UsedEntry& used) {
    Ring::PushUsed(used);
    log_.Put(used);
  }
  uint32_t PublishUsed() {
    if (!Ring::used_pending()) return 0;
    log_.BeforeShow(Ring::position());
    const uint32_t count = Ring::PublishUsed();
    log_.AfterShow(Ring::position());
    return count;
  }

 private:
  RingLog log_;
};

static_assert(VirtqRing<LoggedRing<SplitRing<true>, SplitLog>>);
static_assert(VirtqRing<LoggedRing<PackedRing<true, true>, PackedLog>>);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_IN_FLIGHT_LOG_H_
