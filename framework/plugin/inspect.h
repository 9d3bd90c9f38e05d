// Checks of a plugin's entry that are the same in the file and in memory, and the inspection of an
// open file. Stateless; [control].
#ifndef VIRTBAY_FRAMEWORK_PLUGIN_INSPECT_H_
#define VIRTBAY_FRAMEWORK_PLUGIN_INSPECT_H_

#include <cstddef>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"
#include "framework/plugin/plugin.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// Opens a regular file for reading; never waits (a FIFO is refused). NotFound, PermissionDenied or
// InvalidArgument naming the file.
absl::StatusOr<UniqueFd> OpenPluginFile(const std::filesystem::path& path);

// InspectPluginFile for a file that is open; `shown` names it in errors.
absl::StatusOr<PluginFileInfo> InspectPluginFd(int fd, const std::filesystem::path& shown);

// Magic, ABI major, struct_size and texts, in that order: what a later check relies on comes first.
// Function pointers are not looked at: in a file they are not relocated yet.
absl::Status CheckEntry(const virtbay_plugin& entry);

// The text of a fixed array; InvalidArgument when it has no NUL or holds anything but printable
// ASCII. `what` names it.
absl::StatusOr<absl::string_view> CheckText(const char* text, size_t capacity,
                                            absl::string_view what);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_PLUGIN_INSPECT_H_
