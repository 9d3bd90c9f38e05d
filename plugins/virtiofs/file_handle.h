// FileHandle: the kernel's persistent name of an inode (name_to_handle_at), by which an inode is
// found again after its name on the host changed. Never shown to the guest, because opening one
// steps over every directory permission.
// Owned by the Inode; every function is [any].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_

namespace virtbay::virtiofs {

struct FileHandle {
  // The handle behind an (O_PATH) descriptor, or nullptr where the file system has none.
  static FileHandle* Of(int fd);
  static void Free(FileHandle* handle);
  // Opens it with `flags` on the mount of mount_fd (not O_PATH). A descriptor or -errno.
  int Open(int mount_fd, int flags);
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_FILE_HANDLE_H_
