// Plugin: one loaded image of a plugin file, checked before any of its code runs.
// Owned by the generations that use it; loads and unloads on the control thread. Move-only.
#ifndef VIRTBAY_FRAMEWORK_PLUGIN_PLUGIN_H_
#define VIRTBAY_FRAMEWORK_PLUGIN_PLUGIN_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/contained_call.h"
#include "framework/base/log.h"
#include "virtbay/sdk/abi.h"

namespace virtbay {

// What a plugin file is, read from the file without loading it.
struct PluginFileInfo {
  std::filesystem::path path;
  uint16_t abi_major = 0;
  uint16_t abi_minor = 0;
  uint32_t flags = 0;
  std::string name;
  std::string version;
  std::string build;
  std::string device_types;          // "name:id name:id"
  std::vector<std::string> exports;  // defined dynamic symbols
  std::vector<std::string> unique;   // those of binding STB_GNU_UNIQUE (prevent unloading)
  std::vector<std::string> needed;   // DT_NEEDED
};

// Reads the file as ELF and its virtbay_plugin_entry. NotFound, PermissionDenied, InvalidArgument
// ("not an ELF shared library", "exports no virtbay_plugin_entry", "wrong magic", ...) naming the
// file. Runs no code of the file. [control]
absl::StatusOr<PluginFileInfo> InspectPluginFile(const std::filesystem::path& path);

class Plugin {
 public:
  // Copies the file to a private directory under a unique name, loads it (RTLD_NOW|RTLD_LOCAL),
  // validates the entry (magic, ABI major equal, struct_size, factory) and calls load(). Every
  // error names the file and the reason; nothing stays behind. `contain`: a crash in a function
  // that is called through this object is an error too, and damages it. [control]
  static absl::StatusOr<std::unique_ptr<Plugin>> Load(const std::filesystem::path& path,
                                                      const virtbay_host& host, const Log& log,
                                                      bool contain = false);
  // unload(), dlclose, then checks with dl_iterate_phdr that the image is gone, else the log says
  // so. A damaged one stays as it is. Precondition: no device of it is left. [control]
  ~Plugin();
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;

  const virtbay_plugin& entry() const;
  const virtbay_device_factory& factory() const;
  // The type with that name ("" = the only one), and its index for factory().create.
  absl::StatusOr<const virtbay_device_type*> FindType(absl::string_view name,
                                                      uint32_t* index) const;
  // The options that the plugin declares for the type with that index (VIRTBAY_OPTION_* by name);
  // empty when it declares none. InvalidArgument for a table that cannot be one. [control]
  absl::StatusOr<std::map<std::string, uint32_t>> OptionKinds(uint32_t index) const;
  // factory().create with everything that can go wrong in it as a status: its error text, an
  // exception, a device without the required functions. The device is in state CREATED and must be
  // destroyed through its ops before this Plugin goes. [control]
  absl::StatusOr<virtbay_device*> CreateDevice(uint32_t index, const virtbay_host& host,
                                               virtbay_host_device* device_host) const;
  // The file that the user named.
  const std::filesystem::path& path() const;
  // Code of it has crashed: its image stays for the life of the process. [any]
  void SetDamaged();
  bool damaged() const;
  // A report of a crash of it while `doing` something ("device 'a', queue 1"), in lines. [any]
  std::string CrashReport(const Crash& crash, absl::string_view doing,
                          absl::string_view more = {}) const;
  // The lines of a stack in which this plugin plays a part. [any]
  std::string StackText(std::span<void* const> frames) const;

 private:
  struct Impl;
  explicit Plugin(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Where plugins are looked for by name.
struct PluginSearch {
  std::vector<std::filesystem::path> directories;  // in this order

  // VIRTBAY_PLUGIN_PATH (colon separated), then `extra`, then for a program in the build tree the
  // plugins built there, then the install directory compiled in.
  static PluginSearch FromEnvironment(std::vector<std::filesystem::path> extra = {});
};

// `name_or_path` with a slash is a path; else NAME.so (or NAME as given when it ends in .so) is
// looked up in the directories. NotFound lists where it looked. [control]
absl::StatusOr<std::filesystem::path> FindPlugin(absl::string_view name_or_path,
                                                 const PluginSearch& search);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_PLUGIN_PLUGIN_H_
