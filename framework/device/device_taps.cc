// Taps: what DeviceHandle::StartTrace and StartRecord do, how their rings come to the queues and
// leave them again, and what a queue writes to them.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/device/device.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/device/record_ring.h"
#include "framework/device/trace_ring.h"
#include "virtbay/record.h"
#include "virtbay/trace.h"

namespace virtbay {
namespace {

constexpr uint32_t kMostEvents = 1u << 24;
constexpr uint64_t kMostRoom = uint64_t{1} << 30;

class Trace final : public DeviceTrace {
 public:
  Trace(std::weak_ptr<Device> device, std::vector<std::shared_ptr<TraceRing>> rings)
      : device_(std::move(device)), rings_(std::move(rings)) {}
  ~Trace() override { Stop(); }

  std::vector<QueueTrace> Take() override {
    std::vector<QueueTrace> queues(rings_.size());
    for (size_t i = 0; i < rings_.size(); ++i) {
      queues[i].queue = static_cast<uint32_t>(i);
      rings_[i]->Take(&queues[i].events);
      queues[i].dropped = rings_[i]->dropped();
    }
    return queues;
  }
  void Stop() override {
    if (const std::shared_ptr<Device> device = std::exchange(device_, {}).lock()) {
      device->EndTrace();
    }
  }

 private:
  std::weak_ptr<Device> device_;
  const std::vector<std::shared_ptr<TraceRing>> rings_;
};

class Record final : public DeviceRecord {
 public:
  Record(std::weak_ptr<Device> device, std::vector<std::shared_ptr<RecordRing>> rings)
      : device_(std::move(device)), rings_(std::move(rings)) {}
  ~Record() override { Stop(); }

  void Take(std::vector<RequestRecord>* out) override {
    for (const auto& ring : rings_) ring->Take(out);
  }
  uint64_t dropped() const override {
    uint64_t sum = 0;
    for (const auto& ring : rings_) sum += ring->dropped();
    return sum;
  }
  void Stop() override {
    if (const std::shared_ptr<Device> device = std::exchange(device_, {}).lock()) {
      device->EndRecord();
    }
  }

 private:
  std::weak_ptr<Device> device_;
  const std::vector<std::shared_ptr<RecordRing>> rings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceTrace>> Device::StartTrace(uint32_t events) {
  if (events == 0 || events > kMostEvents) {
    return absl::InvalidArgumentError(
        absl::StrCat("a trace holds 1 to ", kMostEvents, " events, not ", events));
  }
  std::vector<std::shared_ptr<TraceRing>> rings;
  for (size_t i = 0; i < core_->queues.size(); ++i) {
    rings.push_back(std::make_shared<TraceRing>(events));
  }
  absl::MutexLock lock(&threads_mutex_);
  if (std::exchange(traced_, true)) {
    return absl::AlreadyExistsError(
        absl::StrCat("device ", core_->spec.name, " is being traced already"));
  }
  OfferTaps(rings);
  return std::make_unique<Trace>(weak_from_this(), std::move(rings));
}

absl::StatusOr<std::unique_ptr<DeviceRecord>> Device::StartRecord(const RecordOptions& options) {
  if (options.room == 0 || options.room > kMostRoom) {
    return absl::InvalidArgumentError(
        absl::StrCat("a record has room for 1 to ", kMostRoom, " bytes, not ", options.room));
  }
  std::vector<std::shared_ptr<RecordRing>> rings;
  for (size_t i = 0; i < core_->queues.size(); ++i) {
    rings.push_back(std::make_shared<RecordRing>(static_cast<uint32_t>(i), options));
  }
  absl::MutexLock lock(&threads_mutex_);
  if (std::exchange(recorded_, true)) {
    return absl::AlreadyExistsError(
        absl::StrCat("device ", core_->spec.name, " is being recorded already"));
  }
  OfferTaps(rings);
  return std::make_unique<Record>(weak_from_this(), std::move(rings));
}

void Device::EndTrace() {
  absl::MutexLock lock(&threads_mutex_);
  traced_ = false;
  OfferTaps(std::vector<std::shared_ptr<TraceRing>>(core_->queues.size()));
}

void Device::EndRecord() {
  absl::MutexLock lock(&threads_mutex_);
  recorded_ = false;
  OfferTaps(std::vector<std::shared_ptr<RecordRing>>(core_->queues.size()));
}

template <typename Ring>
void Device::OfferTaps(const std::vector<std::shared_ptr<Ring>>& rings) {
  for (size_t i = 0; i < rings.size(); ++i) core_->queues[i]->OfferTap(rings[i]);
  // A thread that comes later takes them when it binds to its queues.
  for (QueueThread* thread : live_threads_) {
    thread->Post([thread] {
      for (Queue* queue : thread->queues()) queue->TakeTaps();
    });
  }
}

void Queue::TakeTaps() {
  // A thread that was replaced meanwhile has no say any more.
  if (!OnOwnThread()) return;
  trace_.Take(next_tap_id_);
  record_.Take(next_tap_id_);
  tapped_ = trace_ || record_;
}

void Queue::TapPop(virtbay_request* const* requests, uint32_t count) {
  if (trace_) trace_->Record({.value = count, .kind = TraceKind::kPop});
  for (uint32_t i = 0; i < count; ++i) {
    InFlightRequest* const request = InFlightRequest::From(requests[i]);
    request->tap_id = next_tap_id_++;
    if (trace_) {
      trace_->Record({.id = request->tap_id,
                      .value = request->abi.in_total,
                      .head = request->chain.head(),
                      .kind = TraceKind::kRequest});
    }
    if (record_) {
      record_->Request(request->tap_id, request->chain.readable(), request->chain.writable());
    }
  }
}

void Queue::PresentTapped(virtbay_request* const* requests, uint32_t count) {
  TapPop(requests, count);
  const TraceCallScope traced(trace(), TraceCall::kOnRequests, count);
  Present(requests, count);
}

void Queue::TapComplete(const InFlightRequest* request, uint32_t written) {
  if (trace_) {
    trace_->Record({.id = trace_->Known(request->tap_id),
                    .value = written,
                    .head = request->chain.head(),
                    .kind = TraceKind::kComplete});
  }
  if (record_) record_->Complete(request->tap_id, request->chain.writable(), written);
}

uint64_t Queue::TraceIo(const InFlightRequest* request, uint32_t op) {
  const uint64_t id = next_tap_id_++;
  trace_->Record(
      {.id = id,
       .request = request == nullptr || request->queue != this ? 0 : trace_->Known(request->tap_id),
       .value = op,
       .kind = TraceKind::kIoBegin});
  return id;
}

void Queue::TraceIoEnd(uint64_t id, int32_t result) {
  if (trace_->Known(id) == 0) return;
  trace_->Record({.id = id, .value = result, .kind = TraceKind::kIoEnd});
}

}  // namespace virtbay
