// What a guest does with proxy-net: connections, datagrams, names, echoes, forwards, rules.
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>

#include <functional>
#include <optional>

#include "tests/unit/proxy_net_guest_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

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

}  // namespace
}  // namespace virtbay::testing
