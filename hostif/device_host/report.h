// JSON views of a device for the control socket and `--json` output.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_REPORT_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_REPORT_H_

#include <nlohmann/json.hpp>
#include <string>

#include "hostif/device_host/control_target.h"

namespace virtbay::device_host {

// [any] One line of `list`: name, plugin, type, state, connected, socket.
nlohmann::json SummaryJson(const DeviceReport& report);

// [any] Everything that is known of a device.
nlohmann::json DeviceJson(const DeviceReport& report);

// [any] Counters only: arena, the sum of the queues, each queue, the plugin's own.
nlohmann::json StatsJson(const DeviceReport& report);

// [any] What a reload did, with times in milliseconds.
nlohmann::json ReloadJson(const ReloadReport& report);

// [any] The sum over a device's queues; `running` when any runs, `broken` when any is broken.
QueueStats SumQueues(const DeviceInfo& info);

// [any] One line; bytes that are not UTF-8 are replaced, so it never throws for its contents.
std::string ToLine(const nlohmann::json& value);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_REPORT_H_
