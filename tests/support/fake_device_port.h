// FakeDevice: a device without rings behind it, which records what its DevicePort is told.
// Owned by the test and outlives every port; each function is [any].
#ifndef VIRTBAY_TESTS_SUPPORT_FAKE_DEVICE_PORT_H_
#define VIRTBAY_TESTS_SUPPORT_FAKE_DEVICE_PORT_H_

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "virtbay/device_port.h"

namespace virtbay::testing {

class FakeDevice {
 public:
  // VERSION_1, INDIRECT_DESC, EVENT_IDX.
  static constexpr uint64_t kFeatures = (uint64_t{1} << 32) | (1u << 28) | (1u << 29);
  static constexpr uint64_t kRingPacked = uint64_t{1} << 34;
  static constexpr uint64_t kOffered = kFeatures | kRingPacked | kFeatureRingReset;
  static constexpr uint16_t kMaxQueueSize = 256;

  // One ring as the device sees it.
  struct Queue {
    SharedArea in_flight;
    bool running = false;
    bool enabled = false;
    uint16_t size = 0;
    uint32_t base = 0;
    uint64_t descriptors = 0;
    uint64_t avail = 0;
    uint64_t used = 0;
    bool has_kick = false;
    bool has_call = false;
    bool has_error = false;
    int starts = 0;
    int stops = 0;
  };
  struct State {
    std::vector<Queue> queues;
    std::vector<std::byte> config;
    uint64_t features = 0;
    int features_set = 0;
    uint8_t status = 0;
    int resets = 0;
    int maps_set = 0;
    MemoryMapRef map;
    bool attached = false;
    int attaches = 0;
    absl::Status attach_error;
    absl::Status memory_error;
    absl::Status prepare_error;
    absl::Status start_error;
    absl::Status stop_error;
  };

  explicit FakeDevice(uint32_t queues = 2, size_t config_size = 16) {
    const std::lock_guard lock(mutex_);
    state_.queues.resize(queues);
    for (size_t i = 0; i < config_size; ++i) state_.config.push_back(std::byte(i + 1));
  }

  absl::StatusOr<std::unique_ptr<DevicePort>> Attach(DevicePortEvents* events) {
    const std::lock_guard lock(mutex_);
    if (!state_.attach_error.ok()) return state_.attach_error;
    if (state_.attached) return absl::AlreadyExistsError("the device is in use");
    state_.attached = true;
    ++state_.attaches;
    events_ = events;
    return std::make_unique<Port>(this);
  }

  // A look at, or a change of, everything; f(State&).
  template <typename F>
  auto With(F f) {
    const std::lock_guard lock(mutex_);
    return f(state_);
  }
  Queue queue(uint32_t index) {
    return With([&](State& state) { return state.queues[index]; });
  }
  // The device tells its front-end; nothing happens when none is attached.
  void ChangeConfig() {
    const std::lock_guard lock(mutex_);
    if (events_ != nullptr) events_->OnConfigChanged();
  }

 private:
  struct Fds {
    SharedFd kick, call, error;
  };

  class Port final : public DevicePort {
   public:
    explicit Port(FakeDevice* device) : device_(*device), fds_(device->state_.queues.size()) {}
    ~Port() override {
      device_.With([&](State& state) {
        StopAll(state);
        state.attached = false;
        state.map = nullptr;
      });
      const std::lock_guard lock(device_.mutex_);
      device_.events_ = nullptr;
    }

    uint32_t virtio_id() const override { return 4; }
    uint32_t queue_count() const override {
      return device_.With([](State& s) { return static_cast<uint32_t>(s.queues.size()); });
    }
    uint16_t max_queue_size(uint32_t) const override { return kMaxQueueSize; }
    uint32_t config_size() const override {
      return device_.With([](State& s) { return static_cast<uint32_t>(s.config.size()); });
    }
    bool wants_files() const override { return false; }
    uint64_t offered_features() const override { return kOffered; }

    absl::Status SetFeatures(uint64_t acknowledged) override {
      return device_.With([&](State& s) -> absl::Status {
        for (const Queue& queue : s.queues) {
          if (queue.running) return absl::FailedPreconditionError("a ring runs");
        }
        if ((acknowledged & ~kOffered) != 0) return absl::InvalidArgumentError("not offered");
        s.features = acknowledged;
        ++s.features_set;
        return absl::OkStatus();
      });
    }
    absl::Status SetMemory(MemoryMapRef map) override {
      return device_.With([&](State& s) {
        if (s.memory_error.ok()) {
          s.map = std::move(map);
          ++s.maps_set;
        }
        return s.memory_error;
      });
    }
    absl::Status Prepare() override {
      return device_.With([](State& s) { return s.prepare_error; });
    }
    absl::Status StartQueue(uint32_t index, QueueConfig config) override {
      return device_.With([&](State& s) -> absl::Status {
        if (!s.start_error.ok()) return s.start_error;
        Queue& queue = s.queues[index];
        if (queue.running) return absl::FailedPreconditionError("it runs already");
        queue.running = true;
        queue.enabled = config.enabled;
        queue.size = config.size;
        queue.base = config.base;
        queue.in_flight = config.in_flight;
        queue.descriptors = config.descriptors;
        queue.avail = config.avail;
        queue.used = config.used;
        queue.has_kick = config.kick.valid();
        queue.has_call = config.call.valid();
        queue.has_error = config.error.valid();
        ++queue.starts;
        fds_[index] = {std::move(config.kick), std::move(config.call), std::move(config.error)};
        return absl::OkStatus();
      });
    }
    absl::StatusOr<uint32_t> StopQueue(uint32_t index) override {
      return device_.With([&](State& s) -> absl::StatusOr<uint32_t> {
        if (!s.stop_error.ok()) return s.stop_error;
        Queue& queue = s.queues[index];
        if (!queue.running) return absl::FailedPreconditionError("it does not run");
        queue.running = false;
        ++queue.stops;
        fds_[index] = Fds();
        return queue.base;
      });
    }
    absl::Status ResetQueue(uint32_t) override {
      return absl::FailedPreconditionError("RING_RESET is not offered");
    }
    bool queue_running(uint32_t index) const override {
      return device_.With([&](State& s) { return s.queues[index].running; });
    }
    absl::Status EnableQueue(uint32_t index, bool enabled) override {
      device_.With([&](State& s) { s.queues[index].enabled = enabled; });
      return absl::OkStatus();
    }
    absl::Status SetKick(uint32_t index, SharedFd fd) override {
      device_.With([&](State& s) { s.queues[index].has_kick = fd.valid(); });
      fds_[index].kick = std::move(fd);
      return absl::OkStatus();
    }
    absl::Status SetCall(uint32_t index, SharedFd fd) override {
      device_.With([&](State& s) { s.queues[index].has_call = fd.valid(); });
      fds_[index].call = std::move(fd);
      return absl::OkStatus();
    }
    absl::Status SetError(uint32_t index, SharedFd fd) override {
      device_.With([&](State& s) { s.queues[index].has_error = fd.valid(); });
      fds_[index].error = std::move(fd);
      return absl::OkStatus();
    }
    void SignalError(uint32_t, SharedFd fd) override {
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t n = write(fd.get(), &one, sizeof one);
    }
    absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) override {
      return device_.With([&](State& s) -> absl::Status {
        if (offset > s.config.size() || data.size() > s.config.size() - offset) {
          return absl::OutOfRangeError("configuration");
        }
        std::copy_n(s.config.begin() + offset, data.size(), data.begin());
        return absl::OkStatus();
      });
    }
    absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) override {
      return device_.With([&](State& s) -> absl::Status {
        if (offset > s.config.size() || data.size() > s.config.size() - offset) {
          return absl::OutOfRangeError("configuration");
        }
        std::copy(data.begin(), data.end(), s.config.begin() + offset);
        return absl::OkStatus();
      });
    }
    uint8_t status() const override {
      return device_.With([](State& s) { return s.status; });
    }
    absl::Status SetStatus(uint8_t status) override {
      device_.With([&](State& s) {
        s.status = status;
        if (status != 0) return;
        StopAll(s);
        s.features = 0;
        ++s.resets;
      });
      return absl::OkStatus();
    }
    absl::Status Reset() override { return SetStatus(0); }

   private:
    void StopAll(State& state) {
      for (Queue& queue : state.queues) queue.running = false;
      for (Fds& fds : fds_) fds = Fds();
    }

    FakeDevice& device_;
    std::vector<Fds> fds_;
  };

  // Not absl's: the distribution's library is not built for the thread sanitizer.
  std::mutex mutex_;
  State state_;
  DevicePortEvents* events_ = nullptr;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_FAKE_DEVICE_PORT_H_
