// Bytes of a proxied connection: the window that the guest is told, order, loss, and frames.

#include <random>
#include <string>

#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

using testing::SizeIs;

class TcpDataTest : public FlowTest {};

// ---- the window --------------------------------------------------------------------------------

TEST_F(TcpDataTest, KeepsEveryByteInsideTheWindowWhileTheHostTakesNone) {
  Listen();
  Connect(Full());
  link.send_limit = 0;
  const uint32_t edge = ours + Tcp::kFirstWindow;
  std::string all;
  uint32_t at = ours;
  while (SeqBefore(at, edge)) {
    const std::string part(std::min<uint32_t>(1447, edge - at), static_cast<char>('a' + at % 26));
    Say(kAck, at, theirs, part);
    at += static_cast<uint32_t>(part.size());
    all += part;
    for (const Seen& seen : Heard()) {
      EXPECT_EQ(seen.tcp.acknowledgement, at);
      // The right edge stays where it is, as far as the scale can tell.
      const uint32_t told =
          seen.tcp.acknowledgement + (uint32_t{seen.tcp.window} << Tcp::kReceiveScale);
      EXPECT_LE(edge - told, (1u << Tcp::kReceiveScale) - 1);
    }
  }
  EXPECT_EQ(Count(Event::kTcpOutOfWindow), 0u);
  EXPECT_EQ(all.size(), Tcp::kFirstWindow);
  // Nothing is left of the window, and what lies beyond it is not taken.
  Say(kAck, at, theirs, "beyond");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, at);
  link.send_limit = INT64_MAX;
  shard().OnReady();
  Write(peer.get(), "x");  // any event of the socket
  Poll();
  // The host's socket takes it all and the guest hears of the window again.
  TcpFlow* flow = shard().tcp().At(0);
  EXPECT_EQ(flow->to_host, at);
  EXPECT_EQ(Read(peer.get(), all.size()), all);
  bool opened = false;
  for (const Seen& seen : Heard()) opened |= seen.tcp.window > 100;
  EXPECT_TRUE(opened);
}

// A guest that sends exactly as far as it was told, in pieces of any size, while the host's socket
// takes some bytes now and then.
TEST_F(TcpDataTest, TakesWhateverItToldTheGuestToSend) {
  std::mt19937 engine(7);
  Listen();
  Connect(Full());
  uint32_t at = ours;
  uint32_t edge = ours + Tcp::kFirstWindow;
  for (int i = 0; i < 3000; ++i) {
    link.send_limit = engine() % 2 == 0 ? 0 : static_cast<int64_t>(engine() % 3000);
    const uint32_t most = 1 + static_cast<uint32_t>(engine()) % 1460;
    const uint32_t n = std::min(most, SeqBefore(at, edge) ? edge - at : 0);
    if (n > 0) Say(kAck, at, theirs, std::string(n, 'w'));
    at += n;
    if (engine() % 60 == 0) {
      char buffer[8192];
      std::ignore = recv(peer.get(), buffer, sizeof(buffer), 0);
      Write(peer.get(), "x");  // any event of the socket
      Poll();
      Say(kAck, at, shard().tcp().At(0)->max);
    }
    for (const Seen& seen : Heard()) {
      ASSERT_EQ(seen.tcp.acknowledgement, at);
      const uint32_t told = at + (uint32_t{seen.tcp.window} << Tcp::kReceiveScale);
      edge = SeqMax(edge, told);
    }
  }
  EXPECT_EQ(Count(Event::kTcpOutOfWindow), 0u);
  EXPECT_GT(Count(Event::kTcpSpilled), 100'000u);
}

TEST_F(TcpDataTest, TakesAPartAndSpillsTheRest) {
  Listen();
  Connect(Full());
  link.send_limit = 700;
  Deliver({Segment(kAck, ours, theirs, std::string(1000, 'a')),
           Segment(kAck, ours + 1000, theirs, std::string(1000, 'b'))});
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 2000);
  EXPECT_EQ(Count(Event::kTcpSpilled), 1300u);
  link.send_limit = INT64_MAX;
  Write(peer.get(), "x");
  Poll();
  EXPECT_EQ(Read(peer.get(), 2000), std::string(1000, 'a') + std::string(1000, 'b'));
  EXPECT_EQ(shard().totals().spill_chunks, 0u);
}

TEST_F(TcpDataTest, AWindowGrowsWhileItIsUsed) {
  Listen();
  Connect(Full());
  uint32_t at = ours;
  uint32_t largest = 0;
  for (int i = 0; i < 2000; ++i) {
    const std::string part(1460, 'x');
    Say(kAck, at, theirs, part);
    at += 1460;
    Read(peer.get(), 1460);
    for (const Seen& seen : Heard()) {
      largest = std::max(largest, uint32_t{seen.tcp.window} << Tcp::kReceiveScale);
    }
  }
  EXPECT_GE(largest, Tcp::kLargestWindow);
}

TEST_F(TcpDataTest, WindowsStopGrowingWhenMemoryIsShort) {
  limits.buffer_bytes = 5 * ChunkPool::kSize;
  Listen();
  Connect(Full());
  uint32_t at = ours;
  for (int i = 0; i < 100; ++i) {
    Say(kAck, at, theirs, std::string(1460, 'x'));
    at += 1460;
    Read(peer.get(), 1460);
  }
  EXPECT_LE(shard().totals().reserved_chunks, 5u);
  // A second flow finds two chunks only: refused, and counted.
  guest_port = 40001;
  Say(kSyn, 1, 0);
  EXPECT_EQ(Count(Event::kNoBufferMemory), 1u);
}

// Those that do nothing have their part of the memory, and the busy one grows in what is left; when
// that goes to others, it becomes smaller again.
TEST_F(TcpDataTest, AWindowGrowsBesideManyIdleFlowsAndMakesRoom) {
  constexpr uint32_t kAll = 4096;
  limits.buffer_bytes = uint64_t{kAll} * ChunkPool::kSize;
  Listen();
  Connect(Full());
  ChunkPool& pool = shard().core().pool;
  ASSERT_TRUE(pool.Reserve(kAll * 7 / 8));
  uint32_t at = ours;
  uint32_t told = 0;
  const auto send = [&](int segments) {
    for (int i = 0; i < segments; ++i) {
      Say(kAck, at, theirs, std::string(1460, 'x'));
      at += 1460;
      Read(peer.get(), 1460);
      for (const Seen& seen : Heard()) told = uint32_t{seen.tcp.window} << Tcp::kReceiveScale;
    }
  };
  send(500);
  EXPECT_GT(told, 2 * Tcp::kFirstWindow);
  EXPECT_LT(told, Tcp::kLargestWindow);
  ASSERT_TRUE(pool.Reserve(static_cast<uint32_t>(pool.left()) - 8));
  send(500);
  EXPECT_LE(told, Tcp::kFirstWindow);
  pool.Unreserve(pool.reserved() - shard().tcp().At(0)->reserved);
  send(500);
  EXPECT_GE(told, Tcp::kLargestWindow);
}

TEST_F(TcpDataTest, AFrameThatCannotBeReadIsAskedForAgain) {
  Listen();
  Connect(Full());
  link.send_limit = 0;
  link.copies_fail = true;
  Say(kAck, ours, theirs, "abc");
  for (const Seen& seen : Heard()) EXPECT_EQ(seen.tcp.acknowledgement, ours);
  EXPECT_EQ(Count(Event::kTcpCopyFailed), 1u);
  link.copies_fail = false;
  link.send_limit = INT64_MAX;
  Write(peer.get(), "x");
  Poll();
  Say(kAck, ours, theirs, "abc");
  EXPECT_EQ(Read(peer.get(), 3), "abc");
}

// ---- order -------------------------------------------------------------------------------------

TEST_F(TcpDataTest, KeepsWhatComesOutOfOrderAndReportsIt) {
  Listen();
  Connect(Full());
  Say(kAck, ours + 5, theirs, "fghij");
  Seen ack = HeardOne();
  EXPECT_EQ(ack.tcp.acknowledgement, ours);
  ASSERT_EQ(ack.tcp.options.sack_count, 1);
  EXPECT_EQ(ack.tcp.options.sack[0].left, ours + 5);
  EXPECT_EQ(ack.tcp.options.sack[0].right, ours + 10);
  Say(kAck, ours + 15, theirs, "pqrst");
  ack = HeardOne();
  ASSERT_EQ(ack.tcp.options.sack_count, 2);
  EXPECT_EQ(ack.tcp.options.sack[0].left, ours + 15);  // the latest comes first
  Say(kAck, ours + 10, theirs, "klmno");
  ack = HeardOne();
  ASSERT_EQ(ack.tcp.options.sack_count, 1);
  EXPECT_EQ(ack.tcp.options.sack[0].right, ours + 20);
  Say(kAck, ours, theirs, "abcde");
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 20);
  EXPECT_EQ(Read(peer.get(), 20), "abcdefghijklmnopqrst");
  EXPECT_EQ(shard().totals().spill_chunks, 0u);
}

TEST_F(TcpDataTest, TakesOverlapsAndRepetitionsOnce) {
  Listen();
  Connect(Full());
  Say(kAck, ours, theirs, "abcdef");
  Say(kAck, ours, theirs, "abcdef");
  Say(kAck, ours + 3, theirs, "defghi");
  Say(kAck, ours + 12, theirs, "mno");
  Say(kAck, ours + 7, theirs, "hijklmn");
  EXPECT_EQ(Read(peer.get(), 15), "abcdefghijklmno");
  EXPECT_EQ(Heard().back().tcp.acknowledgement, ours + 15);
}

// What has come already is one thing, what the guest was not allowed to send another.
TEST_F(TcpDataTest, TellsRepetitionsFromWhatLiesOutsideTheWindow) {
  Listen();
  Connect(Full());
  Say(kAck, ours, theirs, "abcdef");
  const uint32_t edge = shard().tcp().At(0)->right_edge;
  const auto counted = [&](uint32_t sequence, std::string_view bytes, uint8_t flags = kAck) {
    const uint64_t repeated = Count(Event::kTcpRepeated);
    const uint64_t outside = Count(Event::kTcpOutOfWindow);
    Heard();
    Say(flags, sequence, theirs, bytes);
    EXPECT_EQ(HeardOne().tcp.acknowledgement, shard().tcp().At(0)->received);
    return std::pair(Count(Event::kTcpRepeated) - repeated,
                     Count(Event::kTcpOutOfWindow) - outside);
  };
  using Counts = std::pair<uint64_t, uint64_t>;
  EXPECT_EQ(counted(ours, "abc"), Counts(1, 0));
  EXPECT_EQ(counted(ours, "abcdef"), Counts(1, 0));
  EXPECT_EQ(counted(ours + 3, "def"), Counts(1, 0));
  EXPECT_EQ(counted(ours + 3, "defg"), Counts(0, 0)) << "one is new";
  EXPECT_EQ(counted(ours + 6, "g"), Counts(0, 0)) << "a keepalive, as far as one can tell";
  EXPECT_EQ(counted(edge + 1, "x"), Counts(0, 1));
  EXPECT_EQ(counted(edge - 1, "xy"), Counts(0, 1));
  EXPECT_EQ(counted(ours - Tcp::kLargestWindow, "x"), Counts(0, 1));
  EXPECT_EQ(counted(ours - (1u << 30), "x"), Counts(0, 1));
  // Nor after the guest's end.
  EXPECT_EQ(counted(ours + 7, "", kAck | kFin), Counts(0, 0));
  EXPECT_EQ(counted(ours + 3, "defg", kAck | kFin), Counts(1, 0));
}

// A FIN with bytes that come before those ahead of it, and one whose number lies within what was
// kept out of order: it ends the stream where it stands, as soon as everything before it is here.
TEST_F(TcpDataTest, AFinThatCameOutOfOrderEndsTheStream) {
  struct Step {
    uint8_t flags;
    uint32_t at;
    std::string_view bytes;
  };
  const std::vector<std::vector<Step>> orders = {
      {{kAck | kFin, 5, "fghij"}, {kAck, 0, "abcde"}},
      {{kAck, 5, "fghijXXX"}, {kAck | kFin, 8, "ij"}, {kAck, 0, "abcde"}},
      {{kAck, 12, "XXX"}, {kAck, 5, "fghij"}, {kAck | kFin, 10, ""}, {kAck, 0, "abcde"}},
      {{kAck, 7, "hijXXX"}, {kAck | kFin, 0, "abcdefghij"}},
      {{kAck | kFin, 10, ""}, {kAck, 5, "fghijXXX"}, {kAck, 0, "abcdefgh"}},
  };
  for (size_t i = 0; i < orders.size(); ++i) {
    SCOPED_TRACE(i);
    guest_port = static_cast<uint16_t>(41000 + i);
    Listen();
    Connect(Full());
    for (const Step& step : orders[i]) {
      Say(step.flags, ours + step.at, theirs, step.bytes);
    }
    EXPECT_EQ(Heard().back().tcp.acknowledgement, ours + 11);
    EXPECT_EQ(Read(peer.get(), 11), "abcdefghij");
    EXPECT_EQ(Ending(peer.get()), "EOF");
    Say(kRst, ours + 11, 0);
  }
  ExpectNothingLeft();
}

TEST_F(TcpDataTest, BoundsWhatItKeepsOutOfOrder) {
  Listen();
  Connect(Full());
  for (uint32_t i = 1; i <= TcpFlow::kMaxRanges + 3; ++i) {
    Say(kAck, ours + i * 10, theirs, "x");
  }
  EXPECT_EQ(Count(Event::kTcpOutOfOrderDropped), 3u);
  for (const Seen& seen : Heard()) EXPECT_LE(seen.tcp.options.sack_count, 4);
  Say(kRst, ours, 0);
  ExpectNothingLeft();
}

// ---- loss --------------------------------------------------------------------------------------

TEST_F(TcpDataTest, RetransmitsAfterATimeOut) {
  Listen();
  Connect(Full());
  Write(peer.get(), "lost");
  Poll();
  EXPECT_EQ(HeardOne().payload, "lost");
  Pass(1100 * kMs);
  Seen again = HeardOne();
  EXPECT_EQ(again.payload, "lost");
  EXPECT_EQ(again.tcp.sequence, theirs);
  Pass(1100 * kMs);
  EXPECT_TRUE(Heard().empty());  // it waits twice as long
  Pass(1100 * kMs);
  EXPECT_EQ(HeardOne().payload, "lost");
  Say(kAck, ours, theirs + 4);
  Write(peer.get(), "next");
  Poll();
  Seen next = HeardOne();
  EXPECT_EQ(next.payload, "next");
  EXPECT_EQ(next.tcp.sequence, theirs + 4);
}

TEST_F(TcpDataTest, GivesUpAGuestThatNeverAnswers) {
  Listen();
  Connect(Full());
  Write(peer.get(), "lost");
  Poll();
  for (int i = 0; i < 40 && shard().totals().tcp > 0; ++i) Pass(61 * kSec);
  EXPECT_EQ(Count(Event::kTcpTimedOut), 1u);
  EXPECT_EQ(Ending(peer.get()), "RESET");
  ExpectNothingLeft();
}

TEST_F(TcpDataTest, RetransmitsAtTheThirdDuplicateAck) {
  link.guest.tso4 = false;
  Listen();
  Connect(Full(1000));
  for (int i = 0; i < 5; ++i) {
    Write(peer.get(), std::string(1000, static_cast<char>('a' + i)));
    Poll();
  }
  EXPECT_THAT(Heard(), SizeIs(5));
  Say(kAck, ours, theirs);
  Say(kAck, ours, theirs);
  EXPECT_TRUE(Heard().empty());
  Say(kAck, ours, theirs);
  const Seen again = HeardOne();
  EXPECT_EQ(again.tcp.sequence, theirs);
  EXPECT_EQ(again.payload, std::string(1000, 'a'));
  // A partial ACK shows the next hole.
  Say(kAck, ours, theirs + 2000);
  EXPECT_EQ(HeardOne().tcp.sequence, theirs + 2000);
  Say(kAck, ours, theirs + 5000);
  EXPECT_TRUE(Heard().empty());
}

TEST_F(TcpDataTest, RetransmitsTheHolesThatSackShows) {
  link.guest.tso4 = false;
  Listen();
  Connect(Full(1000));
  for (int i = 0; i < 8; ++i) {
    Write(peer.get(), std::string(1000, static_cast<char>('a' + i)));
    Poll();
  }
  Heard();
  TcpOptions sack;
  sack.sack_count = 2;
  sack.sack[0] = {theirs + 6000, theirs + 8000};
  sack.sack[1] = {theirs + 1000, theirs + 4000};
  Say(kAck, ours, theirs, "", 65535, sack);
  EXPECT_EQ(HeardOne().tcp.sequence, theirs);
  Say(kAck, ours, theirs, "", 65535, sack);
  EXPECT_EQ(HeardOne().tcp.sequence, theirs + 4000);
  Say(kAck, ours, theirs, "", 65535, sack);
  EXPECT_EQ(HeardOne().tcp.sequence, theirs + 5000);
  Say(kAck, ours, theirs, "", 65535, sack);
  EXPECT_TRUE(Heard().empty());
}

TEST_F(TcpDataTest, ProbesAWindowOfZero) {
  Listen();
  Connect(Full(), 100);
  Write(peer.get(), std::string(200, 'z'));
  Poll();
  // The window of the handshake's ACK is scaled by 7.
  EXPECT_EQ(HeardOne().payload.size(), 200u);
  Say(kAck, ours, theirs + 200, "", 0);
  Write(peer.get(), "more");
  Poll();
  EXPECT_TRUE(Heard().empty());
  Pass(1100 * kMs);
  const Seen probe = HeardOne();
  EXPECT_EQ(probe.tcp.sequence, theirs + 199);
  EXPECT_TRUE(probe.payload.empty());
  EXPECT_EQ(Count(Event::kTcpWindowProbes), 1u);
  for (int i = 0; i < 60; ++i) {  // an hour: it goes on while the guest answers
    Pass(60 * kSec);
    if (!Heard().empty()) Say(kAck, ours, theirs + 200, "", 0);
  }
  Say(kAck, ours, theirs + 200, "", 10);
  EXPECT_EQ(HeardOne().payload, "more");
}

TEST_F(TcpDataTest, HonoursTheGuestsWindow) {
  Listen();
  TcpOptions options;
  options.mss = 1000;
  Connect(options, 3000);  // no window scale: as it is
  Write(peer.get(), std::string(10000, 'w'));
  Poll();
  EXPECT_THAT(HeardBytes(theirs), SizeIs(3000));
  Say(kAck, ours, theirs + 3000, "", 6000);
  EXPECT_THAT(HeardBytes(theirs + 3000), SizeIs(6000));
}

// ---- frames ------------------------------------------------------------------------------------

TEST_F(TcpDataTest, SendsLargeFramesAndSumsOnlyHeaders) {
  Listen();
  Connect(Full());
  std::string all(600'000, 0);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<char>(i * 7 + i / 251);
  std::string got;
  size_t largest = 0;
  size_t written = 0;
  while (got.size() < all.size()) {
    if (written < all.size()) {
      const ssize_t n = send(peer.get(), all.data() + written, all.size() - written, MSG_NOSIGNAL);
      if (n > 0) written += static_cast<size_t>(n);
    }
    shard().OnReady();
    RunContinues();
    for (const Seen& seen : Heard()) {
      if (seen.payload.empty()) continue;
      EXPECT_EQ(seen.tcp.sequence, theirs + got.size());
      EXPECT_TRUE(seen.offload.needs_csum);
      if (seen.payload.size() > 1460) {
        EXPECT_EQ(seen.offload.gso, sdk::Gso::kTcp4);
        EXPECT_EQ(seen.offload.gso_size, 1460);
        EXPECT_EQ(seen.offload.hdr_len, kEthernetSize + kIpv4Size + kTcpSize);
      }
      largest = std::max(largest, seen.payload.size());
      got += seen.payload;
    }
    Say(kAck, ours, theirs + static_cast<uint32_t>(got.size()));
  }
  EXPECT_EQ(got, all);
  EXPECT_GE(largest, 60'000u);
  EXPECT_EQ(Count(Event::kTcpRetransmits), 0u);
}

TEST_F(TcpDataTest, CutsFramesForAGuestWithoutOffloads) {
  link.guest = {};
  link.buffer_size = 2000;
  Listen();
  Connect(Full());
  const std::string all(5000, 'p');
  Write(peer.get(), all);
  Poll();
  std::string got;
  for (const Seen& seen : Heard()) {  // which checks the sums
    EXPECT_LE(seen.payload.size(), 1460u);
    EXPECT_FALSE(seen.offload.needs_csum);
    got += seen.payload;
  }
  EXPECT_EQ(got, all);
}

TEST_F(TcpDataTest, WaitsForReceiveBuffers) {
  Listen();
  Connect(Full());
  link.buffers = 0;
  Write(peer.get(), "patience");
  Poll();
  EXPECT_TRUE(Heard().empty());
  link.buffers = 1;
  shard().OnRxBuffers();
  EXPECT_EQ(HeardOne().payload, "patience");
  // An ACK waits as well.
  link.buffers = 0;
  Say(kAck, ours, theirs + 8, "thanks");
  EXPECT_TRUE(Heard().empty());
  link.buffers = 10;
  shard().OnRxBuffers();
  EXPECT_EQ(HeardOne().tcp.acknowledgement, ours + 6);
}

TEST_F(TcpDataTest, WorksWithoutAPeekOffset) {
  limits.peek_offset = false;
  Listen();
  Connect(Full());
  EXPECT_THAT(host.notes, SizeIs(1));
  std::string got;
  for (int i = 0; i < 20; ++i) {
    Write(peer.get(), std::string(3000, static_cast<char>('a' + i)));
    Poll();
  }
  for (const Seen& seen : Heard()) got += seen.payload;
  std::string all;
  for (int i = 0; i < 20; ++i) all += std::string(3000, static_cast<char>('a' + i));
  EXPECT_EQ(got, all);
  // From the middle, after a loss.
  Say(kAck, ours, theirs + 30'000);
  Pass(1100 * kMs);
  got.clear();
  for (const Seen& seen : Heard()) got += seen.payload;
  EXPECT_EQ(got, all.substr(30'000, got.size()));
  EXPECT_FALSE(got.empty());
  Say(kAck, ours, theirs + 60'000);
  shutdown(peer.get(), SHUT_WR);
  Poll();
  EXPECT_TRUE(HeardOne().has(kFin));
}

TEST_F(TcpDataTest, SeesTheEndBehindBytesInFlightWithoutAPeekOffset) {
  limits.peek_offset = false;
  Listen();
  Connect(Full());
  Write(peer.get(), "tail");
  shutdown(peer.get(), SHUT_WR);
  PollUntil([&] { return link.received.size() >= 2; });
  std::vector<Seen> heard = Heard();
  EXPECT_EQ(heard[0].payload, "tail");
  EXPECT_TRUE(heard[1].has(kFin));
}

}  // namespace
}  // namespace virtbay::proxy_net
