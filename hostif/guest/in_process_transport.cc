#include "hostif/guest/in_process_transport.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <utility>

#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

// A duplicate, or an invalid descriptor for -1.
absl::Status CopyFd(int fd, SharedFd* copy) {
  if (fd < 0) return absl::OkStatus();
  copy->reset(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  return copy->valid() ? absl::OkStatus() : ErrnoStatus(errno, "duplicating a queue's descriptor");
}

}  // namespace

absl::StatusOr<std::unique_ptr<InProcessTransport>> InProcessTransport::Attach(
    const DeviceHandle& device) {
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event) return ErrnoStatus(errno, "eventfd");
  std::unique_ptr<InProcessTransport> transport(new InProcessTransport(std::move(event)));
  VIRTBAY_ASSIGN_OR_RETURN(transport->port_, device.Attach(transport.get()));
  return transport;
}

InProcessTransport::~InProcessTransport() {
  // The port ends first: until then the device may still announce changes.
  port_.reset();
}

absl::StatusOr<uint64_t> InProcessTransport::GetFeatures() { return port_->offered_features(); }

absl::Status InProcessTransport::SetFeatures(uint64_t features) {
  return port_->SetFeatures(features);
}

uint32_t InProcessTransport::queue_count() const { return port_->queue_count(); }

uint16_t InProcessTransport::max_queue_size(uint32_t queue) const {
  return port_->max_queue_size(queue);
}

absl::Status InProcessTransport::SetMemory(const GuestMemory& memory) {
  VIRTBAY_ASSIGN_OR_RETURN(MemoryMapRef map, memory.ToMemoryMap(port_->wants_files()));
  return port_->SetMemory(std::move(map));
}

absl::Status InProcessTransport::StartQueue(uint32_t queue, const RingStart& ring) {
  QueueConfig config;
  config.size = ring.size;
  config.descriptors = ring.addresses.descriptors;
  config.avail = ring.addresses.avail;
  config.used = ring.addresses.used;
  config.base = ring.base;
  VIRTBAY_RETURN_IF_ERROR(CopyFd(ring.kick_fd, &config.kick));
  VIRTBAY_RETURN_IF_ERROR(CopyFd(ring.call_fd, &config.call));
  VIRTBAY_RETURN_IF_ERROR(CopyFd(ring.error_fd, &config.error));
  return port_->StartQueue(queue, std::move(config));
}

absl::StatusOr<uint32_t> InProcessTransport::StopQueue(uint32_t queue) {
  return port_->StopQueue(queue);
}

absl::Status InProcessTransport::ResetQueue(uint32_t queue) { return port_->ResetQueue(queue); }

absl::Status InProcessTransport::EnableQueue(uint32_t queue, bool enabled) {
  return port_->EnableQueue(queue, enabled);
}

absl::Status InProcessTransport::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  return port_->ReadConfig(offset, data);
}

absl::Status InProcessTransport::WriteConfig(uint32_t offset, std::span<const std::byte> data) {
  return port_->WriteConfig(offset, data);
}

absl::StatusOr<uint8_t> InProcessTransport::GetStatus() { return port_->status(); }

absl::Status InProcessTransport::SetStatus(uint8_t status) { return port_->SetStatus(status); }

absl::Status InProcessTransport::Reset() { return port_->Reset(); }

absl::StatusOr<uint32_t> InProcessTransport::TakeConfigChanges() {
  uint64_t count = 0;
  if (::read(config_event_.get(), &count, sizeof(count)) != sizeof(count)) return 0u;
  constexpr uint64_t kMost = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(count < kMost ? count : kMost);
}

void InProcessTransport::OnConfigChanged() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(config_event_.get(), &one, sizeof(one));
}

}  // namespace virtbay::guest
