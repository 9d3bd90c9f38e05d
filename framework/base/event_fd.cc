#include "framework/base/event_fd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "framework/base/status.h"

namespace virtbay {

absl::StatusOr<EventFdKind> EventFdKindOf(int fd) {
  if (fcntl(fd, F_GETFD) < 0) return ErrnoStatus(errno, "event descriptor");
  // Of a thread: those of the process are its first thread's, which may have ended.
  std::array<char, 64> buffer{};
  const ssize_t size =
      readlink(absl::StrCat("/proc/thread-self/fd/", fd).c_str(), buffer.data(), buffer.size());
  if (size < 0) {
    return absl::FailedPreconditionError("what a descriptor is cannot be told without /proc");
  }
  const absl::string_view name(buffer.data(), static_cast<size_t>(size));
  // These are the kernel's own names; the path of a file begins with a slash.
  if (name == "anon_inode:[eventfd]") return EventFdKind::kEventFd;
  if (absl::StartsWith(name, "pipe:[")) return EventFdKind::kPipe;
  int domain = 0;
  socklen_t length = sizeof domain;
  if (absl::StartsWith(name, "socket:[") &&
      getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX) {
    return EventFdKind::kSocket;
  }
  return absl::InvalidArgumentError("the descriptor is no eventfd, pipe or Unix socket");
}

ssize_t WriteNow(EventFdKind kind, int fd, std::span<const std::byte> data) {
  if (kind == EventFdKind::kSocket) {
    return send(fd, data.data(), data.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  }
  // Of all ways to write to a pipe this one alone takes its flag with each call on every kernel.
  const iovec part{const_cast<std::byte*>(data.data()), data.size()};
  return vmsplice(fd, &part, 1, SPLICE_F_NONBLOCK);
}

bool IsFull(int fd) {
  pollfd entry{fd, POLLOUT, 0};
  return poll(&entry, 1, 0) == 0;
}

void DrainEventFd(int fd) {
  uint64_t count = 0;
  const iovec part{&count, sizeof count};
  [[maybe_unused]] const ssize_t got = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
}

}  // namespace virtbay
