// NetDeviceTest: a NetDevice whose back-end is a socket of the test's (net_relay.h), and a guest's
// driver for it. Owned by the test; one thread.
#ifndef VIRTBAY_TESTS_UNIT_NET_DEVICE_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_NET_DEVICE_FIXTURE_H_

#include <poll.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/support/net_frames.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"
#include "tests/unit/net_relay.h"

namespace virtbay::testing {

using guest::NetClient;
using guest::NetClientOptions;
using guest::NetFrame;
using guest::NetHeader;

constexpr uint64_t Bit(uint32_t feature) { return uint64_t{1} << feature; }

struct FromDevice {
  RelayRecord record;
  std::string frame;
};

class NetDeviceTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    int fds[2] = {-1, -1};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    device_end_.reset(fds[0]);
    peer_.reset(fds[1]);
    const int large = 4 << 20;
    for (const int fd : fds) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof(large));
  }

  void Start(std::map<std::string, std::string> options, NetClientOptions client = {}) {
    client_.reset();
    options["fd"] = absl::StrCat(device_end_.get());
    static int count = 0;
    ASSERT_OK_AND_ASSIGN(
        device_, host_->Add(Spec(absl::StrCat("net", ++count), options, VIRTBAY_NET_RELAY)));
    Connect(std::move(client));
  }
  void Connect(NetClientOptions options = {}) {
    ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
    ASSERT_OK_AND_ASSIGN(client_, NetClient::Create(std::move(transport), std::move(options)));
  }
  uint64_t Count(const std::string& name) {
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    return info.ok() ? info->metrics.at(name) : ~uint64_t{0};
  }
  uint32_t InFlight(size_t queue) {
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    return info.ok() ? info->queues[queue].in_flight : ~uint32_t{0};
  }
  // Every drop, by name.
  std::map<std::string, uint64_t> Drops() {
    std::map<std::string, uint64_t> drops;
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    if (!info.ok()) return {{"no device", 1}};
    for (const auto& [name, value] : info->metrics) {
      if (value > 0 && name.find("_drops_") != std::string::npos) drops[name] = value;
    }
    return drops;
  }

  // What the device gave its back-end, waited for.
  absl::StatusOr<FromDevice> Take() {
    pollfd look{.fd = peer_.get(), .events = POLLIN, .revents = 0};
    if (poll(&look, 1, 60'000) != 1) return absl::DeadlineExceededError("nothing came");
    std::string bytes(70'000, '\0');
    const ssize_t n = recv(peer_.get(), bytes.data(), bytes.size(), 0);
    FromDevice from;
    if (n < static_cast<ssize_t>(sizeof(from.record))) return absl::DataLossError("too short");
    std::memcpy(&from.record, bytes.data(), sizeof(from.record));
    from.frame = bytes.substr(sizeof(from.record), static_cast<size_t>(n) - sizeof(from.record));
    return from;
  }
  bool Quiet() {
    char byte = 0;
    return recv(peer_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
  }
  void Give(const RelayRecord& record, const std::string& frame) {
    const std::string bytes =
        std::string(reinterpret_cast<const char*>(&record), sizeof(record)) + frame;
    ASSERT_EQ(send(peer_.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  // Until the device has dealt with so many frames for the guest.
  void WaitHandled(uint64_t frames) {
    while (Count("committed") + Count("refused") < frames) std::this_thread::yield();
  }
  static NetHeader Large(const TestFrame& frame, uint8_t type, uint16_t size) {
    NetHeader header;
    header.flags = guest::kNetHdrNeedsCsum;
    header.gso_type = type;
    header.gso_size = size;
    header.hdr_len = frame.headers;
    header.csum_start = frame.transport;
    header.csum_offset = frame.csum_offset;
    return header;
  }
  static RelayRecord Record(uint16_t header_len, const TestFrame* needs_csum = nullptr) {
    RelayRecord record;
    record.header_len = header_len;
    if (needs_csum != nullptr) {
      record.needs_csum = 1;
      record.csum_start = needs_csum->transport;
      record.csum_offset = needs_csum->csum_offset;
    }
    return record;
  }

  // The first queues of the device's threads, which their names end with.
  static std::set<std::string> QueueThreads(const std::string& device) {
    std::set<std::string> queues;
    const std::string prefix = absl::StrCat("vb-", device, "-");
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream file(task.path() / "comm");
      std::string name;
      std::getline(file, name);
      if (name.starts_with(prefix)) queues.insert(name.substr(prefix.size()));
    }
    return queues;
  }

  TempDir dir_;
  UniqueFd device_end_, peer_;
  DeviceHandle device_;
  std::unique_ptr<NetClient> client_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_NET_DEVICE_FIXTURE_H_
