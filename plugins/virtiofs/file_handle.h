// FileHandle: the kernel's persistent name of an inode (name_to_handle_at), by which an inode is
// found again after its name on the host changed. Never shown to the guest, because opening one
// steps over every directory permission.
// Owned by the Inode; every function is [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_

#include <cstddef>
#include <span>

namespace virtbay::virtiofs {

struct FileHandle {
  // The handle behind an (O_PATH) descriptor, or nullptr where the file system has none.
  static FileHandle* Of(int fd);
  static void Free(FileHandle* handle);
  // As the kernel gave it, and back: type and bytes; nullptr: there are no such handles, or memory
  // is out.
  int type() const;
  std::span<const std::byte> bytes() const;
  static FileHandle* From(int type, std::span<const std::byte> bytes);
  // Opens it with `flags` on the mount of mount_fd (not O_PATH). A descriptor or -errno.
  int Open(int mount_fd, int flags);
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_
