// Which flow of proxy-net ends when a new one finds no room.
#include <netinet/udp.h>
#include <sys/resource.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "plugins/proxy-net/flow/state.h"
#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

class EvictionTest : public FlowTest {
 protected:
  struct End {
    uint16_t guest_port = 0;
    uint32_t ours = 0;
    uint32_t theirs = 0;
    UniqueFd peer;
  };

  uint64_t Idle() const { return limits.evict_idle_s * kSec; }
  // A connection that stands; the guest's ports are 41000 and so on.
  End& Stand() {
    guest_port = static_cast<uint16_t>(41000 + stand_.size());
    Connect(Full());
    stand_.push_back({guest_port, ours, theirs, std::move(peer)});
    return stand_.back();
  }
  void SayOf(const End& end, uint8_t flags, uint32_t sequence, std::string_view payload = "",
             uint32_t window = 65535) {
    guest_port = end.guest_port;
    Say(flags, sequence, end.theirs, payload, window);
  }
  // A SYN of a new flow; whether it found room.
  bool Try() {
    const uint64_t opened = Count(Event::kTcpOpened);
    const uint64_t short_of = Count(Event::kNoDescriptor);
    guest_port = next_++;
    Say(kSyn, kIsn, 0, "", 65535, Full());
    return Count(Event::kTcpOpened) > opened && Count(Event::kNoDescriptor) == short_of;
  }
  bool Has(const End& end) {
    return shard().Describe(1000).find(":" + std::to_string(end.guest_port) + " ") !=
           std::string::npos;
  }
  // Both ends of it were told.
  void ExpectReset(const End& end) {
    EXPECT_FALSE(Has(end));
    EXPECT_EQ(Ending(end.peer.get()), "RESET");
    bool told = false;
    for (const Seen& seen : Heard()) {
      if (seen.tcp.destination_port != end.guest_port) continue;
      told = seen.has(kRst) && seen.tcp.sequence == end.theirs;
    }
    EXPECT_TRUE(told);
  }
  uint64_t Established() const { return Count(Event::kEvictedEstablished); }

  void SayDatagram(uint16_t from, uint16_t to) {
    std::vector<uint8_t> bytes(kUdpSize + 1);
    Writer writer(bytes);
    WriteUdp({from, to, 9, 0}, &writer);
    writer.U8('x');
    Deliver({IpFrame(kProtocolUdp, bytes)});
  }
  static UniqueFd BindDatagrams(uint16_t* port) {
    UniqueFd server(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SocketAddress any = SocketAddress::Of({*IpAddress::Parse("127.0.0.1"), 0});
    EXPECT_EQ(bind(server.get(), any.get(), any.size), 0);
    EXPECT_EQ(getsockname(server.get(), any.get(), &any.size), 0);
    *port = any.ToEndpoint()->port;
    return server;
  }

 private:
  std::deque<End> stand_;
  uint16_t next_ = 50000;
};

TEST_F(EvictionTest, TheLeastRecentlyUsedIdleConnectionGivesWay) {
  limits.tcp_flows = 3;
  Listen();
  End& first = Stand();
  host.now += 2 * kSec;
  End& second = Stand();
  host.now += 2 * kSec;
  End& third = Stand();
  host.now += 2 * kSec;
  SayOf(first, kAck, first.ours, "used");  // so that the second is the oldest
  EXPECT_EQ(Read(first.peer.get(), 4), "used");
  // All of them have been used not long ago.
  EXPECT_FALSE(Try());
  host.now += Idle() - 5 * kSec;
  EXPECT_FALSE(Try());
  EXPECT_EQ(Count(Event::kTooManyFlows), 2u);
  EXPECT_EQ(Count(Event::kFlowsEvicted), 0u);
  host.now += 2 * kSec;
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(second);
  EXPECT_TRUE(Has(first) && Has(third));
  EXPECT_EQ(Count(Event::kFlowsEvicted), 1u);
  EXPECT_EQ(Count(Event::kEvictedForFlow), 1u);
  EXPECT_EQ(Established(), 1u);
  EXPECT_EQ(shard().totals().tcp, 3u);
  // Those that are left still move bytes.
  Write(third.peer.get(), "still");
  PollUntil([&] { return !link.received.empty() && Established() == 1; });
  SayOf(first, kAck, first.ours + 4, "here");
  EXPECT_EQ(Read(first.peer.get(), 4), "here");
}

TEST_F(EvictionTest, AKeepaliveKeepsAConnection) {
  limits.tcp_flows = 1;
  Listen();
  End& end = Stand();
  for (int i = 0; i < 5; ++i) {
    host.now += Idle() - 10 * kSec;
    SayOf(end, kAck, end.ours - 1);
  }
  EXPECT_FALSE(Try());
  EXPECT_TRUE(Has(end));
}

// Each of these has bytes, or an end, that somebody has not got yet.
TEST_F(EvictionTest, NeverOneWithDataUnderWay) {
  limits.tcp_flows = 7;
  Listen(128, /*receive_buffer=*/4096);
  End& in_flight = Stand();
  Write(in_flight.peer.get(), "in flight");
  PollUntil([&] { return !link.received.empty(); });

  End& no_window = Stand();
  SayOf(no_window, kAck, no_window.ours, "", 0);
  Write(no_window.peer.get(), "in the socket");
  Poll();

  End& held = Stand();
  link.send_limit = 0;
  SayOf(held, kAck, held.ours, "held here");
  link.send_limit = INT64_MAX;

  End& early = Stand();
  SayOf(early, kAck, early.ours + 3, "before its turn");

  End& early_fin = Stand();
  SayOf(early_fin, kAck | kFin, early_fin.ours + 3);

  // More than the other end's receive buffer takes, so that the kernel still has it.
  End& unread = Stand();
  for (uint32_t i = 0; i < 40; ++i) {
    SayOf(unread, kAck, unread.ours + i * 1400, std::string(1400, 'u'));
  }
  EXPECT_EQ(shard().tcp().At(5)->to_host, unread.ours + 40 * 1400) << "nothing is held here";

  // The last word of the host's, that the guest has not acknowledged.
  End& ended = Stand();
  shutdown(ended.peer.get(), SHUT_WR);
  PollUntil([&] { return TcpStateName(*shard().tcp().At(6)) == std::string("FIN-WAIT-1"); });

  host.now += 10 * Idle();
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(Try());
    host.now += 2 * Idle();
  }
  EXPECT_EQ(Count(Event::kFlowsEvicted), 0u);
  // An event that nobody has looked at yet counts as well; and what is over may go.
  SayOf(no_window, kRst, no_window.ours);
  End& told = Stand();
  host.now += 2 * Idle();
  Write(told.peer.get(), "not seen yet");
  ASSERT_TRUE(
      WaitFor(shard()
                  .tcp()
                  .At(shard().core().Find(
                      {kProtocolTcp, {GuestAddress(), told.guest_port}, {RemoteAddress(), port_}}))
                  ->fd,
              POLLIN));
  EXPECT_FALSE(Try());
  EXPECT_TRUE(Has(told));
  Poll();
  Heard();
  SayOf(told, kAck, told.ours);
  guest_port = told.guest_port;
  Say(kAck, told.ours, told.theirs + 12);
  host.now += 2 * Idle();
  told.theirs += 12;
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(told);
}

// Many that may not go, at the old end of the list: each look passes over a few of them and finds
// the one that may before long, and later looks do not look at them again at once.
TEST_F(EvictionTest, ThoseThatMayNotGoAreNotInTheWay) {
  constexpr uint32_t kStuck = 64;
  limits.tcp_flows = kStuck + 1;
  Listen();
  for (uint32_t i = 0; i < kStuck; ++i) {
    Write(Stand().peer.get(), "in flight");
    PollUntil([&] { return !link.received.empty(); });
    host.now += 2 * kSec;
  }
  End& idle = Stand();
  host.now += 2 * Idle();
  int tries = 1;
  while (!Try() && tries < 10) ++tries;
  EXPECT_GT(tries, 1) << "a look has a bound";
  EXPECT_LE(tries, 5);
  EXPECT_FALSE(Has(idle));
  EXPECT_EQ(shard().totals().tcp, kStuck + 1);
}

TEST_F(EvictionTest, WhatIsOverOrNeverStoodGoesFirst) {
  limits.tcp_flows = 4;
  limits.time_wait_s = 100'000;
  limits.connect_s = 100'000;
  Listen();
  End& idle = Stand();
  host.now += 2 * kSec;
  End& half_closed = Stand();
  SayOf(half_closed, kAck | kFin, half_closed.ours);
  EXPECT_EQ(Ending(half_closed.peer.get()), "EOF");
  // Has the other end acknowledge the end at once.
  Heard();
  Write(half_closed.peer.get(), "x");
  PollUntil([&] { return !link.received.empty(); });
  ++half_closed.theirs;
  SayOf(half_closed, kAck, half_closed.ours + 1);
  host.now += 2 * kSec;
  // One that waits out its time.
  End& over = Stand();
  shutdown(over.peer.get(), SHUT_WR);
  PollUntil([&] {
    return std::any_of(link.received.begin(), link.received.end(),
                       [](const auto& frame) { return (frame.bytes[47] & kFin) != 0; });
  });
  guest_port = over.guest_port;
  Say(kAck | kFin, over.ours, over.theirs + 1);
  ASSERT_EQ(shard().totals().time_wait, 1u);
  // One that never stood.
  ASSERT_TRUE(Try());
  ASSERT_EQ(shard().totals().half_open, 1u);
  const uint16_t never = guest_port;

  host.now += 2 * Idle();
  EXPECT_TRUE(Try());
  EXPECT_FALSE(Has(over));
  EXPECT_EQ(shard().totals().half_open, 2u);
  EXPECT_TRUE(Try());
  EXPECT_EQ(shard().Describe(10).find(":" + std::to_string(never) + " "), std::string::npos);
  EXPECT_EQ(Established(), 0u);
  // The two that are new were begun just now.
  Heard();
  EXPECT_TRUE(Try());
  EXPECT_FALSE(Has(half_closed));
  EXPECT_TRUE(Has(idle));
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(idle);
  EXPECT_EQ(Established(), 2u);
  EXPECT_EQ(Count(Event::kEvictedForFlow), 4u);
  EXPECT_FALSE(Try());
}

TEST_F(EvictionTest, ADescriptorComesFromWhoHasOne) {
  limits.time_wait_s = 100'000;
  limits.udp_idle_s = 100'000;
  Listen();
  uint16_t datagram_port = 0;
  const UniqueFd server = BindDatagrams(&datagram_port);
  const uint16_t stream_port = port_;
  End& over = Stand();
  shutdown(over.peer.get(), SHUT_WR);
  Poll();
  guest_port = over.guest_port;
  Say(kAck | kFin, over.ours, over.theirs + 1);
  ASSERT_EQ(shard().totals().time_wait, 1u);
  End& older = Stand();
  host.now += 2 * kSec;
  SayDatagram(45000, datagram_port);
  host.now += 2 * kSec;
  End& younger = Stand();
  port_ = stream_port;
  host.now += 2 * Idle();
  host.descriptors = 0;

  // The least recently used of both kinds; what waits out its time has no descriptor to give.
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(older);
  EXPECT_EQ(shard().totals().datagram, 1u);
  EXPECT_TRUE(Try());
  EXPECT_EQ(shard().totals().datagram, 0u);
  EXPECT_TRUE(Has(younger));
  // A datagram's flow can have that of a connection.
  Heard();
  SayDatagram(45001, datagram_port);
  EXPECT_EQ(shard().totals().datagram, 1u);
  ExpectReset(younger);
  EXPECT_EQ(Count(Event::kEvictedForDescriptor), 3u);
  EXPECT_EQ(Established(), 2u);
  EXPECT_EQ(shard().totals().time_wait, 1u);
  // What has just begun is left alone.
  EXPECT_FALSE(Try());
  EXPECT_EQ(Count(Event::kNoDescriptor), 1u);
}

// A datagram's flow that came by a forward has no descriptor of its own.
TEST_F(EvictionTest, ADescriptorIsNoForwardsDatagramFlow) {
  limits.udp_idle_s = 100'000;
  const Endpoint forward = AddForward(kProtocolUdp, 53).host;
  const UniqueFd client = ConnectTo(forward, SOCK_DGRAM);
  ASSERT_EQ(send(client.get(), "x", 1, 0), 1);
  PollUntil([&] { return shard().totals().datagram == 1; });
  host.now += 2 * kSec;
  uint16_t datagram_port = 0;
  const UniqueFd server = BindDatagrams(&datagram_port);
  SayDatagram(45000, datagram_port);
  host.now += 10 * kSec;
  host.descriptors = 0;
  SayDatagram(45001, datagram_port);
  const std::string left = shard().Describe(10);
  EXPECT_EQ(shard().totals().datagram, 2u);
  EXPECT_NE(left.find(":53 "), std::string::npos) << left;
  EXPECT_NE(left.find(":45001 "), std::string::npos) << left;
  EXPECT_EQ(Count(Event::kEvictedForDescriptor), 1u);
}

// The host's limit on its descriptors, which the count knows nothing of.
TEST_F(EvictionTest, AProcessWithoutDescriptorsMakesRoomAsWell) {
  Listen();
  End& end = Stand();
  host.now += 2 * Idle();
  std::vector<UniqueFd> all;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{256, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  while (true) {
    UniqueFd one(dup(end.peer.get()));
    if (one.get() < 0) break;
    all.push_back(std::move(one));
  }
  const bool found = Try();
  all.clear();
  setrlimit(RLIMIT_NOFILE, &before);
  EXPECT_TRUE(found);
  EXPECT_FALSE(Has(end));
  EXPECT_EQ(Count(Event::kEvictedForDescriptor), 1u);
  EXPECT_EQ(Count(Event::kNoDescriptor), 0u);
}

TEST_F(EvictionTest, ForwardedConnectionsFindRoomToo) {
  Listen();
  End& end = Stand();
  const Endpoint forward = AddForward(kProtocolTcp, 80).host;
  host.now += 2 * Idle();
  host.descriptors = 0;
  const UniqueFd client = ConnectTo(forward);
  Heard();
  Poll();
  EXPECT_EQ(shard().totals().half_open, 1u);
  ExpectReset(end);
  // No flow ends for a connection that is not there.
  EXPECT_EQ(Count(Event::kFlowsEvicted), 1u);
}

TEST_F(EvictionTest, NoFlowEndsForAConnectionThatIsNotThere) {
  Listen();
  End& end = Stand();
  const Endpoint forward = AddForward(kProtocolTcp, 80).host;
  host.now += 2 * Idle();
  const UniqueFd client = ConnectTo(forward);
  host.descriptors = 1;  // for that one
  Poll();
  EXPECT_EQ(shard().totals().half_open, 1u);
  EXPECT_EQ(Count(Event::kFlowsEvicted), 0u);
  EXPECT_TRUE(Has(end));
}

TEST_F(EvictionTest, MemoryComesFromWhoHasSome) {
  limits.buffer_bytes = 1 << 20;  // of 128 chunks
  limits.time_wait_s = 100'000;
  const uint32_t most = 128 / Spill::ChunksFor(Tcp::kFirstWindow);
  Listen();
  End& over = Stand();
  shutdown(over.peer.get(), SHUT_WR);
  Poll();
  guest_port = over.guest_port;
  Say(kAck | kFin, over.ours, over.theirs + 1);
  ASSERT_EQ(shard().totals().time_wait, 1u);
  End& oldest = Stand();
  for (uint32_t i = 1; i < most; ++i) Stand();
  EXPECT_FALSE(Try());
  EXPECT_EQ(Count(Event::kNoBufferMemory), 1u);
  host.now += 2 * Idle();
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(oldest);
  EXPECT_EQ(Count(Event::kEvictedForMemory), 1u);
  EXPECT_EQ(Count(Event::kFlowsEvicted), 1u);
  EXPECT_EQ(shard().totals().time_wait, 1u) << "has none";
}

TEST_F(EvictionTest, WhoIsIdleIsSoAfterARestoreAsWell) {
  limits.tcp_flows = 2;
  Listen();
  End& first = Stand();
  End& second = Stand();
  host.now += 2 * kSec;
  SayOf(first, kAck, first.ours, "used");
  host.now += 2 * Idle();
  Shard* const old = &shard();
  const SavedFlows saved = SaveFlows({&old, 1});
  std::vector<int> fds;
  for (const int fd : saved.fds) fds.push_back(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  shard().Forget();
  DropShard();
  ASSERT_TRUE(RestoreFlows(&shard(), saved.bytes, fds).ok());
  shard().Continue();
  Heard();
  EXPECT_TRUE(Try());
  ExpectReset(second);
  EXPECT_TRUE(Has(first));
}

}  // namespace
}  // namespace virtbay::proxy_net
