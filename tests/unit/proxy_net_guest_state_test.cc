// Another proxy-net device goes on with the guest of one that has saved its state.
#include <poll.h>

#include <atomic>

#include "tests/unit/proxy_net_guest_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

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

class ProxyNetGuestState : public ProxyNetGuestTest {
 protected:
  // Another device goes on in the place of this one; the guest's driver begins anew.
  void Replace();
  void TransfersSurviveAReplacement();
};

void ProxyNetGuestState::Replace() {
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
void ProxyNetGuestState::TransfersSurviveAReplacement() {
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

TEST_F(ProxyNetGuestState, TransfersGoOnWithAnotherDevice) {
  Start();
  if (IsSkipped()) return;
  TransfersSurviveAReplacement();
}

TEST_F(ProxyNetGuestState, TransfersGoOnWithAnotherDeviceOfTwoPairs) {
  StartPairs(2);
  if (IsSkipped()) return;
  guest_->Choose(TapGuest::Choice::kInTurn, 100);
  TransfersSurviveAReplacement();
}

TEST_F(ProxyNetGuestState, FlowsForwardsAndLeasesGoOnWithAnotherDevice) {
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

TEST_F(ProxyNetGuestState, RulesMadeAtRunTimeGoOnWithAnotherDevice) {
  Start({{"rules", "deny 198.18.0.2"}});
  if (IsSkipped()) return;
  uint16_t allowed = 0;
  uint16_t denied = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &allowed); });
  UniqueFd other = InHost([&] { return Bound(kHost4, SOCK_STREAM, &denied); });
  UniqueFd client = ConnectTo(kHost4, allowed);
  ASSERT_EQ(error_, 0);
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  const std::string rule = absl::StrCat("deny ", kHost4, ":", denied, "/tcp");
  ASSERT_OK(device_.Control("rule-add", absl::StrCat("1 ", rule)).status());

  Replace();
  ASSERT_OK_AND_ASSIGN(const std::string rules, device_.Control("rule-list", ""));
  EXPECT_EQ(rules, rule + "\ndeny 198.18.0.2\n");
  ConnectTo(kHost4, denied);
  EXPECT_EQ(error_, ECONNREFUSED);
  Say(client.get(), "still allowed");
  EXPECT_EQ(Receive(server.get()), "still allowed");
  ConnectTo(kHost4, allowed);
  EXPECT_EQ(error_, 0);
}

// The device that goes on has rules that the one before had not.
TEST_F(ProxyNetGuestState, FlowsThatTheRulesForbidDoNotGoOn) {
  Start();
  if (IsSkipped()) return;
  uint16_t port = 0;
  UniqueFd listener = InHost([&] { return Bound(kHost4, SOCK_STREAM, &port); });
  UniqueFd client = ConnectTo(kHost4, port);
  ASSERT_EQ(error_, 0);
  UniqueFd server(accept(listener.get(), nullptr, nullptr));
  uint16_t udp_port = 0;
  UniqueFd udp_server = InHost([&] { return Bound(kHost4, SOCK_DGRAM, &udp_port); });
  UniqueFd udp = ConnectTo(kHost4, udp_port, SOCK_DGRAM);
  Say(udp.get(), "question");
  EXPECT_EQ(Receive(udp_server.get()), "question");

  spec_.options["rules"] = absl::StrCat("deny ", kHost4);
  Replace();
  EXPECT_EQ(Metric("policy_cut"), 2u);
  ASSERT_OK_AND_ASSIGN(const std::string flows, device_.Control("flows", ""));
  EXPECT_EQ(flows, "");
  EXPECT_EQ(Receive(server.get()), strerror(ECONNRESET));
  // The guest hears of it when it next sends.
  Say(client.get(), "still there?");
  EXPECT_EQ(Receive(client.get()), strerror(ECONNRESET));
  ConnectTo(kHost4, port);
  EXPECT_EQ(error_, ECONNREFUSED);
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
TEST_F(ProxyNetGuestState, QuestionsToTheResolverGoOnWithAnotherDevice) {
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

TEST_F(ProxyNetGuestState, AStateThatIsWrongMakesNoDevice) {
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
TEST_F(ProxyNetGuestState, AStateWithOtherDescriptorsMakesNoDevice) {
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

}  // namespace
}  // namespace virtbay::testing
