// The control protocol: one JSON object per line, {"command": ..., "id": ..., ...}, answered by one
// line {"ok": true, "result": ...} or {"ok": false, "error": {"code": ..., "message": ...}}.
// Stateless; [any]. Every line is hostile input: bounded in length and depth, and nothing throws.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_PROTOCOL_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hostif/device_host/control_target.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

inline constexpr size_t kMaxControlLine = 64 << 10;  // bytes, without the newline

// Moving json asserts that it is sound, which the check takes for an exception.
struct ControlRequest {  // NOLINT(bugprone-exception-escape)
  std::string command;
  nlohmann::json id;    // echoed; null when not given
  nlohmann::json body;  // the whole object
  bool change = false;  // of devices or shares: may take as long as a device takes to start or stop
};

// [any] InvalidArgument for what is not a request: too long, too deep, not JSON, unknown command.
absl::StatusOr<ControlRequest> ParseControlLine(absl::string_view line) noexcept;

// [any] Carries the request out and returns the answer's line, without the newline. Blocks for as
// long as the change takes. `recording`, if not null: the number of a recording that it has begun.
std::string ExecuteControl(ControlTarget* target, const ControlRequest& request,
                           uint64_t* recording = nullptr) noexcept;

// [any] The request that ends a recording.
ControlRequest EndOfRecording(uint64_t number);

// [any] The answer's line for a request that failed before it could be carried out.
std::string ControlErrorLine(const absl::Status& status, const nlohmann::json& id) noexcept;

// [any] The device of an add request. InvalidArgument as "key: reason".
absl::StatusOr<DeviceConfig> DeviceFromJson(const nlohmann::json& device);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_PROTOCOL_H_
