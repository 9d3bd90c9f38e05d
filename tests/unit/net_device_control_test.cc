// The control queue of a NetDevice: filters, pairs and their threads, offloads, the link.
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/net_device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

// ---- the control queue --------------------------------------------------------------------------

std::string Number(uint64_t value, size_t bytes) {
  return {reinterpret_cast<const char*>(&value), bytes};
}

TEST_F(NetDeviceTest, FiltersAreSetByTheControlQueue) {
  Start({{"mac", "52:54:00:12:34:56"}});
  const auto command = [&](uint8_t group, uint8_t number, const std::string& data) {
    const absl::StatusOr<uint8_t> ack = client_->Command(group, number, data);
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  const auto passes = [&](const FrameSpec& spec) {
    const uint64_t before = Count("committed") + Count("refused");
    const TestFrame frame = MakeFrame(spec);
    Give(Record(54), frame.bytes);
    WaitHandled(before + 1);
    if (!client_->HasFrame(0)) return false;
    const absl::StatusOr<NetFrame> got = client_->Receive(0);
    EXPECT_OK(got);
    return got.ok() && got->data == frame.bytes;
  };
  const std::string other("\x02\x00\x00\x00\x00\x77", 6);
  const std::string group("\x01\x00\x5e\x00\x00\x01", 6);
  EXPECT_TRUE(passes({.destination = other}));
  EXPECT_EQ(command(0, 0, Number(0, 1)), 0);
  EXPECT_FALSE(passes({.destination = other}));
  EXPECT_TRUE(passes({}));
  EXPECT_FALSE(passes({.destination = group}));
  EXPECT_EQ(command(1, 0, Number(1, 4) + other + Number(1, 4) + group), 0);
  EXPECT_TRUE(passes({.destination = other}));
  EXPECT_TRUE(passes({.destination = group}));
  // Another address: that of the configuration space then, too.
  EXPECT_EQ(command(1, 1, std::string("\x52\x54\x00\x00\x00\x09", 6)), 0);
  EXPECT_FALSE(passes({}));
  EXPECT_TRUE(passes({.destination = std::string("\x52\x54\x00\x00\x00\x09", 6)}));
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace config, client_->ReadConfig());
  EXPECT_EQ(config.mac[5], 9);
  EXPECT_EQ(command(0, 0, Number(1, 1)), 0);
  EXPECT_FALSE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(command(2, 0, Number(7, 2)), 0);
  EXPECT_TRUE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(command(2, 1, Number(7, 2)), 0);
  EXPECT_FALSE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(Count("rx_drops_vlan"), 2u);
  EXPECT_EQ(Count("rx_drops_filtered"), 3u);
  // A reset forgets it all.
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace fresh, client_->ReadConfig());
  EXPECT_EQ(fresh.mac[5], 0x56);
}

TEST_F(NetDeviceTest, CommandsThatBreakTheRulesChangeNothing) {
  Start({{"queue-pairs", "2"}});
  uint64_t refused = 0;
  const auto refuse = [&](uint8_t group, uint8_t number, const std::string& data) {
    const absl::StatusOr<uint8_t> ack = client_->Command(group, number, data);
    ASSERT_OK(ack);
    EXPECT_EQ(*ack, 1) << int{group} << "/" << int{number} << " of " << data.size();
    ++refused;
  };
  // Every class with data of every length but the right one, and commands that there are not.
  for (int number = 0; number < 6; ++number) {
    for (const size_t n : {size_t{0}, size_t{2}, size_t{9}}) {
      refuse(0, static_cast<uint8_t>(number), std::string(n, '\1'));
    }
  }
  refuse(0, 6, "\1");
  for (size_t n = 0; n < 40; ++n) {
    if (n != 8) refuse(1, 0, std::string(n, '\0'));
    if (n != 6) refuse(1, 1, std::string(n, '\2'));
    if (n != 2) refuse(2, 0, std::string(n, '\0'));
    if (n > 0) refuse(3, 0, std::string(n, '\0'));
    if (n != 2) refuse(4, 0, std::string(n, '\1'));
    if (n != 8) refuse(5, 0, std::string(n, '\0'));
  }
  refuse(1, 0, Number(UINT32_MAX, 4) + Number(0, 4));
  refuse(1, 0, Number(0x2aaaaaab, 4) + std::string(6, '\0') + Number(0, 4));
  refuse(1, 0, Number(0, 4) + Number(2, 4) + std::string(6, '\0'));
  refuse(1, 1, std::string("\x01\x00\x5e\x00\x00\x01", 6));  // a group's
  refuse(1, 2, "");
  refuse(2, 0, Number(4096, 2));
  refuse(2, 2, Number(1, 2));
  refuse(3, 1, "");
  refuse(4, 0, Number(0, 2));
  refuse(4, 0, Number(3, 2));
  refuse(4, 1, Number(1, 2));
  refuse(5, 0, Number(UINT64_MAX, 8));
  refuse(5, 1, Number(0, 8));
  refuse(6, 0, "");
  refuse(255, 255, "x");
  refuse(1, 0, std::string(40'000, '\0'));  // longer than any
  // Chains without room for the answer, or without a command.
  ASSERT_OK_AND_ASSIGN(int ack, client_->CommandRaw(std::string("\0\0\0", 3), 0));
  EXPECT_EQ(ack, -1);
  ASSERT_OK_AND_ASSIGN(ack, client_->CommandRaw(std::string("\0", 1), 1));
  EXPECT_EQ(ack, 1);
  ASSERT_OK_AND_ASSIGN(ack, client_->CommandRaw("", 1));
  EXPECT_EQ(ack, 1);
  EXPECT_EQ(Count("control_errors"), refused + 3);
  // It is still promiscuous.
  const TestFrame frame = MakeFrame({.destination = std::string("\x02\x00\x00\x00\x00\x77", 6)});
  Give(Record(54), frame.bytes);
  ASSERT_OK(client_->Receive(0));
  EXPECT_EQ(client_->control().ring().in_flight(), 0u);
}

TEST_F(NetDeviceTest, QueuePairsAndWhereTheControlQueueIs) {
  NetClientOptions options;
  options.rx_pairs = 3;
  Start({{"queue-pairs", "3"}}, std::move(options));
  const auto set = [&](uint16_t pairs) {
    const absl::StatusOr<uint8_t> ack = client_->Command(4, 0, Number(pairs, 2));
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  for (const uint16_t pairs : {uint16_t{3}, uint16_t{1}, uint16_t{2}}) {
    EXPECT_EQ(set(pairs), 0);
    EXPECT_EQ(Count("pairs_set"), pairs);
  }
  for (uint32_t pair = 0; pair < 3; ++pair) {
    const TestFrame frame = MakeFrame({.payload = 100 + pair});
    ASSERT_OK(client_->Send(pair, {}, frame.bytes));
    ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
    EXPECT_EQ(from.frame, frame.bytes);
    EXPECT_EQ(from.record.pair, pair);
  }
  // Without MQ it is queue 2 (virtio 1.3 5.1.2), which is else the second pair's.
  NetClientOptions single;
  single.features = guest::kNetAllFeatures & ~Bit(guest::kNetMq);
  Start({{"queue-pairs", "3"}}, std::move(single));
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(0, 1, Number(1, 1)));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(set(1), 1);
}

// Each pair's burst waits for the others': with one thread for several pairs they would not meet.
TEST_F(NetDeviceTest, PairsOfAParallelDeviceHaveAThreadEach) {
  constexpr uint32_t kPairs = 3;
  ASSERT_OK_AND_ASSIGN(
      device_, host_->Add(Spec("parallel", {{"fd", "-1"}, {"queue-pairs", "3"}, {"meet", "true"}},
                               VIRTBAY_NET_RELAY_PARALLEL)));
  NetClientOptions options;
  options.rx_pairs = kPairs;
  Connect(std::move(options));
  // A pair's two queues share a thread, and the control queue has the first one's.
  EXPECT_EQ(QueueThreads("parallel"), (std::set<std::string>{"0", "2", "4"}));
  const TestFrame frame = MakeFrame({.payload = 100});
  for (uint32_t pair = 0; pair < kPairs; ++pair) ASSERT_OK(client_->Send(pair, {}, frame.bytes));
  for (uint32_t pair = 0; pair < kPairs; ++pair) ASSERT_OK(client_->WaitSent(pair));
  EXPECT_EQ(Count("met"), kPairs);
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(4, 0, Number(2, 2)));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(Count("pairs_set"), 2u);
}

// Frames that are dropped and frames that are sent, in one burst: they end in another order than
// they came in, and go back in that.
TEST_F(NetDeviceTest, FramesGoBackInOrderWhereTheDriverWantsIt) {
  for (const bool packed : {false, true}) {
    NetClientOptions options;
    options.packed = packed;
    options.in_order = true;
    Start({}, std::move(options));
    ASSERT_NE(client_->features() & Bit(35), 0u);
    const TestFrame frame = MakeFrame({.payload = 100});
    const TestFrame large = MakeFrame({.payload = 30'000});
    uint64_t given = 0;
    for (int i = 0; i < 300; ++i) {
      ASSERT_OK(client_->Send(0, {}, frame.bytes));
      ASSERT_OK(client_->SendRaw(0, std::string(20, 'x')));
      ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
      EXPECT_EQ(from.frame, frame.bytes);
      // To it, every third over several buffers.
      const bool merged = i % 3 == 0;
      RelayRecord record = merged ? Record(54, &large) : Record(54);
      if (merged) {
        record.gso = 1;
        record.gso_size = 1448;
        record.hdr_len = large.headers;
      }
      Give(record, merged ? large.bytes : frame.bytes);
      ++given;
      ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
      EXPECT_EQ(got.data, merged ? large.bytes : frame.bytes);
    }
    ASSERT_OK(client_->WaitSent(0));
    WaitHandled(given);
    EXPECT_EQ(Count("committed"), given);
    EXPECT_EQ(Count("tx_drops_short"), 300u);
    EXPECT_EQ(Count("tx_frames"), 300u);
  }
}

TEST_F(NetDeviceTest, GuestOffloadsChangeAtRunTime) {
  NetClientOptions options;
  options.features = guest::kNetAllFeatures & ~Bit(guest::kNetGuestTso6);
  Start({}, std::move(options));
  const TestFrame frame = MakeFrame({.payload = 500});
  const auto set = [&](uint64_t bits) {
    const absl::StatusOr<uint8_t> ack = client_->Command(5, 0, Number(bits, 8));
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  const uint64_t calls = Count("offload_calls");
  EXPECT_EQ(set(0), 0);
  EXPECT_EQ(Count("offload_calls"), calls + 1);
  Give(Record(34, &frame), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame finished, client_->Receive(0));
  EXPECT_TRUE(ChecksumGood(finished.data, {.payload = 500}, frame));
  EXPECT_EQ(set(Bit(guest::kNetGuestCsum)), 0);
  Give(Record(34, &frame), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame partial, client_->Receive(0));
  EXPECT_EQ(partial.data, frame.bytes);
  // Not negotiated.
  EXPECT_EQ(set(Bit(guest::kNetGuestCsum) | Bit(guest::kNetGuestTso6)), 1);
}

TEST_F(NetDeviceTest, TheLinkGoesDownAndUpAndTheGuestAnnouncesItself) {
  Start({});
  auto& transport = client_->driver().transport();
  const auto changed = [&] {
    pollfd look{.fd = transport.config_fd(), .events = POLLIN, .revents = 0};
    return poll(&look, 1, 60'000) == 1 && transport.TakeConfigChanges().value_or(0) > 0;
  };
  const TestFrame frame = MakeFrame({});
  EXPECT_FALSE(device_.Control("link", "perhaps").ok());
  EXPECT_FALSE(device_.Control("jump", "").ok());
  ASSERT_OK(device_.Control("link", "down"));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 0);
  ASSERT_OK(client_->Send(0, {}, frame.bytes));
  ASSERT_OK(client_->WaitSent(0));
  Give(Record(54), frame.bytes);
  WaitHandled(1);
  EXPECT_EQ(Drops(), (std::map<std::string, uint64_t>{{"tx_drops_link_down", 1},
                                                      {"rx_drops_link_down", 1}}));
  ASSERT_OK_AND_ASSIGN(const std::string shown, device_.Control("show", ""));
  EXPECT_THAT(shown, HasSubstr("\"link\": \"down\""));
  ASSERT_OK(device_.Control("link", "up"));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 1);
  Give(Record(54), frame.bytes);
  ASSERT_OK(client_->Receive(0));
  ASSERT_OK(device_.Control("announce", ""));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 3);
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(3, 0, ""));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(client_->ReadConfig()->status, 1);
  EXPECT_EQ(Count("link_changes"), 2u);
}

}  // namespace
}  // namespace virtbay::testing
