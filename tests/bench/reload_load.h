// What reload_bench keeps a device busy with: a driver that never stops asking, and the longest
// time that it has waited for an answer. Owned by the benchmark's main thread, which calls all of
// it; the asking has a thread of its own.
#ifndef VIRTBAY_TESTS_BENCH_RELOAD_LOAD_H_
#define VIRTBAY_TESTS_BENCH_RELOAD_LOAD_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/clock.h"
#include "virtbay/host.h"

namespace virtbay::bench {

// The device's name in the Host.
inline constexpr char kReloaded[] = "reloaded";

class ReloadLoad {
 public:
  virtual ~ReloadLoad() = default;

  // Begins to ask.
  void Start() {
    last_ = MonotonicNs();
    thread_ = std::thread([this] {
      status_ = Run();
      ended_ = true;
    });
  }
  // The longest gap since the last call, or the beginning.
  uint64_t TakeGapNs() { return longest_.exchange(0); }
  uint64_t answers() const { return answers_.load(); }
  // It has ended by itself, since something went wrong.
  bool ended() const { return ended_.load(); }
  // What went wrong. To be called before the end of a derived object's life.
  absl::Status Stop() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 protected:
  virtual absl::Status Run() = 0;
  bool stopped() const { return stop_.load(std::memory_order_relaxed); }
  void Answered(uint64_t count) {
    const uint64_t now = MonotonicNs();
    const uint64_t gap = now - std::exchange(last_, now);
    if (gap > longest_.load(std::memory_order_relaxed)) longest_ = gap;
    answers_ += count;
  }

 private:
  uint64_t last_ = 0;
  std::atomic<bool> stop_{false};
  std::atomic<bool> ended_{false};
  std::atomic<uint64_t> longest_{0};
  std::atomic<uint64_t> answers_{0};
  absl::Status status_;
  std::thread thread_;
};

// A share whose files f0, f1 ... are known, as many as `inodes`; asks for attributes, `depth` at a
// time. Adds the device.
absl::StatusOr<std::unique_ptr<ReloadLoad>> MakeFsLoad(Host* host, const std::string& plugin,
                                                       const std::string& share, uint32_t inodes,
                                                       uint32_t depth);

// A kernel's TCP connections through proxy-net, `flows` of them, to a server that sends back what
// it gets; `depth` of them are asked something, the others are idle. Adds the device, and moves the
// calling thread to a network namespace for good. Unimplemented where that is not allowed.
absl::StatusOr<std::unique_ptr<ReloadLoad>> MakeNetLoad(Host* host, const std::string& plugin,
                                                        uint32_t flows, uint32_t depth);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_RELOAD_LOAD_H_
