// A guest with several queue pairs behind proxy-net.
#include <thread>

#include "tests/unit/proxy_net_guest_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

class ProxyNetGuestPairs : public ProxyNetGuestTest {
 protected:
  void EchoOnEveryPair();
};

// Datagrams to the host and back while the guest changes its pair.
void ProxyNetGuestPairs::EchoOnEveryPair() {
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

TEST_F(ProxyNetGuestPairs, FlowsAreOnThePairThatTheGuestSendsThemOn) {
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

TEST_F(ProxyNetGuestPairs, MovesBulkOverTwoPairs) {
  StartPairs(2);
  if (IsSkipped()) return;
  for (int i = 0; i < 4; ++i) Bulk(kHost4, kHost4, kBulk / 4);
  Bulk(kHost6, kHost6, kBulk / 4);
}

// The guest goes on on another pair in the midst of it. What lies in two queues may overtake each
// other, but no flow is ever looked for where it is not.
TEST_F(ProxyNetGuestPairs, ConnectionsFollowTheGuestToAnotherPair) {
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

TEST_F(ProxyNetGuestPairs, TheGatewayAnswersOnEveryPair) {
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

TEST_F(ProxyNetGuestPairs, APairThatTheGuestGivesUpKeepsNoFlow) {
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
}  // namespace virtbay::testing
