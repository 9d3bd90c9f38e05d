// Fuzz target: a vhost-user front-end that says anything, with any descriptors along.
// The input is a list of steps: a byte for the number and kind of fds, two for a length, and so
// many bytes for the socket; or, with 0xff as the first byte, a change of the device's
// configuration.
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "hostif/vhost_user/connection.h"
#include "tests/support/fake_device_port.h"
#include "tests/support/vhost_user_front_end.h"

namespace {

using virtbay::UniqueFd;
using virtbay::testing::FakeDevice;
using virtbay::testing::FrontEnd;
using virtbay::vhost_user::Connection;

// One turn of what a Server does; false when the connection is over.
bool Turn(Connection* connection, int front) {
  // Replies are read away half of the time by the caller; a full socket must do no harm.
  pollfd backend{connection->backend_fd(), POLLIN, 0};
  if (poll(&backend, 1, 0) == 1) connection->OnBackendReady(backend.revents);
  connection->OnWake();
  char dropped[4096];
  static_cast<void>(recv(front, dropped, sizeof dropped, MSG_DONTWAIT));
  return connection->OnReady();
}

void Run(std::span<const uint8_t> input) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) abort();
  const FrontEnd front{UniqueFd(pair[0])};
  const UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const UniqueFd event(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  const UniqueFd memory = virtbay::testing::MakeMemory(1 << 20);
  const UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  const int kinds[] = {event.get(), memory.get(), pair[0], null.get()};

  FakeDevice device;
  virtbay::LogLimiter limiter{virtbay::Log()};
  auto connection = Connection::Create(
      UniqueFd(pair[1]), [&](virtbay::DevicePortEvents* e) { return device.Attach(e); }, wake.get(),
      &limiter);
  if (!connection.ok()) abort();

  while (input.size() >= 3) {
    const uint8_t what = input[0];
    if (what == 0xff) {
      device.ChangeConfig();
      input = input.subspan(1);
      if (!Turn(connection->get(), front.fd())) return;
      continue;
    }
    const size_t length = std::min<size_t>(input[1] + 256u * input[2], input.size() - 3);
    const std::vector<int> fds(what & 0x0f, kinds[(what >> 4) & 3]);
    if (length != 0) {
      static_cast<void>(front.SendRaw(std::as_bytes(input.subspan(3, length)), fds));
    }
    input = input.subspan(3 + length);
    if (!Turn(connection->get(), front.fd())) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int before = virtbay::testing::CountFds();
  Run({data, size});
  // A descriptor that stays behind is a finding as good as a crash.
  if (virtbay::testing::CountFds() != before) abort();
  return 0;
}
