// Reads the text files that are given on the command line.
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_TEXT_FILE_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_TEXT_FILE_H_

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"

namespace virtbay::device_host {

// [control] The whole of a regular file of at most 1 MiB. NotFound, PermissionDenied or
// InvalidArgument, one line that names the file.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_TEXT_FILE_H_
