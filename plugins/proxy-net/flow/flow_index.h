// FlowIndex: finds a flow by its tuple. Open addressing with linear probing in a table of fixed
// size, twice as large as what it may hold; the place is a keyed hash, so that a guest cannot make
// tuples collide. Nothing is allocated after construction.
// Owned by a shard; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_INDEX_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_INDEX_H_

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "plugins/proxy-net/flow/siphash.h"
#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

// A flow as the guest sees it: its own end and the other one.
struct Tuple {
  uint8_t protocol = 0;
  Endpoint guest;
  Endpoint remote;

  bool operator==(const Tuple&) const = default;

  // [any] The tuple in 38 bytes, the same for equal ones.
  std::array<uint8_t, 38> Serialize() const;
};

class FlowIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // [control] For at most `capacity` flows.
  FlowIndex(uint32_t capacity, const SipKey& key)
      : key_(key), slots_(std::bit_ceil(uint64_t{capacity} * 2 + 2)) {}

  // [queue] The hash that the other functions take.
  uint32_t HashOf(const Tuple& tuple) const {
    return static_cast<uint32_t>(SipHash(key_, tuple.Serialize()));
  }
  // [queue] The id for which matches(id) holds among those with that hash, or kNone.
  template <typename F>
  uint32_t Find(uint32_t hash, F&& matches) const {
    for (uint32_t at = hash & mask();; at = (at + 1) & mask()) {
      const Slot& slot = slots_[at];
      if (slot.id == kNone) return kNone;
      if (slot.hash == hash && matches(slot.id)) return slot.id;
    }
  }
  // [queue] Calls visit(hash, id) for all whose hash ends in the bits of `low` that name a place,
  // and for some others.
  template <typename F>
  void EachNear(uint32_t low, F&& visit) const {
    for (uint32_t at = low & mask(); slots_[at].id != kNone; at = (at + 1) & mask()) {
      visit(slots_[at].hash, slots_[at].id);
    }
  }
  // [queue] Precondition: not in the index, and fewer than capacity are.
  void Insert(uint32_t hash, uint32_t id);
  // [queue] Nothing when it is not there.
  void Erase(uint32_t hash, uint32_t id);
  uint32_t size() const { return size_; }

 private:
  struct Slot {
    uint32_t hash = 0;
    uint32_t id = kNone;
  };
  uint32_t mask() const { return static_cast<uint32_t>(slots_.size() - 1); }

  const SipKey key_;
  std::vector<Slot> slots_;
  uint32_t size_ = 0;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_FLOW_INDEX_H_
