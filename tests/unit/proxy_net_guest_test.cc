// The whole proxy-net device with a kernel as its guest: a network namespace whose TAP interface is
// pumped to it. Real TCP, UDP and DNS between the namespace and sockets of the host.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "hostif/guest/in_process_transport.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tap_guest.h"
#include "virtbay/host.h"

namespace virtbay {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::TapGuest;

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

uint8_t ByteAt(uint64_t offset) { return static_cast<uint8_t>((offset * 2654435761u) >> 13); }

// Sends `bytes` of the pattern.
void SendPattern(int fd, uint64_t bytes) {
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
int64_t ReceivePattern(int fd) {
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
  // Another device goes on in the place of this one; the guest's driver begins anew.
  void Replace();
  void TransfersSurviveAReplacement();
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
  void EchoOnEveryPair();
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
  static int error_;
};
int ProxyNetGuestTest::error_ = 0;

constexpr uint64_t kBulk = 64u << 20;

// Datagrams to the host and back while the guest changes its pair.
void ProxyNetGuestTest::EchoOnEveryPair() {
  uint16_t port = 0;
  UniqueFd server = InHost([&] { return Bound(kHost4, SOCK_DGRAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port, SOCK_DGRAM);
  for (int i = 0; i < 100; ++i) {
    const std::string text = absl::StrCat("datagram ", i);
    Say(client.get(), text);
    Address from;
    from.size = sizeof(from.storage);
    std::array<char, 64> buffer;
    ASSERT_EQ(recvfrom(server.get(), buffer.data(), buffer.size(), 0, from.get(), &from.size),
              static_cast<ssize_t>(text.size()));
    ASSERT_EQ(sendto(server.get(), buffer.data(), text.size(), 0, from.get(), from.size),
              static_cast<ssize_t>(text.size()));
    ASSERT_EQ(Receive(client.get()), text)
        << Metrics() << *device_.Control("flows", "") << guest_->lost();
  }
}

TEST_F(ProxyNetGuestTest, MovesBulkBothWaysOverIpv4) {
  Start();
  if (IsSkipped()) return;
  Bulk(kHost4, kHost4, kBulk);
}

TEST_F(ProxyNetGuestTest, MovesBulkBothWaysOverIpv6) {
  Start();
  if (IsSkipped()) return;
  Bulk(kHost6, kHost6, kBulk);
}

TEST_F(ProxyNetGuestTest, MovesBulkWithSmallAndLargePackets) {
  Start({}, 1280);
  if (IsSkipped()) return;
  Bulk(kAlias4, "127.0.0.1", kBulk / 4);
  TearDown();
  Start({}, 9000);
  Bulk(kAlias6, "::1", kBulk);
}

TEST_F(ProxyNetGuestTest, MovesBulkWithoutOffloads) {
  guest::NetClientOptions plain;
  plain.features = guest::kNetAllFeatures & ~uint64_t{0x00f9'ffff} & ~(uint64_t{7} << 54);
  Start({}, 1500, std::move(plain));
  if (IsSkipped()) return;
  Bulk(kHost4, kHost4, kBulk / 8);
}

TEST_F(ProxyNetGuestTest, TheGuestHearsWhatBecameOfItsConnection) {
  Start();
  if (IsSkipped()) return;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  listener.reset();
  UniqueFd refused = ConnectTo(kHost4, port);
  EXPECT_EQ(error_, ECONNREFUSED);
  // Link-local addresses are forbidden by default: the metadata service is one.
  UniqueFd forbidden = ConnectTo("169.254.169.254", 80);
  EXPECT_EQ(error_, ECONNREFUSED);
  EXPECT_GE(Metric("drops_policy_denied"), 1u);

  // Half a connection, and a reset.
  port = 0;
  listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port);
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  Say(client.get(), "question");
  shutdown(client.get(), SHUT_WR);
  EXPECT_EQ(Receive(server.get()), "question");
  EXPECT_EQ(Receive(server.get()), "EOF");
  Say(server.get(), "answer");
  EXPECT_EQ(Receive(client.get()), "answer");
  server.reset();
  EXPECT_EQ(Receive(client.get()), "EOF");
  client = ConnectTo(kHost4, port);
  server.reset(accept(listener.get(), nullptr, nullptr));
  const linger abort = {1, 0};
  setsockopt(server.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  server.reset();
  EXPECT_EQ(Receive(client.get()), strerror(ECONNRESET));
}

TEST_F(ProxyNetGuestTest, AThousandConnectionsAtOnce) {
  rlimit files = {};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = std::min<rlim_t>(files.rlim_max, 16384);
  setrlimit(RLIMIT_NOFILE, &files);
  Start();
  if (IsSkipped()) return;
  constexpr size_t kCount = 1000;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  std::vector<UniqueFd> clients;
  std::vector<UniqueFd> servers;
  for (size_t i = 0; i < kCount; ++i) {
    clients.push_back(ConnectTo(kHost4, port));
    ASSERT_EQ(error_, 0) << i;
    servers.emplace_back(accept(listener.get(), nullptr, nullptr));
  }
  for (size_t i = 0; i < kCount; ++i) Say(clients[i].get(), absl::StrCat("number ", i));
  for (size_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(Receive(servers[i].get()), absl::StrCat("number ", i));
    Say(servers[i].get(), "ok");
  }
  for (size_t i = 0; i < kCount; ++i) EXPECT_EQ(Receive(clients[i].get()), "ok");
}

TEST_F(ProxyNetGuestTest, EchoesDatagrams) {
  Start();
  if (IsSkipped()) return;
  for (const auto& [remote, local] : {std::pair{kHost4, kHost4}, std::pair{kAlias6, "::1"}}) {
    uint16_t port = 0;
    UniqueFd server = InHost([&] { return Bound(local, SOCK_DGRAM, &port); });
    UniqueFd client = ConnectTo(remote, port, SOCK_DGRAM);
    for (const size_t size : {1u, 1000u, 1400u}) {
      const std::string text(size, 'd');
      Say(client.get(), text);
      Address from;
      from.size = sizeof(from.storage);
      std::array<char, 2000> buffer;
      ASSERT_EQ(recvfrom(server.get(), buffer.data(), buffer.size(), 0, from.get(), &from.size),
                static_cast<ssize_t>(size));
      ASSERT_EQ(sendto(server.get(), buffer.data(), size, 0, from.get(), from.size),
                static_cast<ssize_t>(size));
      EXPECT_EQ(Receive(client.get()), text);
    }
    server.reset();
    Say(client.get(), "anyone?");
    EXPECT_EQ(Receive(client.get()), strerror(ECONNREFUSED));
  }
}

std::string DnsQuery() {
  const char query[] =
      "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06static\x04test\x00\x00\x01\x00\x01";
  return std::string(query, sizeof(query) - 1);
}

TEST_F(ProxyNetGuestTest, ResolvesNamesOverUdpAndTcp) {
  Start();
  if (IsSkipped()) return;
  const std::string address("\xc0\x00\x02\x4d", 4);
  for (const char* gateway : {"10.0.2.2", "fd76:6972:7462:6179::2"}) {
    UniqueFd udp = ConnectTo(gateway, 53, SOCK_DGRAM);
    Say(udp.get(), DnsQuery());
    EXPECT_THAT(Receive(udp.get()), HasSubstr(address)) << gateway;
    UniqueFd tcp = ConnectTo(gateway, 53);
    ASSERT_EQ(error_, 0) << gateway;
    const std::string query = DnsQuery();
    Say(tcp.get(), std::string(1, '\0') + static_cast<char>(query.size()) + query);
    std::string answer;
    while (answer.size() < 2 || answer.size() < 2u + static_cast<uint8_t>(answer[1])) {
      const std::string more = Receive(tcp.get());
      ASSERT_NE(more, "EOF");
      answer += more;
    }
    EXPECT_THAT(answer, HasSubstr(address));
  }
  EXPECT_EQ(Metric("dns_queries"), 4u);
  EXPECT_EQ(Metric("dns_static_answers"), 4u);
  EXPECT_EQ(Metric("dns_attempts"), 0u);
  // The guest's kernel had to find its gateway.
  EXPECT_GE(Metric("arp_replies"), 1u);
  EXPECT_GE(Metric("neighbor_advertisements"), 1u);
}

TEST_F(ProxyNetGuestTest, AnswersEchoes) {
  Start();
  if (IsSkipped()) return;
  UniqueFd raw(socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ICMP));
  if (!raw.valid()) GTEST_SKIP() << "no raw socket: " << strerror(errno);
  const bool allowed = InHost(
      [] { return UniqueFd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP)).valid(); });
  for (const char* target : {"10.0.2.2", kHost4}) {
    if (target == kHost4 && !allowed) continue;
    std::array<uint8_t, 16> echo = {8, 0, 0, 0, 0x12, 0x34, 0, 1};
    uint32_t sum = 0;
    for (size_t i = 0; i < echo.size(); i += 2) sum += uint32_t{echo[i]} << 8 | echo[i + 1];
    sum = ~sum;
    echo[2] = static_cast<uint8_t>(sum >> 8);
    echo[3] = static_cast<uint8_t>(sum);
    Address to = Address::Of(target, 0);
    ASSERT_EQ(sendto(raw.get(), echo.data(), echo.size(), 0, to.get(), to.size), 16);
    // The socket hears every message of ICMP that comes to the guest.
    std::array<uint8_t, 2048> answer = {};
    ssize_t size = 0;
    do {
      size = recv(raw.get(), answer.data(), answer.size(), 0);
      ASSERT_GE(size, 28) << target;
    } while (answer[20] != ICMP_ECHOREPLY);
    EXPECT_EQ(size, 36);
    EXPECT_EQ(answer[24], 0x12);
    EXPECT_EQ(answer[25], 0x34);
  }
  EXPECT_EQ(Metric("gateway_echo_replies"), 1u);
}

// Echoes of ICMPv6 to addresses that hold an IPv4 one. The guest's kernel would send none of them
// itself, so they go past it.
class EchoToMapped : public ProxyNetGuestTest {
 protected:
  static constexpr size_t kIp6 = 40;
  static constexpr size_t kMessage = 16;

  void Begin(std::map<std::string, std::string> options = {}) {
    Start(std::move(options));
    if (IsSkipped()) return;
    if (!InHost([] {
          return UniqueFd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP)).valid();
        })) {
      GTEST_SKIP() << "no ping socket";
    }
    packets_.reset(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_IPV6)));
    ASSERT_TRUE(packets_.valid());
    link_.sll_family = AF_PACKET;
    link_.sll_protocol = htons(ETH_P_IPV6);
    link_.sll_ifindex = static_cast<int>(if_nametoindex("tap0"));
    link_.sll_halen = ETH_ALEN;
    constexpr std::array<uint8_t, 6> kGateway = {0x52, 0x55, 0x0a, 0, 2, 2};
    std::memcpy(link_.sll_addr, kGateway.data(), kGateway.size());
    ASSERT_EQ(bind(packets_.get(), reinterpret_cast<sockaddr*>(&link_), sizeof(link_)), 0);
  }
  static std::string Bytes(const std::string& address) {
    std::array<char, 16> bytes;
    EXPECT_EQ(inet_pton(AF_INET6, address.c_str(), bytes.data()), 1) << address;
    return {bytes.data(), bytes.size()};
  }
  // The checksum of an ICMPv6 packet, 0 when it holds the right one (RFC 4443 2.3).
  static uint16_t Sum(const std::string& packet) {
    uint32_t sum = 58 + static_cast<uint32_t>(packet.size() - kIp6);
    for (size_t i = 8; i < packet.size(); ++i) {
      sum += uint32_t{static_cast<uint8_t>(packet[i])} << (i % 2 == 0 ? 8 : 0);
    }
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
  }
  void Echo(const std::string& to, uint8_t hop_limit = 64) {
    std::string packet = {0x60, 0, 0, 0, 0, kMessage, 58, static_cast<char>(hop_limit)};
    packet += Bytes("fd76:6972:7462:6179::15") + Bytes(to);
    packet += std::string({static_cast<char>(128), 0, 0, 0, 0x12, 0x34, 0, 7});
    packet += "mapped!!";
    const uint16_t sum = Sum(packet);
    packet[kIp6 + 2] = static_cast<char>(sum >> 8);
    packet[kIp6 + 3] = static_cast<char>(sum);
    ASSERT_EQ(sendto(packets_.get(), packet.data(), packet.size(), 0,
                     reinterpret_cast<sockaddr*>(&link_), sizeof(link_)),
              static_cast<ssize_t>(packet.size()));
  }
  // The next ICMPv6 message to the guest that is no neighbor discovery, its IPv6 header included.
  std::string Answer() {
    while (true) {
      pollfd one = {packets_.get(), POLLIN, 0};
      if (TEMP_FAILURE_RETRY(poll(&one, 1, 20'000)) != 1) return std::string(64, '\0');
      std::array<char, 2048> buffer;
      sockaddr_ll from = {};
      socklen_t size = sizeof(from);
      const ssize_t n = recvfrom(packets_.get(), buffer.data(), buffer.size(), 0,
                                 reinterpret_cast<sockaddr*>(&from), &size);
      if (n < static_cast<ssize_t>(kIp6 + 8) || from.sll_pkttype == PACKET_OUTGOING) continue;
      const auto type = static_cast<uint8_t>(buffer[kIp6]);
      if (buffer[6] != 58 || (type >= 130 && type <= 143)) continue;
      return {buffer.data(), static_cast<size_t>(n)};
    }
  }
  static std::string SourceOf(const std::string& packet) { return packet.substr(8, 16); }
  static int TypeOf(const std::string& packet) { return static_cast<uint8_t>(packet[kIp6]); }
  static int CodeOf(const std::string& packet) { return static_cast<uint8_t>(packet[kIp6 + 1]); }

  UniqueFd packets_;
  sockaddr_ll link_ = {};
};

TEST_F(EchoToMapped, GoesAsIcmpAndIsAnsweredAsIcmpv6) {
  Begin();
  if (IsSkipped()) return;
  const std::string to = absl::StrCat("::ffff:", kHost4);
  Echo(to);
  const std::string answer = Answer();
  EXPECT_EQ(TypeOf(answer), 129);
  EXPECT_EQ(CodeOf(answer), 0);
  EXPECT_EQ(SourceOf(answer), Bytes(to));
  EXPECT_EQ(answer.substr(kIp6 + 4), std::string({0x12, 0x34, 0, 7}) + "mapped!!");
  EXPECT_EQ(Sum(answer), 0);
  EXPECT_EQ(Metric("echo_opened"), 1u);
}

// As for TCP and UDP: judged is the address that a socket would reach, and one that a translator on
// the way would.
TEST_F(EchoToMapped, IsJudgedByTheAddressInside) {
  Begin({{"rules", absl::StrCat("deny ", kHost4, "/icmp, allow 127.0.0.2/icmp")}});
  if (IsSkipped()) return;
  for (const std::string& to :
       {absl::StrCat("::ffff:", kHost4), absl::StrCat("64:ff9b::", kHost4),
        std::string("::ffff:127.0.0.1"), std::string("64:ff9b::127.0.0.1"),
        std::string("::ffff:169.254.169.254"), std::string("::ffff:0.0.0.0")}) {
    Echo(to);
    const std::string answer = Answer();
    EXPECT_EQ(TypeOf(answer), 1) << to;
    EXPECT_EQ(CodeOf(answer), 1) << to;
  }
  Echo("::ffff:127.0.0.2");
  EXPECT_EQ(TypeOf(Answer()), 129);
  // A NAT64 prefix is IPv6's to route, as it is for TCP and UDP; the host has no such route.
  Echo("64:ff9b::198.51.100.1");
  const std::string answer = Answer();
  EXPECT_EQ(TypeOf(answer), 1);
  EXPECT_EQ(CodeOf(answer), 0);
}

TEST_F(EchoToMapped, HearsOfErrorsInIcmpv6sTerms) {
  Begin();
  if (IsSkipped()) return;
  // A network of the host's on which this test is all there is.
  const UniqueFd tun = InHost([] {
    UniqueFd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request = {};
    std::strcpy(request.ifr_name, "tun9");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    EXPECT_EQ(ioctl(fd.get(), TUNSETIFF, &request), 0);
    EXPECT_TRUE(
        TapGuest::Run("ip link set tun9 up && ip addr add 203.0.113.1 peer 203.0.113.9 dev tun9"));
    return fd;
  });
  Echo("::ffff:203.0.113.9", 3);
  std::string echo;
  while (echo.size() < 28 || echo[0] != 0x45 || echo[9] != 1) {
    std::array<char, 2048> buffer;
    pollfd one = {tun.get(), POLLIN, 0};
    ASSERT_EQ(TEMP_FAILURE_RETRY(poll(&one, 1, 20'000)), 1);
    echo.assign(buffer.data(), static_cast<size_t>(read(tun.get(), buffer.data(), buffer.size())));
  }
  EXPECT_EQ(echo[8], 2);   // TTL
  EXPECT_EQ(echo[20], 8);  // an echo request of ICMP
  EXPECT_EQ(echo.substr(28), "mapped!!");

  // Time exceeded, from its other end.
  std::string error = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0};
  error += echo.substr(16, 4) + echo.substr(12, 4) + std::string({11, 0, 0, 0, 0, 0, 0, 0}) + echo;
  error[3] = static_cast<char>(error.size());
  const auto fill = [&](size_t begin, size_t end, size_t at) {
    uint32_t sum = 0;
    for (size_t i = begin; i < end; ++i) {
      sum += uint32_t{static_cast<uint8_t>(error[i])} << (i % 2 == 0 ? 8 : 0);
    }
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    error[at] = static_cast<char>(~sum >> 8);
    error[at + 1] = static_cast<char>(~sum);
  };
  fill(0, 20, 10);
  fill(20, error.size(), 22);
  ASSERT_EQ(write(tun.get(), error.data(), error.size()), static_cast<ssize_t>(error.size()));

  const std::string heard = Answer();
  EXPECT_EQ(TypeOf(heard), 3);  // time exceeded (RFC 4443 3.3)
  EXPECT_EQ(CodeOf(heard), 0);
  EXPECT_EQ(Sum(heard), 0);
  // What it is about is what the guest sent.
  ASSERT_GE(heard.size(), 2 * kIp6 + 8 + kMessage);
  const std::string about = heard.substr(kIp6 + 8);
  EXPECT_EQ(about.substr(24, 16), Bytes("::ffff:203.0.113.9"));
  EXPECT_EQ(TypeOf(about), 128);
  EXPECT_EQ(about.substr(kIp6 + 4), std::string({0x12, 0x34, 0, 7}) + "mapped!!");
}

// A path of the host's with smaller packets than the link to the guest.
TEST_F(ProxyNetGuestTest, TheGuestLearnsOfPathsWithSmallerPackets) {
  Start();
  if (IsSkipped()) return;
  ASSERT_TRUE(InHost([] {
    return TapGuest::Run(
        "ip route add 198.18.6.0/24 dev lo mtu 1300 && ip -6 route add 2001:db8:6::/64 dev lo "
        "mtu 1300");
  }));
  const std::string payload(1400, 'd');
  for (const bool v4 : {true, false}) {
    UniqueFd udp = ConnectTo(v4 ? "198.18.6.9" : "2001:db8:6::9", 9, SOCK_DGRAM);
    ASSERT_EQ(error_, 0);
    const int level = v4 ? IPPROTO_IP : IPPROTO_IPV6;
    const int discover = v4 ? IP_PMTUDISC_DO : IPV6_PMTUDISC_DO;
    const int on = 1;
    ASSERT_EQ(setsockopt(udp.get(), level, v4 ? IP_MTU_DISCOVER : IPV6_MTU_DISCOVER, &discover,
                         sizeof(discover)),
              0);
    ASSERT_EQ(setsockopt(udp.get(), level, v4 ? IP_RECVERR : IPV6_RECVERR, &on, sizeof(on)), 0);
    Say(udp.get(), payload);
    pollfd look = {udp.get(), 0, 0};
    ASSERT_EQ(TEMP_FAILURE_RETRY(poll(&look, 1, 60'000)), 1) << Metrics();
    int mtu = 0;
    socklen_t size = sizeof(mtu);
    ASSERT_EQ(getsockopt(udp.get(), level, v4 ? IP_MTU : IPV6_MTU, &mtu, &size), 0);
    EXPECT_EQ(mtu, 1300);
  }
}

TEST_F(ProxyNetGuestTest, Ipv6ComesToTheGuestWhenTheHostHasItAndGoesWithIt) {
  Start({{"ipv6", "auto"}});
  if (IsSkipped()) return;
  const auto has = [] {
    return TapGuest::Run(
        "ip -6 route show proto ra | grep -q '^default' && "
        "ip -6 addr show dev tap0 dynamic | grep -q fd76:6972:7462:6179:");
  };
  EXPECT_FALSE(has());
  ASSERT_TRUE(InHost([] { return TapGuest::Run("ip -6 route add 2000::/3 dev lo"); }));
  while (!has()) std::this_thread::yield();
  ASSERT_TRUE(InHost([] { return TapGuest::Run("ip -6 route del 2000::/3 dev lo"); }));
  while (TapGuest::Run("ip -6 route show proto ra | grep -q '^default'")) {
    std::this_thread::yield();
  }
}

TEST_F(ProxyNetGuestTest, ForwardsPortsAtRunTime) {
  Start({{"forward", "udp:0:5353"}});
  if (IsSkipped()) return;
  const auto control = [&](const std::string& command, const std::string& text) {
    return InHost([&] { return device_.Control(command, text); });
  };
  ASSERT_OK_AND_ASSIGN(const std::string listed, control("forward-list", ""));
  EXPECT_THAT(listed, HasSubstr("udp:127.0.0.1:"));
  ASSERT_OK_AND_ASSIGN(const std::string forward, control("forward-add", "tcp:127.0.0.1:0:8080"));
  const auto port = static_cast<uint16_t>(std::stoi(forward.substr(14)));
  ASSERT_NE(port, 0);
  uint16_t inner = 8080;
  UniqueFd listener = Bound("10.0.2.15", SOCK_STREAM, &inner);
  UniqueFd client = InHost([&] { return ConnectTo("127.0.0.1", port); });
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  Say(client.get(), "in");
  EXPECT_EQ(Receive(server.get()), "in");
  Say(server.get(), "out");
  EXPECT_EQ(Receive(client.get()), "out");
  ASSERT_OK_AND_ASSIGN(const std::string flows, control("flows", ""));
  EXPECT_THAT(flows, HasSubstr("10.0.2.15:8080"));
  EXPECT_THAT(flows, HasSubstr("ESTABLISHED"));
  server.reset();
  EXPECT_EQ(Receive(client.get()), "EOF");
  // Nobody listens in the guest: the host's client hears it.
  listener.reset();
  client = InHost([&] { return ConnectTo("127.0.0.1", port); });
  EXPECT_EQ(Receive(client.get()), strerror(ECONNRESET));
  ASSERT_OK(control("forward-remove", forward).status());
  client = InHost([&] { return ConnectTo("127.0.0.1", port); });
  EXPECT_EQ(error_, ECONNREFUSED);
  EXPECT_FALSE(control("forward-remove", forward).ok());
  EXPECT_FALSE(control("forward-add", "tcp:80").ok());
  EXPECT_FALSE(control("nonsense", "").ok());
}

TEST_F(ProxyNetGuestTest, NewRulesCutFlows) {
  Start({{"rules", "deny 198.18.0.2"}});
  if (IsSkipped()) return;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port);
  ASSERT_EQ(error_, 0);
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  ASSERT_OK_AND_ASSIGN(std::string shown, device_.Control("show", ""));
  EXPECT_THAT(shown, HasSubstr("\"tcp_flows\": 1"));
  ASSERT_OK(device_.Control("rule-add", "1 deny 198.18.0.0/24").status());
  EXPECT_EQ(Receive(client.get()), strerror(ECONNRESET));
  EXPECT_EQ(Receive(server.get()), strerror(ECONNRESET));
  client = ConnectTo(kHost4, port);
  EXPECT_EQ(error_, ECONNREFUSED);
  ASSERT_OK_AND_ASSIGN(const std::string rules, device_.Control("rule-list", ""));
  EXPECT_EQ(rules, "deny 198.18.0.0/24\ndeny 198.18.0.2\n");
  EXPECT_FALSE(device_.Control("rule-add", "7 deny any").ok());
  EXPECT_FALSE(device_.Control("rule-remove", "deny any").ok());
  ASSERT_OK(device_.Control("rule-remove", "deny 198.18.0.0/24").status());
  client = ConnectTo(kHost4, port);
  EXPECT_EQ(error_, 0);
}

// ---- state --------------------------------------------------------------------------------------

// A DHCP client of that MAC address asks for an address; what it is offered or given, or 0.
uint32_t AskDhcp(uint8_t kind, uint8_t mac, uint32_t wish) {
  UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  const timeval patience = {10, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_BROADCAST, &on, sizeof(on));
  setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  setsockopt(fd.get(), SOL_SOCKET, SO_BINDTODEVICE, "tap0", 5);
  Address mine = Address::Of("0.0.0.0", 68);
  Address all = Address::Of("255.255.255.255", 67);
  if (bind(fd.get(), mine.get(), mine.size) != 0) return 0;
  std::array<uint8_t, 300> message{};
  message[0] = 1;
  message[1] = 1;
  message[2] = 6;
  message[4] = mac;    // xid
  message[10] = 0x80;  // answers to all
  message[28] = 2;     // chaddr
  message[33] = mac;
  const uint8_t options[] = {0x63, 0x82, 0x53, 0x63, 53, 1, kind, 50, 4};
  std::memcpy(message.data() + 236, options, sizeof(options));
  std::memcpy(message.data() + 236 + sizeof(options), &wish, 4);
  message[236 + sizeof(options) + 4] = 255;
  if (sendto(fd.get(), message.data(), message.size(), 0, all.get(), all.size) < 0) return 0;
  std::array<uint8_t, 1500> answer{};
  while (TEMP_FAILURE_RETRY(recv(fd.get(), answer.data(), answer.size(), 0)) >= 240) {
    if (answer[4] != mac) continue;
    uint32_t given = 0;
    std::memcpy(&given, answer.data() + 16, 4);
    return given;
  }
  return 0;
}

void ProxyNetGuestTest::Replace() {
  absl::StatusOr<DeviceState> state = InHost([&] { return device_.Save(); });
  ASSERT_OK(state);
  EXPECT_GT(state->fds.size(), 0u);
  guest_->Stop();
  ASSERT_OK(host_->Remove("net"));
  auto added = InHost([&] { return host_->Add(spec_, *std::move(state)); });
  ASSERT_OK(added);
  device_ = *added;
  // Its threads begin here, and their sockets are the host's.
  auto client = InHost([&]() -> absl::StatusOr<std::unique_ptr<guest::NetClient>> {
    auto transport = guest::InProcessTransport::Attach(device_);
    if (!transport.ok()) return transport.status();
    guest::NetClientOptions options;
    options.rx_pairs = pairs_;
    options.rx_buffers = 256;
    return guest::NetClient::Create(*std::move(transport), std::move(options));
  });
  ASSERT_OK(client);
  guest_->Start(*std::move(client), pairs_);
  if (pairs_ > 1) {
    ASSERT_EQ(guest_->SetPairs(static_cast<uint16_t>(pairs_)), 0);
  }
}

// Both ways, the guest and the host in the midst of what they say.
void ProxyNetGuestTest::TransfersSurviveAReplacement() {
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd guest_end = ConnectTo(kHost4, port);
  ASSERT_EQ(error_, 0);
  UniqueFd host_end(accept(listener.get(), nullptr, nullptr));
  std::atomic<int64_t> up = 0;
  std::atomic<int64_t> down = 0;
  const auto receive = [](int fd, std::atomic<int64_t>* count) {
    std::vector<uint8_t> buffer(256 * 1024);
    ssize_t n = 0;
    while ((n = recv(fd, buffer.data(), buffer.size(), 0)) > 0) {
      for (ssize_t i = 0; i < n; ++i) {
        if (buffer[static_cast<size_t>(i)] != ByteAt(static_cast<uint64_t>(*count + i))) return;
      }
      *count += n;
    }
  };
  std::thread threads[] = {
      std::thread([&] { SendPattern(guest_end.get(), kBulk), shutdown(guest_end.get(), SHUT_WR); }),
      std::thread([&] { SendPattern(host_end.get(), kBulk), shutdown(host_end.get(), SHUT_WR); }),
      std::thread([&] { receive(host_end.get(), &up); }),
      std::thread([&] { receive(guest_end.get(), &down); })};
  for (int i = 1; i <= 3; ++i) {
    const auto mark = static_cast<int64_t>(kBulk) / 8 * i;
    while (up < mark || down < mark) std::this_thread::yield();
    Replace();
  }
  EXPECT_LT(std::min(up.load(), down.load()), static_cast<int64_t>(kBulk));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(up, static_cast<int64_t>(kBulk));
  EXPECT_EQ(down, static_cast<int64_t>(kBulk));
}

TEST_F(ProxyNetGuestTest, TransfersGoOnWithAnotherDevice) {
  Start();
  if (IsSkipped()) return;
  TransfersSurviveAReplacement();
}

TEST_F(ProxyNetGuestTest, TransfersGoOnWithAnotherDeviceOfTwoPairs) {
  StartPairs(2);
  if (IsSkipped()) return;
  guest_->Choose(TapGuest::Choice::kInTurn, 100);
  TransfersSurviveAReplacement();
}

TEST_F(ProxyNetGuestTest, FlowsForwardsAndLeasesGoOnWithAnotherDevice) {
  Start({{"forward", "tcp:0:8080,udp:0:5353"}});
  if (IsSkipped()) return;
  const uint32_t mine = AskDhcp(1, 1, 0);
  ASSERT_NE(mine, 0u);
  ASSERT_EQ(AskDhcp(3, 1, mine), mine);
  // Another address than the one that is assumed.
  ASSERT_TRUE(
      TapGuest::Run("ip -4 addr flush dev tap0 && ip addr add 10.0.2.77/24 dev tap0 && "
                    "ip route replace default via 10.0.2.2"));
  uint16_t port = 0;
  UniqueFd server = InHost([&] { return Bound(kHost4, SOCK_DGRAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port, SOCK_DGRAM);
  Say(client.get(), "question");
  Address from;
  from.size = sizeof(from.storage);
  std::array<char, 64> buffer;
  ASSERT_EQ(recvfrom(server.get(), buffer.data(), buffer.size(), 0, from.get(), &from.size), 8);
  uint16_t idle_port = 0;
  UniqueFd idle_listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &idle_port); });
  UniqueFd idle = ConnectTo(kHost4, idle_port);
  UniqueFd idle_peer(accept(idle_listener.get(), nullptr, nullptr));
  ASSERT_OK_AND_ASSIGN(const std::string added,
                       InHost([&] { return device_.Control("forward-add", "tcp:0:8081"); }));
  ASSERT_OK_AND_ASSIGN(const std::string forwards, device_.Control("forward-list", ""));

  Replace();
  ASSERT_OK_AND_ASSIGN(const std::string after, device_.Control("forward-list", ""));
  EXPECT_EQ(after, forwards);
  EXPECT_THAT(after, HasSubstr(added));
  // The answer to what was asked before.
  ASSERT_EQ(sendto(server.get(), "answer", 6, 0, from.get(), from.size), 6);
  EXPECT_EQ(Receive(client.get()), "answer");
  // A connection on which nothing was under way, from the host's side first.
  Say(idle_peer.get(), "still there?");
  EXPECT_EQ(Receive(idle.get()), "still there?");
  idle.reset();
  EXPECT_EQ(Receive(idle_peer.get()), "EOF");
  // A forward made at run time leads to the address that the guest was seen to have.
  uint16_t inner = 8081;
  UniqueFd listener = Bound("10.0.2.77", SOCK_STREAM, &inner);
  const auto outer = static_cast<uint16_t>(std::stoi(added.substr(14)));
  UniqueFd caller = InHost([&] { return ConnectTo("127.0.0.1", outer); });
  ASSERT_EQ(error_, 0) << after << outer;
  UniqueFd called(accept(listener.get(), nullptr, nullptr));
  ASSERT_TRUE(called.valid()) << Metrics() << *device_.Control("flows", "")
                              << *device_.Control("show", "");
  Say(caller.get(), "in");
  EXPECT_EQ(Receive(called.get()), "in");
  // The address is still the first client's.
  EXPECT_NE(AskDhcp(1, 2, mine), mine);
  EXPECT_EQ(AskDhcp(1, 1, 0), mine);
  // And numbers of forwards go on.
  ASSERT_OK(device_.Control("forward-remove", added).status());
  EXPECT_EQ(InHost([&] { return ConnectTo("127.0.0.1", outer), error_; }), ECONNREFUSED);
}

// The host's resolver: takes one question, whatever it is, and says what is asked.
struct Asked {
  std::string query;
  Address from;
};
Asked TakeQuestion(int server) {
  std::array<char, 512> buffer;
  Asked asked;
  asked.from.size = sizeof(asked.from.storage);
  const ssize_t n =
      recvfrom(server, buffer.data(), buffer.size(), 0, asked.from.get(), &asked.from.size);
  if (n > 0) asked.query.assign(buffer.data(), static_cast<size_t>(n));
  return asked;
}
void AnswerQuestion(int server, Asked asked) {
  std::string answer = asked.query;
  ASSERT_GT(answer.size(), 12u);
  answer[2] = static_cast<char>(0x81);
  answer[3] = static_cast<char>(0x80);
  answer[7] = 1;
  answer += std::string("\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xcb\0\x71\x07", 16);  // 203.0.113.7
  EXPECT_EQ(sendto(server, answer.data(), answer.size(), 0, asked.from.get(), asked.from.size),
            static_cast<ssize_t>(answer.size()));
}
std::string QuestionFor(char name) {
  std::string query("\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01?\x04test\0\0\x01\0\x01", 24);
  query[13] = name;
  return query;
}

// Over datagrams and over a connection, which is in the midst of another question as well.
TEST_F(ProxyNetGuestTest, QuestionsToTheResolverGoOnWithAnotherDevice) {
  Start({{"dns", kHost4}});
  if (IsSkipped()) return;
  uint16_t port = 53;
  UniqueFd server = InHost([&] { return Bound(kHost4, SOCK_DGRAM, &port); });
  UniqueFd udp = ConnectTo("10.0.2.2", 53, SOCK_DGRAM);
  Say(udp.get(), QuestionFor('a'));
  ASSERT_EQ(TakeQuestion(server.get()).query.substr(12), QuestionFor('a').substr(12));
  UniqueFd tcp = ConnectTo("10.0.2.2", 53);
  ASSERT_EQ(error_, 0);
  const auto framed = [](const std::string& query) {
    return std::string(1, '\0') + static_cast<char>(query.size()) + query;
  };
  const std::string next = framed(QuestionFor('c'));
  Say(tcp.get(), framed(QuestionFor('b')) + next.substr(0, 7));
  ASSERT_EQ(TakeQuestion(server.get()).query.substr(12), QuestionFor('b').substr(12));

  Replace();
  // Asked anew, in whichever order.
  const auto answer_until = [&](const UniqueFd& guest) {
    pollfd ends[] = {{guest.get(), POLLIN, 0}, {server.get(), POLLIN, 0}};
    while (TEMP_FAILURE_RETRY(poll(ends, 2, 20'000)) > 0 && ends[0].revents == 0) {
      AnswerQuestion(server.get(), TakeQuestion(server.get()));
    }
    ASSERT_NE(ends[0].revents, 0);
  };
  answer_until(udp);
  answer_until(tcp);
  const std::string address("\xcb\0\x71\x07", 4);
  EXPECT_THAT(Receive(udp.get()), HasSubstr(address));
  const auto answer_of = [&](char name) {
    std::string answer;
    while (answer.size() < 2 || answer.size() < 2u + static_cast<uint8_t>(answer[1])) {
      const std::string more = Receive(tcp.get());
      if (more == "EOF") return more;
      answer += more;
    }
    EXPECT_EQ(answer.substr(2 + 12, 12), QuestionFor(name).substr(12));
    return answer;
  };
  EXPECT_THAT(answer_of('b'), HasSubstr(address));
  Say(tcp.get(), next.substr(7));
  answer_until(tcp);
  EXPECT_THAT(answer_of('c'), HasSubstr(address));
  tcp.reset();
}

TEST_F(ProxyNetGuestTest, AStateThatIsWrongMakesNoDevice) {
  Start();
  if (IsSkipped()) return;
  ASSERT_OK_AND_ASSIGN(const DeviceState good, InHost([&] { return device_.Save(); }));
  guest_->Stop();
  ASSERT_OK(host_->Remove("net"));
  const auto add = [&](const std::string& type, uint32_t version, const std::string& bytes,
                       uint32_t role = 1) {
    DeviceState state;
    state.type = type;
    state.version = version;
    state.bytes = bytes;
    if (role != 0) state.fds.push_back({role, UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))});
    const auto added = InHost([&] { return host_->Add(spec_, std::move(state)); });
    if (added.ok()) host_->Remove("net").IgnoreError();
    return added.status();
  };
  EXPECT_EQ(add("virtio-net", 1, good.bytes).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(add("proxy-net", 2, good.bytes).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(add("proxy-net", 0, good.bytes).code(), absl::StatusCode::kFailedPrecondition);
  for (const size_t n : {size_t{0}, size_t{5}, good.bytes.size() / 2, good.bytes.size() - 1}) {
    EXPECT_FALSE(add("proxy-net", 1, good.bytes.substr(0, n)).ok()) << n;
  }
  for (size_t at = 0; at < good.bytes.size(); at += 7) {
    std::string wrong = good.bytes;
    wrong[at] = static_cast<char>(wrong[at] ^ 0x5a);
    add("proxy-net", 1, wrong).IgnoreError();
  }
  EXPECT_THAT(add("proxy-net", 1, good.bytes).message(),
              HasSubstr("1 descriptors of flows, not 0"));
  EXPECT_THAT(add("proxy-net", 1, good.bytes, 77).message(), HasSubstr("for nothing here"));
  EXPECT_OK(add("proxy-net", 1, good.bytes, 0));
}

// Descriptors in another order, of another kind or number make none either, and the right ones go
// on afterwards: nothing was done to them.
TEST_F(ProxyNetGuestTest, AStateWithOtherDescriptorsMakesNoDevice) {
  Start({{"forward", "tcp:0:8080,udp:0:5353"}});
  if (IsSkipped()) return;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd guest_end = ConnectTo(kHost4, port);
  UniqueFd host_end(accept(listener.get(), nullptr, nullptr));
  ASSERT_TRUE(host_end.valid());
  uint16_t udp_port = 0;
  UniqueFd server = InHost([&] { return Bound(kHost4, SOCK_DGRAM, &udp_port); });
  UniqueFd client = ConnectTo(kHost4, udp_port, SOCK_DGRAM);
  Say(client.get(), "question");
  EXPECT_EQ(Receive(server.get()), "question");
  ASSERT_OK_AND_ASSIGN(DeviceState good, InHost([&] { return device_.Save(); }));
  ASSERT_EQ(good.fds.size(), 4u);
  guest_->Stop();
  ASSERT_OK(host_->Remove("net"));
  const auto copy = [&] {
    DeviceState state{.type = good.type, .version = good.version, .bytes = good.bytes, .fds = {}};
    for (const auto& fd : good.fds) state.fds.push_back({fd.role, fd.fd.Duplicate()});
    return state;
  };
  const auto refused = [&](const std::string& what, DeviceState state) {
    const auto added = InHost([&] { return host_->Add(spec_, std::move(state)); });
    EXPECT_EQ(added.status().code(), absl::StatusCode::kInvalidArgument) << what << added.status();
    EXPECT_THAT(added.status().message(), HasSubstr("descriptor")) << what;
    if (added.ok()) host_->Remove("net").IgnoreError();
  };
  for (int i = 0; i < 4; ++i) {
    DeviceState state = copy();
    state.fds.erase(state.fds.begin() + i);
    refused("without one", std::move(state));
    state = copy();
    state.fds[static_cast<size_t>(i)].role = 77;
    refused("of another role", std::move(state));
    state = copy();
    state.fds[static_cast<size_t>(i)].fd = UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC));
    refused("a file", std::move(state));
  }
  DeviceState state = copy();
  std::reverse(state.fds.begin(), state.fds.end());
  refused("reversed", std::move(state));
  state = copy();
  state.fds.clear();
  refused("without any", std::move(state));
  ASSERT_OK_AND_ASSIGN(device_, InHost([&] { return host_->Add(spec_, std::move(good)); }));
  ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
  guest::NetClientOptions options;
  options.rx_buffers = 256;
  ASSERT_OK_AND_ASSIGN(auto net,
                       guest::NetClient::Create(std::move(transport), std::move(options)));
  guest_->Start(std::move(net), 1);
  Say(host_end.get(), "down");
  EXPECT_EQ(Receive(guest_end.get()), "down");
  Say(guest_end.get(), "up");
  EXPECT_EQ(Receive(host_end.get()), "up");

  // With the right ones, whatever the bytes say: a device that answers and goes, or none.
  ASSERT_OK_AND_ASSIGN(good, InHost([&] { return device_.Save(); }));
  guest_->Stop();
  ASSERT_OK(host_->Remove("net"));
  int made = 0;
  for (size_t at = 0; at < good.bytes.size(); at += 3) {
    state = copy();
    state.bytes[at] = static_cast<char>(state.bytes[at] ^ (at % 2 == 0 ? 0x5a : 0xff));
    const auto added = InHost([&] { return host_->Add(spec_, std::move(state)); });
    if (!added.ok()) continue;
    ++made;
    ASSERT_OK_AND_ASSIGN(transport, guest::InProcessTransport::Attach(*added));
    guest::NetClientOptions few;
    few.rx_buffers = 64;
    ASSERT_OK_AND_ASSIGN(net, guest::NetClient::Create(std::move(transport), std::move(few)));
    ASSERT_OK(added->Control("flows", "").status()) << at;
    net.reset();
    ASSERT_OK(host_->Remove("net")) << at;
  }
  EXPECT_GT(made, 0);
}

// ---- several queue pairs ------------------------------------------------------------------------

TEST_F(ProxyNetGuestTest, FlowsAreOnThePairThatTheGuestSendsThemOn) {
  StartPairs(2);
  if (IsSkipped()) return;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  std::vector<UniqueFd> ends;
  for (int i = 0; i < 32; ++i) {
    ends.push_back(ConnectTo(kHost4, port));
    ASSERT_EQ(error_, 0);
    ends.emplace_back(accept(listener.get(), nullptr, nullptr));
    Say(ends[ends.size() - 1].get(), "down");
    EXPECT_EQ(Receive(ends[ends.size() - 2].get()), "down");
  }
  for (const int pair : {0, 1}) {
    ASSERT_OK_AND_ASSIGN(const std::string flows, device_.Control("flows", ""));
    EXPECT_THAT(flows, HasSubstr(absl::StrCat(" pair=", pair, "\n")));
  }
  EXPECT_GT(guest_->received(0), 10u);
  EXPECT_GT(guest_->received(1), 10u);
  // Nobody had to move.
  EXPECT_EQ(Metric("flows_moved"), 0u);
  // A rule reaches the flows of every pair.
  ASSERT_OK(device_.Control("rule-add", "1 deny 198.18.0.0/24").status());
  for (UniqueFd& end : ends) EXPECT_EQ(Receive(end.get()), strerror(ECONNRESET));
  ASSERT_OK_AND_ASSIGN(const std::string none, device_.Control("flows", ""));
  EXPECT_EQ(none, "");
}

TEST_F(ProxyNetGuestTest, MovesBulkOverTwoPairs) {
  StartPairs(2);
  if (IsSkipped()) return;
  for (int i = 0; i < 4; ++i) Bulk(kHost4, kHost4, kBulk / 4);
  Bulk(kHost6, kHost6, kBulk / 4);
}

// The guest goes on on another pair in the midst of it. What lies in two queues may overtake each
// other, but no flow is ever looked for where it is not.
TEST_F(ProxyNetGuestTest, ConnectionsFollowTheGuestToAnotherPair) {
  StartPairs(3);
  if (IsSkipped()) return;
  guest_->Choose(TapGuest::Choice::kInTurn, 50);
  Bulk(kHost4, kHost4, kBulk / 2, /*in_order=*/false);
  EXPECT_GT(Metric("flows_moved"), 10u);
  Bulk(kHost6, kHost6, kBulk / 4, /*in_order=*/false);
  // The worst that a guest can do.
  guest_->Choose(TapGuest::Choice::kInTurn, 1);
  Bulk(kHost4, kHost4, kBulk / 64, /*in_order=*/false);
  EchoOnEveryPair();
}

TEST_F(ProxyNetGuestTest, TheGatewayAnswersOnEveryPair) {
  StartPairs(2, {{"forward", "udp:0:5353,tcp:0:8080"}});
  if (IsSkipped()) return;
  // All on the second one, from the guest's first word on.
  guest_->Choose(TapGuest::Choice::kFixed, 1);
  const std::string address("\xc0\x00\x02\x4d", 4);
  UniqueFd udp = ConnectTo("10.0.2.2", 53, SOCK_DGRAM);
  Say(udp.get(), DnsQuery());
  EXPECT_THAT(Receive(udp.get()), HasSubstr(address));
  UniqueFd tcp = ConnectTo("10.0.2.2", 53);
  ASSERT_EQ(error_, 0);
  const std::string query = DnsQuery();
  Say(tcp.get(), std::string(1, '\0') + static_cast<char>(query.size()) + query);
  std::string answer;
  while (answer.find(address) == std::string::npos) {
    const std::string more = Receive(tcp.get());
    ASSERT_NE(more, "EOF");
    answer += more;
  }
  EXPECT_GE(Metric("arp_replies"), 1u);

  // Forwards are the first pair's; answers come on the second.
  const std::string forwards = *device_.Control("forward-list", "");
  const auto port_of = [&](const std::string& prefix) {
    return static_cast<uint16_t>(std::stoi(forwards.substr(forwards.find(prefix) + prefix.size())));
  };
  uint16_t inner = 8080;
  UniqueFd listener = Bound("10.0.2.15", SOCK_STREAM, &inner);
  UniqueFd client = InHost([&] { return ConnectTo("127.0.0.1", port_of("tcp:127.0.0.1:")); });
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  Say(client.get(), "in");
  EXPECT_EQ(Receive(server.get()), "in");
  Say(server.get(), "out");
  EXPECT_EQ(Receive(client.get()), "out");

  uint16_t inner_udp = 5353;
  UniqueFd datagrams = Bound("10.0.2.15", SOCK_DGRAM, &inner_udp);
  UniqueFd asker =
      InHost([&] { return ConnectTo("127.0.0.1", port_of("udp:127.0.0.1:"), SOCK_DGRAM); });
  for (const size_t size : {3u, 1400u}) {
    const std::string text(size, 'q');
    Say(asker.get(), text);
    Address from;
    from.size = sizeof(from.storage);
    std::array<char, 2000> buffer;
    ASSERT_EQ(recvfrom(datagrams.get(), buffer.data(), buffer.size(), 0, from.get(), &from.size),
              static_cast<ssize_t>(size));
    ASSERT_EQ(sendto(datagrams.get(), buffer.data(), size, 0, from.get(), from.size),
              static_cast<ssize_t>(size));
    EXPECT_EQ(Receive(asker.get()), text);
  }
  ASSERT_OK_AND_ASSIGN(const std::string flows, device_.Control("flows", ""));
  EXPECT_THAT(flows, ::testing::ContainsRegex("udp 10.0.2.15:5353.* pair=0"));
  EXPECT_THAT(flows, ::testing::ContainsRegex("tcp 10.0.2.15:8080.* pair=1"));
}

TEST_F(ProxyNetGuestTest, APairThatTheGuestGivesUpKeepsNoFlow) {
  StartPairs(2);
  if (IsSkipped()) return;
  guest_->Choose(TapGuest::Choice::kFixed, 1);
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port);
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  Say(server.get(), "one");
  EXPECT_EQ(Receive(client.get()), "one");
  ASSERT_OK_AND_ASSIGN(std::string flows, device_.Control("flows", ""));
  EXPECT_THAT(flows, HasSubstr(" pair=1"));
  guest_->Choose(TapGuest::Choice::kFixed, 0);
  ASSERT_EQ(guest_->SetPairs(1), 0);
  // Without a word of the guest's: what comes for it comes on the first pair.
  while (*device_.Control("flows", "") == flows) std::this_thread::yield();
  const uint64_t before = guest_->received(1);
  Say(server.get(), "two");
  EXPECT_EQ(Receive(client.get()), "two");
  EXPECT_EQ(guest_->received(1), before);
  ASSERT_OK_AND_ASSIGN(flows, device_.Control("flows", ""));
  EXPECT_THAT(flows, HasSubstr(" pair=0"));
  ASSERT_EQ(guest_->SetPairs(2), 0);
  guest_->Choose(TapGuest::Choice::kFixed, 1);
  Say(client.get(), "three");
  EXPECT_EQ(Receive(server.get()), "three");
  ASSERT_OK_AND_ASSIGN(flows, device_.Control("flows", ""));
  EXPECT_THAT(flows, HasSubstr(" pair=1"));
}

}  // namespace
}  // namespace virtbay
