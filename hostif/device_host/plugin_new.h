// NewPlugin: writes the project of a new plugin, from the templates of sdk/new that are part of the
// executable. Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_NEW_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_NEW_H_

#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace virtbay::device_host {

// "generic", "fs" and "net".
std::vector<std::string> NewPluginTypes();

// Makes `directory`, which must not exist, with a project that builds `name`.so. InvalidArgument
// for a name that is none (lower-case letters, digits and '-', at most 31) or an unknown type;
// AlreadyExists; what the file system says. After an error nothing is left behind.
absl::Status NewPlugin(const std::string& name, const std::string& type,
                       const std::filesystem::path& directory);

// One file of a template; what is between '@' in it is replaced.
struct PluginTemplate {
  absl::string_view path;  // "generic/device.cc.in", "common/README.md.in"
  absl::string_view text;
};
// Generated from sdk/new.
std::vector<PluginTemplate> PluginTemplates();

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_PLUGIN_NEW_H_
