#include "hostif/device_host/unix_socket.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.empty()) return absl::InvalidArgumentError("socket path is empty");
  if (path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("socket ", path, ": path is longer than ",
                                                   sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::Status SocketError(int error, const std::string& path) {
  return ErrnoStatus(error, absl::StrCat("socket ", path));
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

// Removes a socket file whose server is gone.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat info = {};
  if (::lstat(path.c_str(), &info) != 0) {
    return errno == ENOENT ? absl::OkStatus() : SocketError(errno, path);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat("socket ", path, ": the path exists and is not a socket"));
  }
  // Non-blocking: a server with a full backlog is in use, not something to wait for.
  const UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return SocketError(errno, path);
  if (::connect(probe.get(), Generic(address), sizeof(address)) == 0 || errno != ECONNREFUSED) {
    return absl::AlreadyExistsError(absl::StrCat("socket ", path, ": is in use"));
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return SocketError(errno, path);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, mode_t mode) {
  VIRTBAY_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  VIRTBAY_RETURN_IF_ERROR(RemoveStale(path, address));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return SocketError(errno, path);
  // The file gets its mode from the socket's, so it is never open wider, not even briefly.
  if (::fchmod(fd.get(), mode) != 0) return SocketError(errno, path);
  if (::bind(fd.get(), Generic(address), sizeof(address)) != 0) return SocketError(errno, path);
  if (::chmod(path.c_str(), mode) != 0 || ::listen(fd.get(), 64) != 0) {
    const int error = errno;
    ::unlink(path.c_str());
    return SocketError(error, path);
  }
  return fd;
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path) {
  VIRTBAY_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return SocketError(errno, path);
  while (::connect(fd.get(), Generic(address), sizeof(address)) != 0) {
    if (errno != EINTR) return SocketError(errno, path);
  }
  return fd;
}

absl::Status CheckListeningFd(int fd) {
  const std::string what = absl::StrCat("fd ", fd);
  int value = 0;
  socklen_t length = sizeof(value);
  if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &value, &length) != 0) {
    return ErrnoStatus(errno, what);
  }
  if (value == 0) return absl::InvalidArgumentError(what + ": is not a listening socket");
  length = sizeof(value);
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &length) != 0) {
    return ErrnoStatus(errno, what);
  }
  if (value != AF_UNIX) return absl::InvalidArgumentError(what + ": is not a Unix socket");
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
