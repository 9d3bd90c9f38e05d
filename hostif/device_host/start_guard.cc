#include "hostif/device_host/start_guard.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::device_host {

absl::StatusOr<std::unique_ptr<StartGuard>> StartGuard::Begin(StopSignals* signals,
                                                              absl::Duration patience, Log log) {
  UniqueFd end(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!end) return ErrnoStatus(errno, "eventfd");
  std::unique_ptr<StartGuard> guard(
      new StartGuard(signals, patience, std::move(log), std::move(end)));
  try {
    guard->thread_ = std::thread([raw = guard.get()] { raw->Watch(); });
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for signals: ", e.what()));
  }
  return guard;
}

StartGuard::~StartGuard() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = ::write(end_.get(), &one, sizeof(one));
  thread_.join();
}

void StartGuard::Making(const std::string& device) {
  absl::MutexLock lock(&mutex_);
  making_ = device;
}

int StartGuard::Signal() {
  absl::MutexLock lock(&mutex_);
  return signals_->Look();
}

void StartGuard::Watch() {
  std::array<pollfd, 2> fds = {{{signals_->fd(), POLLIN, 0}, {end_.get(), POLLIN, 0}}};
  int signal = Signal();
  while (signal == 0) {
    if (::poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
    if (fds[1].revents != 0) return;
    signal = Signal();
  }
  // By this thread, which the next one comes to.
  StopSignals::Unblock();
  pollfd end = fds[1];
  int ended = 0;
  do {
    ended = ::poll(&end, 1, static_cast<int>(absl::ToInt64Milliseconds(patience_)));
  } while (ended < 0 && errno == EINTR);
  if (ended != 0) return;
  std::string making;
  {
    absl::MutexLock lock(&mutex_);
    making = making_;
  }
  log_.Error(absl::StrCat("stopping on signal ", signal, ": device ", making, ": not made after ",
                          absl::FormatDuration(patience_),
                          ", held up by its plugin; the process ends without it"));
  ::_exit(EXIT_FAILURE);
}

}  // namespace virtbay::device_host
