// RateLimit: a token bucket as one number: the time at which the bucket would be full again (the
// generic cell rate algorithm). Shared by a device's pairs; every function is [any], without a
// lock.
#ifndef VIRTBAY_PLUGINS_VIRTIO_NET_RATE_LIMIT_H_
#define VIRTBAY_PLUGINS_VIRTIO_NET_RATE_LIMIT_H_

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace virtbay::virtio_net {

class RateLimit {
 public:
  // Bytes per second and bytes; a rate of 0 limits nothing. [control]
  void Set(uint64_t rate, uint64_t burst) {
    rate_ = rate;
    burst_ns_ = rate == 0 ? 0 : Duration(burst);
  }
  bool limits() const { return rate_ != 0; }

  // Takes `bytes` if the bucket is not empty (a frame larger than what is left makes a debt);
  // returns 0, or the nanoseconds until it is worth asking again.
  uint64_t Take(uint64_t bytes, uint64_t now_ns) {
    const uint64_t cost = Duration(bytes);
    uint64_t full = full_at_ns_.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t from = std::max(full, now_ns);
      if (from - now_ns >= burst_ns_) return from - now_ns - burst_ns_ + 1;
      if (full_at_ns_.compare_exchange_weak(full, from + cost, std::memory_order_relaxed)) return 0;
    }
  }
  // Takes `bytes` that have passed already, whatever there is: several pairs may have found the
  // bucket not empty at the same time, and each makes its own debt.
  void Charge(uint64_t bytes, uint64_t now_ns) {
    const uint64_t cost = Duration(bytes);
    uint64_t full = full_at_ns_.load(std::memory_order_relaxed);
    while (!full_at_ns_.compare_exchange_weak(full, std::max(full, now_ns) + cost,
                                              std::memory_order_relaxed)) {
    }
  }
  // 0 when Take would succeed, else nanoseconds; takes nothing.
  uint64_t Wait(uint64_t now_ns) const {
    const uint64_t from = std::max(full_at_ns_.load(std::memory_order_relaxed), now_ns);
    return from - now_ns >= burst_ns_ ? from - now_ns - burst_ns_ + 1 : 0;
  }

 private:
  // Rounded up, so that small frames are not free. No overflow: rates are at most 16 GiB/s.
  uint64_t Duration(uint64_t bytes) const {
    constexpr uint64_t kSecond = 1'000'000'000;
    return bytes / rate_ * kSecond + (bytes % rate_ * kSecond + rate_ - 1) / rate_;
  }

  uint64_t rate_ = 0;
  uint64_t burst_ns_ = 0;
  std::atomic<uint64_t> full_at_ns_{0};
};

}  // namespace virtbay::virtio_net

#endif  // VIRTBAY_PLUGINS_VIRTIO_NET_RATE_LIMIT_H_
