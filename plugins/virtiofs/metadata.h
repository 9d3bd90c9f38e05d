// Metadata: owner, mode and device number that a file has for the guest, kept in an extended
// attribute of the host's file, so that a server without privileges can give files any of them.
// Symbolic links and the host's own special files cannot carry it. Functions are [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_METADATA_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_METADATA_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace virtbay::virtiofs {

// Names of attributes that begin with this are the device's own: the guest neither sees nor sets
// them, whatever the share's options.
inline constexpr std::string_view kReservedPrefix = "user.virtbay.";
inline constexpr char kMetadataName[] = "user.virtbay.meta";

inline bool IsReservedName(std::string_view name) {
  return name.substr(0, kReservedPrefix.size()) == kReservedPrefix;
}

struct Metadata {
  static constexpr size_t kMaxText = 96;
  using Text = std::array<char, kMaxText>;

  // What is not given is as it would be without metadata.
  std::optional<uint32_t> uid, gid;
  // With the type: a regular file of the host may be a device, FIFO or socket for the guest.
  std::optional<uint32_t> mode;
  uint32_t major = 0, minor = 0;

  // "uid=0,gid=0,mode=0020666,dev=1:3", each part at most once, in any order. Nothing for what is
  // not of that form, or does not fit a directory (`dir`) or regular file.
  static std::optional<Metadata> Parse(std::string_view text, bool dir);
  std::string_view Format(Text* text) const;
  bool empty() const { return !uid && !gid && !mode; }
  bool operator==(const Metadata&) const = default;
};

// A file to look at: what `name` leads to in directory `fd`, links not followed; or `fd` itself.
struct FileAt {
  int fd = -1;
  const char* name = nullptr;
};

class ThreadIdentity;

// What the file carries; empty when there is nothing, or nothing of the right form (*garbled).
Metadata ReadMetadata(const ThreadIdentity& identity, const FileAt& file, bool dir, bool* garbled);
// 0 or errno. A file of this process's user that may not be written is made writable for that, if
// it is given by its descriptor.
int WriteMetadata(const ThreadIdentity& identity, const FileAt& file, const Metadata& metadata);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_METADATA_H_
