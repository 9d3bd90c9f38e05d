// TraceRing: the events of one queue on their way from its thread to whoever traces: fixed size,
// one producer, one consumer, no lock; what does not fit is counted and dropped. Shared by the
// Queue, whose thread calls what is [queue], and the DeviceTrace ([control]).
#ifndef VIRTBAY_FRAMEWORK_DEVICE_TRACE_RING_H_
#define VIRTBAY_FRAMEWORK_DEVICE_TRACE_RING_H_

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "framework/base/clock.h"
#include "virtbay/trace.h"

namespace virtbay {

class TraceRing {
 public:
  // Room for `events` at least.
  explicit TraceRing(uint32_t events)
      : mask_(std::bit_ceil(uint64_t{std::max(events, 1u)}) - 1),
        // Not initialised: pages that are never reached cost nothing.
        events_(std::make_unique_for_overwrite<Slot[]>(mask_ + 1)) {}

  // [queue] Ids below this one are of an earlier trace.
  void BeginAt(uint64_t first_id) { first_id_ = first_id; }
  uint64_t Known(uint64_t id) const { return id >= first_id_ ? id : 0; }
  // [queue]
  void Record(TraceEvent event) {
    const uint64_t at = written_.load(std::memory_order_relaxed);
    if (at - read_seen_ > mask_) {
      read_seen_ = read_.load(std::memory_order_acquire);
      if (at - read_seen_ > mask_) {
        dropped_.store(dropped_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
        return;
      }
    }
    event.ns = MonotonicNs();
    std::construct_at(&events_[at & mask_].event, event);
    written_.store(at + 1, std::memory_order_release);
  }

  // [control] Appends what was recorded since the last call.
  void Take(std::vector<TraceEvent>* out) {
    const uint64_t end = written_.load(std::memory_order_acquire);
    uint64_t at = read_.load(std::memory_order_relaxed);
    for (; at != end; ++at) out->push_back(events_[at & mask_].event);
    read_.store(at, std::memory_order_release);
  }
  // [any]
  uint64_t dropped() const { return dropped_.load(std::memory_order_relaxed); }

 private:
  union Slot {
    Slot() {}  // NOLINT(modernize-use-equals-default): the event is not initialised
    TraceEvent event;
  };

  const uint64_t mask_;
  const std::unique_ptr<Slot[]> events_;
  // The thread's.
  alignas(64) std::atomic<uint64_t> written_{0};
  uint64_t read_seen_ = 0;
  uint64_t first_id_ = 1;
  std::atomic<uint64_t> dropped_{0};
  // The reader's.
  alignas(64) std::atomic<uint64_t> read_{0};
};

// [queue] A call into the plugin; nothing without a ring.
class TraceCallScope {
 public:
  TraceCallScope(TraceRing* ring, TraceCall call, uint32_t value) : ring_(ring), call_(call) {
    if (ring_ != nullptr) [[unlikely]]
      ring_->Record({.value = value, .kind = TraceKind::kCallBegin, .call = call_});
  }
  ~TraceCallScope() {
    if (ring_ != nullptr) [[unlikely]]
      ring_->Record({.kind = TraceKind::kCallEnd, .call = call_});
  }
  TraceCallScope(const TraceCallScope&) = delete;
  TraceCallScope& operator=(const TraceCallScope&) = delete;

 private:
  TraceRing* const ring_;
  const TraceCall call_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_TRACE_RING_H_
