#include "plugins/proxy-net/flow/flow_index.h"

#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

std::array<uint8_t, 38> Tuple::Serialize() const {
  std::array<uint8_t, 38> out{};
  Writer writer(out);
  writer.U8(protocol);
  writer.U8(guest.address.is_v6() ? 6 : 4);
  writer.U16(guest.port);
  writer.U16(remote.port);
  writer.Put(guest.address.bytes());
  writer.Put(remote.address.bytes());
  return out;
}

void FlowIndex::Insert(uint32_t hash, uint32_t id) {
  uint32_t at = hash & mask();
  while (slots_[at].id != kNone) at = (at + 1) & mask();
  slots_[at] = {hash, id};
  ++size_;
}

void FlowIndex::Erase(uint32_t hash, uint32_t id) {
  uint32_t at = hash & mask();
  while (slots_[at].id != id || slots_[at].hash != hash) {
    if (slots_[at].id == kNone) return;
    at = (at + 1) & mask();
  }
  --size_;
  // What was pushed past the gap moves back into it, so that no tombstones are needed.
  uint32_t gap = at;
  for (uint32_t next = (gap + 1) & mask(); slots_[next].id != kNone; next = (next + 1) & mask()) {
    const uint32_t home = slots_[next].hash & mask();
    if (((next - home) & mask()) >= ((next - gap) & mask())) {
      slots_[gap] = slots_[next];
      gap = next;
    }
  }
  slots_[gap] = {};
}

}  // namespace virtbay::proxy_net
