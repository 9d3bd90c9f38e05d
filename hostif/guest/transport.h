// Transport: how a driver reaches a device: negotiation, memory, rings, configuration, status.
// The same Driver works over all of them. Owned by its Driver; every function is [control], from
// one thread at a time, and may block until the device has answered.
#ifndef VIRTBAY_HOSTIF_GUEST_TRANSPORT_H_
#define VIRTBAY_HOSTIF_GUEST_TRANSPORT_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hostif/guest/driver_ring.h"
#include "hostif/guest/guest_memory.h"

namespace virtbay::guest {

// A ring to be started; the descriptors stay the caller's (they are duplicated), -1 for none.
struct RingStart {
  uint16_t size = 0;
  uint32_t base = 0;  // where the device goes on (virtbay::QueueConfig)
  RingAddresses addresses;
  int kick_fd = -1;
  int call_fd = -1;
  int error_fd = -1;
};

class Transport {
 public:
  virtual ~Transport() = default;

  // virtio 1.3 2.2. Transport-private bits (vhost-user's bit 30) are not shown.
  virtual absl::StatusOr<uint64_t> GetFeatures() = 0;
  virtual absl::Status SetFeatures(uint64_t features) = 0;

  // Queues the device has, or 0 where the peer does not say.
  virtual uint32_t queue_count() const = 0;
  // Largest ring of a queue, or 0 where the peer does not say.
  virtual uint16_t max_queue_size(uint32_t queue) const = 0;

  // Makes the device's view of memory that of `memory`, which must outlive the transport; again
  // after a region was added or removed.
  virtual absl::Status SetMemory(const GuestMemory& memory) = 0;

  // Starts the ring, enabled.
  virtual absl::Status StartQueue(uint32_t queue, const RingStart& ring) = 0;
  // Stops it and returns its base; requests in flight have ended.
  virtual absl::StatusOr<uint32_t> StopQueue(uint32_t queue) = 0;
  // Resets one queue (virtio 1.3 2.6.1), which is stopped then; Unimplemented where the transport
  // cannot.
  virtual absl::Status ResetQueue(uint32_t queue) = 0;
  virtual absl::Status EnableQueue(uint32_t queue, bool enabled) = 0;

  // virtio 1.3 2.5; Unimplemented where the peer has no configuration space.
  virtual absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) = 0;
  virtual absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) = 0;

  // virtio 1.3 2.1. A transport without a status message keeps the driver's bits itself.
  virtual absl::StatusOr<uint8_t> GetStatus() = 0;
  virtual absl::Status SetStatus(uint8_t status) = 0;
  // Resets the device: rings stop, negotiation starts over.
  virtual absl::Status Reset() = 0;

  // Readable when the device has announced a configuration change (or the peer has gone); -1 when
  // it cannot announce any.
  virtual int config_fd() const = 0;
  // Config changes announced since the last ask; Unavailable when the peer has gone.
  virtual absl::StatusOr<uint32_t> TakeConfigChanges() = 0;

  // Becomes readable when the peer has gone; -1 where that cannot happen.
  virtual int hangup_fd() const = 0;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_TRANSPORT_H_
