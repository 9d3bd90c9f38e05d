// TimerWheel: one deadline per flow, in five levels of 64 slots of 2^22 ns. Arming, moving and
// disarming cost O(1); time that passes costs O(what is due), however many are armed.
// Owned by a shard; not to be shared by threads. [queue]
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_TIMER_WHEEL_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_TIMER_WHEEL_H_

#include <array>
#include <cstdint>
#include <vector>

namespace virtbay::proxy_net {

class TimerWheel {
 public:
  static constexpr uint32_t kTickShift = 22;  // 4.2 ms
  static constexpr uint64_t kNever = UINT64_MAX;

  // [control] For ids below `capacity`; time begins at `now_ns`.
  TimerWheel(uint32_t capacity, uint64_t now_ns);

  // [queue] Sets or moves the deadline of `id`; it fires at the first tick that is not before it.
  void Arm(uint32_t id, uint64_t deadline_ns);
  // [queue] Forgets it; nothing when it is not armed.
  void Disarm(uint32_t id);
  bool IsArmed(uint32_t id) const { return nodes_[id].slot != kNone; }

  // [queue] Calls fire(id) for each that is due, disarmed; it may arm and disarm any.
  template <typename F>
  void Advance(uint64_t now_ns, F&& fire) {
    const uint64_t target = now_ns >> kTickShift;
    while (true) {
      const uint64_t next = NextTick();
      if (next > target) break;
      MoveTo(next);
      const uint32_t slot = static_cast<uint32_t>(now_ & (kSlots - 1));
      while (heads_[slot] != kNone) {
        const uint32_t id = heads_[slot];
        Disarm(id);
        fire(id);
      }
    }
    if (target > now_) now_ = target;
  }

  // [queue] When to call Advance next, at the latest; kNever when nothing is armed. It may be
  // early.
  uint64_t NextNs() const {
    const uint64_t tick = NextTick();
    return tick == kNever ? kNever : tick << kTickShift;
  }
  // [queue] How many are armed.
  uint32_t armed() const { return armed_; }

 private:
  static constexpr uint32_t kLevels = 5;
  static constexpr uint32_t kBits = 6;
  static constexpr uint32_t kSlots = 1u << kBits;
  static constexpr uint32_t kNone = UINT32_MAX;

  struct Node {
    uint32_t next = kNone;
    uint32_t previous = kNone;
    uint32_t slot = kNone;
    uint64_t tick = 0;
  };

  void Insert(uint32_t id);
  uint64_t NextTick() const;
  // Time becomes `tick`, which no armed one may lie before; what lies there comes to level 0.
  void MoveTo(uint64_t tick);

  uint64_t now_;
  uint32_t armed_ = 0;
  std::array<uint64_t, kLevels> occupied_{};
  std::array<uint32_t, kLevels * kSlots> heads_;
  std::vector<Node> nodes_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_TIMER_WHEEL_H_
