// The steps of a request's path that begin or end it in more than one file of Queue, inlined there:
// with small frames, calls from one step to the next are most of what a request costs.
// Of Queue; [queue].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_QUEUE_STEPS_H_
#define VIRTBAY_FRAMEWORK_DEVICE_QUEUE_STEPS_H_

#include <type_traits>
#include <variant>

#include "framework/device/queue.h"

namespace virtbay {

template <typename F>
void Queue::WithRing(F f) {
  std::visit(
      [&](auto& ring) {
        if constexpr (!std::is_same_v<std::decay_t<decltype(ring)>, std::monostate>) f(ring);
      },
      ring_);
}

inline void Queue::Free(InFlightRequest* request) {
  Unpark(request);
  if (request->view.data != nullptr) cache_->Free(request->view.data, request->view.count);
  request->view = SlotRun();
  if (!request->extra.empty()) [[unlikely]]
    FreeExtra(request);
  MapHold* hold = request->hold;
  request->hold = nullptr;
  if (--hold->users == 0 && hold != hold_) [[unlikely]]
    ReleaseMap(hold);
  request->state = RequestState::kFree;
  --request->table->count;
}

inline void Queue::EndChain(InFlightRequest* request, uint32_t written, bool read_only) {
  const auto descriptors = static_cast<uint16_t>(request->chain.ring_descriptors());
  const UsedEntry used{request->chain.head(), descriptors, written, read_only};
  if (in_order_) {
    request->table->order.End(request->turn, used);
  } else {
    shadow_used_.push_back(used);
  }
}

inline void Queue::AwaitTurn(InFlightRequest* request) {
  if (!in_order_) return;
  // Its head is not the driver's again before that.
  request->state = RequestState::kWaits;
  InFlightTable* const table = request->table;
  for (UsedEntry used; table->order.Next(&used);) {
    table->At(used.head).state = RequestState::kFree;
    shadow_used_.push_back(used);
  }
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_QUEUE_STEPS_H_
