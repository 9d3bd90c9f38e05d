// Host: the plugin's typed handle on the host's services, looked up once per device.
// Owned by the Device; a copyable value. Each function carries the thread tag of the service it
// calls.
#ifndef VIRTBAY_SDK_HOST_H_
#define VIRTBAY_SDK_HOST_H_

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/result.h"

namespace virtbay::sdk {

/// The services of one device's host.
class Host {
 public:
  Host() = default;

  /// [control] Looks up every service; an Error names the first one that the host lacks.
  static Result<Host> Create(const virtbay_host* host, virtbay_host_device* device) {
    Host h;
    h.device_ = device;
    const char* missing = nullptr;
    auto find = [&](auto*& slot, const char* id) {
      slot = static_cast<std::remove_reference_t<decltype(slot)>>(host->service(host, id));
      if (slot == nullptr && missing == nullptr) missing = id;
    };
    find(h.log_, VIRTBAY_SERVICE_LOG);
    find(h.queue_, VIRTBAY_SERVICE_QUEUE);
    find(h.memory_, VIRTBAY_SERVICE_MEMORY);
    find(h.io_, VIRTBAY_SERVICE_IO);
    find(h.timer_, VIRTBAY_SERVICE_TIMER);
    find(h.config_, VIRTBAY_SERVICE_CONFIG);
    find(h.metrics_, VIRTBAY_SERVICE_METRICS);
    find(h.offload_, VIRTBAY_SERVICE_OFFLOAD);
    find(h.control_, VIRTBAY_SERVICE_DEVICE);
    find(h.thread_check_, VIRTBAY_SERVICE_THREAD_CHECK);
    // Since ABI 1.1.
    h.descriptors_ = static_cast<const virtbay_descriptor_service*>(
        host->service(host, VIRTBAY_SERVICE_DESCRIPTORS));
    // Since ABI 1.2.
    h.message_ =
        static_cast<const virtbay_message_service*>(host->service(host, VIRTBAY_SERVICE_MESSAGE));
    if (missing != nullptr) {
      return Error{VIRTBAY_UNIMPLEMENTED, 0, std::string("host has no service ") + missing};
    }
    return h;
  }

  /// [any] printf-style log line at a VIRTBAY_LOG_* level; at most 1 KiB.
  __attribute__((format(printf, 3, 4))) void Log(uint32_t level, const char* format, ...) const {
    if (level < log_->level(device_)) return;
    char text[1024];
    va_list args;
    va_start(args, format);
    const int n = std::vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (n < 0) return;
    log_->write(device_, level, text,
                static_cast<uint32_t>(std::min<size_t>(static_cast<size_t>(n), sizeof(text) - 1)));
  }

  /// [any] The option's value, or nothing when it is not set.
  std::optional<std::string> Option(const char* key) const {
    char small[256];
    const int32_t n = config_->get(device_, key, small, sizeof(small));
    if (n < 0) return std::nullopt;
    if (static_cast<size_t>(n) < sizeof(small)) return std::string(small, static_cast<size_t>(n));
    std::string large(static_cast<size_t>(n) + 1, '\0');
    config_->get(device_, key, large.data(), static_cast<uint32_t>(large.size()));
    large.pop_back();
    return large;
  }
  /// [any] The index-th option name that is set, or nullptr past the last.
  const char* OptionName(uint32_t index) const { return config_->key(device_, index); }

  /// [any] A counter cell reported by the host under `name`; see Add. May be nullptr.
  uint64_t* Counter(const char* name, const char* help) const {
    return metrics_->counter(device_, name, help);
  }
  /// [any] The same for a number that goes up and down; a counter with a host that knows no others.
  uint64_t* Gauge(const char* name, const char* help) const {
    constexpr size_t kEnd = offsetof(virtbay_metrics_service, gauge) + sizeof(metrics_->gauge);
    const bool known = metrics_->struct_size >= kEnd && metrics_->gauge != nullptr;
    return (known ? metrics_->gauge : metrics_->counter)(device_, name, help);
  }
  /// [any] Adds to a cell.
  static void Add(uint64_t* cell, uint64_t n = 1) {
    if (cell != nullptr) __atomic_fetch_add(cell, n, __ATOMIC_RELAXED);
  }

  /// [any] CLOCK_MONOTONIC.
  uint64_t NowNs() const { return timer_->now_ns(); }
  /// [queue] One-shot timer: OnTimer(queue, cookie) after `delay`; the same cookie re-arms it.
  void SetTimer(uint32_t queue, std::chrono::nanoseconds delay, uint64_t cookie) const {
    timer_->set(device_, queue, static_cast<uint64_t>(std::max<int64_t>(0, delay.count())), cookie);
  }
  /// [queue] Forgets a timer that has not fired.
  void CancelTimer(uint32_t queue, uint64_t cookie) const {
    timer_->cancel(device_, queue, cookie);
  }

  /// [queue] Runs work(argument) on a host thread, then OnOffload(queue, argument, cookie).
  Status Offload(uint32_t queue, void (*work)(void*), void* argument, uint64_t cookie) const {
    const int32_t code = offload_->run(device_, queue, work, argument, cookie);
    if (code != VIRTBAY_OK) return Error{code, 0, "offload refused"};
    return {};
  }

  /// [queue] Queues I/O; a result per operation through OnIo.
  Status Submit(const virtbay_io* ops, uint32_t n) const {
    const int32_t code = io_->submit(device_, ops, n);
    if (code != VIRTBAY_OK) return Error{code, 0, "I/O refused"};
    return {};
  }
  /// [queue] Asks for the end of pending operations with that cookie.
  void Cancel(uint32_t queue, uint64_t cookie) const { io_->cancel(device_, queue, cookie); }

  /// [any] Whether the host bounds how many requests are kept for long; see Request::Park.
  bool BoundsParked() const {
    constexpr size_t kEnd = offsetof(virtbay_queue_service, park) + sizeof(queue_->park);
    return queue_->struct_size >= kEnd && queue_->park != nullptr;
  }
  /// [any] Whether the host has messages; where it does not, Send and Receive give -ENOSYS.
  bool HasMessages() const { return message_ != nullptr; }
  /// [queue] Prefix and slices of requests to a socket or TAP, at once: bytes or -errno (see
  /// virtbay_message_service).
  int64_t Send(uint32_t queue, const virtbay_message& message) const {
    return message_ == nullptr ? -ENOSYS : message_->send(device_, queue, &message);
  }
  /// [queue] The same from it.
  int64_t Receive(uint32_t queue, virtbay_message* message) const {
    return message_ == nullptr ? -ENOSYS : message_->receive(device_, queue, message);
  }

  /// [any] Whether the host counts descriptors; where it does not, TakeDescriptor always succeeds.
  bool CountsDescriptors() const { return descriptors_ != nullptr; }
  /// [any] Counts a descriptor that is about to be opened; false: none is left. `flags`:
  /// VIRTBAY_DESCRIPTOR_*.
  bool TakeDescriptor(uint32_t flags) const {
    return descriptors_ == nullptr || descriptors_->take(device_, flags) != 0;
  }
  /// [any] One that was counted is closed.
  void GiveDescriptor() const {
    if (descriptors_ != nullptr) descriptors_->give(device_);
  }
  /// [any] So many more (or fewer) of those that are counted are kept, not open.
  void KeepDescriptors(int32_t change) const {
    constexpr size_t kEnd = offsetof(virtbay_descriptor_service, keep) + sizeof(descriptors_->keep);
    if (descriptors_ == nullptr || descriptors_->struct_size < kEnd) return;
    if (descriptors_->keep != nullptr) descriptors_->keep(device_, change);
  }

  /// [any] DEVICE_NEEDS_RESET (virtio 1.3 2.1.2).
  void Fail(std::string_view text) const {
    control_->fail(device_, text.data(), static_cast<uint32_t>(text.size()));
  }
  /// [queue] Ends this queue's thread after the callback and what is under way.
  void CondemnThread(uint32_t queue, std::string_view text) const {
    control_->condemn_thread(device_, queue, text.data(), static_cast<uint32_t>(text.size()));
  }
  /// [any] Configuration change interrupt.
  void ConfigChanged() const { control_->config_changed(device_); }

  /// [any] For assertions.
  bool OnQueueThread(uint32_t queue) const {
    return thread_check_->is_queue_thread(device_, queue) != 0;
  }
  /// [any] For assertions.
  bool OnControlThread() const { return thread_check_->is_control_thread(device_) != 0; }

  /// [any] The C tables, for what has no function here.
  const virtbay_queue_service& queue_service() const { return *queue_; }
  /// [any] See queue_service.
  const virtbay_memory_service& memory_service() const { return *memory_; }
  /// [any] See queue_service.
  const virtbay_io_service& io_service() const { return *io_; }

 private:
  virtbay_host_device* device_ = nullptr;
  const virtbay_log_service* log_ = nullptr;
  const virtbay_queue_service* queue_ = nullptr;
  const virtbay_memory_service* memory_ = nullptr;
  const virtbay_io_service* io_ = nullptr;
  const virtbay_timer_service* timer_ = nullptr;
  const virtbay_config_service* config_ = nullptr;
  const virtbay_metrics_service* metrics_ = nullptr;
  const virtbay_offload_service* offload_ = nullptr;
  const virtbay_device_service* control_ = nullptr;
  const virtbay_thread_check_service* thread_check_ = nullptr;
  const virtbay_descriptor_service* descriptors_ = nullptr;
  const virtbay_message_service* message_ = nullptr;
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_HOST_H_
