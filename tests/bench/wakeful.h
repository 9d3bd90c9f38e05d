// Wakeful: keeps every processor from going idle, by threads that give way to whoever wants to run.
// An idle processor takes longer to wake than a busy one to be taken over, so that what is measured
// beside others and what is measured alone differ by more than the others.
// Owned by the measuring thread; ends its threads with itself.
#ifndef VIRTBAY_TESTS_BENCH_WAKEFUL_H_
#define VIRTBAY_TESTS_BENCH_WAKEFUL_H_

#include <sched.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "framework/base/status.h"

namespace virtbay::bench {

class Wakeful {
 public:
  Wakeful() = default;
  ~Wakeful() {
    stop_.store(true, std::memory_order_relaxed);
    for (std::thread& thread : threads_) thread.join();
  }
  Wakeful(const Wakeful&) = delete;
  Wakeful& operator=(const Wakeful&) = delete;

  // A thread of idle priority for each processor that this one may run on. An error of the system
  // when there is no such priority.
  absl::Status Start() {
    cpu_set_t all;
    if (sched_getaffinity(0, sizeof(all), &all) != 0) return ErrnoStatus(errno, "affinity");
    for (size_t cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &all)) threads_.emplace_back([this, cpu] { Spin(cpu); });
    }
    for (size_t ready = 0; ready < threads_.size();) {
      ready_.wait(ready);
      ready = ready_.load();
    }
    const int error = error_.load();
    return error == 0 ? absl::OkStatus() : ErrnoStatus(error, "a thread of idle priority");
  }

 private:
  void Spin(size_t cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    const sched_param none = {};
    // Of this thread alone.
    if (sched_setaffinity(0, sizeof(one), &one) != 0 || sched_setscheduler(0, SCHED_IDLE, &none)) {
      error_ = errno;
    }
    ready_.fetch_add(1);
    ready_.notify_all();
    while (!stop_.load(std::memory_order_relaxed) && error_ == 0) {
    }
  }

  std::atomic<bool> stop_ = false;
  std::atomic<int> error_ = 0;
  std::atomic<size_t> ready_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_WAKEFUL_H_
