// AttachFunction: how a server gets at the port of what it serves. [any]
#ifndef VIRTBAY_HOSTIF_VHOST_USER_ATTACH_H_
#define VIRTBAY_HOSTIF_VHOST_USER_ATTACH_H_

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "virtbay/device_port.h"

namespace virtbay::vhost_user {

// Gives the device's port to one front-end, or says why not (DeviceHandle::Attach).
using AttachFunction =
    std::function<absl::StatusOr<std::unique_ptr<DevicePort>>(DevicePortEvents*)>;

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_ATTACH_H_
