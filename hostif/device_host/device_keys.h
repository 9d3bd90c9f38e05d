// The keys of a device, the same in a TOML file and in a control request: each is checked and put
// into a DeviceConfig here, so that both have the same names, types and messages.
// Stateless; [any].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_KEYS_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_KEYS_H_

#include <cstdint>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// A value as a file or a request spells it.
using KeyValue = std::variant<std::string, int64_t, double, bool>;

// [any] Sets one key of a device (all but `options`). InvalidArgument with the reason, without the
// key's name: "unknown key", "must be a string", "must be a size, such as \"64M\"", ...
absl::Status SetDeviceKey(absl::string_view key, const KeyValue& value, DeviceConfig* config);

// [any] Sets one key of the device's `options`, which go to the plugin as text.
absl::Status SetDeviceOption(absl::string_view key, const KeyValue& value, DeviceConfig* config);

// [any] Sets one key of a share of an aggregate: name, path, or an option of the share.
absl::Status SetShareKey(absl::string_view key, const KeyValue& value, shares::ShareSpec* share);

// [any] Whether `socket` names one that systemd passed ("systemd" or "systemd:NAME"), not a path.
bool NamesPassedSocket(absl::string_view socket);

// [any] What must hold once every key is set: a name, a plugin, exactly one socket. Fills in the
// type and the name where they follow from others.
absl::Status FinishDevice(DeviceConfig* config);

// [any] The size of an arena, bytes, from a number or a text as below.
absl::StatusOr<uint64_t> AsArenaSize(const KeyValue& value);

// [any] "64M", "2GiB", "4096" -> bytes (powers of 1024). InvalidArgument with the reason.
absl::StatusOr<uint64_t> ParseSize(absl::string_view text);

// [any] "200us", "1ms", "10s", "off" (zero) or a bare 0. InvalidArgument with the reason.
absl::StatusOr<absl::Duration> ParseDuration(absl::string_view text);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_DEVICE_KEYS_H_
