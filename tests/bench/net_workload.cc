#include "tests/bench/net_workload.h"

#include <poll.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "tests/bench/net_counters.h"
#include "tests/bench/process_cpu.h"
#include "tests/bench/samples.h"

namespace virtbay::bench {
namespace {

using nlohmann::json;

absl::StatusOr<UniqueFd> Connect(const NetAddress& server, NetPort port) {
  const bool udp = port == kUdpEchoPort;
  UniqueFd fd(::socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  SetTimeouts(fd.get(), 200);
  const sockaddr_in at = server.At(port);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) != 0) {
    return ErrnoStatus(errno, "connect");
  }
  if (!udp) SetNoDelay(fd.get());
  return fd;
}

absl::StatusOr<UniqueFd> ConnectPatiently(const NetAddress& server, NetPort port, double seconds) {
  const uint64_t limit = MonotonicNs() + static_cast<uint64_t>(seconds * 1e9);
  for (;;) {
    absl::StatusOr<UniqueFd> fd = Connect(server, port);
    if (fd.ok()) return fd;
    if (MonotonicNs() > limit) {
      return absl::DeadlineExceededError(
          absl::StrCat("no connection to ", server.host, ": ", fd.status().message()));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// Segments that this network namespace has sent again (RetransSegs of RFC 4022).
uint64_t Retransmits() {
  std::ifstream snmp("/proc/net/snmp");
  std::string names, line;
  while (std::getline(snmp, line)) {
    if (line.rfind("Tcp:", 0) != 0) continue;
    if (names.empty()) {
      names = line;
      continue;
    }
    std::istringstream keys(names), values(line);
    for (std::string key, value; keys >> key && values >> value;) {
      if (key == "RetransSegs") return std::strtoull(value.c_str(), nullptr, 10);
    }
  }
  return 0;
}

// What a step did: operations, and their latency where each is one.
struct Step {
  uint64_t operations = 0;
  uint64_t latency_ns = 0;  // 0: none
};
// One step of a workload; short, or bounded by the sockets' time limits.
using Stepper = std::function<absl::StatusOr<Step>()>;

absl::StatusOr<Stepper> BulkUp(const NetCase& net) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectPatiently(net.server, kSinkPort, 5));
  VIRTBAY_ASSIGN_OR_RETURN(NetCounters::Ref counters, NetCounters::Map(net.counters));
  struct State {
    UniqueFd fd;
    NetCounters::Ref counters;
    uint64_t seen;
    std::vector<char> buffer = std::vector<char>(kBulkBytes, 'x');
  };
  const uint64_t seen = counters->sunk_bytes;
  auto state = std::make_shared<State>(State{std::move(fd), std::move(counters), seen});
  return Stepper([state]() -> absl::StatusOr<Step> {
    const ssize_t n = ::send(state->fd.get(), state->buffer.data(), kBulkBytes, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return ErrnoStatus(errno, "send");
    // What has arrived counts, not what this side's buffers took.
    const uint64_t now = state->counters->sunk_bytes.load(std::memory_order_relaxed);
    return Step{now - std::exchange(state->seen, now), 0};
  });
}

absl::StatusOr<Stepper> BulkDown(const NetCase& net) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectPatiently(net.server, kSourcePort, 5));
  auto socket = std::make_shared<UniqueFd>(std::move(fd));
  auto buffer = std::make_shared<std::vector<char>>(kBulkBytes);
  return Stepper([socket, buffer]() -> absl::StatusOr<Step> {
    const ssize_t n = ::recv(socket->get(), buffer->data(), kBulkBytes, 0);
    if (n < 0 && errno == EAGAIN) return Step{};
    if (n <= 0) return ErrnoStatus(n == 0 ? ECONNRESET : errno, "recv");
    return Step{static_cast<uint64_t>(n), 0};
  });
}

// One byte there and back. A datagram that is lost is the end of the measurement's honesty, not of
// the measurement: the time until the limit counts as its latency.
absl::StatusOr<Step> RoundTrip(int fd) {
  const uint64_t start = MonotonicNs();
  char byte = 'x';
  if (::send(fd, &byte, 1, MSG_NOSIGNAL) != 1) return ErrnoStatus(errno, "send");
  const ssize_t n = ::recv(fd, &byte, 1, 0);
  if (n == 0) return absl::UnavailableError("the server's end was closed");
  if (n < 0 && errno != EAGAIN) return ErrnoStatus(errno, "recv");
  return Step{n == 1 ? 1u : 0u, MonotonicNs() - start};
}

absl::StatusOr<Stepper> RequestResponse(const NetCase& net, NetPort port) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectPatiently(net.server, port, 5));
  auto socket = std::make_shared<UniqueFd>(std::move(fd));
  return Stepper([socket] { return RoundTrip(socket->get()); });
}

absl::StatusOr<Stepper> ConnectRequestResponse(const NetCase& net) {
  return Stepper([server = net.server]() -> absl::StatusOr<Step> {
    const uint64_t start = MonotonicNs();
    const absl::StatusOr<UniqueFd> fd = Connect(server, kOneShotPort);
    // One that failed is not counted, but its time is.
    if (!fd.ok() || !RoundTrip(fd->get()).ok()) return Step{};
    return Step{1, MonotonicNs() - start};
  });
}

// A window of datagrams under way: the rate is what the path carries both ways, and a sender that
// outruns it loses nothing by that.
class UdpWindow {
 public:
  static constexpr uint32_t kWindow = 64;
  static constexpr size_t kBytes = 64;

  explicit UdpWindow(UniqueFd fd) : fd_(std::move(fd)) {
    for (uint32_t i = 0; i < kWindow; ++i) {
      vectors_[i] = {buffer_.data(), kBytes};
      messages_[i] = {};
      messages_[i].msg_hdr.msg_iov = &vectors_[i];
      messages_[i].msg_hdr.msg_iovlen = 1;
    }
  }

  absl::StatusOr<Step> operator()() {
    if (to_send_ > 0) {
      const int n = ::sendmmsg(fd_.get(), messages_.data(), to_send_, MSG_DONTWAIT);
      if (n < 0 && errno != EAGAIN) return ErrnoStatus(errno, "sendmmsg");
      if (n > 0) to_send_ -= static_cast<uint32_t>(n);
    }
    pollfd ready = {.fd = fd_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 20) == 0) {
      to_send_ = kWindow;  // lost
      return Step{};
    }
    const int n = ::recvmmsg(fd_.get(), messages_.data(), kWindow, MSG_DONTWAIT, nullptr);
    if (n < 0)
      return errno == EAGAIN ? absl::StatusOr<Step>(Step{}) : ErrnoStatus(errno, "recvmmsg");
    to_send_ = std::min(kWindow, to_send_ + static_cast<uint32_t>(n));
    return Step{static_cast<uint64_t>(n), 0};
  }

 private:
  UniqueFd fd_;
  uint32_t to_send_ = kWindow;
  std::array<char, kBytes> buffer_ = {};
  std::array<iovec, kWindow> vectors_;
  std::array<mmsghdr, kWindow> messages_;
};

absl::StatusOr<Stepper> UdpRate(const NetCase& net) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, Connect(net.server, kUdpEchoPort));
  auto window = std::make_shared<UdpWindow>(std::move(fd));
  return Stepper([window] { return (*window)(); });
}

struct Workload {
  std::function<absl::StatusOr<Stepper>(const NetCase&)> make;
  const char* unit;
  double operations_per_unit;  // of the rate
};

const std::map<std::string, Workload>& Workloads() {
  static const std::map<std::string, Workload> workloads = {
      {"bulk_up", {BulkUp, "MiB/s", 1 << 20}},
      {"bulk_down", {BulkDown, "MiB/s", 1 << 20}},
      {"rr", {[](const NetCase& net) { return RequestResponse(net, kEchoPort); }, "1/s", 1}},
      {"crr", {ConnectRequestResponse, "1/s", 1}},
      {"udp_rr", {[](const NetCase& net) { return RequestResponse(net, kUdpEchoPort); }, "1/s", 1}},
      {"udp_64", {UdpRate, "datagrams/s", 1}},
  };
  return workloads;
}

}  // namespace

std::vector<std::string> NetWorkloads() {
  std::vector<std::string> names;
  for (const auto& [name, workload] : Workloads()) names.push_back(name);
  return names;
}

absl::Status WaitForServer(const NetAddress& server, double seconds) {
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd fd, ConnectPatiently(server, kEchoPort, seconds));
  return RoundTrip(fd.get()).status();
}

absl::StatusOr<json> RunNetWorkload(const std::string& name, const NetCase& net) {
  const auto found = Workloads().find(name);
  if (found == Workloads().end()) return absl::NotFoundError(absl::StrCat("no workload ", name));
  VIRTBAY_ASSIGN_OR_RETURN(const Stepper step, found->second.make(net));
  const std::vector<pid_t> backend =
      net.backend > 0 ? ProcessTree(net.backend) : std::vector<pid_t>();
  Samples latencies;
  uint64_t operations = 0;
  const auto drive = [&](double seconds) -> absl::Status {
    operations = 0;
    latencies.Clear();
    const uint64_t end = MonotonicNs() + static_cast<uint64_t>(seconds * 1e9);
    while (MonotonicNs() < end) {
      VIRTBAY_ASSIGN_OR_RETURN(const Step done, step());
      operations += done.operations;
      if (done.latency_ns > 0) latencies.Add(done.latency_ns);
    }
    return absl::OkStatus();
  };
  const uint64_t resent = Retransmits();
  VIRTBAY_RETURN_IF_ERROR(drive(net.warmup));
  const uint64_t start = MonotonicNs();
  const uint64_t cpu = ProcessCpuNs(backend);
  VIRTBAY_RETURN_IF_ERROR(drive(net.seconds));
  const double seconds = static_cast<double>(MonotonicNs() - start) / 1e9;
  const double units = static_cast<double>(operations) / found->second.operations_per_unit;
  json line = {{"workload", name},
               {"unit", found->second.unit},
               {"throughput", units / seconds},
               {"retransmits", Retransmits() - resent}};
  const double p50 = latencies.QuantileUs(0.5);
  if (p50 > 0) {
    line["p50"] = p50;
    line["p99"] = latencies.QuantileUs(0.99);
  }
  if (!backend.empty() && units > 0) {
    line["backend_cpu"] = static_cast<double>(ProcessCpuNs(backend) - cpu) / 1000 / units;
  }
  return line;
}

absl::Status HoldIdleFlows(const NetCase& net, uint32_t count) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  VIRTBAY_ASSIGN_OR_RETURN(const NetCounters::Ref counters, NetCounters::Map(net.counters));
  std::vector<UniqueFd> flows;
  for (uint32_t i = 0; i < count; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectPatiently(net.server, kIdlePort, 5));
    flows.push_back(std::move(fd));
  }
  const uint64_t limit = MonotonicNs() + 10'000'000'000;
  while (counters->idle_flows < count) {
    if (MonotonicNs() > limit) {
      return absl::DeadlineExceededError(
          absl::StrCat("the server has ", counters->idle_flows.load(), " of ", count, " flows"));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
  }
  const uint64_t left = counters->idle_flows;
  if (left < count) {
    return absl::DataLossError(absl::StrCat("only ", left, " of ", count, " idle flows are left"));
  }
  return absl::OkStatus();
}

}  // namespace virtbay::bench
