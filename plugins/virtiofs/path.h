// Containment: every name and every open of the share goes through here.
// Stateless functions over the caller's descriptors; usable on every thread. Descriptors returned
// are the caller's. Errors are positive errno values, or -errno where a descriptor is returned.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_PATH_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_PATH_H_

#include <sys/stat.h>
#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace virtbay::virtiofs {

// What every statx of this device asks for: attributes, and what tells inodes apart.
inline constexpr uint32_t kStatMask = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID;

// [any] Checks that `raw` is exactly one path component followed by exactly one NUL: 0, EINVAL for
// empty, ".", "..", '/', a missing or an embedded NUL, ENAMETOOLONG above 255 bytes. On success
// *name points into raw and is NUL-terminated there.
int CheckName(std::span<const std::byte> raw, std::string_view* name);

// [any] Attributes of one component below dirfd, symbolic links not followed. 0 or errno.
int StatAt(int dirfd, const char* name, struct statx* out, uint32_t mask = kStatMask,
           int sync_flags = 0);
// [any] Attributes behind a descriptor, O_PATH ones included. 0 or errno.
int StatFd(int fd, struct statx* out, uint32_t mask = kStatMask, int sync_flags = 0);

// [any] openat2 with RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS; O_NOFOLLOW and
// O_CLOEXEC are added. A descriptor or -errno.
int OpenBeneath(int dirfd, const char* name, int flags, mode_t mode = 0);

// Decimal text of a descriptor: its name in /proc/self/fd.
class FdName {
 public:
  explicit FdName(int fd);
  const char* c_str() const { return text_.data(); }

 private:
  std::array<char, 12> text_;
};

// [any] Opens again what `fd` refers to, with other flags, through the directory /proc/self/fd.
// The caller knows that it is a regular file or directory (or passes O_PATH). A descriptor or
// -errno.
int Reopen(int proc_fd, int fd, int flags);

// [control] Whether the directory at `path` is the one behind `root_fd` or lies below it. A
// directory that cannot be opened lies nowhere.
bool LiesBelow(const char* path, int root_fd);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_PATH_H_
