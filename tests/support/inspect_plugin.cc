// Shows what a plugin file is, without loading it: inspect_plugin FILE. Exit status 1 with one line
// on stderr when it is none. Used by the consumer test.
#include <cstdio>

#include "framework/plugin/plugin.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: inspect_plugin FILE\n");
    return 2;
  }
  const absl::StatusOr<virtbay::PluginFileInfo> info = virtbay::InspectPluginFile(argv[1]);
  if (!info.ok()) {
    std::fprintf(stderr, "%s\n", std::string(info.status().message()).c_str());
    return 1;
  }
  std::printf("name=%s version=%s abi=%u.%u types=%s exports=%zu unique=%zu\n", info->name.c_str(),
              info->version.c_str(), unsigned{info->abi_major}, unsigned{info->abi_minor},
              info->device_types.c_str(), info->exports.size(), info->unique.size());
  return 0;
}
