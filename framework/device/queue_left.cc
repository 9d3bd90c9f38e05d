// Of Queue: what a ring that stopped leaves for a queue of another process, and how that one goes
// on with it.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/device/queue.h"

namespace virtbay {

LeftRing Queue::Left(bool runs) const {
  LeftRing left;
  if (!runs && left_ == nullptr) return left;
  left.size = where_.size;
  left.packed = packed_;
  left.descriptors = where_.descriptors;
  left.avail = where_.driver_area;
  left.used = where_.device_area;
  left.base = stop_base();
  left.position = left_position_;
  if (left_ == nullptr) return left;
  const ArrivalOrder& order = left_->order;
  const auto add = [&](const InFlightRequest& request) -> LeftRing::Chain& {
    LeftRing::Chain& chain = left.chains.emplace_back();
    chain.head = request.chain.head();
    chain.descriptors = static_cast<uint16_t>(request.chain.ring_descriptors());
    if (in_order_) chain.turn = order.TurnOf(request.turn);
    return chain;
  };
  for (const InFlightRequest* request : requeued_) {
    LeftRing::Chain& chain = add(*request);
    chain.parts = request->chain.GuestParts(*request->hold->map, &chain.readable);
  }
  for (const InFlightRequest& request : left_->made()) {
    if (request.state != RequestState::kWaits) continue;
    LeftRing::Chain& chain = add(request);
    const UsedEntry& used = order.At(request.turn);
    chain.descriptors = used.descriptors;
    chain.answered = true;
    chain.written = used.written;
    chain.read_only = used.read_only;
  }
  return left;
}

absl::Status Queue::TakeLeft(LeftRing left) {
  std::vector<bool> heads(left.size);
  std::vector<bool> turns(left.chains.size());
  bool turned = false;
  for (const LeftRing::Chain& chain : left.chains) {
    if (chain.head >= left.size || chain.descriptors > left.size || heads[chain.head] ||
        chain.readable > chain.parts.size() || chain.turn >= turns.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("queue ", index_, ": chain ", chain.head, " cannot have been left so"));
    }
    heads[chain.head] = true;
    turns[chain.turn] = true;
    turned |= chain.turn != 0 || chain.answered;
  }
  if (turned && std::find(turns.begin(), turns.end(), false) != turns.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue ", index_, ": chains were left in no order"));
  }
  if (left.size > max_size_) {
    return absl::InvalidArgumentError(absl::StrCat("queue ", index_, ": a ring of ", left.size,
                                                   " was left; this queue takes ", max_size_,
                                                   " at most"));
  }
  // Of no more than where it is, Start learns elsewhere.
  if (!left.chains.empty()) given_ = std::move(left);
  return absl::OkStatus();
}

template <typename Memory>
absl::Status Queue::BringIn(const Memory& memory, const MemoryMapRef& map, bool in_order) {
  if constexpr (std::is_same_v<Memory, PackedRingMemory>) {
    VIRTBAY_RETURN_IF_ERROR(memory.StartPosition(given_->position).status());
  }
  where_ = {given_->size, given_->descriptors, given_->avail, given_->used};
  packed_ = given_->packed;
  left_position_ = given_->position;
  left_ = EmptyTable(given_->size, in_order);
  left_->abandoned = left_->waits = true;
  MapHold* const hold = HoldOf(map);
  for (size_t i = 0; in_order && i < given_->chains.size(); ++i) left_->order.Append();
  for (const LeftRing::Chain& from : given_->chains) {
    InFlightRequest& request = left_->At(from.head);
    request.turn = from.turn;
    request.chain.Begin(from.head, from.descriptors);
    if (from.answered) {
      if (!in_order) continue;
      left_->order.End(from.turn, {from.head, from.descriptors, from.written, from.read_only});
      request.state = RequestState::kWaits;
      continue;
    }
    ChainError error = ChainError::kNone;
    for (size_t i = 0; i < from.parts.size() && error == ChainError::kNone; ++i) {
      error = AddBuffer(*map, from.parts[i].address, from.parts[i].size, i >= from.readable,
                        &request.chain);
    }
    request.hold = hold;
    ++hold->users;
    request.state = RequestState::kRequeued;
    ++left_->count;
    requeued_.push_back(&request);
    // TakeUp refuses it.
    if (error != ChainError::kNone) {
      request.chain.Begin(from.head, from.descriptors);
      lost_.push_back({&request, error});
    }
  }
  return absl::OkStatus();
}

template absl::Status Queue::BringIn(const SplitRingMemory&, const MemoryMapRef&, bool);
template absl::Status Queue::BringIn(const PackedRingMemory&, const MemoryMapRef&, bool);

}  // namespace virtbay
