// Queue: the path of a request: taken from the ring with its burst, presented, ended, published.
#include <algorithm>
#include <array>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/device/plugin_call.h"
#include "framework/device/queue.h"
#include "framework/device/queue_steps.h"
#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr char kMemoryGone[] = "guest memory behind it is gone (the front-end truncated its file)";

}  // namespace

template <typename Ring>
ChainError Queue::Take(Ring& ring, InFlightRequest** out) {
  uint16_t head = 0;
  ChainError error = ring.PeekHead(&head);
  if (error != ChainError::kNone) return error;
  InFlightRequest& request = table_->At(head);
  if (request.state != RequestState::kFree) return ChainError::kHeadInFlight;
  // Before the chain is taken, so that a full arena leaves it in the ring.
  std::byte* view = nullptr;
  if (view_slots_ > 0) {
    view = cache_->Allocate(view_slots_);
    if (view == nullptr) {
      stalled_ = true;
      return ChainError::kNone;
    }
  }
  error = ring.PopHead(*hold_->map, head, &request.chain);
  if (error != ChainError::kNone) {
    if (view != nullptr) cache_->Free(view, view_slots_);
    if (BreaksRing(error)) return error;
    if (in_order_) request.turn = table_->order.Append();
    Refuse(&request, error);
    AwaitTurn(&request);
    return error;
  }
  if (in_order_) request.turn = table_->order.Append();
  request.view = SlotRun{view, view_slots_};
  request.hold = hold_;
  ++hold_->users;
  request.state = RequestState::kHeld;
  request.crashes = 0;
  ++table_->count;
  *out = &request;
  return ChainError::kNone;
}

void Queue::FillViews(InFlightRequest* request) {
  virtbay_request& abi = request->abi;
  abi.in_total = request->chain.readable_bytes();
  abi.out_total = request->chain.writable_bytes();
  abi.in_len = std::min(abi.in_total, in_view_);
  abi.out_len = std::min(abi.out_total, out_view_);
  abi.user = 0;
  // Slots are a power of two apart: views at the beginning of each would all be in the same few
  // sets of the cache.
  const uint64_t slot = reinterpret_cast<uintptr_t>(request->view.data) / kSlotSize;
  auto* view =
      reinterpret_cast<uint8_t*>(request->view.data) + (slot & (view_places_ - 1)) * view_step_;
  abi.in = view;
  abi.out = view + out_at_;
  request->out_in_guest = false;
  if (abi.in_len > 0) {
    CopyFromSegments(request->chain.readable(), 0, view, abi.in_len);
    bytes_in_.Add(abi.in_len);
  }
}

template <typename Ring>
bool Queue::PumpRing() {
  if (!enabled_ || core_->failed()) return false;
  if (present_requeued_ && !PresentRequeued()) {
    const bool was_stalled = std::exchange(stalled_, true);
    CountStall(was_stalled, /*took=*/false);
    return false;
  }
  auto& ring = *std::get_if<Ring>(&ring_);
  const int32_t available = ring.Available();
  if (available == 0) {
    if (stalled_) [[unlikely]] {
      stalled_ = false;
      CountStall(/*was_stalled=*/true, /*took=*/false);
    }
    return false;
  }
  if (available < 0) {
    Break(ChainErrorName(ChainError::kAvailIndex));
    return false;
  }
  // Chains in new memory may have come after the thread looked at its mail. Whoever offered it did
  // so before the driver made them available, so it is seen here.
  if (maps_offered_.load(std::memory_order_relaxed)) [[unlikely]] {
    TakeMaps();
    if (!running()) return false;
  }
  if (kicks_armed_) {
    ring.DisableKicks();
    kicks_armed_ = false;
  }
  const bool was_stalled = std::exchange(stalled_, false);

  // Not initialised: only what is filled is touched.
  std::array<virtbay_request*, kBurst> burst;
  uint32_t count = 0;
  uint32_t taken = 0;
  ChainError error = ChainError::kNone;
  const uint32_t limit = std::min(static_cast<uint32_t>(available), kBurst);
  for (uint32_t i = 1; i < std::min(limit, kPrefetch); ++i) ring.Prefetch(static_cast<uint16_t>(i));
  for (; taken < limit; ++taken) {
    if (!ring.More()) break;
    if (taken + kPrefetch < limit) ring.Prefetch(kPrefetch);
    InFlightRequest* request = nullptr;
    error = Take(ring, &request);
    if (BreaksRing(error) || stalled_) break;
    if (request == nullptr) continue;  // refused
    // The heads are copied in a second pass, when they have arrived.
    if (const auto readable = request->chain.readable(); !readable.empty()) {
      // Both ends: a small frame behind its header takes two lines.
      const auto* head = static_cast<const char*>(readable.front().iov_base);
      __builtin_prefetch(head);
      const size_t shown = std::min<size_t>(readable.front().iov_len, in_view_);
      __builtin_prefetch(head + (shown > 0 ? shown - 1 : 0));
    }
    burst[count++] = &request->abi;
  }
  for (uint32_t i = 0; i < count; ++i) FillViews(InFlightRequest::From(burst[i]));
  if (stalled_ || was_stalled) [[unlikely]]
    CountStall(was_stalled, taken > 0);
  if (MemoryGone()) {
    for (uint32_t i = 0; i < count; ++i) Free(InFlightRequest::From(burst[i]));
    Break(kMemoryGone);
    return true;
  }
  if (taken > 0) {
    requests_.Add(taken);
    batches_.Add();
  }
  in_flight_.store(table_->count, std::memory_order_relaxed);
  // A burst of one is published at its end anyway.
  if (count > 1) published_ticks_ = CoarseTicks();
  if (count > 0) {
    if (tapped_) [[unlikely]] {
      PresentTapped(burst.data(), count);
    } else {
      Present(burst.data(), count);
    }
  }
  Publish();
  if (BreaksRing(error)) Break(ChainErrorName(error));
  return taken > 0;
}

void Queue::Present(virtbay_request* const* requests, uint32_t count) {
  monitor_->SetBatch(requests, count);
  CallOnQueue(core_, monitor_, "on_requests", index_,
              [&] { core_->ops.on_requests(core_->device, index_, requests, count); });
}

bool Queue::PresentRequeued() {
  present_requeued_ = false;
  std::vector<InFlightRequest*> requests;
  requests.swap(requeued_);
  for (auto next = requests.begin(); next != requests.end(); ++next) {
    InFlightRequest* const request = *next;
    // One that was parked has given its slots away.
    // And another generation may want other views.
    if (request->view.data != nullptr && request->view.count != view_slots_) {
      cache_->Free(request->view.data, request->view.count);
      request->view = SlotRun();
    }
    if (view_slots_ > 0 && request->view.data == nullptr) {
      std::byte* const view = cache_->Allocate(view_slots_);
      if (view == nullptr) {
        requeued_.insert(requeued_.begin(), next, requests.end());
        present_requeued_ = true;
        break;
      }
      request->view = SlotRun{view, view_slots_};
    }
    request->state = RequestState::kHeld;
    FillViews(request);
    virtbay_request* raw = &request->abi;
    const TraceCallScope traced(trace(), TraceCall::kOnRequests, 1);
    Present(&raw, 1);
  }
  Publish();
  return !present_requeued_;
}

void Queue::Refuse(InFlightRequest* request, ChainError error) {
  if (error == ChainError::kUnmappedAddress) {
    core_->dma_violations.fetch_add(1, std::memory_order_relaxed);
  }
  refusals_.Warn(absl::StrCat("queue ", index_, ": chain ", request->chain.head(),
                              " refused: ", ChainErrorName(error)));
  EndChain(request, 0, /*read_only=*/false);
}

template <typename Ring>
void Queue::PublishRing() {
  auto& ring = *std::get_if<Ring>(&ring_);
  for (const UsedEntry& used : shadow_used_) ring.PushUsed(used);
  completions_.Add(shadow_used_.size());
  shadow_used_.clear();
  moved_ = 0;
  in_flight_.store(table_->count, std::memory_order_relaxed);
  ring.PublishUsed();
  if (!call_.valid()) return;
  if (ring.ShouldNotify()) {
    WriteCall();
  } else {
    calls_suppressed_.Add();
  }
}

void Queue::WriteCall() {
  calls_.Add();
  syscalls_.Add();
  if (TraceRing* const ring = trace(); ring != nullptr) [[unlikely]]
    ring->Record({.kind = TraceKind::kNotify});
  call_.Notify();
}

bool Queue::ArmKicks() {
  if (!running() || draining_ || !enabled_ || core_->failed() || stalled_) return false;
  kicks_armed_ = true;
  bool more = false;
  WithRing([&more](auto& ring) { more = ring.EnableKicks(); });
  // The zeroes that stand in for a truncated file look like an empty ring, so that no burst would
  // ever come to notice them.
  if (MemoryGone()) {
    Break(kMemoryGone);
    return false;
  }
  return more;
}

int32_t Queue::Complete(InFlightRequest* request, uint32_t out_bytes, uint32_t written) {
  const int32_t result = End(request, out_bytes, written);
  PublishIfDue();
  return result;
}

int32_t Queue::CompleteGroup(std::span<const virtbay_completion> completions) {
  int32_t result = VIRTBAY_OK;
  for (const virtbay_completion& one : completions) {
    const int32_t code = End(InFlightRequest::From(one.request), one.out_bytes, one.written);
    if (result == VIRTBAY_OK) result = code;
  }
  PublishIfDue();
  return result;
}

// Inlined into the loop of a group: what a frame costs is mostly calls from one step to the next.
inline int32_t Queue::End(InFlightRequest* request, uint32_t out_bytes, uint32_t written) {
  if (request->state != RequestState::kHeld || request->io_pending != 0) [[unlikely]] {
    LogWrongEnd(*request);
    return VIRTBAY_FAILED_PRECONDITION;
  }
  int32_t result = VIRTBAY_OK;
  if (out_bytes > written || written > request->abi.out_total || out_bytes > request->abi.out_len)
      [[unlikely]] {
    LogWrongSizes(*request, out_bytes, written);
    out_bytes = 0;
    written = 0;
    result = VIRTBAY_OUT_OF_RANGE;
  }
  if (request->table->abandoned) [[unlikely]] {
    EndLate(request, out_bytes, written);
    return result;
  }
  if (out_bytes > 0 && !request->out_in_guest) {
    CopyToSegments(request->chain.writable(), 0, request->abi.out, out_bytes);
    bytes_out_.Add(out_bytes);
  }
  if (tapped_) [[unlikely]]
    TapComplete(request, written);
  EndChain(request, written, request->chain.writable_bytes() == 0);
  moved_ += uint64_t{written} + request->abi.in_total;
  Free(request);
  AwaitTurn(request);
  return result;
}

void Queue::LogWrongEnd(const InFlightRequest& request) {
  core_->log.Error(
      absl::StrCat("queue ", index_, ": request ", request.abi.head,
                   request.io_pending != 0 ? " ended while its I/O is under way" : " ended twice"));
}

void Queue::LogWrongSizes(const InFlightRequest& request, uint32_t out_bytes, uint32_t written) {
  core_->log.Error(absl::StrCat("queue ", index_, ": request ", request.abi.head,
                                " completed with sizes that lie (", out_bytes, " of ", written,
                                " bytes, room for ", request.abi.out_total, ")"));
}

// The ring is gone, for good or until it goes on.
void Queue::EndLate(InFlightRequest* request, uint32_t out_bytes, uint32_t written) {
  if (!request->table->waits) return Free(request);
  request->state = RequestState::kLate;
  request->late_out = out_bytes;
  request->late_written = written;
}

void Queue::PublishIfDue() {
  if (moved_ >= kPublishBytes || shadow_used_.size() >= kPublishCount ||
      CoarseTicks() - published_ticks_ >= kCoarseTicksPer20Us) {
    Publish();
    published_ticks_ = CoarseTicks();
  }
}

int32_t Queue::Requeue(InFlightRequest* request) {
  if (request->state != RequestState::kHeld || request->io_pending != 0) {
    core_->log.Error(absl::StrCat("queue ", index_, ": request ", request->abi.head,
                                  " requeued after its end or during its I/O"));
    return VIRTBAY_FAILED_PRECONDITION;
  }
  if (request->table->abandoned && !request->table->waits) {
    Free(request);
    return VIRTBAY_OK;
  }
  FreeExtra(request);
  Unpark(request);
  request->state = RequestState::kRequeued;
  requeued_.push_back(request);
  return VIRTBAY_OK;
}

void Queue::UnparkCounted(InFlightRequest* request) {
  request->table->parked_descriptors -= std::exchange(request->parked_descriptors, 0);
  core_->parked_pool_slots.fetch_sub(std::exchange(request->parked_pool_slots, 0),
                                     std::memory_order_relaxed);
  parked_.fetch_sub(1, std::memory_order_relaxed);
}

void Queue::FreeExtra(InFlightRequest* request) {
  for (const SlotRun& run : request->extra) cache_->Free(run.data, run.count);
  request->extra.clear();
  if (request->waits_since != 0) slot_waits_.End(std::exchange(request->waits_since, 0));
}

void Queue::CountStall(bool was_stalled, bool took) {
  // A burst that took something has ended the wait before it, whatever it met then.
  if (stalled_since_ != 0 && (took || !stalled_)) slot_waits_.End(std::exchange(stalled_since_, 0));
  if (stalled_ && (took || !was_stalled)) stalled_since_ = slot_waits_.Begin();
}

void Queue::ReleaseMap(MapHold* hold) {
  std::erase_if(holds_, [&](const std::unique_ptr<MapHold>& h) { return h.get() == hold; });
}

uint32_t Queue::outstanding() const {
  return table_->count - static_cast<uint32_t>(requeued_.size()) + busy_;
}

void Queue::UsePath() {
  WithRing([this](auto& ring) {
    using Ring = std::decay_t<decltype(ring)>;
    pump_ = &Queue::PumpRing<Ring>;
    publish_ = &Queue::PublishRing<Ring>;
  });
}

}  // namespace virtbay
