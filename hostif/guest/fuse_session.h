// FuseSession: a virtio-fs device in use: its Driver, the hiprio queue and the request queues, and
// a FuseClient for each (virtio 1.3 5.11).
// Owned by a test or benchmark. Making and ending it is [control]; each client belongs to one
// thread.
#ifndef VIRTBAY_HOSTIF_GUEST_FUSE_SESSION_H_
#define VIRTBAY_HOSTIF_GUEST_FUSE_SESSION_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/fuse_client.h"
#include "hostif/guest/fuse_queue.h"

namespace virtbay::guest {

struct FuseSessionOptions {
  uint32_t request_queues = 1;  // 0: as many as the device's configuration space says
  uint16_t queue_size = 1024;
  bool indirect = true;
  bool event_idx = true;
  bool packed = false;  // packed rings
  FuseQueueOptions queue;
  uint32_t hiprio_depth = 16;
  bool init = true;  // send INIT with init_flags
  uint64_t init_flags = kFuseLinuxInitFlags;
  // Another session's, which this one goes on with: no INIT is sent.
  std::optional<FuseInit> negotiated;
  // Guest memory for the session; default: one region that fits.
  std::unique_ptr<GuestMemory> memory;
};

class FuseSession {
 public:
  // Drives the device behind the transport up to a FUSE session. Errors of Driver::Create, or
  // FailedPrecondition with the errno when INIT is refused.
  static absl::StatusOr<std::unique_ptr<FuseSession>> Create(std::unique_ptr<Transport> transport,
                                                             FuseSessionOptions options);

  // Of request queue `i`.
  FuseClient& client(uint32_t i = 0) { return clients_[i]; }
  FuseQueue& queue(uint32_t i = 0) { return *queues_[i]; }
  FuseClient& hiprio() { return *hiprio_client_; }
  FuseQueue& hiprio_queue() { return *hiprio_; }
  uint32_t request_queues() const { return static_cast<uint32_t>(queues_.size()); }

  // From the configuration space; empty and 0 where the device has none.
  const std::string& tag() const { return tag_; }
  uint32_t configured_request_queues() const { return configured_queues_; }
  const FuseInit& init() const { return *init_; }
  Driver& driver() { return *driver_; }

  // Resets the device, forgets requests in flight and starts a new FUSE session.
  absl::Status Restart();

 private:
  FuseSession() = default;
  absl::Status Init();

  std::unique_ptr<Driver> driver_;
  std::unique_ptr<FuseInit> init_ = std::make_unique<FuseInit>();
  std::unique_ptr<FuseQueue> hiprio_;
  std::vector<std::unique_ptr<FuseQueue>> queues_;
  std::unique_ptr<FuseClient> hiprio_client_;
  std::vector<FuseClient> clients_;
  std::string tag_;
  uint32_t configured_queues_ = 0;
  uint64_t init_flags_ = 0;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_FUSE_SESSION_H_
