// Of Queue: what the plugin holds or has handed back when its ring stops, and what becomes of it.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "framework/device/failed_answer.h"
#include "framework/device/queue.h"
#include "framework/device/queue_steps.h"

namespace virtbay {

uint32_t Queue::Reclaim(bool crashed) {
  for (InFlightTable* table : {table_, left_}) {
    if (table == nullptr) continue;
    for (InFlightRequest& request : table->made()) {
      if (request.state != RequestState::kHeld || request.io_pending != 0) continue;
      FreeExtra(&request);
      Unpark(&request);
      request.state = RequestState::kRequeued;
      if (crashed) ++request.crashes;
      requeued_.push_back(&request);
    }
  }
  return static_cast<uint32_t>(requeued_.size());
}

void Queue::VisitHeld(absl::FunctionRef<void(const Chain&)> visit) {
  if (table_ == nullptr) return;
  for (const InFlightRequest& request : table_->made()) {
    if (request.state == RequestState::kHeld && request.io_pending == 0 &&
        request.chain.readable_bytes() != 0 && request.crashes == 0) {
      visit(request.chain);
    }
  }
}

uint32_t Queue::FailHeld(uint32_t virtio_id, absl::FunctionRef<bool(const Chain&)> may_repeat) {
  if (table_ == nullptr) return 0;
  uint32_t failed = 0;
  for (InFlightRequest& request : table_->made()) {
    if (request.io_pending != 0 || request.chain.readable_bytes() == 0) continue;
    // One that was there in two crashes may be what crashes the plugin.
    if (request.state == RequestState::kHeld) {
      if (++request.crashes < 2 && may_repeat(request.chain)) continue;
    } else if (request.state == RequestState::kRequeued && request.crashes >= 2) {
      std::erase(requeued_, &request);
    } else {
      continue;
    }
    EndChain(&request, WriteFailedAnswer(virtio_id, request.chain),
             request.chain.writable_bytes() == 0);
    Free(&request);
    AwaitTurn(&request);
    ++failed;
  }
  return failed;
}

bool Queue::left_nothing() const {
  const auto ended = [](const std::unique_ptr<InFlightTable>& table) {
    return std::none_of(table->made().begin(), table->made().end(), [](const auto& request) {
      return request.state == RequestState::kHeld || request.state == RequestState::kLate;
    });
  };
  return std::all_of(tables_.begin(), tables_.end(), ended);
}

void Queue::DropRequeued() {
  present_requeued_ = false;
  lost_.clear();
  while (!requeued_.empty()) {
    InFlightRequest* request = requeued_.back();
    requeued_.pop_back();
    Free(request);
  }
}

void Queue::GiveUp() {
  DropRequeued();
  if (left_ == nullptr) return;
  left_->waits = false;
  for (InFlightRequest& request : left_->made()) {
    Unpark(&request);  // the driver has its descriptors back
    if (request.state == RequestState::kLate) Free(&request);
    if (request.state == RequestState::kWaits) request.state = RequestState::kFree;
  }
  left_->order.Clear();
  left_ = nullptr;
}

void Queue::SetHold(InFlightRequest* request, MapHold* hold) {
  MapHold* const old = std::exchange(request->hold, hold);
  ++hold->users;
  if (--old->users == 0 && old != hold_) ReleaseMap(old);
}

void Queue::TakeUp() {
  // Handed back: begun anew, and their buffers may be mapped elsewhere by now.
  const auto lost = std::exchange(lost_, {});
  std::erase_if(requeued_, [&](InFlightRequest* request) {
    ChainError error = ChainError::kNone;
    const auto found = std::find_if(lost.begin(), lost.end(),
                                    [request](const auto& one) { return one.first == request; });
    if (found != lost.end()) {
      error = found->second;
    } else if (request->hold != hold_) {
      error = request->chain.MoveTo(*request->hold->map, *hold_->map);
      SetHold(request, hold_);
    }
    if (error == ChainError::kNone) return false;
    Refuse(request, error);
    Free(request);
    AwaitTurn(request);
    return true;
  });
  present_requeued_ = !requeued_.empty();
  for (InFlightRequest& request : table_->made()) {
    if (request.state != RequestState::kLate) continue;
    request.state = RequestState::kHeld;
    Complete(&request, request.late_out, request.late_written);
  }
}

}  // namespace virtbay
