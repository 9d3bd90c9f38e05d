#include "hostif/vhost_user/front_end_fd.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "framework/base/event_fd.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"

namespace virtbay::vhost_user {
namespace {

// File systems whose pages come from this kernel: out of memory or from a disk. What is not here is
// served by a process or another machine, or nobody knows by whom.
constexpr absl::string_view kLocalTypes[] = {
    "bcachefs", "btrfs",     "devtmpfs", "exfat", "ext2",    "ext3",   "ext4",
    "f2fs",     "hugetlbfs", "jfs",      "ntfs3", "overlay", "nilfs2", "ramfs",
    "tmpfs",    "reiserfs",  "vfat",     "xfs",   "zfs",
};

std::string FdPath(absl::string_view directory, int fd) {
  return absl::StrCat("/proc/thread-self/", directory, "/", fd);
}

absl::StatusOr<std::string> ReadAll(const std::string& path) {
  const UniqueFd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    return absl::FailedPreconditionError(
        absl::StrCat("what a descriptor is cannot be told without ", path));
  }
  std::string text;
  std::array<char, 4096> piece;
  for (;;) {
    const ssize_t got = read(file.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, path);
    if (got == 0) return text;
    text.append(piece.data(), static_cast<size_t>(got));
  }
}

// The number behind `name` in /proc/self/fdinfo; nothing where there is none.
absl::StatusOr<std::optional<int>> FdInfo(int fd, absl::string_view name) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, ReadAll(FdPath("fdinfo", fd)));
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    int value = 0;
    if (absl::ConsumePrefix(&line, name) && absl::ConsumePrefix(&line, ":") &&
        absl::SimpleAtoi(line, &value)) {
      return value;
    }
  }
  return std::nullopt;
}

int SocketOption(int fd, int option) {
  int value = 0;
  socklen_t size = sizeof value;
  return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

// Nothing comes in at the Unix socket any more; true: no descriptor is in its queue. A count of its
// bytes does not say so, since those of MSG_OOB leave their descriptors behind; and a read would
// wait for one that sleeps in another process. (A kernel before 5.9 has no count of descriptors,
// nor has it MSG_OOB for these sockets.)
bool TakesReadingSide(int fd) {
  static_cast<void>(shutdown(fd, SHUT_RD));
  if (SocketOption(fd, SO_ACCEPTCONN) != 0) return false;
  const auto descriptors = FdInfo(fd, "scm_fds");
  int bytes = 0;
  return descriptors.ok() && descriptors->value_or(0) == 0 && ioctl(fd, SIOCINQ, &bytes) == 0 &&
         (descriptors->has_value() || bytes == 0);
}

bool IsMemfdOrItsLike(int fd) { return fcntl(fd, F_GET_SEALS) >= 0; }

// OK for an unknown one.
absl::Status CheckType(absl::string_view type) {
  if (type.empty() || absl::c_linear_search(kLocalTypes, type)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the descriptor's file system, ", type,
                                                 ", is not one that this kernel serves by itself"));
}

// Of a file: OK when this kernel serves it, and its mode then.
absl::StatusOr<mode_t> CheckLocalFile(int fd) {
  std::array<char, 1> first{};
  if (readlink(FdPath("fd", fd).c_str(), first.data(), first.size()) != 1) {
    return absl::FailedPreconditionError("what a descriptor is cannot be told without /proc");
  }
  if (first[0] != '/') return absl::InvalidArgumentError("the descriptor is no file");
  VIRTBAY_ASSIGN_OR_RETURN(const std::optional<int> mount, FdInfo(fd, "mnt_id"));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string mountinfo, ReadAll("/proc/thread-self/mountinfo"));
  absl::string_view type = FileSystemType(mountinfo, mount.value_or(-1), 0);
  VIRTBAY_RETURN_IF_ERROR(CheckType(type));
  struct statx file {};
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &file) != 0) {
    return ErrnoStatus(errno, "the descriptor's file");
  }
  if (type.empty()) {
    // The mount is none of this process's (a container's), but what is mounted may be here too.
    type = FileSystemType(mountinfo, -1, makedev(file.stx_dev_major, file.stx_dev_minor));
    VIRTBAY_RETURN_IF_ERROR(CheckType(type));
    if (type.empty() && file.stx_dev_major == 0) {
      return absl::InvalidArgumentError(
          "the descriptor's file system is not mounted here, so nobody knows who serves it");
    }
  }
  return static_cast<mode_t>(file.stx_mode);
}

}  // namespace

absl::Status CheckKickFd(int fd) {
  VIRTBAY_ASSIGN_OR_RETURN(const EventFdKind kind, EventFdKindOf(fd));
  if (kind == EventFdKind::kEventFd) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the descriptor is a ", kind == EventFdKind::kPipe ? "pipe" : "socket", ", not an eventfd"));
}

absl::Status CheckCallFd(int fd) {
  VIRTBAY_ASSIGN_OR_RETURN(const EventFdKind kind, EventFdKindOf(fd));
  switch (kind) {
    case EventFdKind::kEventFd:
      return absl::OkStatus();
    case EventFdKind::kPipe:
      // It has a lock that the front-end can hold for ever, and writes wait for that.
      return absl::InvalidArgumentError("the descriptor is a pipe, not an eventfd");
    case EventFdKind::kSocket:
      break;
  }
  return CheckOneWaySocket(fd);
}

absl::Status CheckOneWaySocket(int fd) {
  if (SocketOption(fd, SO_DOMAIN) != AF_UNIX || SocketOption(fd, SO_TYPE) != SOCK_STREAM) {
    return absl::InvalidArgumentError("the descriptor is not a Unix stream socket");
  }
  sockaddr_un peer{};
  socklen_t size = sizeof peer;
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) {
    return absl::InvalidArgumentError("the socket is not connected");
  }
  // Whoever listened has a name, and a pair of sockets has none. (Who made the other end says less:
  // of a listening socket that was inherited it was somebody else.)
  if (size > sizeof(sa_family_t)) {
    return absl::InvalidArgumentError("the socket is not one of a pair");
  }
  if (!TakesReadingSide(fd)) {
    return absl::InvalidArgumentError("the socket has something in its queue");
  }
  int bytes = 0;
  if (ioctl(fd, SIOCINQ, &bytes) != 0 || bytes != 0) {
    return absl::InvalidArgumentError("the socket has something in its queue");
  }
  return absl::OkStatus();
}

absl::Status CheckMemoryFd(int fd) {
  if (IsMemfdOrItsLike(fd)) return absl::OkStatus();
  return CheckLocalFile(fd).status();
}

bool ClosesAtOnce(int fd) {
  const auto kind = EventFdKindOf(fd);
  if (kind.ok()) {
    return *kind == EventFdKind::kEventFd ||
           (*kind == EventFdKind::kSocket && TakesReadingSide(fd));
  }
  if (IsMemfdOrItsLike(fd)) return true;
  const auto mode = CheckLocalFile(fd);
  return mode.ok() && S_ISREG(*mode);
}

absl::string_view FileSystemType(absl::string_view mountinfo, int mount_id, dev_t device) {
  const std::string number = absl::StrCat(major(device), ":", minor(device));
  for (const absl::string_view line : absl::StrSplit(mountinfo, '\n')) {
    // ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [OPTIONAL...] - TYPE SOURCE OPTIONS
    const std::vector<absl::string_view> fields = absl::StrSplit(line, ' ');
    if (fields.size() < 9) continue;
    int id = 0;
    const bool same =
        mount_id >= 0 ? absl::SimpleAtoi(fields[0], &id) && id == mount_id : fields[2] == number;
    const auto dash = std::find(fields.begin() + 6, fields.end(), "-");
    if (same && fields.end() - dash > 1) return dash[1];
  }
  return "";
}

}  // namespace virtbay::vhost_user
