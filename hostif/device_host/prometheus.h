// Statistics in the Prometheus text exposition format, version 0.0.4.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_PROMETHEUS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_PROMETHEUS_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "hostif/device_host/control_target.h"

namespace virtbay::device_host {

// [any] One family per counter with HELP and TYPE, one sample per device (and queue). Ends with a
// newline.
std::string PrometheusText(const std::vector<DeviceReport>& devices);

// [any] A label value with backslash, quote and newline escaped.
std::string EscapeLabel(absl::string_view value);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_PROMETHEUS_H_
