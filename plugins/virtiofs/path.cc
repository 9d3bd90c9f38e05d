#include "plugins/virtiofs/path.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "plugins/virtiofs/wire.h"
#include "virtbay/sdk/unique_fd.h"

namespace virtbay::virtiofs {

int CheckName(std::span<const std::byte> raw, std::string_view* name) {
  const char* text = reinterpret_cast<const char*>(raw.data());
  const void* end = raw.empty() ? nullptr : std::memchr(text, '\0', raw.size());
  if (end == nullptr) return raw.size() > kNameMax ? ENAMETOOLONG : EINVAL;
  const size_t length = static_cast<size_t>(static_cast<const char*>(end) - text);
  if (length + 1 != raw.size()) return EINVAL;
  if (length == 0) return EINVAL;
  if (length > kNameMax) return ENAMETOOLONG;
  const std::string_view value(text, length);
  if (value == "." || value == "..") return EINVAL;
  if (std::memchr(text, '/', length) != nullptr) return EINVAL;
  *name = value;
  return 0;
}

int StatAt(int dirfd, const char* name, struct statx* out, uint32_t mask, int sync_flags) {
  const int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | sync_flags;
  return ::statx(dirfd, name, flags, mask, out) == 0 ? 0 : errno;
}

int StatFd(int fd, struct statx* out, uint32_t mask, int sync_flags) {
  return ::statx(fd, "", AT_EMPTY_PATH | sync_flags, mask, out) == 0 ? 0 : errno;
}

int OpenBeneath(int dirfd, const char* name, int flags, mode_t mode) {
  struct open_how how = {};
  how.flags = static_cast<uint64_t>(static_cast<uint32_t>(flags | O_NOFOLLOW | O_CLOEXEC));
  how.mode = mode;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
  const int64_t fd = ::syscall(SYS_openat2, dirfd, name, &how, sizeof(how));
  return fd < 0 ? -errno : static_cast<int>(fd);
}

FdName::FdName(int fd) : text_{} {
  std::to_chars(text_.data(), text_.data() + text_.size() - 1, fd);
}

int Reopen(int proc_fd, int fd, int flags) {
  const int result = ::openat(proc_fd, FdName(fd).c_str(), (flags & ~O_NOFOLLOW) | O_CLOEXEC);
  return result < 0 ? -errno : result;
}

bool LiesBelow(const char* path, int root_fd) {
  struct statx root;
  if (StatFd(root_fd, &root) != 0) return false;
  const auto is = [](const struct statx& a, const struct statx& b) {
    return a.stx_ino == b.stx_ino && a.stx_dev_major == b.stx_dev_major &&
           a.stx_dev_minor == b.stx_dev_minor;
  };
  constexpr int kFlags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  sdk::UniqueFd at(::open(path, kFlags));
  struct statx st;
  while (at && StatFd(at.get(), &st) == 0) {
    if (is(st, root)) return true;
    sdk::UniqueFd up(::openat(at.get(), "..", kFlags));
    struct statx above;
    // At the top there is nothing above.
    if (!up || StatFd(up.get(), &above) != 0 || is(above, st)) return false;
    at = std::move(up);
  }
  return false;
}

}  // namespace virtbay::virtiofs
