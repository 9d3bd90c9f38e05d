// InProcessTransport: a driver and its device in one process, joined by a virtbay::DevicePort.
// Owned by the Driver; [control] functions as Transport's. Guest memory is mapped a second time for
// the device, so that both sides see different host addresses, as two processes would.
#ifndef VIRTBAY_HOSTIF_GUEST_IN_PROCESS_TRANSPORT_H_
#define VIRTBAY_HOSTIF_GUEST_IN_PROCESS_TRANSPORT_H_

#include <memory>

#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/transport.h"
#include "virtbay/device_port.h"
#include "virtbay/host.h"

namespace virtbay::guest {

class InProcessTransport final : public Transport, private DevicePortEvents {
 public:
  // Attaches to the device; the errors of DeviceHandle::Attach.
  static absl::StatusOr<std::unique_ptr<InProcessTransport>> Attach(const DeviceHandle& device);
  ~InProcessTransport() override;

  absl::StatusOr<uint64_t> GetFeatures() override;
  absl::Status SetFeatures(uint64_t features) override;
  uint32_t queue_count() const override;
  uint16_t max_queue_size(uint32_t queue) const override;
  absl::Status SetMemory(const GuestMemory& memory) override;
  absl::Status StartQueue(uint32_t queue, const RingStart& ring) override;
  absl::StatusOr<uint32_t> StopQueue(uint32_t queue) override;
  absl::Status ResetQueue(uint32_t queue) override;
  absl::Status EnableQueue(uint32_t queue, bool enabled) override;
  absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) override;
  absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) override;
  absl::StatusOr<uint8_t> GetStatus() override;
  absl::Status SetStatus(uint8_t status) override;
  absl::Status Reset() override;
  int config_fd() const override { return config_event_.get(); }
  absl::StatusOr<uint32_t> TakeConfigChanges() override;
  int hangup_fd() const override { return -1; }

  // For tests that drive the port past the Transport interface.
  DevicePort& port() { return *port_; }

 private:
  explicit InProcessTransport(UniqueFd config_event) : config_event_(std::move(config_event)) {}
  void OnConfigChanged() override;

  UniqueFd config_event_;
  std::unique_ptr<DevicePort> port_;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_IN_PROCESS_TRANSPORT_H_
