// Tracing: what DeviceHandle::StartTrace does, and how the rings of a trace come to the queues and
// leave them again.
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/device/device.h"
#include "framework/device/queue.h"
#include "framework/device/queue_thread.h"
#include "framework/device/trace_ring.h"
#include "virtbay/trace.h"

namespace virtbay {
namespace {

constexpr uint32_t kMostEvents = 1u << 24;

class Recording final : public DeviceTrace {
 public:
  Recording(std::weak_ptr<Device> device, std::vector<std::shared_ptr<TraceRing>> rings)
      : device_(std::move(device)), rings_(std::move(rings)) {}
  ~Recording() override { Stop(); }

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
  OfferTrace(rings);
  return std::make_unique<Recording>(weak_from_this(), std::move(rings));
}

void Device::EndTrace() {
  absl::MutexLock lock(&threads_mutex_);
  traced_ = false;
  OfferTrace(std::vector<std::shared_ptr<TraceRing>>(core_->queues.size()));
}

void Device::OfferTrace(const std::vector<std::shared_ptr<TraceRing>>& rings) {
  for (size_t i = 0; i < rings.size(); ++i) core_->queues[i]->OfferTrace(rings[i]);
  // A thread that comes later takes them when it binds to its queues.
  for (QueueThread* thread : live_threads_) {
    thread->Post([thread] {
      for (Queue* queue : thread->queues()) queue->TakeTrace();
    });
  }
}

void Queue::OfferTrace(std::shared_ptr<TraceRing> ring) {
  absl::MutexLock lock(&offer_mutex_);
  offered_trace_ = std::move(ring);
}

void Queue::TakeTrace() {
  // A thread that was replaced meanwhile has no say any more.
  if (!OnOwnThread()) return;
  std::shared_ptr<TraceRing> ring;
  {
    absl::MutexLock lock(&offer_mutex_);
    ring = offered_trace_;
  }
  if (ring.get() == trace_) return;
  if (ring != nullptr) ring->BeginAt(next_trace_id_);
  trace_ = ring.get();
  trace_kept_ = std::move(ring);
}

void Queue::TracePop(virtbay_request* const* requests, uint32_t count) {
  trace_->Record({.value = count, .kind = TraceKind::kPop});
  for (uint32_t i = 0; i < count; ++i) {
    InFlightRequest* const request = InFlightRequest::From(requests[i]);
    request->trace_id = next_trace_id_++;
    trace_->Record({.id = request->trace_id,
                    .value = request->abi.in_total,
                    .head = request->chain.head(),
                    .kind = TraceKind::kRequest});
  }
}

uint64_t Queue::TraceIo(const InFlightRequest* request, uint32_t op) {
  const uint64_t id = next_trace_id_++;
  trace_->Record({.id = id,
                  .request = request == nullptr || request->queue != this
                                 ? 0
                                 : trace_->Known(request->trace_id),
                  .value = op,
                  .kind = TraceKind::kIoBegin});
  return id;
}

void Queue::TraceIoEnd(uint64_t id, int32_t result) {
  if (trace_->Known(id) == 0) return;
  trace_->Record({.id = id, .value = result, .kind = TraceKind::kIoEnd});
}

void Queue::TraceComplete(const InFlightRequest* request, uint32_t written) {
  trace_->Record({.id = trace_->Known(request->trace_id),
                  .value = written,
                  .head = request->chain.head(),
                  .kind = TraceKind::kComplete});
}

}  // namespace virtbay
