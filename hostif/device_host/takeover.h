// Takeover: the other side of a HandoverServer: asks the process that serves a state directory for
// its devices, and has those of this process go on with them.
// Owned by RunService; [control]. What the other process says is hostile.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_TAKEOVER_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_TAKEOVER_H_

#include <sys/types.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/service.h"
#include "hostif/device_host/state_directory.h"
#include "hostif/handover/channel.h"
#include "hostif/handover/format.h"

namespace virtbay::device_host {

class Takeover {
 public:
  // Asks for what there is. Null when nobody answers, or nobody who knows of handovers: then the
  // directory's lock is to be waited for. FailedPrecondition when it is refused.
  static absl::StatusOr<std::unique_ptr<Takeover>> Begin(const StateDirectory& dir);

  // The device of that name, if there is one to go on in the place of.
  const handover::OfferedDevice* Find(absl::string_view name) const;
  const handover::Offer& offer() const { return offer_; }

  // These devices, which are staged, go on: on success this process serves them, and the service's
  // state directory has the lock. With an error it does not, and the service is to be destroyed:
  // the other one serves on, unless OtherEnds. `may_go_on` is asked before the last word.
  absl::Status Take(const std::vector<std::string>& names,
                    absl::FunctionRef<absl::Status()> may_go_on, Service* service);
  // After an error: the other process has ended, or is about to.
  bool OtherEnds() const { return hung_up_; }
  // Says why it comes to nothing.
  void Refuse(const absl::Status& why);
  // After Take: waits until the other process has freed its other sockets, or some seconds.
  void AwaitOther();
  pid_t peer() const { return peer_; }

 private:
  Takeover(handover::Channel channel, pid_t peer);

  // Says that this process serves them. `withdrawn`: see handover::Devices.
  absl::Status SayTaken(int withdrawn);
  // Whether the other process is dead, after it has hung up.
  bool OtherIsDead();

  handover::Channel channel_;
  const pid_t peer_;
  UniqueFd process_;  // its pidfd
  bool hung_up_ = false;
  handover::Offer offer_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_TAKEOVER_H_
