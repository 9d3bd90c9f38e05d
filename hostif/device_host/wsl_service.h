// What `virtbay run` serves without a TOML file: the shares and adapters named on its command line,
// alone or as a .wslconfig asks for them.
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_WSL_SERVICE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_WSL_SERVICE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

struct WslRequest {
  std::string wslconfig;                    // path; empty: none
  std::vector<std::string> shares;          // NAME=DIR[;OPTION]...
  std::vector<std::string> device_strings;  // virtiofs:STRING or virtio-net:STRING
  std::string socket_dir;                   // every device NAME listens at NAME.sock in it
  uint64_t host_memory = 0;                 // bytes
};

struct WslService {
  ServiceConfig config;
  // What the guest's kernel has to be started with; empty: nothing.
  std::string kernel_command_line;
};

// [any] The device of a `NAME=DIR[;OPTION]...`, with WSL's options. InvalidArgument or
// Unimplemented, naming the text.
absl::StatusOr<DeviceConfig> ShareDevice(const std::string& text, const std::string& socket_dir);

// [control] The devices, as RunService takes them. A .wslconfig decides whether there are shares,
// in one aggregate device or in a device each, and whether there is an adapter. NotFound,
// PermissionDenied or InvalidArgument, naming the file and line, or the share or string.
absl::StatusOr<WslService> MakeWslService(const WslRequest& request);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_WSL_SERVICE_H_
