// The memory of the in-flight logs of a device's rings (GET_INFLIGHT_FD, SET_INFLIGHT_FD): one
// region per ring, one behind the other, in a file that the front-end keeps.
// Values of a Session; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_IN_FLIGHT_MEMORY_H_
#define VIRTBAY_HOSTIF_VHOST_USER_IN_FLIGHT_MEMORY_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"
#include "framework/memory/shared_area.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

// A new one, empty.
struct InFlightMemory {
  UniqueFd fd;
  uint64_t size = 0;

  // InvalidArgument for no queues, or a ring size above 32768.
  static absl::StatusOr<InFlightMemory> Make(bool packed, uint16_t queues, uint16_t queue_size);
};

// One that a front-end gave.
class InFlightArea {
 public:
  InFlightArea() = default;
  // InvalidArgument when the file is shorter than it says, too small for its rings, or misaligned.
  static absl::StatusOr<InFlightArea> Map(int fd, const InflightDescription& description);

  // The region of a ring; an empty one beyond the number of rings. InvalidArgument when the file
  // ends before it.
  absl::StatusOr<SharedArea> Of(uint32_t ring, bool packed) const;
  // Makes those of the first `rings` as new; none of them runs.
  void Forget(uint32_t rings, bool packed) const;

 private:
  SharedArea all_;
  uint16_t queues_ = 0;
  uint16_t queue_size_ = 0;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_IN_FLIGHT_MEMORY_H_
