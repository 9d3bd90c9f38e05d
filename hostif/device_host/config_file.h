// Reads the TOML file of `virtbay run`: strict, every complaint as "FILE:LINE: key: reason".
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONFIG_FILE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONFIG_FILE_H_

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hostif/device_host/service_config.h"

namespace virtbay::device_host {

// [control] Reads and checks the file (a regular file of at most 1 MiB). NotFound,
// PermissionDenied or InvalidArgument, one line that names the file, and the line and key inside.
absl::StatusOr<ServiceConfig> ReadConfigFile(const std::filesystem::path& path);

// [control] The same for text that is already read; `name` stands for the file in errors.
absl::StatusOr<ServiceConfig> ParseConfig(absl::string_view text, absl::string_view name);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONFIG_FILE_H_
