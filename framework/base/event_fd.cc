#include "framework/base/event_fd.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstdint>

#include "framework/base/status.h"

namespace virtbay {

absl::StatusOr<EventFdKind> EventFdKindOf(int fd) {
  struct statx status {};
  if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &status) != 0) {
    return ErrnoStatus(errno, "event descriptor");
  }
  if (S_ISFIFO(status.stx_mode)) return EventFdKind::kPipe;
  int domain = 0;
  socklen_t size = sizeof domain;
  if (S_ISSOCK(status.stx_mode) && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 &&
      domain == AF_UNIX) {
    return EventFdKind::kSocket;
  }
  // Descriptors of the kernel's own have no type; a write to another kind than an eventfd fails.
  if ((status.stx_mode & S_IFMT) == 0) return EventFdKind::kEventFd;
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

void CloseAtOnce(int fd) {
  const linger off{0, 0};
  // Of what is no connection it fails.
  static_cast<void>(setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off));
}

void DrainEventFd(int fd) {
  uint64_t count = 0;
  const iovec part{&count, sizeof count};
  [[maybe_unused]] const ssize_t got = preadv2(fd, &part, 1, -1, RWF_NOWAIT);
}

}  // namespace virtbay
