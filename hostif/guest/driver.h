// Driver: a virtio driver without a device type: negotiates with a device over a Transport, makes
// its queues and starts and stops them (virtio 1.3 3.1). Device drivers (FuseClient) sit on top.
// Owned by a test, benchmark or embedder; its functions are [control], its queues' are theirs.
#ifndef VIRTBAY_HOSTIF_GUEST_DRIVER_H_
#define VIRTBAY_HOSTIF_GUEST_DRIVER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hostif/guest/driver_queue.h"
#include "hostif/guest/guest_memory.h"
#include "hostif/guest/transport.h"

namespace virtbay::guest {

// Feature bits of every device (virtio 1.3 6).
inline constexpr uint64_t kFeatureIndirectDesc = uint64_t{1} << 28;
inline constexpr uint64_t kFeatureEventIdx = uint64_t{1} << 29;
inline constexpr uint64_t kFeatureVersion1 = uint64_t{1} << 32;
inline constexpr uint64_t kFeatureAccessPlatform = uint64_t{1} << 33;
inline constexpr uint64_t kFeatureRingPacked = uint64_t{1} << 34;
inline constexpr uint64_t kFeatureInOrder = uint64_t{1} << 35;
inline constexpr uint64_t kFeatureRingReset = uint64_t{1} << 40;

struct DriverOptions {
  uint32_t queue_count = 0;      // 0: as many as the device says it has
  uint16_t queue_size = 256;     // cut to what the device allows
  uint16_t indirect_max = 128;   // entries per indirect table; 0: do not accept INDIRECT_DESC
  bool event_idx = true;         // accept EVENT_IDX
  bool packed = false;           // packed rings (virtio 1.3 2.8); false: split ones
  bool in_order = false;         // buffers used in order (IN_ORDER)
  bool ring_reset = false;       // so that ResetQueue works (RING_RESET)
  uint64_t device_features = 0;  // other bits to accept where offered
  bool kick_fds = true;
  bool call_fds = true;
  bool start = true;  // false: negotiated and set up, but queues stopped and no DRIVER_OK
};

class Driver {
 public:
  // Initialises the device (virtio 1.3 3.1.1) with queues in `memory`. FailedPrecondition when it
  // does not offer VERSION_1, or packed, in_order or ring_reset where the options ask for them, or
  // does not keep FEATURES_OK; InvalidArgument when neither side knows
  // the number of queues.
  static absl::StatusOr<std::unique_ptr<Driver>> Create(std::unique_ptr<Transport> transport,
                                                        std::unique_ptr<GuestMemory> memory,
                                                        const DriverOptions& options);
  ~Driver();

  // Starts every queue where it was stopped, and sets DRIVER_OK.
  absl::Status Start();
  // Stops every queue; requests in flight end first. Start goes on with the same rings.
  absl::Status Stop();
  // Resets the device and the queues and initialises it anew; buffers in flight are forgotten.
  absl::Status Restart();
  // Goes on with the same rings and memory over another transport, to a device that knows what was
  // in flight by another way (vhost-user's in-flight log); nothing is reset. FailedPrecondition
  // when it does not offer the features that were agreed on.
  absl::Status Reconnect(std::unique_ptr<Transport> transport);
  // Resets one queue and starts it anew (virtio 1.3 2.6.1) while the others go on; its buffers in
  // flight are forgotten. FailedPrecondition without ring_reset.
  absl::Status ResetQueue(uint32_t index);

  uint32_t queue_count() const { return static_cast<uint32_t>(queues_.size()); }
  DriverQueue& queue(uint32_t index) { return *queues_[index].queue; }
  Transport& transport() { return *transport_; }
  GuestMemory& memory() { return *memory_; }
  // What both sides agreed on.
  uint64_t features() const { return features_; }

 private:
  struct Queue {
    std::unique_ptr<DriverQueue> queue;
    uint32_t base = 0;
    bool started = false;
  };

  Driver(std::unique_ptr<Transport> transport, std::unique_ptr<GuestMemory> memory,
         const DriverOptions& options)
      : memory_(std::move(memory)), transport_(std::move(transport)), options_(options) {}

  absl::Status Negotiate();
  absl::Status StartQueue(uint32_t index);
  absl::Status MakeQueues();

  // The transport goes first: the device must not see memory that is no longer mapped here.
  std::unique_ptr<GuestMemory> memory_;
  std::vector<Queue> queues_;
  std::unique_ptr<Transport> transport_;
  DriverOptions options_;
  uint64_t features_ = 0;
  uint8_t status_ = 0;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_DRIVER_H_
