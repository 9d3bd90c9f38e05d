#include "hostif/device_host/process.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/plugin/plugin.h"

namespace virtbay::device_host {
namespace {

constexpr uint64_t kDefaultFileLimit = 1'000'000;
// Half a megabyte of the kernel's.
constexpr uint64_t kTableSize = 65536;

sigset_t StopSet() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);  // the terminal is gone
  return set;
}

}  // namespace

absl::StatusOr<StopSignals> StopSignals::Create() {
  const sigset_t set = StopSet();
  if (const int error = pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    return ErrnoStatus(error, "pthread_sigmask");
  }
  // Ignored by inheritance (nohup, a shell's background job) would mean never being stopped.
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  if (::sigaction(SIGINT, &action, nullptr) != 0 || ::sigaction(SIGTERM, &action, nullptr) != 0) {
    return ErrnoStatus(errno, "sigaction");
  }
  action.sa_handler = SIG_IGN;
  // A file that may not grow further (RLIMIT_FSIZE) is an error of whoever writes to it.
  for (const int signal : {SIGPIPE, SIGXFSZ}) {
    if (::sigaction(signal, &action, nullptr) != 0) return ErrnoStatus(errno, "sigaction");
  }
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "signalfd");
  return StopSignals(std::move(fd));
}

int StopSignals::Look() {
  pollfd entry{fd_.get(), POLLIN, 0};
  signalfd_siginfo info = {};
  if (seen_ == 0 && ::poll(&entry, 1, 0) == 1 && ::read(fd_.get(), &info, sizeof(info)) > 0) {
    seen_ = static_cast<int>(info.ssi_signo);
  }
  return seen_;
}

int StopSignals::Wait(int fd) {
  if (seen_ != 0) return seen_;
  signalfd_siginfo info = {};
  std::array<pollfd, 2> fds{{{fd_.get(), POLLIN, 0}, {fd, POLLIN, 0}}};
  for (;;) {
    if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return 0;
    if (fds[0].revents != 0 && ::read(fd_.get(), &info, sizeof(info)) > 0) {
      return static_cast<int>(info.ssi_signo);
    }
    if (fds[1].revents != 0) return 0;
  }
}

void StopSignals::Unblock() {
  const sigset_t set = StopSet();
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void StopSignals::LetThrough() {
  do {
    seen_ = 0;
  } while (Look() != 0);
  Unblock();
}

absl::Status RaiseFileLimit(std::optional<uint64_t> wanted) {
  if (wanted.has_value() && *wanted == 0) return absl::OkStatus();
  if (wanted.has_value() && (*wanted < kLeastFileLimit || *wanted > kMostFileLimit)) {
    return absl::InvalidArgumentError(absl::StrCat("rlimit-nofile ", *wanted, " is not from ",
                                                   kLeastFileLimit, " to ", kMostFileLimit,
                                                   " (nor 0: leave the limit as it is)"));
  }
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return ErrnoStatus(errno, "getrlimit");
  const uint64_t target = wanted.value_or(std::min<uint64_t>(limit.rlim_max, kDefaultFileLimit));
  if (!wanted.has_value() && limit.rlim_cur >= target) return absl::OkStatus();
  limit.rlim_cur = target;
  limit.rlim_max = std::max<rlim_t>(limit.rlim_max, target);
  if (::setrlimit(RLIMIT_NOFILE, &limit) != 0) {
    return ErrnoStatus(errno, absl::StrCat("rlimit-nofile ", target));
  }
  return absl::OkStatus();
}

void GrowDescriptorTable() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  const auto last = static_cast<int>(std::min<uint64_t>(limit.rlim_cur, kTableSize)) - 1;
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  // The table does not shrink again.
  if (null) UniqueFd(::fcntl(null.get(), F_DUPFD_CLOEXEC, last));
}

absl::StatusOr<std::vector<vhost_user::ActivationSocket>> TakeActivationSockets() {
  VIRTBAY_ASSIGN_OR_RETURN(std::vector<vhost_user::ActivationSocket> sockets,
                           vhost_user::ActivationSockets());
  for (const vhost_user::ActivationSocket& socket : sockets) {
    if (::fcntl(socket.fd, F_SETFD, FD_CLOEXEC) != 0) {
      return ErrnoStatus(errno, absl::StrCat("LISTEN_FDS: fd ", socket.fd));
    }
  }
  if (!sockets.empty()) {
    ::unsetenv("LISTEN_PID");
    ::unsetenv("LISTEN_FDS");
    ::unsetenv("LISTEN_FDNAMES");
  }
  return sockets;
}

namespace {

// One message to the service manager, if there is one.
absl::Status Notify(const std::string& text) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address = {};
  if (path == nullptr) return absl::OkStatus();
  const size_t length = std::strlen(path);
  if (length == 0 || length >= sizeof(address.sun_path)) return absl::OkStatus();
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path, length);
  // A leading '@' stands for the abstract namespace, whose names are not NUL-terminated.
  if (path[0] == '@') address.sun_path[0] = '\0';
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd || ::sendto(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                      reinterpret_cast<const sockaddr*>(&address), size) < 0) {
    return ErrnoStatus(errno, absl::StrCat("NOTIFY_SOCKET ", path));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AnnounceReady(int ready_fd, bool replaces) {
  if (ready_fd >= 0) {
    const UniqueFd fd(ready_fd);
    if (::write(fd.get(), "\n", 1) != 1) {
      return ErrnoStatus(errno, absl::StrCat("ready-fd ", ready_fd));
    }
  }
  return Notify(replaces ? absl::StrCat("READY=1\nMAINPID=", ::getpid()) : std::string("READY=1"));
}

absl::Status AnnounceSuccessor(pid_t successor) {
  return Notify(absl::StrCat("MAINPID=", successor));
}

std::vector<std::filesystem::path> PluginPlaces() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return {};
  const std::filesystem::path prefix = self.parent_path().parent_path();
  return {prefix / VIRTBAY_PLUGIN_INSTALL_DIR, prefix / "plugins"};
}

absl::StatusOr<std::filesystem::path> PluginFile(const std::filesystem::path& given) {
  std::error_code ignored;
  if (given.has_parent_path() || std::filesystem::exists(given, ignored)) return given;
  return FindPlugin(given.native(), PluginSearch::FromEnvironment(PluginPlaces()));
}

}  // namespace virtbay::device_host
