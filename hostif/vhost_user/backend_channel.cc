#include "hostif/vhost_user/backend_channel.h"

#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "framework/base/status.h"
#include "hostif/vhost_user/front_end_fd.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {
namespace {

// Without NEED_REPLY: nothing ever comes back.
constexpr Header kConfigChange{static_cast<uint32_t>(BackendRequest::kConfigChange), kVersion, 0};

}  // namespace

absl::Status BackendChannel::Set(UniqueFd&& fd) {
  VIRTBAY_RETURN_IF_ERROR(Annotate(CheckOneWaySocket(fd.get()), "the back-end channel"));
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

}  // namespace virtbay::vhost_user
