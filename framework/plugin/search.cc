#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "framework/plugin/plugin.h"

namespace virtbay {
namespace {

// Whether the running program lies in the build tree: an installed one must not look into a
// directory that anybody may own by now.
bool RunsFromBuildTree() {
  std::error_code ec;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", ec);
  return !ec && absl::StartsWith(self.native(), VIRTBAY_BUILD_DIR "/");
}

}  // namespace

PluginSearch PluginSearch::FromEnvironment(std::vector<std::filesystem::path> extra) {
  PluginSearch search;
  const auto add = [&search](const std::filesystem::path& directory) {
    auto& all = search.directories;
    // What is beside a program in its build tree is that build's.
    if (std::find(all.begin(), all.end(), directory) == all.end()) all.push_back(directory);
  };
  if (const char* value = std::getenv("VIRTBAY_PLUGIN_PATH"); value != nullptr) {
    for (const absl::string_view element : absl::StrSplit(value, ':', absl::SkipEmpty())) {
      add(std::string(element));
    }
  }
  for (const std::filesystem::path& directory : extra) add(directory);
  // A build's own plugins come before those that an earlier version installed.
  if (RunsFromBuildTree()) add(VIRTBAY_BUILD_DIR "/plugins");
  add(VIRTBAY_PLUGIN_INSTALL_DIR);
  return search;
}

absl::StatusOr<std::filesystem::path> FindPlugin(absl::string_view name_or_path,
                                                 const PluginSearch& search) {
  if (name_or_path.empty()) return absl::InvalidArgumentError("the plugin's name is empty");
  if (absl::StrContains(name_or_path, absl::string_view("\0", 1))) {
    return absl::InvalidArgumentError("the plugin's name contains a NUL");
  }
  std::error_code ec;
  if (absl::StrContains(name_or_path, '/')) {
    const std::filesystem::path path{std::string(name_or_path)};
    if (std::filesystem::exists(path, ec)) return path;
    return absl::NotFoundError(absl::StrCat("plugin ", name_or_path, ": no such file"));
  }
  const std::string file = absl::EndsWith(name_or_path, ".so") ? std::string(name_or_path)
                                                               : absl::StrCat(name_or_path, ".so");
  for (const std::filesystem::path& directory : search.directories) {
    const std::filesystem::path path = directory / file;
    if (std::filesystem::is_regular_file(path, ec)) return path;
  }
  return absl::NotFoundError(
      absl::StrCat("plugin ", name_or_path, ": no ", file, " in ",
                   absl::StrJoin(search.directories, ", ",
                                 [](std::string* out, const std::filesystem::path& directory) {
                                   absl::StrAppend(out, directory.native());
                                 })));
}

}  // namespace virtbay
