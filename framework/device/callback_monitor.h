// CallbackMonitor: lets the watchdog see a queue thread that is stuck in a plugin callback, for the
// price of two stores per callback.
// Owned by a queue thread, which writes it; read by the watchdog ([any]).
#ifndef VIRTBAY_FRAMEWORK_DEVICE_CALLBACK_MONITOR_H_
#define VIRTBAY_FRAMEWORK_DEVICE_CALLBACK_MONITOR_H_

#include <atomic>
#include <cstdint>
#include <cstring>
#include <span>

#include "virtbay/sdk/abi.h"

namespace virtbay {

class CallbackMonitor {
 public:
  // Marks one callback, by a name with static storage, from construction to destruction.
  class Scope {
   public:
    Scope(CallbackMonitor* monitor, const char* name, uint32_t queue) : monitor_(monitor) {
      monitor_->name_.store(name, std::memory_order_relaxed);
      monitor_->queue_.store(queue, std::memory_order_relaxed);
      monitor_->Step();
    }
    ~Scope() { monitor_->Step(); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    CallbackMonitor* const monitor_;
  };

  // Odd while a callback runs; a different number for each.
  uint64_t sequence() const { return sequence_.load(std::memory_order_acquire); }
  const char* name() const { return name_.load(std::memory_order_relaxed); }
  uint32_t queue() const { return queue_.load(std::memory_order_relaxed); }
  // What the next on_requests is given; they stay where they are until it has returned.
  void SetBatch(virtbay_request* const* requests, uint32_t count) {
    batch_.store(requests, std::memory_order_relaxed);
    batch_size_.store(count, std::memory_order_relaxed);
  }
  // What on_requests was given, while the thread is in it or stands still in its middle.
  std::span<virtbay_request* const> batch() const {
    if (std::strcmp(name(), "on_requests") != 0) return {};
    return {batch_.load(std::memory_order_relaxed), batch_size_.load(std::memory_order_relaxed)};
  }

 private:
  void Step() {
    sequence_.store(sequence_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }

  std::atomic<uint64_t> sequence_{0};
  std::atomic<const char*> name_{""};
  std::atomic<uint32_t> queue_{0};
  std::atomic<virtbay_request* const*> batch_{nullptr};
  std::atomic<uint32_t> batch_size_{0};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_CALLBACK_MONITOR_H_
