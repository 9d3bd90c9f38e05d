// SharedFlows: what the shards of one device have together: budgets, keys, and which shard has
// which flows. A tuple's keyed hash names its bucket; all flows of a bucket are of one shard. A
// bucket without flows is nobody's, and the shard that needs it takes it; after that only its owner
// gives it away, so that every tuple has one owner at any time. Owned by the device; every function
// is [any], without a lock.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARED_FLOWS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARED_FLOWS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "plugins/proxy-net/flow/flow.h"
#include "plugins/proxy-net/flow/port_claims.h"
#include "plugins/proxy-net/flow/siphash.h"

namespace virtbay::proxy_net {

// So many of something, for all shards.
class Budget {
 public:
  explicit Budget(uint64_t limit) : limit_(limit) {}
  bool Take(uint64_t n = 1) {
    uint64_t used = used_.load(std::memory_order_relaxed);
    do {
      if (n > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + n, std::memory_order_relaxed));
    return true;
  }
  void Give(uint64_t n = 1) { used_.fetch_sub(n, std::memory_order_relaxed); }
  uint64_t used() const { return used_.load(std::memory_order_relaxed); }
  uint64_t limit() const { return limit_; }

 private:
  const uint64_t limit_;
  std::atomic<uint64_t> used_{0};
};

// Rate of new flows: so many per second, as many at once (the generic cell rate algorithm).
class FlowRate {
 public:
  explicit FlowRate(uint32_t per_second) : cost_ns_(kSecond / std::max(per_second, 1u)) {}
  bool Take(uint64_t now_ns) {
    uint64_t full = full_at_ns_.load(std::memory_order_relaxed);
    uint64_t next = 0;
    do {
      next = std::max(full, now_ns) + cost_ns_;
      if (next - now_ns > kSecond) return false;
    } while (!full_at_ns_.compare_exchange_weak(full, next, std::memory_order_relaxed));
    return true;
  }

 private:
  static constexpr uint64_t kSecond = 1'000'000'000;
  const uint64_t cost_ns_;
  std::atomic<uint64_t> full_at_ns_{0};
};

class SharedFlows {
 public:
  static constexpr uint8_t kNobody = 0xff;
  static constexpr uint32_t kBuckets = 1u << 20;

  // [control] For so many shards; the limits are those of all together.
  SharedFlows(const FlowLimits& flow_limits, uint32_t shards, const SipKey& flow_key)
      : limits(flow_limits),
        key(flow_key),
        tcp(limits.tcp_flows),
        datagram(limits.datagram_flows),
        listeners(limits.listeners),
        chunks(limits.buffer_bytes >> 13),
        new_flows(limits.new_flows_per_second) {
    if (shards < 2) return;
    owners_ = std::make_unique<std::atomic<uint8_t>[]>(kBuckets);
    for (uint32_t i = 0; i < kBuckets; ++i) owners_[i].store(kNobody, std::memory_order_relaxed);
  }

  // Whether there are several shards; without, none of the functions below may be called.
  bool sharded() const { return owners_ != nullptr; }
  static uint32_t BucketOf(uint32_t hash) { return hash & (kBuckets - 1); }

  // The shard that has the flows of the bucket, or kNobody.
  uint8_t OwnerOf(uint32_t bucket) const {
    const uint8_t owner = owners_[bucket].load(std::memory_order_acquire);
    return owner == kNobody ? kNobody : WithoutPin(owner);
  }
  // Its owner keeps it: what is for its flows has to come to that shard.
  bool IsPinned(uint32_t bucket) const {
    const uint8_t owner = owners_[bucket].load(std::memory_order_acquire);
    return owner != kNobody && (owner & kPinned) != 0;
  }
  // The bucket becomes `shard`'s if it is nobody's.
  bool TakeFree(uint32_t bucket, uint32_t shard) {
    uint8_t owner = kNobody;
    return owners_[bucket].compare_exchange_strong(owner, static_cast<uint8_t>(shard),
                                                   std::memory_order_acq_rel);
  }
  // By its owner only: the bucket is somebody else's, or nobody's, from now on.
  void PassTo(uint32_t bucket, uint8_t owner) {
    owners_[bucket].store(owner, std::memory_order_release);
  }
  // By its owner only.
  void Pin(uint32_t bucket, uint32_t shard, bool pinned) {
    PassTo(bucket, static_cast<uint8_t>(shard | (pinned ? kPinned : 0)));
  }

  const FlowLimits limits;
  const SipKey key;                         // of tuples
  const SipKey isn_key = SipKey::Random();  // RFC 6528
  Budget tcp;
  Budget datagram;
  Budget listeners;
  Budget chunks;
  PortClaims udp_ports;
  std::atomic<uint32_t> half_open{0};
  FlowRate new_flows;

 private:
  static constexpr uint8_t kPinned = 0x80;
  static uint8_t WithoutPin(uint8_t owner) { return owner & 0x7f; }
  std::unique_ptr<std::atomic<uint8_t>[]> owners_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SHARED_FLOWS_H_
