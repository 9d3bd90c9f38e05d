// The client's end of the control socket.
// Stateless; [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_

#include <string>

#include "absl/status/statusor.h"
#include "framework/base/unique_fd.h"

namespace virtbay::device_host {

// [control] A connected, blocking Unix stream socket. InvalidArgument when the path is empty or
// too long, else the error of the system call; each names the path.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path);

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_UNIX_SOCKET_H_
