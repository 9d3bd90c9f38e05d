// PluginLibrary: a private copy of a plugin file, mapped into the process through Boost.DLL; the
// only user of dlopen. Knows nothing of the plugin ABI.
// Owned by one Plugin; loads and unloads on the control thread. Move-only.
#ifndef VIRTBAY_FRAMEWORK_PLUGIN_LIBRARY_H_
#define VIRTBAY_FRAMEWORK_PLUGIN_LIBRARY_H_

#include <filesystem>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"

namespace virtbay {

// A copy of a file in a directory of its own (mode 0700), both removed by the destructor, or else
// by the next loader of the same user. The same path, the same inode or a reused descriptor number
// would make dlopen return the library that is there already.
class PrivateCopy {
 public:
  // Copies what `source` holds; `shown` gives the copy its name and errors their subject. [control]
  static absl::StatusOr<PrivateCopy> Create(int source, const std::filesystem::path& shown);
  PrivateCopy(PrivateCopy&& other) noexcept { *this = std::move(other); }
  PrivateCopy& operator=(PrivateCopy&& other) noexcept;
  ~PrivateCopy() { Remove(); }

  const std::filesystem::path& path() const { return path_; }
  // The copy, readable; nobody else can change it.
  int fd() const { return fd_.get(); }
  // Removes file and directory; a mapped image stays usable.
  void Remove();

 private:
  PrivateCopy() = default;
  std::filesystem::path directory_;
  std::filesystem::path path_;
  UniqueFd fd_;
  UniqueFd lock_;  // of the directory: its user lives
};

class PluginLibrary {
 public:
  // dlopen(RTLD_NOW | RTLD_LOCAL) of the copy: runs the constructors of the library. The error has
  // the dynamic linker's own text with `shown` in place of the copy's path. [control]
  static absl::StatusOr<std::unique_ptr<PluginLibrary>> Load(PrivateCopy copy,
                                                             const std::filesystem::path& shown);
  // dlclose, unless Unload came before.
  ~PluginLibrary();
  PluginLibrary(const PluginLibrary&) = delete;
  PluginLibrary& operator=(const PluginLibrary&) = delete;

  // The address of a symbol, or nullptr.
  const void* Symbol(const char* name) const;
  // dlclose. False when the image is still mapped afterwards (a living thread has thread_local
  // objects of it, it has UNIQUE symbols, someone else holds it): its memory is never given back.
  // Under sanitizers images stay on purpose, for their reports' sake, and this is always true.
  bool Unload();
  // Instead of Unload: the image stays mapped for the life of the process.
  void Leak();
  // The copy, readable for as long as this lives.
  int fd() const { return copy_.fd(); }

 private:
  struct Handle;  // keeps Boost out of this header
  PluginLibrary(PrivateCopy copy, std::unique_ptr<Handle> handle);

  PrivateCopy copy_;
  std::unique_ptr<Handle> handle_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_PLUGIN_LIBRARY_H_
