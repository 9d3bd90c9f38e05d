#include "framework/device/port.h"

#include <utility>

#include "framework/device/device.h"
#include "framework/device/queue.h"

namespace virtbay {
namespace {

class Port final : public DevicePort {
 public:
  explicit Port(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~Port() override { device_->Detach(); }

  uint32_t virtio_id() const override { return device_->virtio_id(); }
  uint32_t queue_count() const override { return device_->queue_count(); }
  uint16_t max_queue_size(uint32_t queue) const override { return device_->max_queue_size(queue); }
  uint32_t config_size() const override { return device_->config_size(); }
  uint64_t offered_features() const override { return device_->offered_features(); }

  absl::Status SetFeatures(uint64_t acknowledged) override {
    return device_->SetFeatures(acknowledged);
  }
  absl::Status SetMemory(MemoryMapRef map) override { return device_->SetMemory(std::move(map)); }
  absl::Status Prepare() override { return device_->Prepare(); }
  absl::Status StartQueue(uint32_t queue, QueueConfig config) override {
    return device_->StartQueue(queue, std::move(config));
  }
  bool wants_files() const override { return device_->wants_files(); }
  absl::StatusOr<uint32_t> StopQueue(uint32_t queue) override { return device_->StopQueue(queue); }
  absl::Status ResetQueue(uint32_t queue) override { return device_->ResetQueue(queue); }
  bool queue_running(uint32_t queue) const override { return device_->queue_running(queue); }
  absl::Status EnableQueue(uint32_t queue, bool enabled) override {
    return device_->OnRunningQueue(queue, [enabled](Queue* q) { q->SetEnabled(enabled); });
  }
  absl::Status SetKick(uint32_t queue, SharedFd fd) override {
    return device_->OnRunningQueue(
        queue, [fd = std::move(fd)](Queue* q) mutable { q->SetKick(std::move(fd)); });
  }
  absl::Status SetCall(uint32_t queue, SharedFd fd) override {
    return device_->OnRunningQueue(
        queue, [fd = std::move(fd)](Queue* q) mutable { q->SetCall(std::move(fd)); });
  }
  void SignalError(uint32_t queue, SharedFd fd) override {
    device_->SignalError(queue, std::move(fd));
  }
  absl::Status SetError(uint32_t queue, SharedFd fd) override {
    return device_->OnRunningQueue(
        queue, [fd = std::move(fd)](Queue* q) mutable { q->SetError(std::move(fd)); });
  }
  absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    return device_->ReadConfig(offset, data);
  }
  absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) override {
    return device_->WriteConfig(offset, data);
  }
  uint8_t status() const override { return device_->status(); }
  absl::Status SetStatus(uint8_t status) override { return device_->SetStatus(status); }
  absl::Status Reset() override { return device_->Reset(); }

 private:
  std::shared_ptr<Device> device_;
};

}  // namespace

std::unique_ptr<DevicePort> MakeDevicePort(std::shared_ptr<Device> device) {
  return std::make_unique<Port>(std::move(device));
}

}  // namespace virtbay
