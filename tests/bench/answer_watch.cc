// answer_watch: a driver that never stops asking a device of one queue that fills what it is given
// (as the template of `virtbay plugin new` does), and says when the answer becomes another: a line
// with CLOCK_MONOTONIC in nanoseconds and the first byte. Ends with its standard input.
// scripts/bench.sh reload runs this.
#include <poll.h>
#include <unistd.h>

#include <array>
#include <iostream>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/vhost_user_transport.h"

namespace virtbay::bench {
namespace {

constexpr uint32_t kAnswer = 16;

// Whether whoever started it still has the other end of standard input.
bool Wanted() {
  pollfd in{.fd = STDIN_FILENO, .events = 0, .revents = 0};
  return poll(&in, 1, 0) == 0;
}

absl::Status Run(const std::string& socket) {
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(socket));
  VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(uint64_t{4} << 20));
  VIRTBAY_ASSIGN_OR_RETURN(auto driver,
                           guest::Driver::Create(std::move(transport), std::move(memory), {}));
  const auto buffer = driver->memory().Allocate(kAnswer);
  if (!buffer.ok()) return buffer.status();
  const std::array<guest::Segment, 1> writable = {{{buffer->address, kAnswer}}};
  int last = -1;
  while (Wanted()) {
    if (!driver->queue(0).Add({}, writable, 1)) return absl::InternalError("the ring is full");
    driver->queue(0).Publish();
    VIRTBAY_RETURN_IF_ERROR(driver->queue(0).Wait(guest::WaitMode::kSleep, absl::Seconds(60)));
    std::array<guest::UsedBuffer, 1> used;
    if (driver->queue(0).TakeUsed(used) == 0) continue;
    const auto now = static_cast<int>(buffer->host[0]);
    if (now != last) std::cout << MonotonicNs() << " " << now << std::endl;
    last = now;
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "Usage: answer_watch SOCKET\n";
    return 2;
  }
  const absl::Status status = Run(argv[1]);
  if (status.ok()) return 0;
  std::cerr << "answer_watch: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace virtbay::bench

int main(int argc, char** argv) { return virtbay::bench::Main(argc, argv); }
