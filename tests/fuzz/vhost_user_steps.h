// A vhost-user front-end that says anything, with any descriptors along, and writes anything into
// its memory: what the fuzz targets of the back-end feed to a Connection. Stateless; one thread.
//
// The input is a list of steps. A byte says what the step is, two say how many bytes of it follow:
//   0xff        (no length) the device's configuration changes
//   0xfe        an offset of four bytes, and bytes for guest memory from there on
//   0xfd        the event descriptor is written
//   any other   bytes for the socket, with so many descriptors (bits 0 to 3) of a kind (4 and 5)
#ifndef VIRTBAY_TESTS_FUZZ_VHOST_USER_STEPS_H_
#define VIRTBAY_TESTS_FUZZ_VHOST_USER_STEPS_H_

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "hostif/vhost_user/connection.h"
#include "tests/support/vhost_user_front_end.h"

namespace virtbay::fuzz {

inline constexpr uint32_t kMemorySize = 1u << 20;  // bytes

// One turn of what a Server does; false when the connection is over.
inline bool Turn(vhost_user::Connection* connection, int front) {
  // Replies are read away half of the time by the caller; a full socket must do no harm.
  pollfd backend{connection->backend_fd(), 0, 0};
  if (poll(&backend, 1, 0) == 1) connection->OnBackendClosed();
  connection->OnWake();
  char dropped[4096];
  static_cast<void>(recv(front, dropped, sizeof dropped, MSG_DONTWAIT));
  return connection->OnReady();
}

inline void WriteMemory(int fd, std::span<const uint8_t> bytes) {
  uint32_t offset = 0;
  if (bytes.size() <= sizeof offset) return;
  std::memcpy(&offset, bytes.data(), sizeof offset);
  const auto data = bytes.subspan(sizeof offset);
  if (offset >= kMemorySize || data.size() > kMemorySize - offset) return;
  if (pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset)) < 0) abort();
}

// Plays the input against whatever `attach` attaches to; `change_config` makes the device announce
// a change.
inline void Play(std::span<const uint8_t> input, const vhost_user::AttachFunction& attach,
                 const std::function<void()>& change_config) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) abort();
  const testing::FrontEnd front{UniqueFd(pair[0])};
  const UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const UniqueFd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const UniqueFd memory = testing::MakeMemory(kMemorySize);
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  int channel[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, channel) != 0) abort();
  const UniqueFd mine(channel[0]);
  const UniqueFd theirs(channel[1]);
  const int kinds[] = {event.get(), memory.get(), theirs.get(), null.get()};

  LogLimiter limiter{Log()};
  vhost_user::FdCloser closer;
  // The caller counts descriptors.
  const absl::Cleanup closed = [&closer] {
    while (closer.busy() != 0) sched_yield();
  };
  std::atomic<const char*> activity{nullptr};
  auto connection = vhost_user::Connection::Create(UniqueFd(pair[1]), attach,
                                                   {wake.get(), &limiter, &closer, &activity});
  if (!connection.ok()) abort();

  while (input.size() >= 3) {
    const uint8_t what = input[0];
    if (what == 0xff) {
      change_config();
      input = input.subspan(1);
    } else {
      const size_t length = std::min<size_t>(input[1] + 256u * input[2], input.size() - 3);
      const auto bytes = input.subspan(3, length);
      input = input.subspan(3 + length);
      if (what == 0xfe) {
        WriteMemory(memory.get(), bytes);
      } else if (what == 0xfd) {
        static_cast<void>(eventfd_write(event.get(), 1));
      } else if (length != 0) {
        const std::vector<int> fds(what & 0x0f, kinds[(what >> 4) & 3]);
        static_cast<void>(front.SendRaw(std::as_bytes(bytes), fds));
      }
    }
    if (!Turn(connection->get(), front.fd())) return;
  }
}

}  // namespace virtbay::fuzz

#endif  // VIRTBAY_TESTS_FUZZ_VHOST_USER_STEPS_H_
