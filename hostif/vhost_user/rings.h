// Rings: what the front-end has said of each virtqueue, and when that is enough to run it.
// A ring runs once it has a size, addresses that the memory map knows, and SET_VRING_KICK has come,
// in whatever order; enabled and started are independent (vhost-user, "Ring states").
// Owned by a Session; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_RINGS_H_
#define VIRTBAY_HOSTIF_VHOST_USER_RINGS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/log.h"
#include "framework/base/shared_fd.h"
#include "framework/memory/memory_map.h"
#include "hostif/vhost_user/in_flight_memory.h"
#include "hostif/vhost_user/messages.h"
#include "hostif/vhost_user/snapshot.h"
#include "virtbay/device_port.h"

namespace virtbay::vhost_user {

class Rings {
 public:
  // `port` must outlive this.
  Rings(DevicePort* port, Log log);

  uint32_t count() const { return static_cast<uint32_t>(rings_.size()); }
  // What the rings that start from now on are like: VIRTIO_F_RING_PACKED was acknowledged. When
  // that changes, none runs, and each waits for a new SET_VRING_KICK.
  void SetPacked(bool packed);

  // SET_VRING_NUM, _BASE, _ADDR (of a packed ring: descriptors, driver and device event
  // suppression in the places of descriptors, avail and used): InvalidArgument for an unknown ring
  // or a value out of range. A value that the running ring already has changes nothing. New
  // addresses move a running ring: it stops, and goes on at the same index. A new size or index is
  // refused while the ring runs enabled; while it runs disabled it is stopped, and starts at the
  // next SET_VRING_KICK.
  absl::Status SetSize(uint32_t index, uint32_t size);
  absl::Status SetBase(uint32_t index, uint32_t base);
  absl::Status SetAddresses(uint32_t index, const VringAddress& addresses);

  // SET_VRING_KICK, _CALL, _ERR; without an fd the ring is polled, not notified, has no error fd.
  // SetKick starts the ring as soon as the rest is known.
  absl::Status SetKick(uint32_t index, SharedFd fd);
  absl::Status SetCall(uint32_t index, SharedFd fd);
  absl::Status SetError(uint32_t index, SharedFd fd);

  // SET_VRING_ENABLE.
  absl::Status SetEnabled(uint32_t index, bool enabled);
  // SET_FEATURES without VHOST_USER_F_PROTOCOL_FEATURES enables every ring; with it, rings are left
  // as they are, which is disabled at first.
  absl::Status EnableAll();
  // RESET_OWNER.
  absl::Status DisableAll();

  // GET_VRING_BASE: stops the ring if it runs and returns its base (QueueConfig); the kick and call
  // fds and the addresses are forgotten. DeadlineExceeded when requests in flight would not end.
  absl::StatusOr<uint32_t> Stop(uint32_t index);
  // Takes the rings that run disabled from the device, so that features may change, until Resume;
  // FailedPrecondition when one runs enabled.
  absl::Status SuspendDisabled();
  // Starts the rings that are waiting.
  void Resume();
  // After the device was reset, which stopped the rings: everything is as in the beginning, in the
  // in-flight log as well.
  void Forget();

  // SET_INFLIGHT_FD: where the rings that start from now on note what they have in flight, and may
  // find what they had. Those beyond the number given have no such log. InvalidArgument for what
  // cannot be mapped or is too small, FailedPrecondition while a ring runs.
  absl::Status SetInFlight(int fd, const InflightDescription& description);

  // All rings as they are. Those that run go on in Resume.
  std::vector<RingSnapshot> Export() const;
  // That of another process, in place of what is known of them, which has to be nothing: they start
  // with Resume. InvalidArgument for what no front-end can have said.
  absl::Status Import(std::vector<RingSnapshot> rings);

  // Gives the device a new map. A running ring whose parts lie elsewhere in it is moved; one whose
  // parts are not in it is stopped, its error fd written, and starts again with a map that has
  // them. Then starts the rings that were waiting for memory.
  absl::Status ChangeMemory(MemoryMapRef map);

 private:
  struct Ring {
    uint16_t size = 0;
    uint32_t base = 0;
    bool base_given = false;
    bool addressed = false;  // the three user addresses are known
    uint64_t descriptors = 0;
    uint64_t avail = 0;
    uint64_t used = 0;
    bool enabled = false;
    bool waiting = false;  // SET_VRING_KICK has come and the ring does not run yet
    bool started = false;  // given to the device, which may have stopped it since
    bool told = false;     // where it stopped, by GET_VRING_BASE
    // The device holds the same ones while the ring runs; it may have to move and start again.
    SharedFd kick;
    SharedFd call;
    SharedFd error;
    // Where it runs.
    uint64_t guest_descriptors = 0;
    uint64_t guest_avail = 0;
    uint64_t guest_used = 0;
  };
  struct Place {
    uint64_t descriptors = 0;
    uint64_t avail = 0;
    uint64_t used = 0;
  };

  absl::StatusOr<Ring*> Find(uint32_t index);
  // Empty: the ring has no log.
  absl::StatusOr<SharedArea> LogOf(uint32_t index) const;
  bool Running(uint32_t index) const { return port_->queue_running(index); }
  absl::StatusOr<Place> Locate(const Ring& ring, const MemoryMap& map) const;
  // OK as well when something is still missing.
  absl::Status StartIfReady(uint32_t index);
  // Takes the ring from the device; which says where it may go on.
  absl::Status Halt(uint32_t index);
  // Makes way for a new size or index.
  absl::Status HaltIfDisabled(uint32_t index, absl::string_view what);
  absl::Status ReplaceFd(uint32_t index, SharedFd Ring::*member, SharedFd fd,
                         absl::Status (DevicePort::*set)(uint32_t, SharedFd));

  DevicePort* port_;
  Log log_;
  std::vector<Ring> rings_;
  bool packed_ = false;
  MemoryMapRef map_;  // null before the first
  InFlightArea in_flight_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_RINGS_H_
