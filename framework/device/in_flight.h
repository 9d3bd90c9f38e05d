// The in-flight table: one entry per head descriptor (packed: buffer id) of a ring, holding what
// belongs to the request between pop and complete: the checked chain, the arena slots, and the map
// it was parsed with. Owned by a queue; [queue]. A ring that is stopped by force leaves its table
// behind until the plugin has ended the last request in it.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_IN_FLIGHT_H_
#define VIRTBAY_FRAMEWORK_DEVICE_IN_FLIGHT_H_

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "framework/device/arrival_order.h"
#include "framework/memory/memory_map.h"
#include "framework/virtq/chain.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

class Queue;
class InFlightTable;

// A memory map and how many requests were parsed with it.
struct MapHold {
  MemoryMapRef map;
  uint32_t users = 0;
};

// A run of arena slots.
struct SlotRun {
  std::byte* data = nullptr;
  uint32_t count = 0;
};

enum class RequestState : uint8_t {
  kFree,
  kHeld,      // the plugin has it
  kRequeued,  // handed back, to be presented again
  kLate,      // ended after its ring had stopped, which may still go on
  kWaits,     // ended before its turn, with VIRTIO_F_IN_ORDER; holds nothing any more
};

// In the order of use: a request that is taken, looked at and ended touches three cache lines.
struct alignas(64) InFlightRequest {
  virtbay_request abi{};  // first: the plugin's pointer is a pointer to this
  MapHold* hold = nullptr;
  uint32_t io_pending = 0;  // operations that still use the chain
  RequestState state = RequestState::kFree;
  uint8_t crashes = 0;        // that the plugin had while it held it
  bool out_in_guest = false;  // direct mode: the out view is guest memory, nothing to copy back

  Chain chain;

  SlotRun view;  // in and out view
  Queue* queue = nullptr;
  InFlightTable* table = nullptr;
  uint32_t turn = 0;  // in the table's order
  // While it is parked: what it occupies of its ring and of the guest's pool; 0: it is not parked.
  uint32_t parked_descriptors = 0;
  // From fetch and reserve; an empty run while slots are waited for.
  absl::InlinedVector<SlotRun, 2> extra;
  uint64_t waits_since = 0;  // for slots; 0: it does not
  uint32_t late_out = 0;     // kLate: what it was completed with
  uint32_t late_written = 0;
  uint64_t tap_id = 0;  // set when it is taken, if the queue is traced or recorded then
  uint32_t parked_pool_slots = 0;
  // The out view of a parked request; made when it is first parked and kept with the entry.
  std::unique_ptr<std::array<uint8_t, VIRTBAY_PARKED_OUT>> parked_out;

  static InFlightRequest* From(virtbay_request* request) {
    return reinterpret_cast<InFlightRequest*>(request);
  }
};

static_assert(offsetof(InFlightRequest, chain) == 64 && offsetof(InFlightRequest, view) == 128);

class InFlightTable {
 public:
  InFlightTable(Queue* owner, uint16_t queue, uint16_t size)
      : owner_(owner), queue_(queue), size_(size) {
    made_.reserve(size);
  }

  uint16_t size() const { return size_; }
  // The entry of a head below size(); its address stays. Entries are made when a head is first
  // used: a driver uses low ones again and again, and the others need no memory.
  InFlightRequest& At(uint16_t head) {
    if (head >= count_made_) [[unlikely]]
      MakeUpTo(head);
    return made_[head];
  }
  // Those that were made, free ones among them.
  std::vector<InFlightRequest>& made() { return made_; }

  uint32_t count = 0;  // neither free nor waiting for their turn
  ArrivalOrder order;  // VIRTIO_F_IN_ORDER
  uint32_t parked_descriptors = 0;
  bool abandoned = false;  // its ring is gone: ending a request writes nothing
  bool waits = false;      // abandoned, but its ring may go on where it stopped

 private:
  void MakeUpTo(uint16_t head) {
    count_made_ = std::min<uint32_t>(size_, (head | 15u) + 1);
    while (made_.size() < count_made_) {
      InFlightRequest& request = made_.emplace_back();
      // For good: a plugin that has failed may still look at them when it is destroyed.
      request.abi.struct_size = sizeof(request.abi);
      request.abi.queue = queue_;
      request.abi.head = static_cast<uint16_t>(made_.size() - 1);
      request.queue = owner_;
      request.table = this;
    }
  }

  Queue* const owner_;
  const uint16_t queue_;  // its index
  const uint16_t size_;
  uint32_t count_made_ = 0;
  std::vector<InFlightRequest> made_;  // within the capacity of the beginning
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_IN_FLIGHT_H_
