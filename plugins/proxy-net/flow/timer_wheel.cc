#include "plugins/proxy-net/flow/timer_wheel.h"

#include <algorithm>
#include <bit>

namespace virtbay::proxy_net {

TimerWheel::TimerWheel(uint32_t capacity, uint64_t now_ns)
    : now_(now_ns >> kTickShift), nodes_(capacity) {
  heads_.fill(kNone);
}

void TimerWheel::Arm(uint32_t id, uint64_t deadline_ns) {
  Disarm(id);
  const uint64_t tick = (deadline_ns >> kTickShift) + 1;  // not before the deadline
  constexpr uint64_t kFarthest = (uint64_t{1} << (kBits * kLevels)) - 1;
  nodes_[id].tick = std::clamp(tick, now_ + 1, now_ + kFarthest);
  ++armed_;
  Insert(id);
}

void TimerWheel::Disarm(uint32_t id) {
  Node& node = nodes_[id];
  if (node.slot == kNone) return;
  if (node.next != kNone) nodes_[node.next].previous = node.previous;
  if (node.previous != kNone) {
    nodes_[node.previous].next = node.next;
  } else {
    heads_[node.slot] = node.next;
    if (node.next == kNone) {
      occupied_[node.slot / kSlots] &= ~(uint64_t{1} << (node.slot % kSlots));
    }
  }
  node.slot = kNone;
  --armed_;
}

void TimerWheel::Insert(uint32_t id) {
  Node& node = nodes_[id];
  const uint64_t distance = node.tick - now_;
  uint32_t level = 0;
  while (level + 1 < kLevels && distance >> (kBits * (level + 1)) != 0) ++level;
  const auto in_level = static_cast<uint32_t>(node.tick >> (kBits * level)) & (kSlots - 1);
  node.slot = level * kSlots + in_level;
  node.previous = kNone;
  node.next = heads_[node.slot];
  if (node.next != kNone) nodes_[node.next].previous = id;
  heads_[node.slot] = id;
  occupied_[level] |= uint64_t{1} << in_level;
}

uint64_t TimerWheel::NextTick() const {
  uint64_t next = kNever;
  for (uint32_t level = 0; level < kLevels; ++level) {
    if (occupied_[level] == 0) continue;
    const uint64_t here = now_ >> (kBits * level);
    // Bit 0 is the slot after the present one; the present one itself is a whole turn away.
    const uint64_t ahead = std::rotr(occupied_[level], static_cast<int>((here + 1) & (kSlots - 1)));
    const uint64_t slot = here + 1 + static_cast<uint64_t>(std::countr_zero(ahead));
    next = std::min(next, slot << (kBits * level));
  }
  return next;
}

void TimerWheel::MoveTo(uint64_t tick) {
  now_ = tick;
  for (uint32_t level = kLevels - 1; level > 0; --level) {
    if ((tick & ((uint64_t{1} << (kBits * level)) - 1)) != 0) continue;
    const auto in_level = static_cast<uint32_t>(tick >> (kBits * level)) & (kSlots - 1);
    const uint32_t slot = level * kSlots + in_level;
    uint32_t id = heads_[slot];
    heads_[slot] = kNone;
    occupied_[level] &= ~(uint64_t{1} << in_level);
    while (id != kNone) {
      const uint32_t next = nodes_[id].next;
      Insert(id);
      id = next;
    }
  }
}

}  // namespace virtbay::proxy_net
