// Unix stream sockets of the control plane: listen, connect, accept an inherited one.
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"

namespace virtbay::device_host {

// [control] A non-blocking listening socket with the given mode. A socket file that nobody serves
// any more is replaced. AlreadyExists when it is served or is not a socket, InvalidArgument when
// the path is too long; errors name the path.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, mode_t mode);

// [control] A connected, blocking socket. Errors name the path.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

// [control] OK when the descriptor is a listening Unix stream socket. InvalidArgument names it.
absl::Status CheckListeningFd(int fd);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_
