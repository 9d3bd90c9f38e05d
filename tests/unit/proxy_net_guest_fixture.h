// ProxyNetGuestTest: the whole proxy-net device with a kernel as its guest: a network namespace
// whose TAP interface is pumped to it. Real TCP, UDP and DNS between the namespace and sockets of
// the host. Owned by the test, whose thread is in the guest's namespace; what it starts says where
// it runs.
#ifndef VIRTBAY_TESTS_UNIT_PROXY_NET_GUEST_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_PROXY_NET_GUEST_FIXTURE_H_

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tap_guest.h"
#include "virtbay/host.h"

namespace virtbay::testing {

constexpr char kHost4[] = "198.18.0.1";
constexpr char kHost6[] = "2001:db8::1";
// The host's virtual addresses, which lead to its loopback.
constexpr char kAlias4[] = "10.0.2.254";
constexpr char kAlias6[] = "fd76:6972:7462:6179::fe";

struct Address {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }

  static Address Of(const std::string& text, uint16_t port) {
    Address a;
    if (text.find(':') == std::string::npos) {
      auto* v4 = reinterpret_cast<sockaddr_in*>(&a.storage);
      v4->sin_family = AF_INET;
      v4->sin_port = htons(port);
      inet_pton(AF_INET, text.c_str(), &v4->sin_addr);
      a.size = sizeof(*v4);
    } else {
      auto* v6 = reinterpret_cast<sockaddr_in6*>(&a.storage);
      v6->sin6_family = AF_INET6;
      v6->sin6_port = htons(port);
      inet_pton(AF_INET6, text.c_str(), &v6->sin6_addr);
      a.size = sizeof(*v6);
    }
    return a;
  }
  uint16_t port() const { return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port); }
};

inline uint8_t ByteAt(uint64_t offset) {
  return static_cast<uint8_t>((offset * 2654435761u) >> 13);
}

// Sends `bytes` of the pattern.
inline void SendPattern(int fd, uint64_t bytes) {
  std::vector<uint8_t> buffer(256 * 1024);
  for (uint64_t at = 0; at < bytes;) {
    const size_t n = std::min<uint64_t>(buffer.size(), bytes - at);
    for (size_t i = 0; i < n; ++i) buffer[i] = ByteAt(at + i);
    for (size_t done = 0; done < n;) {
      const ssize_t sent = send(fd, buffer.data() + done, n - done, MSG_NOSIGNAL);
      if (sent <= 0) return;
      done += static_cast<size_t>(sent);
    }
    at += n;
  }
}
// Receives to the end; how many bytes of the pattern came, or -1 for a wrong one.
inline int64_t ReceivePattern(int fd) {
  std::vector<uint8_t> buffer(256 * 1024);
  int64_t at = 0;
  while (true) {
    const ssize_t n = recv(fd, buffer.data(), buffer.size(), 0);
    if (n < 0) return -errno;
    if (n == 0) return at;
    for (ssize_t i = 0; i < n; ++i) {
      if (buffer[static_cast<size_t>(i)] != ByteAt(static_cast<uint64_t>(at + i))) return -1;
    }
    at += n;
  }
}

class ProxyNetGuestTest : public ::testing::Test {
 protected:
  // With so many queue pairs, all of which the guest uses.
  void StartPairs(uint32_t pairs, std::map<std::string, std::string> options = {}) {
    pairs_ = pairs;
    options["queue-pairs"] = std::to_string(pairs);
    guest::NetClientOptions client;
    client.rx_pairs = pairs;
    Start(std::move(options), 1500, std::move(client));
    if (IsSkipped()) return;
    ASSERT_EQ(guest_->SetPairs(static_cast<uint16_t>(pairs)), 0);
    guest_->Choose(TapGuest::Choice::kByPorts);
  }
  void Start(std::map<std::string, std::string> options = {}, uint32_t mtu = 1500,
             guest::NetClientOptions client_options = {}) {
    own_ns_.reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    // The host's side as well is a namespace of the test's own, with addresses that are no
    // loopback's.
    if (unshare(CLONE_NEWNET) != 0) GTEST_SKIP() << "no network namespace: " << strerror(errno);
    host_ns_.reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(TapGuest::Run(
        "ip link set lo up && ip addr add 198.18.0.1/32 dev lo && "
        "ip -6 addr add 2001:db8::1/128 dev lo nodad && "
        "(echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range) 2>/dev/null || true"));
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(HostOptions{}));
    DeviceSpec spec;
    spec.name = "net";
    spec.plugin = VIRTBAY_PROXY_NET;
    options.try_emplace("host-ports", "tcp:1-65535,udp:1-65535");
    options.try_emplace("ipv6", "on");
    options.try_emplace("mac", "52:54:00:00:00:01");
    options.try_emplace("dns-records", "static.test=192.0.2.77");
    options.try_emplace("mtu", std::to_string(mtu));
    spec.options = options;
    spec_ = spec;
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec));
    ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
    const bool offloads = (client_options.features & 1) != 0;  // VIRTIO_NET_F_CSUM
    client_options.rx_buffers = 256;
    ASSERT_OK_AND_ASSIGN(auto client,
                         guest::NetClient::Create(std::move(transport), std::move(client_options)));
    auto guest = TapGuest::Enter(mtu, offloads);
    if (!guest.ok()) GTEST_SKIP() << guest.status();
    guest_ = std::move(*guest);
    guest_ns_.reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(
        TapGuest::Run("ip addr add 10.0.2.15/24 dev tap0 && ip route add default via 10.0.2.2 && "
                      "ip -6 addr add fd76:6972:7462:6179::15/64 dev tap0 nodad && "
                      "ip -6 route add default via fd76:6972:7462:6179::2"));
    guest_->Start(std::move(client), pairs_);
  }
  void TearDown() override {
    guest_.reset();
    device_ = DeviceHandle();
    host_.reset();
    if (own_ns_.valid()) setns(own_ns_.get(), CLONE_NEWNET);
  }
  // Calls with this thread on the host's side.
  template <typename F>
  auto InHost(F&& call) {
    setns(host_ns_.get(), CLONE_NEWNET);
    auto result = call();
    setns(guest_ns_.get(), CLONE_NEWNET);
    return result;
  }
  static UniqueFd Socket(const std::string& address, int type) {
    UniqueFd fd(socket(address.find(':') == std::string::npos ? AF_INET : AF_INET6,
                       type | SOCK_CLOEXEC, 0));
    // Without time-outs: calls that have one are not begun anew by the kernel when they are
    // interrupted.
    return fd;
  }
  static UniqueFd Bound(const std::string& address, int type, uint16_t* port) {
    UniqueFd fd = Socket(address, type);
    Address any = Address::Of(address, *port);
    EXPECT_EQ(bind(fd.get(), any.get(), any.size), 0);
    if (type == SOCK_STREAM) {
      EXPECT_EQ(listen(fd.get(), 4096), 0);
    }
    any.size = sizeof(any.storage);
    getsockname(fd.get(), any.get(), &any.size);
    *port = any.port();
    return fd;
  }
  static UniqueFd ConnectTo(const std::string& address, uint16_t port, int type = SOCK_STREAM) {
    UniqueFd fd = Socket(address, type);
    Address to = Address::Of(address, port);
    error_ = connect(fd.get(), to.get(), to.size) == 0 ? 0 : errno;
    return fd;
  }
  static std::string Receive(int fd) {
    std::array<char, 65536> buffer;
    const ssize_t n = recv(fd, buffer.data(), buffer.size(), 0);
    if (n < 0) return strerror(errno);
    return n == 0 ? "EOF" : std::string(buffer.data(), static_cast<size_t>(n));
  }
  static void Say(int fd, const std::string& text) {
    EXPECT_EQ(send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  uint64_t Metric(const std::string& name) {
    const auto info = device_.Inspect();
    for (const auto& [key, value] : info->metrics) {
      if (key == name || key.ends_with("_" + name)) return value;
    }
    ADD_FAILURE() << "no metric " << name;
    return 0;
  }

  // Bytes of the pattern both ways, to the host and back, each to its end.
  // `in_order`: frames reach the device in the order in which the guest sends them.
  void Bulk(const std::string& guest_side, const std::string& host_side, uint64_t bytes,
            bool in_order = true) {
    uint16_t port = 0;
    UniqueFd listener = InHost([&] { return Bound(host_side, SOCK_STREAM, &port); });
    int64_t uploaded = 0;
    std::thread server([&] {
      UniqueFd up(accept(listener.get(), nullptr, nullptr));
      uploaded = ReceivePattern(up.get());
      UniqueFd down(accept(listener.get(), nullptr, nullptr));
      SendPattern(down.get(), bytes);
    });
    {
      UniqueFd up = ConnectTo(guest_side, port);
      EXPECT_EQ(error_, 0);
      SendPattern(up.get(), bytes);
    }
    UniqueFd down = ConnectTo(guest_side, port);
    EXPECT_EQ(ReceivePattern(down.get()), static_cast<int64_t>(bytes));
    server.join();
    EXPECT_EQ(uploaded, static_cast<int64_t>(bytes));
    // Nothing was dropped that the guest sent inside its window. (How often its kernel sends again
    // what was only late is a matter of the machine's load.)
    EXPECT_EQ(guest_->lost(), 0u);
    EXPECT_EQ(Metric("drops_tcp_copy_failed"), 0u);
    // What is late of a connection that has ended is of none.
    if (!in_order) return;
    EXPECT_EQ(Metric("drops_tcp_no_flow"), 0u);
    for (const char* name : {"drops_tcp_out_of_window", "drops_tcp_copy_failed",
                             "drops_tcp_out_of_order", "tcp_out_of_order"}) {
      EXPECT_EQ(Metric(name), 0u) << name << ": " << Metrics();
    }
  }
  // What is not zero, for people.
  std::string Metrics() {
    std::string text;
    const auto info = device_.Inspect();
    for (const auto& [key, value] : info->metrics) {
      if (value != 0) absl::StrAppend(&text, key, "=", value, " ");
    }
    return text;
  }

  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  std::unique_ptr<TapGuest> guest_;
  DeviceSpec spec_;
  uint32_t pairs_ = 1;
  UniqueFd own_ns_;
  UniqueFd host_ns_;
  UniqueFd guest_ns_;
  inline static int error_ = 0;  // of ConnectTo
};

inline constexpr uint64_t kBulk = 64u << 20;

// Asks for the address of static.test.
inline std::string DnsQuery() {
  const char query[] =
      "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06static\x04test\x00\x00\x01\x00\x01";
  return std::string(query, sizeof(query) - 1);
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_PROXY_NET_GUEST_FIXTURE_H_
