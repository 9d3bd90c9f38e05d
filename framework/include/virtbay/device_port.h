// DevicePort: the front-end's side of one device: what a transport (vhost-user, the in-process
// guest driver, an embedder's own VMM) drives. One port at a time per device.
// Owned by the transport; its destruction is the front-end's disconnect. All functions are
// [control]: one thread at a time, they may block until a queue thread has reached a burst
// boundary.
#ifndef VIRTBAY_DEVICE_PORT_H_
#define VIRTBAY_DEVICE_PORT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/export.h"
#include "framework/base/shared_fd.h"
#include "framework/memory/memory_map.h"
#include "framework/memory/shared_area.h"

namespace virtbay {

// VIRTIO_F_RING_RESET (virtio 1.3 2.6.1): offered by a port, but for a front-end that has no way to
// reset a queue (vhost-user) not to be passed on.
inline constexpr uint64_t kFeatureRingReset = uint64_t{1} << 40;

// A ring to be started: size in descriptors (1 to 32768, of a split ring a power of two), and guest
// addresses of its parts: those of a split ring (virtio 1.3 2.7), or with VIRTIO_F_RING_PACKED
// descriptor ring, driver and device event suppression (2.8).
// `base` is where it goes on. Split: the index of the next entry to take from avail. Packed: bits 0
// to 14 the place of the next descriptor to take, bit 15 the driver's wrap counter, bits 16 to 31
// the same of the next one to give back (0: where it takes the next).
struct QueueConfig {
  uint16_t size = 0;
  uint64_t descriptors = 0;
  uint64_t avail = 0;
  uint64_t used = 0;
  uint32_t base = 0;
  SharedFd kick;  // eventfd or pipe that the driver writes; none: the ring is polled
  SharedFd call;  // eventfd or pipe that the device writes; none: no notifications
  SharedFd error;
  bool enabled = true;
  // Where the ring notes what it has taken and not given back (vhost-user, "Inflight I/O
  // tracking"), in the layout of its kind. If another process has left something there, the ring
  // goes on behind that, whatever `base` says, and what was in flight is presented first. None:
  // nothing is noted.
  SharedArea in_flight = {};
};

// Where a ring stopped for a device of another process to go on with (DeviceHandle::Suspend), and
// what it had taken and not given back. Addresses are the guest's.
struct LeftRing {
  struct Chain {
    uint16_t head = 0;         // packed: the buffer id
    uint16_t descriptors = 0;  // of the ring, that it occupies
    uint32_t turn = 0;         // VIRTIO_F_IN_ORDER: by arrival, 0 the next one to be given back
    uint32_t readable = 0;     // of the parts, the first
    std::vector<GuestSpan> parts;
    // VIRTIO_F_IN_ORDER: it has been answered and awaits its turn, without parts.
    bool answered = false;
    uint32_t written = 0;
    bool read_only = false;
  };
  uint16_t size = 0;  // in descriptors; 0: it has never run
  bool packed = false;
  uint64_t descriptors = 0;
  uint64_t avail = 0;
  uint64_t used = 0;
  uint32_t base = 0;          // of the QueueConfig with which it goes on
  uint32_t position = 0;      // of the next entry to take, and to give back
  std::vector<Chain> chains;  // in the order in which they are presented again
};

// Device status bits (virtio 1.3 2.1).
inline constexpr uint8_t kStatusAcknowledge = 1;
inline constexpr uint8_t kStatusDriver = 2;
inline constexpr uint8_t kStatusDriverOk = 4;
inline constexpr uint8_t kStatusFeaturesOk = 8;
inline constexpr uint8_t kStatusNeedsReset = 64;
inline constexpr uint8_t kStatusFailed = 128;

// What a device tells its front-end by itself.
class VIRTBAY_EXPORT DevicePortEvents {
 public:
  virtual ~DevicePortEvents() = default;
  // [any] The configuration space or the status (NEEDS_RESET) changed; must not block.
  virtual void OnConfigChanged() = 0;
};

class VIRTBAY_EXPORT DevicePort {
 public:
  // Stops every queue (in-flight requests are finished or dropped) and forgets the session.
  virtual ~DevicePort() = default;

  virtual uint32_t virtio_id() const = 0;
  virtual uint32_t queue_count() const = 0;
  virtual uint16_t max_queue_size(uint32_t queue) const = 0;
  virtual uint32_t config_size() const = 0;
  // Every bit that the driver may acknowledge (virtio 1.3 2.2), ring and transport bits included.
  virtual uint64_t offered_features() const = 0;

  // The device maps what it may reach of guest memory by itself: SetMemory should give it regions
  // with a file and no mapping. (Regions that are mapped work as well, and stay mapped.)
  virtual bool wants_files() const = 0;

  // FailedPrecondition while a ring runs, InvalidArgument for bits that were not offered.
  virtual absl::Status SetFeatures(uint64_t acknowledged) = 0;
  // Replaces the memory map, also under running rings, without waiting for them: each takes it
  // before it looks at its ring again, and requests in flight keep the old one. A ring whose parts
  // are no longer mapped stops: NEEDS_RESET, and its error fd is written.
  virtual absl::Status SetMemory(MemoryMapRef map) = 0;

  // Negotiates and activates the plugin's device for the features that were set, as else the first
  // StartQueue does, which then only has to start. What that finds wrong is known before.
  virtual absl::Status Prepare() = 0;
  // Starts the ring and polls it once without waiting for a kick.
  virtual absl::Status StartQueue(uint32_t queue, QueueConfig config) = 0;
  // Stops taking chains, waits for those in flight up to the stop deadline, and returns the base
  // (QueueConfig) from which it may go on. Requests that do not end in time do not keep the driver
  // from that answer. With a line in the log they stay behind: if the ring is started again in the
  // same place where it stopped they are answered there, else what becomes of them reaches nobody.
  // FailedPrecondition when it does not run; DeadlineExceeded when the queue's thread itself does
  // not answer (a callback that hangs): the device has failed then.
  virtual absl::StatusOr<uint32_t> StopQueue(uint32_t queue) = 0;
  // virtio 1.3 2.6.1: the same, but the ring is abandoned: nothing of it is answered any more, and
  // StartQueue makes it anew, wherever that is; the other queues go on meanwhile. A ring that does
  // not run is forgotten. FailedPrecondition without VIRTIO_F_RING_RESET.
  virtual absl::Status ResetQueue(uint32_t queue) = 0;
  virtual bool queue_running(uint32_t queue) const = 0;
  // A disabled ring stays started and takes nothing.
  virtual absl::Status EnableQueue(uint32_t queue, bool enabled) = 0;
  // Replace the fds of a running ring; a new call fd is written once if used entries wait.
  virtual absl::Status SetKick(uint32_t queue, SharedFd fd) = 0;
  virtual absl::Status SetCall(uint32_t queue, SharedFd fd) = 0;
  virtual absl::Status SetError(uint32_t queue, SharedFd fd) = 0;
  // Writes to the error fd of a ring that the transport has stopped.
  virtual void SignalError(uint32_t queue, SharedFd fd) = 0;

  // virtio 1.3 2.5; OutOfRange beyond config_size.
  virtual absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) = 0;
  virtual absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) = 0;

  // virtio 1.3 2.1. Setting 0 resets the device: rings stop, features and session are forgotten.
  virtual uint8_t status() const = 0;
  virtual absl::Status SetStatus(uint8_t status) = 0;
  // The same as SetStatus(0).
  virtual absl::Status Reset() = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_DEVICE_PORT_H_
