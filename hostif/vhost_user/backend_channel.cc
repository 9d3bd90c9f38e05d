#include "hostif/vhost_user/backend_channel.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>

#include "framework/base/event_fd.h"
#include "framework/base/status.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {
namespace {

constexpr Header kConfigChange{static_cast<uint32_t>(BackendRequest::kConfigChange), kVersion, 0};

}  // namespace

absl::Status BackendChannel::Set(UniqueFd fd) {
  const auto kind = EventFdKindOf(fd.get());
  if (!kind.ok() || *kind != EventFdKind::kSocket) {
    return absl::InvalidArgumentError("the back-end channel is not a Unix socket");
  }
  fd_ = std::move(fd);
  return absl::OkStatus();
}

void BackendChannel::Close() { fd_.reset(); }

absl::Status BackendChannel::SendConfigChange() {
  ssize_t done = 0;
  do {
    done = send(fd_.get(), &kConfigChange, sizeof kConfigChange, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (done < 0 && errno == EINTR);
  if (done == static_cast<ssize_t>(sizeof kConfigChange)) return absl::OkStatus();
  if (done < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    return absl::ResourceExhaustedError("the front-end does not read its back-end channel");
  }
  absl::Status status = done < 0 ? absl::UnavailableError(ErrnoStatus(errno, "send").message())
                                 : absl::UnavailableError("half a message was taken");
  Close();
  return status;
}

void BackendChannel::Drain(short revents) {
  // Also what recv would not notice on some kinds of socket, and poll would report for ever.
  if ((revents & (POLLERR | POLLHUP | POLLNVAL)) != 0) return Close();
  std::array<char, 256> dropped{};
  // Without a control buffer the kernel closes fds that come along.
  const ssize_t got = recv(fd_.get(), dropped.data(), dropped.size(), MSG_DONTWAIT);
  if (got > 0) return;
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  Close();
}

}  // namespace virtbay::vhost_user
