#include "hostif/device_host/unix_socket.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::device_host {

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  const std::string what = absl::StrCat("socket ", path);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty()) return absl::InvalidArgumentError("socket path is empty");
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, ": path is longer than ", sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus(errno, what);
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  while (::connect(fd.get(), generic, sizeof(address)) != 0) {
    if (errno != EINTR) return ErrnoStatus(errno, what);
  }
  return fd;
}

}  // namespace virtbay::device_host
