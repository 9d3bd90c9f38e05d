// Share: the option string of a virtiofs device of WSL, and what it means to the plugin `virtiofs`.
// A value; [any].
#ifndef VIRTBAY_HOSTIF_WSL_SHARE_H_
#define VIRTBAY_HOSTIF_WSL_SHARE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "hostif/wsl/device_options.h"

namespace virtbay::wsl {

struct Share {
  std::string name;  // the tag that the guest mounts
  DeviceOptions device;
  std::string shared_dir;  // `shared-dir`, an option of ours: WSL has it beside the string

  bool readonly = false;          // ro
  bool metadata = false;          // owner, mode and device numbers are kept in attributes
  std::optional<uint32_t> vcpus;  // request queues, 1 to 8
  std::string case_sensitivity;   // case: "dir" or "off"; empty: not given
  std::optional<uint32_t> uid;    // of all files
  std::optional<uint32_t> gid;
  std::optional<uint32_t> default_uid;  // of files without metadata
  std::optional<uint32_t> default_gid;
  std::optional<uint32_t> mode;   // fixed permission bits
  std::optional<uint32_t> umask;  // bits that are cleared of files and directories,
  std::optional<uint32_t> fmask;  // of files,
  std::optional<uint32_t> dmask;  // of directories
  std::string symlinkroot;        // ends with '/'; empty: not given
  std::optional<std::pair<std::string, std::string>> xattr;  // reported on every file
};

struct ParsedShare {
  Share share;
  std::vector<std::string> warnings;  // what was ignored, each by name
};

// [any] `name[;key=value|;flag]...` with the keys of WSL: ro metadata vcpus case uid gid
// default_uid default_gid mode umask fmask dmask symlinkroot xattr swiotlb vm_id. Modes and masks
// are octal. Keys that are not known, `fallback` and `case=force` give a warning. InvalidArgument,
// beginning with the key, for a value that is not one; Unimplemented for `sandbox`, which promises
// what a Linux host cannot keep.
absl::StatusOr<ParsedShare> ParseShare(absl::string_view text);

// [any] The same as options of the plugin, by the plugin's names; only those that were given.
std::map<std::string, std::string> PluginOptions(const Share& share);

}  // namespace virtbay::wsl

#endif  // VIRTBAY_HOSTIF_WSL_SHARE_H_
