#include "hostif/vhost_user/fd_closer.h"

#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>

#include "hostif/vhost_user/front_end_fd.h"

namespace virtbay::vhost_user {
namespace {

constexpr int kMaxThreads = 16;
// More than a socket's send buffer holds.
constexpr int kMaxPieces = 1 << 16;
constexpr size_t kMaxNested = 1 << 12;

// Makes the close of each take no longer than it must, and closes it: what hides in the queue of a
// socket comes out first, to be closed the same way.
void Disarm(FdList fds) {
  const linger off{0, 0};
  for (size_t i = 0; i < fds.size(); ++i) {
    const int fd = fds[i].get();
    // Of what is no socket all of these fail.
    linger set{};
    socklen_t size = sizeof set;
    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &set, &size) != 0) continue;
    if (set.l_onoff != 0) {
      static_cast<void>(setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off));
    }
    int domain = 0;
    size = sizeof domain;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || domain != AF_UNIX) continue;
    static_cast<void>(shutdown(fd, SHUT_RD));
    int pieces = 0;
    while (fds.size() < kMaxNested && pieces++ < kMaxPieces && ReceiveFds(fd, &fds)) {
    }
    for (;;) {
      UniqueFd waiting(accept4(fd, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!waiting || fds.size() >= kMaxNested) break;
      fds.push_back(std::move(waiting));
    }
  }
}

}  // namespace

void FdCloser::Close(FdList fds) {
  const auto slow = std::partition(
      fds.begin(), fds.end(), [](const UniqueFd& fd) { return !fd || ClosesAtOnce(fd.get()); });
  FdList waits;
  std::move(slow, fds.end(), std::back_inserter(waits));
  fds.clear();
  if (waits.empty()) return;
  if (busy_->load(std::memory_order_relaxed) >= kMaxThreads) return Disarm(std::move(waits));
  busy_->fetch_add(1, std::memory_order_relaxed);
  const auto shared = std::make_shared<FdList>(std::move(waits));
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, &before);
  try {
    std::thread([shared, busy = busy_] {
      Disarm(std::move(*shared));
      busy->fetch_sub(1, std::memory_order_release);
    }).detach();
  } catch (const std::system_error&) {
    busy_->fetch_sub(1, std::memory_order_relaxed);
    Disarm(std::move(*shared));
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void FdCloser::HangUp(UniqueFd socket) {
  if (!socket) return;
  static_cast<void>(shutdown(socket.get(), SHUT_RD));
  FdList fds;
  for (int pieces = 0; pieces < kMaxPieces && ReceiveFds(socket.get(), &fds); ++pieces) {
    if (!fds.empty()) Close(std::exchange(fds, FdList()));
  }
}

}  // namespace virtbay::vhost_user
