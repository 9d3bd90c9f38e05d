// Sockets of a vhost-user server: by path, inherited, or from systemd.
// Functions and one owner of a socket file; used on the thread that creates the server. [control]
#ifndef VIRTBAY_HOSTIF_VHOST_USER_SOCKET_H_
#define VIRTBAY_HOSTIF_VHOST_USER_SOCKET_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "framework/base/unique_fd.h"

namespace virtbay::vhost_user {

// A socket file; removed by the destructor if it is still the one that was made.
class SocketFile {
 public:
  SocketFile() = default;
  SocketFile(std::string path, dev_t device, ino_t inode)
      : path_(std::move(path)), device_(device), inode_(inode) {}
  SocketFile(SocketFile&& other) noexcept { *this = std::move(other); }
  SocketFile& operator=(SocketFile&& other) noexcept;
  ~SocketFile() { Remove(); }

  void Remove();
  // The file at that path, if it is that one; else an owner of nothing.
  static SocketFile At(std::string path, dev_t device, ino_t inode);
  // It is somebody else's from now on.
  void LetGo() { path_.clear(); }
  const std::string& path() const { return path_; }
  dev_t device() const { return device_; }
  ino_t inode() const { return inode_; }

 private:
  std::string path_;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

struct ListeningSocket {
  UniqueFd fd;  // non-blocking
  SocketFile file;
};

// A listening stream socket at `path` whose file has exactly `mode`. A socket file that nobody
// listens on is replaced. AlreadyExists when somebody does ("in use") or when the path is no
// socket, InvalidArgument when it is empty or too long for a socket address, else the error of the
// system call; each names the path.
absl::StatusOr<ListeningSocket> ListenAt(const std::string& path, mode_t mode);

// [any] InvalidArgument when the path cannot be a socket's: see ListenAt.
absl::Status CheckSocketPath(const std::string& path);

enum class SocketRole { kListening, kConnected };

// What an inherited fd is, made non-blocking and close-on-exec. InvalidArgument when it is not a
// UNIX stream socket, or neither listens nor is connected.
absl::StatusOr<SocketRole> InspectSocket(const UniqueFd& fd);

// A socket handed over by systemd (sd_listen_fds(3)): its fd, not owned, and its name ("" when
// systemd gave none).
struct ActivationSocket {
  int fd = -1;
  std::string name;
};

// Parses the values of LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES (null: not set) for process `pid`.
// Empty when they are not set or are meant for another process; InvalidArgument when malformed.
absl::StatusOr<std::vector<ActivationSocket>> ParseActivation(const char* listen_pid,
                                                              const char* listen_fds,
                                                              const char* listen_fdnames,
                                                              pid_t pid);
// The same with this process's environment. The environment is left as it is: the caller decides
// who owns the fds.
absl::StatusOr<std::vector<ActivationSocket>> ActivationSockets();

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_SOCKET_H_
