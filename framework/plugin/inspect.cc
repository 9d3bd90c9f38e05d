#include "framework/plugin/inspect.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"
#include "framework/plugin/elf_file.h"

namespace virtbay {
namespace {

// Magic and ABI version keep their places in every major, so that any two can tell each other.
absl::Status CheckVersion(const virtbay_plugin& entry) {
  if (entry.magic != VIRTBAY_ABI_MAGIC) {
    return absl::InvalidArgumentError(absl::StrFormat("%s has the wrong magic: %#x, not %#x",
                                                      VIRTBAY_ENTRY_SYMBOL, entry.magic,
                                                      VIRTBAY_ABI_MAGIC));
  }
  if (entry.abi_major != VIRTBAY_ABI_MAJOR) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "built for plugin ABI %u.%u; this host has %u.%u and takes any %u.x", entry.abi_major,
        entry.abi_minor, VIRTBAY_ABI_MAJOR, VIRTBAY_ABI_MINOR, VIRTBAY_ABI_MAJOR));
  }
  if (entry.struct_size < sizeof(virtbay_plugin)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has struct_size %u; ABI %u.0 has %u bytes", VIRTBAY_ENTRY_SYMBOL,
                        entry.struct_size, VIRTBAY_ABI_MAJOR, sizeof(virtbay_plugin)));
  }
  return absl::OkStatus();
}

absl::Status CheckTexts(const virtbay_plugin& entry) {
  VIRTBAY_ASSIGN_OR_RETURN(const absl::string_view name,
                           CheckText(entry.name, sizeof(entry.name), "the plugin's name"));
  if (name.empty()) return absl::InvalidArgumentError("the plugin's name is empty");
  VIRTBAY_RETURN_IF_ERROR(
      CheckText(entry.version, sizeof(entry.version), "the plugin's version").status());
  VIRTBAY_RETURN_IF_ERROR(
      CheckText(entry.build, sizeof(entry.build), "the plugin's build text").status());
  return CheckText(entry.device_types, sizeof(entry.device_types), "the list of device types")
      .status();
}

absl::StatusOr<PluginFileInfo> Inspect(int fd) {
  VIRTBAY_ASSIGN_OR_RETURN(const ElfFile file, ElfFile::Read(fd));
  const ElfFile::Symbol* symbol = file.Find(VIRTBAY_ENTRY_SYMBOL);
  if (symbol == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a virtbay plugin: exports no ", VIRTBAY_ENTRY_SYMBOL));
  }
  if (symbol->type != STT_OBJECT) {
    return absl::InvalidArgumentError(absl::StrCat(VIRTBAY_ENTRY_SYMBOL, " is not a data symbol"));
  }
  // What is there is read, the rest stays zero: a newer major may well be smaller than ours.
  virtbay_plugin entry{};
  const size_t size = std::min<uint64_t>(sizeof(entry), symbol->size);
  if (size < offsetof(virtbay_plugin, flags) || !file.ReadAt(fd, symbol->value, &entry, size)) {
    return absl::InvalidArgumentError(absl::StrCat(
        VIRTBAY_ENTRY_SYMBOL, " is too small or not in the file (", symbol->size, " bytes)"));
  }
  VIRTBAY_RETURN_IF_ERROR(CheckVersion(entry));
  if (entry.struct_size > symbol->size) {
    return absl::InvalidArgumentError(absl::StrCat(VIRTBAY_ENTRY_SYMBOL, " has struct_size ",
                                                   entry.struct_size, " but ", symbol->size,
                                                   " bytes"));
  }
  VIRTBAY_RETURN_IF_ERROR(CheckTexts(entry));

  PluginFileInfo info;
  info.abi_major = entry.abi_major;
  info.abi_minor = entry.abi_minor;
  info.flags = entry.flags;
  info.name = entry.name;
  info.version = entry.version;
  info.build = entry.build;
  info.device_types = entry.device_types;
  info.needed = file.needed();
  for (const ElfFile::Symbol& s : file.symbols()) {
    info.exports.push_back(s.name);
    if (s.unique) info.unique.push_back(s.name);
  }
  return info;
}

}  // namespace

absl::StatusOr<UniqueFd> OpenPluginFile(const std::filesystem::path& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("plugin ", path.native()));
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) {
    return ErrnoStatus(errno, absl::StrCat("plugin ", path.native()));
  }
  if (!S_ISREG(st.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("plugin ", path.native(), ": not a regular file"));
  }
  return fd;
}

absl::StatusOr<PluginFileInfo> InspectPluginFd(int fd, const std::filesystem::path& shown) {
  absl::StatusOr<PluginFileInfo> info = Inspect(fd);
  if (!info.ok()) return Annotate(info.status(), absl::StrCat("plugin ", shown.native()));
  info->path = shown;
  return info;
}

absl::StatusOr<PluginFileInfo> InspectPluginFile(const std::filesystem::path& path) {
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd fd, OpenPluginFile(path));
  return InspectPluginFd(fd.get(), path);
}

absl::Status CheckEntry(const virtbay_plugin& entry) {
  VIRTBAY_RETURN_IF_ERROR(CheckVersion(entry));
  return CheckTexts(entry);
}

absl::StatusOr<absl::string_view> CheckText(const char* text, size_t capacity,
                                            absl::string_view what) {
  const size_t length = strnlen(text, capacity);
  if (length == capacity) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not NUL-terminated"));
  }
  for (size_t i = 0; i < length; ++i) {
    if (text[i] < 0x20 || text[i] > 0x7e) {
      return absl::InvalidArgumentError(absl::StrCat(what, " is not printable text"));
    }
  }
  return absl::string_view(text, length);
}

}  // namespace virtbay
