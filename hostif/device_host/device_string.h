// The `device-string` of a device: options as WSL's service writes them for its device host.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_STRING_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_STRING_H_

#include "absl/status/status.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// [any] Puts what config->device_string says into the rest of `config`, by the plugin's kind: a
// share for `virtiofs`, a network adapter for `proxy-net`. What is given elsewhere stays: name,
// options, the place of the pool. InvalidArgument or Unimplemented, beginning with
// "device-string: ", for a string that cannot be served; nothing to do for an empty one.
absl::Status ApplyDeviceString(DeviceConfig* config);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_STRING_H_
