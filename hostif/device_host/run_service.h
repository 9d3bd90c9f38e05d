// Serves a configuration until the process is told to stop: what `serve` and `run` share.
// Stateless; [control], on the main thread.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_RUN_SERVICE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_RUN_SERVICE_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// A value of one of a plugin's options that it does not take.
struct OptionError {
  std::string option;
  std::string reason;
};
// [any] What the error says of an option, if it is about one.
std::optional<OptionError> OptionErrorOf(const absl::Status& status);

// [control] Makes every device, listens, and returns OK after SIGINT or SIGTERM and a clean stop.
// An error names the device or socket and leaves nothing behind.
absl::Status RunService(ServiceConfig config);

// [control] Goes as far as that can without serving: loads each device's plugin and makes the
// device, with its options, but no socket. The same errors; nothing is left behind in any case.
absl::Status CheckService(const ServiceConfig& config);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_RUN_SERVICE_H_
