// The TCP state machine of proxy-net, segment by segment, against real sockets of the host.
#include <poll.h>

#include <algorithm>
#include <random>
#include <string>

#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

using testing::SizeIs;

class TcpTest : public FlowTest {};

TEST_F(TcpTest, AnswersTheGuestOnlyAfterTheHostHasConnected) {
  ListenInVain();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  EXPECT_THAT(Heard(), SizeIs(0));
  EXPECT_STREQ(TcpStateName(*shard().tcp().At(0)), "CONNECTING");
  Say(kRst, kIsn + 1, 0);
  Listen();
  Connect(Full());
  EXPECT_EQ(syn_ack.tcp.options.mss, 1460);
  EXPECT_EQ(syn_ack.tcp.options.window_scale, Tcp::kReceiveScale);
  EXPECT_TRUE(syn_ack.tcp.options.sack_permitted);
  EXPECT_EQ(syn_ack.tcp.window, Tcp::kFirstWindow);
}

TEST_F(TcpTest, MovesBytesBothWays) {
  Listen();
  Connect(Full());
  Say(kAck, ours, theirs, "hello");
  EXPECT_EQ(Read(peer.get(), 5), "hello");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 5);
  Write(peer.get(), "world");
  Poll();
  const Seen data = HeardOne();
  EXPECT_EQ(data.payload, "world");
  EXPECT_EQ(data.tcp.sequence, theirs);
  EXPECT_EQ(data.tcp.acknowledgement, ours + 5);
  EXPECT_TRUE(data.has(TcpHeader::kPsh));
}

TEST_F(TcpTest, MovesBytesOverIpv6) {
  v6 = true;
  Listen();
  Connect(Full(1440));
  EXPECT_EQ(syn_ack.tcp.options.mss, 1440);
  Say(kAck, ours, theirs, "six");
  EXPECT_EQ(Read(peer.get(), 3), "six");
  Heard();
  Write(peer.get(), std::string(5000, 'x'));
  Poll();
  const Seen data = Heard().at(0);
  EXPECT_GT(data.payload.size(), 1440u);
  EXPECT_EQ(data.offload.gso, sdk::Gso::kTcp6);
  EXPECT_EQ(data.offload.gso_size, 1440);
}

TEST_F(TcpTest, RefusesWithAReset) {
  Listen();
  listener_.reset();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  PollUntil([&] { return !link.received.empty(); });
  const Seen reset = HeardOne();
  EXPECT_TRUE(reset.has(kRst));
  EXPECT_EQ(reset.tcp.acknowledgement, kIsn + 1);
  EXPECT_EQ(Count(Event::kTcpRefused), 1u);
  ExpectNothingLeft();
}

TEST_F(TcpTest, SaysWhatCannotBeReached) {
  host.redirect = IpAddress::Parse("255.255.255.255");
  port_ = 80;
  Say(kSyn, kIsn, 0, "", 65535, Full());
  const std::vector<Seen> heard = Heard();
  ASSERT_THAT(heard, SizeIs(2));
  ASSERT_NE(heard[0].frame.icmp(), nullptr);
  EXPECT_EQ(heard[0].frame.icmp()->type, IcmpHeader::kUnreachable);
  EXPECT_TRUE(heard[1].has(kRst));
  ExpectNothingLeft();
}

TEST_F(TcpTest, ResetsWhatTheRulesForbid) {
  Listen();
  host.denied = true;
  Say(kSyn, kIsn, 0);
  EXPECT_TRUE(HeardOne().has(kRst));
  EXPECT_EQ(Count(Event::kPolicyDenied), 1u);
  ExpectNothingLeft();
}

TEST_F(TcpTest, CutsFlowsThatNewRulesForbid) {
  Listen();
  Connect(Full());
  host.denied = true;
  EXPECT_EQ(shard().Recheck(), 1u);
  EXPECT_TRUE(HeardOne().has(kRst));
  EXPECT_EQ(Ending(peer.get()), "RESET");
  ExpectNothingLeft();
}

TEST_F(TcpTest, ResetsSegmentsOfNoFlow) {
  port_ = 80;
  Say(kAck, 77, 1234, "data");
  const Seen reset = HeardOne();
  EXPECT_TRUE(reset.has(kRst));
  EXPECT_FALSE(reset.has(kAck));
  EXPECT_EQ(reset.tcp.sequence, 1234u);
  Say(kRst, 77, 0);
  EXPECT_TRUE(Heard().empty());  // a reset is never answered
}

TEST_F(TcpTest, IgnoresImpossibleFlagsAndUrgentData) {
  Listen();
  port_ = 80;
  Say(kSyn | kFin, 1, 0);
  Say(kSyn | kRst, 1, 0);
  Say(0, 1, 0);
  EXPECT_TRUE(Heard().empty());
  EXPECT_EQ(Count(Event::kTcpMalformed), 3u);
  Listen();
  Connect(Full());
  // CVE-2026-9539: urgent data is data, whatever the pointer says.
  std::vector<uint8_t> urgent = Segment(kAck | TcpHeader::kUrg, ours, theirs, "abc");
  urgent[kEthernetSize + kIpv4Size + 18] = 0xff;
  urgent[kEthernetSize + kIpv4Size + 19] = 0xff;
  Deliver({urgent});
  EXPECT_EQ(Read(peer.get(), 3), "abc");
  EXPECT_EQ(Count(Event::kTcpUrgentIgnored), 1u);
}

TEST_F(TcpTest, SendsWholeBurstsInOneCall) {
  Listen();
  Connect(Full());
  std::vector<std::vector<uint8_t>> burst;
  std::string all;
  for (uint32_t i = 0; i < 10; ++i) {
    const std::string part(1000, static_cast<char>('a' + i));
    burst.push_back(Segment(kAck, ours + 1000 * i, theirs, part));
    all += part;
  }
  const uint64_t before = link.sends;
  Deliver(burst);
  EXPECT_EQ(link.sends - before, 1u);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 10000);
  EXPECT_EQ(Read(peer.get(), all.size()), all);
}

TEST_F(TcpTest, SendsFewerAtOnceWhenTheyLieInTooManyPieces) {
  Listen();
  Connect(Full());
  for (const size_t limit : {3u, 0u}) {
    link.slice_limit = limit;
    std::vector<std::vector<uint8_t>> burst;
    for (uint32_t i = 0; i < 10; ++i) {
      burst.push_back(Segment(kAck, ours + 100 * i, theirs, std::string(100, 'p')));
    }
    Deliver(burst);
    ours += 1000;
    EXPECT_EQ(Heard().back().tcp.acknowledgement, ours);
    EXPECT_THAT(Read(peer.get(), 1000), SizeIs(1000));
  }
}

// ---- strangers ---------------------------------------------------------------------------------

TEST_F(TcpTest, ChallengesResetsThatAreNotExact) {
  Listen();
  Connect(Full());
  Say(kRst, ours + 100, 0);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours);
  EXPECT_EQ(Count(Event::kTcpChallengeAck), 1u);
  Say(kRst, ours + 100, 0);
  EXPECT_TRUE(Heard().empty());  // at most one in a while
  Say(kRst, ours + Tcp::kFirstWindow + 100, 0);
  EXPECT_TRUE(Heard().empty());  // outside the window: not even that
  host.now += 200 * kMs;
  Say(kSyn, ours + 7, 0);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours);
  EXPECT_EQ(shard().totals().tcp, 1u);
  Say(kRst, ours, 0);
  EXPECT_EQ(Ending(peer.get()), "RESET");
  ExpectNothingLeft();
}

TEST_F(TcpTest, ChallengesAcksOfWhatWasNeverSent) {
  Listen();
  Connect(Full());
  Say(kAck, ours, theirs + 1000, "inject");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours);
  host.now += 200 * kMs;
  Say(kAck, ours, theirs - (1u << 30), "inject");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours);
  Say(kAck, ours, theirs, "right");
  EXPECT_EQ(Read(peer.get(), 5), "right");
}

TEST_F(TcpTest, RefusesOldTimestamps) {
  Listen();
  TcpOptions options = Full();
  options.timestamps = TcpOptions::Timestamps{1000, 0};
  Say(kSyn, kIsn, 0, "", 65535, options);
  PollUntil([&] { return !link.received.empty(); });
  syn_ack = HeardOne();
  ASSERT_TRUE(syn_ack.tcp.options.timestamps.has_value());
  EXPECT_EQ(syn_ack.tcp.options.timestamps->echo, 1000u);
  theirs = syn_ack.tcp.sequence + 1;
  ours = kIsn + 1;
  TcpOptions stamp;
  stamp.timestamps = TcpOptions::Timestamps{1001, 0};
  Say(kAck, ours, theirs, "new", 65535, stamp);
  peer = AcceptOne();
  EXPECT_EQ(Read(peer.get(), 3), "new");
  EXPECT_EQ(HeardOne().tcp.options.timestamps->echo, 1001u);
  stamp.timestamps = TcpOptions::Timestamps{900, 0};
  Say(kAck, ours + 3, theirs, "old", 65535, stamp);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 3);
  EXPECT_EQ(Count(Event::kTcpOldTimestamp), 1u);
  Write(peer.get(), std::string(4000, 't'));
  Poll();
  const Seen data = HeardOne();
  EXPECT_EQ(data.offload.gso_size, 1448);  // the option takes its part
}

// ---- the end -----------------------------------------------------------------------------------

TEST_F(TcpTest, TheGuestClosesFirst) {
  Listen();
  Connect(Full());
  Say(kAck | kFin, ours, theirs, "bye");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 4);
  EXPECT_EQ(Read(peer.get(), 3), "bye");
  EXPECT_EQ(Ending(peer.get()), "EOF");
  // The other half is still open.
  Write(peer.get(), "still here");
  Poll();
  EXPECT_EQ(HeardOne().payload, "still here");
  Say(kAck, ours + 4, theirs + 10);
  peer.reset();
  Poll();
  const Seen fin = HeardOne();
  EXPECT_TRUE(fin.has(kFin));
  EXPECT_EQ(fin.tcp.sequence, theirs + 10);
  Say(kAck, ours + 4, theirs + 11);
  EXPECT_EQ(Count(Event::kFlowsClosed), 1u);
  ExpectNothingLeft();
}

TEST_F(TcpTest, TheHostClosesFirst) {
  Listen();
  Connect(Full());
  Write(peer.get(), "last");
  shutdown(peer.get(), SHUT_WR);
  PollUntil([&] { return link.received.size() >= 2; });
  std::vector<Seen> heard = Heard();
  EXPECT_EQ(heard[0].payload, "last");
  EXPECT_TRUE(heard[1].has(kFin));
  EXPECT_EQ(heard[1].tcp.sequence, theirs + 4);
  Say(kAck, ours, theirs + 5);
  // The guest goes on for a while.
  Say(kAck, ours, theirs + 5, "more");
  EXPECT_EQ(Read(peer.get(), 4), "more");
  Heard();
  Say(kAck | kFin, ours + 4, theirs + 5);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 5);
  EXPECT_EQ(Ending(peer.get()), "EOF");
  EXPECT_EQ(shard().totals().time_wait, 1u);
  EXPECT_EQ(host.descriptors, 1 << 20);  // the socket is gone
  // Its FIN may come again.
  Say(kAck | kFin, ours + 4, theirs + 5);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 5);
  Say(kRst, ours + 5, 0);
  EXPECT_EQ(shard().totals().time_wait, 1u);  // RFC 1337
  Pass(limits.time_wait_s * kSec + 10 * kMs);
  ExpectNothingLeft();
}

TEST_F(TcpTest, BothCloseAtOnce) {
  Listen();
  Connect(Full());
  shutdown(peer.get(), SHUT_WR);
  Poll();
  EXPECT_TRUE(HeardOne().has(kFin));
  Say(kAck | kFin, ours, theirs);  // it had not seen ours
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 1);
  EXPECT_STREQ(TcpStateName(*shard().tcp().At(0)), "CLOSING");
  Say(kAck, ours + 1, theirs + 1);
  EXPECT_EQ(shard().totals().time_wait, 1u);
}

TEST_F(TcpTest, ANewConnectionTakesTheTupleOfOneInTimeWait) {
  Listen();
  Connect(Full());
  shutdown(peer.get(), SHUT_WR);
  Poll();
  Say(kAck | kFin, ours, theirs + 1);
  ASSERT_EQ(shard().totals().time_wait, 1u);
  Heard();
  Say(kSyn, ours - 100, 0, "", 65535, Full());  // not after the old one's end
  EXPECT_FALSE(HeardOne().has(kSyn));
  Say(kSyn, ours + 100, 0, "", 65535, Full());
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_TRUE(HeardOne().has(kSyn));
}

TEST_F(TcpTest, AFinBehindAFullSocketWaits) {
  Listen();
  Connect(Full());
  link.send_limit = 0;
  Say(kAck | kFin, ours, theirs, "held");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 5);
  pollfd nothing = {peer.get(), POLLIN, 0};
  EXPECT_EQ(poll(&nothing, 1, 0), 0);
  link.send_limit = INT64_MAX;
  Write(peer.get(), "x");
  Poll();
  EXPECT_EQ(Read(peer.get(), 4), "held");
  EXPECT_EQ(Ending(peer.get()), "EOF");
}

TEST_F(TcpTest, PassesAResetOfTheHostOn) {
  Listen();
  Connect(Full());
  const linger abort = {1, 0};
  setsockopt(peer.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  peer.reset();
  Poll();
  const Seen reset = HeardOne();
  EXPECT_TRUE(reset.has(kRst));
  EXPECT_EQ(reset.tcp.sequence, theirs);
  EXPECT_EQ(Count(Event::kTcpResetByHost), 1u);
  ExpectNothingLeft();
}

// RST in every state.
TEST_F(TcpTest, AResetEndsEveryState) {
  // CONNECTING: the host has not answered; its backlog is full.
  ListenInVain();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  EXPECT_STREQ(TcpStateName(*shard().tcp().At(0)), "CONNECTING");
  Say(kRst, kIsn + 50, 0);
  EXPECT_EQ(shard().totals().tcp, 1u);
  Say(kRst, kIsn + 1, 0);
  ExpectNothingLeft();

  // SYN-RECEIVED.
  Listen();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  PollUntil([&] { return !link.received.empty(); });
  Heard();
  Say(kRst, kIsn + 1, 0);
  ExpectNothingLeft();

  // CLOSE-WAIT.
  Listen();
  Connect(Full());
  Say(kAck | kFin, ours, theirs);
  EXPECT_STREQ(TcpStateName(*shard().tcp().At(0)), "CLOSE-WAIT");
  Say(kRst, ours + 1, 0);
  ExpectNothingLeft();

  // FIN-WAIT-1 and FIN-WAIT-2.
  for (const uint32_t acknowledged : {0u, 1u}) {
    Listen();
    Connect(Full());
    shutdown(peer.get(), SHUT_WR);
    Poll();
    Say(kAck, ours, theirs + acknowledged);
    EXPECT_STREQ(TcpStateName(*shard().tcp().At(0)),
                 acknowledged == 0 ? "FIN-WAIT-1" : "FIN-WAIT-2");
    Say(kRst, ours, 0);
    ExpectNothingLeft();
  }

  // LAST-ACK.
  Listen();
  Connect(Full());
  Say(kAck | kFin, ours, theirs);
  peer.reset();
  PollUntil([&] { return std::string(TcpStateName(*shard().tcp().At(0))) == "LAST-ACK"; });
  Say(kRst, ours + 1, 0);
  ExpectNothingLeft();
}

TEST_F(TcpTest, RepeatsItsSynAckAndGivesUp) {
  Listen();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  PollUntil([&] { return !link.received.empty(); });
  const Seen first = HeardOne();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  EXPECT_EQ(HeardOne().tcp.sequence, first.tcp.sequence);
  Pass(1100 * kMs);
  EXPECT_EQ(HeardOne().tcp.sequence, first.tcp.sequence);
  for (int i = 0; i < 10; ++i) Pass(70 * kSec);
  EXPECT_EQ(Count(Event::kTcpTimedOut), 1u);
  ExpectNothingLeft();
}

TEST_F(TcpTest, AsksAnIdleGuestWhetherItIsThere) {
  Listen();
  Connect(Full());
  Pass(limits.tcp_idle_s * kSec + kSec);
  const Seen probe = HeardOne();
  EXPECT_EQ(probe.tcp.sequence, theirs - 1);
  Say(kAck, ours, theirs);
  EXPECT_EQ(shard().totals().tcp, 1u);
  for (int i = 0; i < 10; ++i) Pass(limits.tcp_idle_s * kSec);
  EXPECT_EQ(Count(Event::kTcpTimedOut), 1u);
  EXPECT_EQ(Ending(peer.get()), "RESET");
  ExpectNothingLeft();
}

TEST_F(TcpTest, PassesTheGuestsKeepaliveOn) {
  Listen();
  Connect(Full());
  int on = 0;
  socklen_t size = sizeof(on);
  const int fd = shard().tcp().At(0)->fd;
  ASSERT_EQ(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size), 0);
  EXPECT_EQ(on, 0);
  Say(kAck, ours - 1, theirs);
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours);
  ASSERT_EQ(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size), 0);
  EXPECT_EQ(on, 1);
}

// A probe may have a byte (RFC 9293 3.8.4), which lies before what is next and is nobody's.
TEST_F(TcpTest, AnswersAKeepaliveWithAByteAndDeliversNone) {
  Listen();
  Connect(Full());
  const auto probe = [&](uint32_t expected) {
    Heard();
    Say(kAck, expected - 1, theirs, "#");
    const Seen answer = HeardOne();
    EXPECT_EQ(answer.tcp.acknowledgement, expected);
    EXPECT_EQ(answer.tcp.sequence, theirs);
    EXPECT_TRUE(answer.payload.empty());
  };
  probe(ours);
  int on = 0;
  socklen_t size = sizeof(on);
  ASSERT_EQ(getsockopt(shard().tcp().At(0)->fd, SOL_SOCKET, SO_KEEPALIVE, &on, &size), 0);
  EXPECT_EQ(on, 1);
  Say(kAck, ours, theirs, "abc");
  probe(ours + 3);
  Say(kAck, ours + 3, theirs, "def");
  // Nor when its end is here.
  Say(kAck | kFin, ours + 6, theirs);
  probe(ours + 7);
  EXPECT_EQ(Read(peer.get(), 7), "abcdef");
  EXPECT_EQ(Ending(peer.get()), "EOF");
}

// ---- budgets -----------------------------------------------------------------------------------

TEST_F(TcpTest, RefusesMoreHalfOpenFlowsThanItsBudget) {
  limits.half_open = 3;
  Listen();
  for (uint16_t i = 0; i < 5; ++i) {
    guest_port = static_cast<uint16_t>(41000 + i);
    Say(kSyn, kIsn, 0, "", 65535, Full());
  }
  EXPECT_EQ(shard().totals().tcp, 3u);
  EXPECT_EQ(Count(Event::kTooManyHalfOpen), 2u);
  // After a while the oldest gives way.
  host.now += 6 * kSec;
  guest_port = 42000;
  Say(kSyn, kIsn, 0, "", 65535, Full());
  EXPECT_EQ(Count(Event::kFlowsEvicted), 1u);
  EXPECT_EQ(shard().totals().tcp, 3u);
}

TEST_F(TcpTest, RefusesFlowsWithoutDescriptorsAndBeyondTheTable) {
  limits.tcp_flows = 2;
  Listen();
  host.descriptors = 1;
  Say(kSyn, kIsn, 0);
  guest_port = 40001;
  Say(kSyn, kIsn, 0);
  EXPECT_EQ(Count(Event::kNoDescriptor), 1u);
  host.descriptors = 10;
  Say(kSyn, kIsn, 0);
  guest_port = 40002;
  Say(kSyn, kIsn, 0);
  EXPECT_EQ(Count(Event::kTooManyFlows), 1u);
}

TEST_F(TcpTest, LimitsTheRateOfNewFlows) {
  limits.new_flows_per_second = 5;
  Listen();
  for (uint16_t i = 0; i < 8; ++i) {
    guest_port = static_cast<uint16_t>(41000 + i);
    Say(kSyn, kIsn, 0);
  }
  EXPECT_EQ(Count(Event::kNewFlowRate), 3u);
  host.now += kSec;
  Say(kSyn, kIsn, 0);
  EXPECT_EQ(Count(Event::kTcpOpened), 6u);
}

TEST_F(TcpTest, TenThousandConnectionsLeaveNothing) {
  Listen(4096);
  for (uint32_t i = 0; i < 10'000; ++i) {
    guest_port = static_cast<uint16_t>(20'000 + i);
    Connect(Full());
    if (HasFatalFailure()) return;
    Say(kAck, ours, theirs, "ping");
    ASSERT_EQ(Read(peer.get(), 4), "ping");
    switch (i % 3) {
      case 0: {  // the guest closes
        Say(kAck | kFin, ours + 4, theirs);
        peer.reset();
        bool fin = false;
        PollUntil([&] {
          for (const Seen& seen : Heard()) fin |= seen.has(kFin);
          return fin;
        });
        Say(kAck, ours + 5, theirs + 1);
        break;
      }
      case 1:  // the guest resets
        Say(kRst, ours + 4, theirs);
        break;
      default:  // the host closes
        peer.reset();
        Heard();
        Poll();
        Say(kAck | kFin, ours + 4, theirs + 1);
        host.now += 100 * kMs;
        shard().OnTimer();
        break;
    }
    Heard();
  }
  Pass(limits.time_wait_s * kSec + kSec);
  EXPECT_EQ(Count(Event::kTcpOpened), 10'000u);
  EXPECT_EQ(Count(Event::kFlowsClosed), 10'000u);
  ExpectNothingLeft();
}

TEST_F(TcpTest, IdleConnectionsTakeNoTime) {
  Listen(4096);
  limits.tcp_idle_s = 100'000;
  constexpr uint32_t kCount = 400;
  std::vector<UniqueFd> peers;
  for (uint32_t i = 0; i < kCount; ++i) {
    guest_port = static_cast<uint16_t>(20'000 + i);
    Connect(Full());
    if (HasFatalFailure()) return;
    peers.push_back(std::move(peer));
  }
  Heard();
  pollfd look = {shard().epoll_fd(), POLLIN, 0};
  while (poll(&look, 1, 0) == 1) shard().OnReady();
  // What the wheel has to turn does not grow with the flows that are on it.
  const uint64_t end = host.now + 3600 * kSec;
  uint32_t woken = 0;
  for (; shard().NextTimer() <= end && woken < kCount; ++woken) {
    Pass(std::max(shard().NextTimer(), host.now) - host.now);
  }
  EXPECT_LT(woken, 30u);
  EXPECT_EQ(poll(&look, 1, 0), 0);
  EXPECT_THAT(Heard(), ::testing::IsEmpty());
  EXPECT_EQ(shard().totals().tcp, kCount);
}

TEST_F(TcpTest, ConnectsToAServiceOfTheDevice) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
  peer = UniqueFd(pair[1]);
  host.service = pair[0];
  --host.descriptors;
  port_ = 53;
  Say(kSyn, kIsn, 0, "", 65535, Full());
  syn_ack = HeardOne();
  theirs = syn_ack.tcp.sequence + 1;
  ours = kIsn + 1;
  Say(kAck, ours, theirs, "query");
  EXPECT_EQ(Read(peer.get(), 5), "query");
  Heard();
  const std::string answer(70'000, 'A');
  Write(peer.get(), answer);
  std::string got;
  while (got.size() < answer.size()) {
    Poll();
    got += HeardBytes(theirs + static_cast<uint32_t>(got.size()));
    Say(kAck, ours + 5, theirs + static_cast<uint32_t>(got.size()));
  }
  EXPECT_EQ(got, answer);
  Say(kAck | kFin, ours + 5, theirs + 70'000);
  EXPECT_EQ(Ending(peer.get()), "EOF");
  peer.reset();
  Poll();
  Heard();
  Say(kAck, ours + 6, theirs + 70'001);
  ExpectNothingLeft();
}

// A guest that says anything at all, near enough to what is expected to be looked at.
TEST_F(TcpTest, RandomSegmentsDoNoHarm) {
  for (uint32_t seed = 1; seed <= 8; ++seed) {
    std::mt19937 engine(seed);
    const auto random = [&engine] { return static_cast<uint32_t>(engine()); };
    limits.tcp_flows = 8;
    limits.buffer_bytes = 40 * ChunkPool::kSize;
    limits.peek_offset = seed % 2 == 0;
    link.guest.csum = link.guest.tso4 = seed % 3 != 0;
    Listen(64);
    std::vector<UniqueFd> peers;
    for (int i = 0; i < 5000; ++i) {
      guest_port = static_cast<uint16_t>(40000 + random() % 12);
      // Where some flow of that port stands, if there is one.
      uint32_t sequence = kIsn;
      uint32_t ack = random();
      const uint32_t id = shard().tcp().Find(
          {kProtocolTcp, {GuestAddress(), guest_port}, {RemoteAddress(), port_}});
      if (id != kNoFlow) {
        sequence = shard().tcp().At(id)->received;
        ack = shard().tcp().At(id)->una;
      }
      sequence += random() % 3 == 0 ? random() % 40'000 - 20'000 : 0;
      ack += random() % 3 == 0 ? random() % 4000 : 0;
      uint8_t flags = kAck;
      if (random() % 4 == 0) flags = static_cast<uint8_t>(random());
      if (id == kNoFlow && random() % 2 == 0) flags = kSyn;
      TcpOptions options;
      if (random() % 2 == 0)
        options = Full(static_cast<uint16_t>(random()), static_cast<uint8_t>(random() % 20));
      if ((flags & kSyn) == 0) options = {};
      if (random() % 5 == 0) options.timestamps = TcpOptions::Timestamps{random(), random()};
      if ((flags & kSyn) == 0 && random() % 3 == 0) {
        options.sack_count = static_cast<uint8_t>(1 + random() % 2);
        for (size_t k = 0; k < options.sack_count; ++k) {
          options.sack[k] = {ack + random() % 5000, ack + random() % 9000};
        }
      }
      link.send_limit = random() % 4 == 0 ? random() % 1000 : INT64_MAX;
      link.copies_fail = random() % 50 == 0;
      link.buffers = random() % 10 == 0 ? 0 : UINT32_MAX;
      Say(flags, sequence, ack, std::string(random() % 3 == 0 ? random() % 3000 : 0, 'r'),
          random() & 0xffff, options);
      if (random() % 4 == 0) shard().OnReady();
      if (random() % 8 == 0) shard().OnRxBuffers();
      if (random() % 16 == 0) FlowTest::Pass(random() % (2 * kSec));
      if (random() % 8 == 0) {
        pollfd one = {listener_.get(), POLLIN, 0};
        if (poll(&one, 1, 0) == 1) peers.push_back(AcceptOne());
      }
      if (!peers.empty() && random() % 4 == 0) {
        const size_t which = random() % peers.size();
        char buffer[4096] = {};
        std::ignore = send(peers[which].get(), buffer, random() % sizeof(buffer), MSG_NOSIGNAL);
        std::ignore = recv(peers[which].get(), buffer, sizeof(buffer), 0);
        if (random() % 10 == 0) peers.erase(peers.begin() + static_cast<std::ptrdiff_t>(which));
      }
      const Shard::Totals totals = shard().totals();
      ASSERT_LE(totals.reserved_chunks, 40u);
      ASSERT_LE(totals.spill_chunks, totals.reserved_chunks);
      link.received.clear();
    }
    link.buffers = UINT32_MAX;
    shard().Clear();
    link.received.clear();
    ExpectNothingLeft();
    DropShard();
  }
}

TEST_F(TcpTest, InitialSequenceNumbersFollowTheTupleAndTheClock) {
  Listen();
  Connect(Full());
  const uint32_t first = syn_ack.tcp.sequence;
  Say(kRst, ours, 0);
  host.now += kSec;
  Connect(Full());
  EXPECT_EQ(syn_ack.tcp.sequence - first, static_cast<uint32_t>(kSec >> 12));
  Say(kRst, ours, 0);
  guest_port = 40001;
  Connect(Full());
  EXPECT_NE(syn_ack.tcp.sequence - first, static_cast<uint32_t>(kSec >> 12));
}

}  // namespace
}  // namespace virtbay::proxy_net
