#include "hostif/device_host/plugin_new.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

constexpr size_t kMaxName = 31;  // what a device type has room for

struct Kind {
  const char* name;
  const char* id;
  const char* libraries;
  const char* what;
  const char* run;
};
constexpr Kind kKinds[] = {
    {"generic", "4", "", "A virtbay device that fills what the guest offers with a text.",
     "head -c 20 /dev/hwrng"},
    {"fs", "26", "", "A virtbay device that is a file system with one file in it.",
     "mount -t virtiofs @NAME@ /mnt && cat /mnt/hello"},
    {"net", "1", " LIBRARIES virtbay::sdk_net",
     "A virtbay network device that sends every frame back to where it came from.",
     "ip link set eth0 up"},
};

// Of the file in the project; empty: the template is of another type.
std::string FileOf(absl::string_view path, const std::string& type, const std::string& name) {
  const std::pair<absl::string_view, absl::string_view> parts =
      absl::StrSplit(path, absl::MaxSplits('/', 1));
  if (parts.first != "common" && parts.first != type) return "";
  if (parts.second == "device.cc.in") return absl::StrCat(name, ".cc");
  if (parts.second == "device_test.cc.in") return absl::StrCat(name, "_test.cc");
  if (parts.second == "gitignore.in") return ".gitignore";
  return std::string(parts.second.substr(0, parts.second.size() - 3));
}

// "my-device" is MyDevice.
std::string ClassOf(const std::string& name) {
  std::string result;
  for (const absl::string_view word : absl::StrSplit(name, '-', absl::SkipEmpty())) {
    result.push_back(absl::ascii_toupper(static_cast<unsigned char>(word[0])));
    absl::StrAppend(&result, word.substr(1));
  }
  return result;
}

bool ValidName(const std::string& name) {
  return !name.empty() && name.size() <= kMaxName &&
         absl::ascii_islower(static_cast<unsigned char>(name[0])) && name.back() != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           const auto letter = static_cast<unsigned char>(c);
           return absl::ascii_islower(letter) || absl::ascii_isdigit(letter) || c == '-';
         });
}

}  // namespace

std::vector<std::string> NewPluginTypes() {
  std::vector<std::string> types;
  for (const Kind& kind : kKinds) types.emplace_back(kind.name);
  return types;
}

absl::Status NewPlugin(const std::string& name, const std::string& type,
                       const std::filesystem::path& directory) {
  if (!ValidName(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is no name for a plugin: a lower-case letter, then letters, ",
                     "digits and '-', at most ", kMaxName));
  }
  // Targets of CMake's own: its project would not configure.
  constexpr absl::string_view kTaken[] = {"all",     "clean",      "help", "install",
                                          "package", "preinstall", "test"};
  if (std::find(std::begin(kTaken), std::end(kTaken), name) != std::end(kTaken)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is no name for a plugin: CMake has a target of that name"));
  }
  const auto* const kind = std::find_if(std::begin(kKinds), std::end(kKinds),
                                        [&](const Kind& k) { return k.name == type; });
  if (kind == std::end(kKinds)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", type, "' is not one of ", absl::StrJoin(NewPluginTypes(), ", ")));
  }
  std::error_code error;
  if (!std::filesystem::create_directory(directory, error)) {
    if (error) return ErrnoStatus(error.value(), directory.native());
    return absl::AlreadyExistsError(absl::StrCat(directory.native(), ": there already"));
  }
  for (const PluginTemplate& file : PluginTemplates()) {
    const std::string target = FileOf(file.path, type, name);
    if (target.empty()) continue;
    // Twice: what is put in may hold the name.
    std::string text = absl::StrReplaceAll(
        file.text,
        {{"@LIBRARIES@", kind->libraries}, {"@WHAT@", kind->what}, {"@RUN@", kind->run}});
    text = absl::StrReplaceAll(text,
                               {{"@NAME@", name}, {"@CLASS@", ClassOf(name)}, {"@ID@", kind->id}});
    std::ofstream out(directory / target, std::ios::binary);
    out << text;
    if (!out.flush()) {
      const absl::Status status = ErrnoStatus(errno, (directory / target).native());
      std::filesystem::remove_all(directory, error);
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
