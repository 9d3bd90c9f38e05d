// A virtiofs device with many shares, made of what would be devices of their own.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_AGGREGATE_DEVICE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_AGGREGATE_DEVICE_H_

#include <vector>

#include "absl/status/status.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// [any] Makes `aggregate` (with its name, socket and options of its own) carry the shares that are
// given as devices: each by its name, shared-dir and options. What a share says of queues and of
// the guest's bounce pool holds for the device. InvalidArgument when two of them name different
// pools.
absl::Status MakeAggregate(std::vector<DeviceConfig> shares, DeviceConfig* aggregate);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_AGGREGATE_DEVICE_H_
