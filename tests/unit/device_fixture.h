// DeviceTest: a Host with the op plugin, and Client: a driver in this process that sends it
// commands. Owned by the test; one thread at a time uses a Client.
#ifndef VIRTBAY_TESTS_UNIT_DEVICE_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_DEVICE_FIXTURE_H_

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/guest_memory.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/support/log_capture.h"
#include "tests/support/process_state.h"
#include "tests/support/ring_layout.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/op_device.h"
#include "virtbay/host.h"

namespace virtbay::testing {

inline UniqueFd Copy(int fd) { return UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

// What came back for one command.
struct Reply {
  uint32_t written = 0;
  int64_t result = 0;  // when at least kResultSize bytes were written
  std::string data;    // all that was written
};

class Client {
 public:
  struct Options {
    uint64_t memory = uint64_t{8} << 20;
    guest::DriverOptions driver;
  };

  static absl::StatusOr<std::unique_ptr<Client>> Create(const DeviceHandle& device,
                                                        Options options) {
    VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(options.memory));
    return Create(device, std::move(memory), options.driver);
  }
  static absl::StatusOr<std::unique_ptr<Client>> Create(const DeviceHandle& device) {
    return Create(device, Options());
  }
  static absl::StatusOr<std::unique_ptr<Client>> Create(const DeviceHandle& device,
                                                        std::unique_ptr<guest::GuestMemory> memory,
                                                        guest::DriverOptions options) {
    options.packed |= kPackedRings;
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
    std::unique_ptr<Client> client(new Client());
    client->transport_ = transport.get();
    VIRTBAY_ASSIGN_OR_RETURN(
        client->driver_, guest::Driver::Create(std::move(transport), std::move(memory), options));
    return client;
  }

  // Sends a command, shown to the device at once; returns its token, 0 when the ring is full.
  uint64_t Send(const Command& command, const std::string& payload = "", uint32_t room = 64,
                uint32_t queue = 0) {
    const uint64_t token = Put(command, payload, room, queue);
    driver_->queue(queue).Publish();
    return token;
  }
  // The same without Publish.
  uint64_t Put(const Command& command, const std::string& payload, uint32_t room, uint32_t queue) {
    const size_t length = sizeof(command) + payload.size();
    absl::StatusOr<guest::GuestRange> range = driver_->memory().Allocate(length + room);
    if (!range.ok()) return 0;
    std::memcpy(range->host, &command, sizeof(command));
    std::memcpy(range->host + sizeof(command), payload.data(), payload.size());
    const guest::Segment in{range->address, static_cast<uint32_t>(length)};
    const guest::Segment out{range->address + length, room};
    const uint64_t token = ++last_token_;
    if (!driver_->queue(queue).Add({&in, 1}, {&out, room > 0 ? 1u : 0u}, token)) {
      driver_->memory().Free(*range);
      return 0;
    }
    sent_.emplace(token, Sent{*range, length});
    return token;
  }

  // Waits for the reply to that command; replies of others are kept for their own Take.
  absl::StatusOr<Reply> Take(uint64_t token, uint32_t queue = 0,
                             absl::Duration timeout = absl::Seconds(60)) {
    for (;;) {
      Collect(queue);
      if (const auto found = replies_.find(token); found != replies_.end()) {
        Reply reply = std::move(found->second);
        replies_.erase(found);
        return reply;
      }
      VIRTBAY_RETURN_IF_ERROR(driver_->queue(queue).Wait(
          driver_->queue(queue).call_fd() >= 0 ? guest::WaitMode::kSleep : guest::WaitMode::kPoll,
          timeout));
    }
  }
  // Whether the reply is there already.
  bool Has(uint64_t token, uint32_t queue = 0) {
    Collect(queue);
    return replies_.contains(token);
  }
  absl::StatusOr<Reply> Call(const Command& command, const std::string& payload = "",
                             uint32_t room = 64, uint32_t queue = 0) {
    const uint64_t token = Send(command, payload, room, queue);
    if (token == 0) return absl::ResourceExhaustedError("the ring is full");
    return Take(token, queue);
  }
  // An echo that works end to end.
  absl::Status Check(uint32_t queue = 0) {
    VIRTBAY_ASSIGN_OR_RETURN(const Reply reply, Call({.op = Op::kEcho}, "ping", 64, queue));
    if (reply.data.substr(kResultSize) != "ping") {
      return absl::DataLossError(absl::StrCat("echo of ", reply.written, " bytes"));
    }
    return absl::OkStatus();
  }

  // Waits for the device's announcement of a change.
  bool WaitForConfigChange(int timeout_ms = 60'000) {
    pollfd look{.fd = transport_->config_fd(), .events = POLLIN, .revents = 0};
    return poll(&look, 1, timeout_ms) == 1 && transport_->TakeConfigChanges().value_or(0) > 0;
  }
  bool NeedsReset() { return (port().status() & kStatusNeedsReset) != 0; }

  guest::Driver& driver() { return *driver_; }
  guest::DriverQueue& queue(uint32_t index = 0) { return driver_->queue(index); }
  guest::GuestMemory& memory() { return driver_->memory(); }
  guest::InProcessTransport& transport() { return *transport_; }
  DevicePort& port() { return transport_->port(); }
  // The ring's configuration as it was started, without descriptors.
  QueueConfig ConfigOf(uint32_t index, uint32_t base) {
    const guest::RingAddresses where = queue(index).ring().addresses();
    QueueConfig config;
    config.size = queue(index).ring().size();
    config.descriptors = where.descriptors;
    config.avail = where.avail;
    config.used = where.used;
    config.base = base;
    return config;
  }

 private:
  struct Sent {
    guest::GuestRange range;
    size_t readable;
  };

  void Collect(uint32_t queue) {
    std::array<guest::UsedBuffer, 64> used;
    for (size_t n = 0; (n = driver_->queue(queue).TakeUsed(used)) > 0;) {
      for (size_t i = 0; i < n; ++i) {
        const auto sent = sent_.find(used[i].token);
        if (sent == sent_.end()) continue;
        Reply reply;
        reply.written = used[i].written;
        const auto* data = reinterpret_cast<const char*>(sent->second.range.host);
        reply.data.assign(data + sent->second.readable, reply.written);
        if (reply.written >= kResultSize) {
          std::memcpy(&reply.result, reply.data.data(), kResultSize);
        }
        replies_[used[i].token] = std::move(reply);
        driver_->memory().Free(sent->second.range);
        sent_.erase(sent);
      }
    }
  }

  guest::InProcessTransport* transport_ = nullptr;
  std::unique_ptr<guest::Driver> driver_;
  uint64_t last_token_ = 0;
  std::map<uint64_t, Sent> sent_;
  std::map<uint64_t, Reply> replies_;
};

// The base (QueueConfig) at which a ring of that size stands when so many of its places were taken
// and given back.
inline uint32_t BaseAfter(uint32_t taken, uint32_t given, uint32_t size) {
  if (!kPackedRings) return taken & 0xffff;
  const auto cursor = [size](uint32_t places) {
    return places % size | (places / size % 2 == 0 ? 0x8000u : 0u);
  };
  return cursor(taken) | cursor(given) << 16;
}

class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override { MakeHost(absl::Seconds(10)); }
  void MakeHost(absl::Duration stuck_callback_warning) {
    HostOptions options;
    options.log = log_.log();
    options.stuck_callback_warning = stuck_callback_warning;
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
  }

  static DeviceSpec Spec(const std::string& name, std::map<std::string, std::string> options = {},
                         const char* plugin = VIRTBAY_OP_PLUGIN) {
    DeviceSpec spec;
    spec.name = name;
    spec.plugin = plugin;
    spec.options = std::move(options);
    spec.arena_size = 2u << 20;
    return spec;
  }
  // Every queue on a thread of its own.
  static DeviceSpec ParallelSpec(const std::string& name,
                                 std::map<std::string, std::string> options = {}) {
    return Spec(name, std::move(options), VIRTBAY_OP_PARALLEL_PLUGIN);
  }
  uint64_t Metric(const std::string& device, const std::string& name) {
    const auto info = host_->Inspect(device);
    return info.ok() ? info->metrics.at(name) : ~uint64_t{0};
  }

  LogCapture log_;
  std::unique_ptr<Host> host_;
};

// A pipe.
struct Pipe {
  explicit Pipe(int flags = 0) {
    int fds[2] = {-1, -1};
    if (pipe2(fds, O_CLOEXEC | flags) != 0) return;
    reader.reset(fds[0]);
    writer.reset(fds[1]);
  }
  UniqueFd reader, writer;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_DEVICE_FIXTURE_H_
