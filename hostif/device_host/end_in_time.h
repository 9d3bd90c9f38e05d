// EndInTime: the end of a process that may hang in a plugin: what does not return from it is left
// behind, after everything else has ended as it should.
// Stateless; called once, by the main thread ([control]).
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_END_IN_TIME_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_END_IN_TIME_H_

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "hostif/device_host/control_target.h"

namespace virtbay::device_host {

// [control] Runs `end`, which waits for changes of the control plane (reloads above all). When that
// takes longer than some moments the devices are ended meanwhile; when it has not returned after
// `patience` the process exits with a line that says so, and status 1.
void EndInTime(ControlTarget* target, absl::Duration patience, absl::AnyInvocable<void()> end);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_END_IN_TIME_H_
