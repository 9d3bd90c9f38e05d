#include "hostif/vhost_user/socket.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "framework/base/status.h"

namespace virtbay::vhost_user {
namespace {

constexpr int kFirstActivationFd = 3;
constexpr int kBacklog = 16;

std::string Quote(const std::string& path) { return absl::StrCat("socket '", path, "'"); }

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("the socket's path is empty or contains a NUL");
  }
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat(Quote(path), ": the path has ", path.size(),
                                                   " bytes; a socket address holds at most ",
                                                   sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

// Removes a socket file that nobody listens on; OK as well when there is no file.
absl::Status RemoveStale(const std::string& path, const sockaddr_un& address) {
  struct stat file {};
  if (lstat(path.c_str(), &file) != 0) {
    return errno == ENOENT ? absl::OkStatus() : ErrnoStatus(errno, Quote(path));
  }
  if (!S_ISSOCK(file.st_mode)) {
    return absl::AlreadyExistsError(
        absl::StrCat(Quote(path), ": the path exists and is not a socket"));
  }
  const UniqueFd probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return ErrnoStatus(errno, Quote(path));
  if (connect(probe.get(), Generic(address), sizeof address) == 0 || errno == EAGAIN ||
      errno == EPROTOTYPE) {
    return absl::AlreadyExistsError(
        absl::StrCat(Quote(path), ": in use: another process or device listens on it"));
  }
  if (errno == ENOENT) return absl::OkStatus();
  if (errno != ECONNREFUSED) return ErrnoStatus(errno, Quote(path));
  if (unlink(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat(Quote(path), ": removing the stale file"));
  }
  return absl::OkStatus();
}

// Opens without following a link, so that the mode is set on the socket and nothing else.
absl::StatusOr<SocketFile> Claim(const std::string& path, mode_t mode) {
  const UniqueFd node(open(path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  struct stat file {};
  if (!node || fstat(node.get(), &file) != 0) return ErrnoStatus(errno, Quote(path));
  if (!S_ISSOCK(file.st_mode)) {
    return absl::AbortedError(absl::StrCat(Quote(path), ": replaced while it was made"));
  }
  SocketFile claimed(path, file.st_dev, file.st_ino);
  // An O_PATH descriptor takes no fchmod.
  const std::string link = absl::StrCat("/proc/self/fd/", node.get());
  if (chmod(link.c_str(), mode) != 0) {
    return ErrnoStatus(errno, absl::StrCat(Quote(path), ": setting its mode"));
  }
  return claimed;
}

}  // namespace

SocketFile& SocketFile::operator=(SocketFile&& other) noexcept {
  if (this != &other) {
    Remove();
    path_ = std::exchange(other.path_, std::string());
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

SocketFile SocketFile::At(std::string path, dev_t device, ino_t inode) {
  struct stat file {};
  if (lstat(path.c_str(), &file) != 0 || !S_ISSOCK(file.st_mode) || file.st_dev != device ||
      file.st_ino != inode) {
    return SocketFile();
  }
  return SocketFile(std::move(path), device, inode);
}

void SocketFile::Remove() {
  if (path_.empty()) return;
  struct stat file {};
  if (lstat(path_.c_str(), &file) == 0 && S_ISSOCK(file.st_mode) && file.st_dev == device_ &&
      file.st_ino == inode_) {
    unlink(path_.c_str());
  }
  path_.clear();
}

absl::StatusOr<ListeningSocket> ListenAt(const std::string& path, mode_t mode) {
  VIRTBAY_ASSIGN_OR_RETURN(const sockaddr_un address, Address(path));
  VIRTBAY_RETURN_IF_ERROR(RemoveStale(path, address));
  ListeningSocket result;
  result.fd.reset(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!result.fd) return ErrnoStatus(errno, Quote(path));
  if (bind(result.fd.get(), Generic(address), sizeof address) != 0) {
    if (errno == EADDRINUSE) return absl::AlreadyExistsError(absl::StrCat(Quote(path), ": in use"));
    return ErrnoStatus(errno, Quote(path));
  }
  // The mode before listen: until then nobody can connect, whatever the umask is.
  absl::StatusOr<SocketFile> claimed = Claim(path, mode);
  if (!claimed.ok()) {
    // It was made a moment ago; only a path that somebody has replaced since is not ours.
    if (!absl::IsAborted(claimed.status())) unlink(path.c_str());
    return claimed.status();
  }
  result.file = *std::move(claimed);
  if (listen(result.fd.get(), kBacklog) != 0) return ErrnoStatus(errno, Quote(path));
  return result;
}

absl::Status CheckSocketPath(const std::string& path) { return Address(path).status(); }

absl::StatusOr<SocketRole> InspectSocket(const UniqueFd& fd) {
  const std::string name = absl::StrCat("fd ", fd.get());
  int domain = 0;
  int type = 0;
  int listening = 0;
  socklen_t size = sizeof domain;
  if (getsockopt(fd.get(), SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 ||
      getsockopt(fd.get(), SOL_SOCKET, SO_TYPE, &type, &size) != 0 ||
      getsockopt(fd.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0) {
    return absl::InvalidArgumentError(ErrnoStatus(errno, name).message());
  }
  if (domain != AF_UNIX || type != SOCK_STREAM) {
    return absl::InvalidArgumentError(absl::StrCat(name, " is not a UNIX stream socket"));
  }
  const int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0 ||
      fcntl(fd.get(), F_SETFD, FD_CLOEXEC) != 0) {
    return ErrnoStatus(errno, name);
  }
  if (listening != 0) return SocketRole::kListening;
  sockaddr_un peer{};
  socklen_t length = sizeof peer;
  if (getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &length) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is a socket that neither listens nor is connected"));
  }
  return SocketRole::kConnected;
}

absl::StatusOr<std::vector<ActivationSocket>> ParseActivation(const char* listen_pid,
                                                              const char* listen_fds,
                                                              const char* listen_fdnames,
                                                              pid_t pid) {
  std::vector<ActivationSocket> sockets;
  if (listen_pid == nullptr || listen_fds == nullptr) return sockets;
  int64_t meant = 0;
  if (!absl::SimpleAtoi(listen_pid, &meant)) {
    return absl::InvalidArgumentError(
        absl::StrCat("LISTEN_PID='", listen_pid, "' is not a number"));
  }
  if (meant != pid) return sockets;
  // More than a process can be given is a damaged variable, not a reason to allocate.
  constexpr uint32_t kMost = 1u << 16;
  uint32_t count = 0;
  if (!absl::SimpleAtoi(listen_fds, &count) || count > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("LISTEN_FDS='", listen_fds, "' is not a number of file descriptors"));
  }
  std::vector<std::string> names;
  if (listen_fdnames != nullptr && *listen_fdnames != '\0') {
    names = absl::StrSplit(listen_fdnames, ':');
    if (names.size() != count) {
      return absl::InvalidArgumentError(absl::StrCat("LISTEN_FDNAMES='", listen_fdnames, "' has ",
                                                     names.size(), " names for ", count,
                                                     " file descriptors"));
    }
  }
  sockets.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    sockets[i].fd = kFirstActivationFd + static_cast<int>(i);
    if (!names.empty()) sockets[i].name = names[i];
  }
  return sockets;
}

absl::StatusOr<std::vector<ActivationSocket>> ActivationSockets() {
  return ParseActivation(getenv("LISTEN_PID"), getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES"),
                         getpid());
}

}  // namespace virtbay::vhost_user
