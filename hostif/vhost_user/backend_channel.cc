#include "hostif/vhost_user/backend_channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "framework/base/status.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

void BackendChannel::Set(UniqueFd fd) {
  fd_ = std::move(fd);
  int type = 0;
  socklen_t size = sizeof type;
  is_socket_ = fd_.valid() && getsockopt(fd_.get(), SOL_SOCKET, SO_TYPE, &type, &size) == 0;
  // A socket is told per call; of a pipe the front-end holds the other end, with flags of its own.
  if (fd_.valid() && !is_socket_) {
    const int flags = fcntl(fd_.get(), F_GETFL);
    if (flags >= 0) static_cast<void>(fcntl(fd_.get(), F_SETFL, flags | O_NONBLOCK));
  }
}

absl::Status BackendChannel::SendConfigChange() {
  const Header message{static_cast<uint32_t>(BackendRequest::kConfigChange), kVersion, 0};
  ssize_t done = 0;
  do {
    // The server's thread blocks SIGPIPE, which write has no flag against.
    done = is_socket_ ? send(fd_.get(), &message, sizeof message, MSG_DONTWAIT | MSG_NOSIGNAL)
                      : write(fd_.get(), &message, sizeof message);
  } while (done < 0 && errno == EINTR);
  if (done == static_cast<ssize_t>(sizeof message)) return absl::OkStatus();
  if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return absl::ResourceExhaustedError("the front-end does not read its back-end channel");
  }
  absl::Status status = done < 0 ? absl::UnavailableError(ErrnoStatus(errno, "send").message())
                                 : absl::UnavailableError("half a message was taken");
  Set(UniqueFd());
  return status;
}

void BackendChannel::Drain(short revents) {
  // Also what recv would not notice on some kinds of socket, and poll would report for ever.
  if ((revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) return Set(UniqueFd());
  std::array<char, 256> dropped{};
  // Without a control buffer the kernel closes fds that come along.
  const ssize_t got = recv(fd_.get(), dropped.data(), dropped.size(), MSG_DONTWAIT);
  if (got > 0) return;
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  Set(UniqueFd());
}

}  // namespace virtbay::vhost_user
