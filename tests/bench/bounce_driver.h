// BounceDriver: drives a bounce device (bounce_plugin.cc) from a thread of its own, with `depth`
// requests of one payload size always under way.
// Owned by the benchmark; Start, Stop and Result are [control], completed() is [any].
#ifndef VIRTBAY_TESTS_BENCH_BOUNCE_DRIVER_H_
#define VIRTBAY_TESTS_BENCH_BOUNCE_DRIVER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "absl/status/status.h"
#include "hostif/guest/driver.h"
#include "virtbay/host.h"

namespace virtbay::bench {

struct BounceLoad {
  uint32_t payload = 256 * 1024;  // bytes of a request
  uint32_t depth = 64;
  uint64_t requests = 0;  // the thread ends after so many; 0: at Stop
  int nice = 0;           // of the driver's thread and, as its children, of the device's
};

class BounceDriver {
 public:
  BounceDriver(DeviceHandle device, const BounceLoad& load)
      : device_(std::move(device)), load_(load) {}
  ~BounceDriver();
  BounceDriver(const BounceDriver&) = delete;
  BounceDriver& operator=(const BounceDriver&) = delete;

  // Connects on the new thread and waits until the ring runs.
  absl::Status Start();
  // The first request goes out.
  void Go() {
    go_.store(true, std::memory_order_release);
    go_.notify_all();
  }
  // Waits for what is under way and ends the thread.
  absl::Status Stop();
  // Waits for a thread that ends by itself.
  absl::Status Join();
  uint64_t completed() const { return completed_.load(std::memory_order_relaxed); }

 private:
  void Main();
  absl::Status Connect();
  absl::Status Drive();
  absl::Status Collect();
  bool Add(uint32_t slot);

  const DeviceHandle device_;
  const BounceLoad load_;
  std::unique_ptr<guest::Driver> driver_;
  guest::GuestRange heads_;
  guest::GuestRange payload_;
  uint64_t added_ = 0;
  std::atomic<uint64_t> completed_{0};
  std::atomic<bool> connected_{false};
  std::atomic<bool> go_{false};
  std::atomic<bool> stop_{false};
  absl::Status status_;  // of the thread; read when it has ended
  std::thread thread_;
};

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_BOUNCE_DRIVER_H_
