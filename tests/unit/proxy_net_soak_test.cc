// Streams of proxy-net over a link that loses, repeats and reorders frames, by a seed: every byte
// arrives once and in order, both ways, and nothing is left. The guest is a small TCP of the test's
// own; time is the test's, too.
#include <algorithm>
#include <random>
#include <string>

#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

// An endpoint that sends what it has, again and again until it is acknowledged, and takes what
// comes in order only.
struct SmallTcp {
  std::string out;
  size_t una = 0;  // of out
  size_t next = 0;
  uint32_t window = 0;
  std::string in;
  bool fin_received = false;
  bool fin_acked = false;
  bool ack_due = false;
  bool reset = false;
  int duplicates = 0;
  uint64_t timer = UINT64_MAX;
};

class SoakTest : public FlowTest, public testing::WithParamInterface<uint32_t> {
 protected:
  static constexpr uint64_t kRto = 300 * kMs;
  static constexpr size_t kSegment = 1400;

  // Puts frames through the bad link: most of them once and in order.
  template <typename T>
  void Pass(std::vector<T>& frames) {
    std::vector<T> out;
    for (T& frame : frames) {
      const uint32_t dice = Roll() % 1000;
      if (dice < 40) continue;
      if (dice < 70) out.push_back(frame);
      if (dice >= 950 && !out.empty()) {
        out.insert(out.end() - 1, std::move(frame));
        continue;
      }
      out.push_back(std::move(frame));
    }
    frames = std::move(out);
  }

  void Hear(const Seen& seen) {
    if (seen.has(kRst)) {
      guest_.reset = true;
      return;
    }
    if (seen.has(kSyn)) return;
    const uint32_t acked = seen.tcp.acknowledgement - ours;
    const size_t total = guest_.out.size() + 1;
    if (acked <= total && acked > guest_.una) {
      guest_.una = acked;
      guest_.next = std::max(guest_.next, guest_.una);
      guest_.duplicates = 0;
      guest_.timer = host.now + kRto;
      guest_.fin_acked = acked == total;
    } else if (acked == guest_.una && seen.payload.empty() && guest_.next > guest_.una) {
      if (++guest_.duplicates == 3) guest_.next = guest_.una;
    }
    if (acked >= guest_.una) guest_.window = uint32_t{seen.tcp.window} << Tcp::kReceiveScale;
    uint32_t sequence = seen.tcp.sequence;
    const uint32_t expected = theirs + static_cast<uint32_t>(guest_.in.size());
    if (seen.payload.empty() && !seen.has(kFin)) {
      if (SeqBefore(sequence, expected)) guest_.ack_due = true;  // a probe
      return;
    }
    guest_.ack_due = true;
    const uint32_t end = sequence + static_cast<uint32_t>(seen.payload.size());
    if (!SeqAfter(sequence, expected) && SeqAfter(end, expected)) {
      guest_.in += seen.payload.substr(expected - sequence);
    }
    if (seen.has(kFin) && end == theirs + guest_.in.size()) guest_.fin_received = true;
  }

  std::vector<std::vector<uint8_t>> Speak() {
    std::vector<std::vector<uint8_t>> frames;
    const uint32_t ack =
        theirs + static_cast<uint32_t>(guest_.in.size()) + (guest_.fin_received ? 1 : 0);
    for (int i = 0; i < 20 && guest_.next <= guest_.out.size(); ++i) {
      const size_t room = guest_.una + guest_.window - guest_.next;
      if (guest_.una + guest_.window <= guest_.next && guest_.next < guest_.out.size()) break;
      const size_t n = std::min({kSegment, room, guest_.out.size() - guest_.next});
      const bool fin = guest_.next + n == guest_.out.size();
      frames.push_back(Segment(static_cast<uint8_t>(kAck | (fin ? kFin : 0)),
                               ours + static_cast<uint32_t>(guest_.next), ack,
                               guest_.out.substr(guest_.next, n), window_));
      guest_.next += n + (fin ? 1 : 0);
      guest_.ack_due = false;
      if (guest_.timer == UINT64_MAX) guest_.timer = host.now + kRto;
    }
    if (guest_.ack_due) {
      const uint32_t at = ours + static_cast<uint32_t>(guest_.next);
      frames.push_back(Segment(kAck, at, ack, "", window_));
      guest_.ack_due = false;
    }
    return frames;
  }

  uint32_t Roll() { return static_cast<uint32_t>(random_()); }

  std::mt19937 random_;
  SmallTcp guest_;
  uint32_t window_ = 2000;
};

TEST_P(SoakTest, EveryByteArrivesOnceAndInOrder) {
  random_.seed(GetParam());
  link.guest.tso4 = GetParam() % 2 == 0;
  limits.peek_offset = GetParam() % 3 != 0;
  Listen(16, 20'000);
  Connect(Full());
  const int small = 20'000;
  setsockopt(peer.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
  guest_.window = uint32_t{syn_ack.tcp.window};
  guest_.out.resize(400'000 + Roll() % 100'000);
  for (char& c : guest_.out) c = static_cast<char>(Roll());
  std::string host_out(300'000 + Roll() % 100'000, 0);
  for (char& c : host_out) c = static_cast<char>(Roll());
  std::string host_in;
  size_t written = 0;
  bool host_eof = false;
  std::vector<char> buffer(65536);

  int idle = 0;
  for (int round = 0; round < 2'000'000; ++round) {
    if (host_eof && guest_.fin_received && guest_.fin_acked && shard().totals().half_open == 0 &&
        written == host_out.size()) {
      break;
    }
    bool moved = false;
    ASSERT_FALSE(guest_.reset);
    // The host's program: it reads and writes when it feels like it.
    if (Roll() % 3 == 0) {
      const ssize_t n = recv(peer.get(), buffer.data(), 1 + Roll() % buffer.size(), 0);
      if (n > 0) {
        host_in.append(buffer.data(), static_cast<size_t>(n));
        moved = true;
      } else if (n == 0) {
        host_eof = true;
      }
    }
    if (written < host_out.size() && Roll() % 3 == 0) {
      const size_t most = std::min<size_t>(1 + Roll() % 20'000, host_out.size() - written);
      const ssize_t n = send(peer.get(), host_out.data() + written, most, MSG_NOSIGNAL);
      if (n > 0) {
        written += static_cast<size_t>(n);
        moved = true;
      }
      if (written == host_out.size()) shutdown(peer.get(), SHUT_WR);
    }
    shard().OnReady();
    RunContinues();
    std::vector<Seen> heard = Heard();
    moved |= !heard.empty();
    Pass(heard);
    for (const Seen& seen : heard) Hear(seen);
    if (Roll() % 50 == 0) window_ = Roll() % 4 == 0 ? 0 : Roll() % 3000;
    if (host.now >= guest_.timer && guest_.una < guest_.out.size() + 1) {
      guest_.next = guest_.una;
      guest_.timer = UINT64_MAX;
    }
    std::vector<std::vector<uint8_t>> spoken = Speak();
    moved |= !spoken.empty();
    Pass(spoken);
    if (!spoken.empty()) Deliver(std::move(spoken));
    host.now += kMs;
    idle = moved ? 0 : idle + 1;
    if (idle > 20) {
      host.now += 100 * kMs;
      guest_.ack_due = true;  // so that a window that has opened is heard of
      if (window_ == 0) window_ = 2000;
    }
    shard().OnTimer();
    RunContinues();
  }
  EXPECT_EQ(host_in.size(), guest_.out.size());
  EXPECT_TRUE(host_in == guest_.out);
  EXPECT_EQ(guest_.in.size(), host_out.size());
  EXPECT_TRUE(guest_.in == host_out);
  EXPECT_TRUE(guest_.fin_received);
  EXPECT_EQ(Count(Event::kTcpTimedOut), 0u);
  EXPECT_GT(Count(Event::kTcpSpilled), 0u);
  FlowTest::Pass(600 * kSec);
  for (int i = 0; i < 20; ++i) FlowTest::Pass(100 * kSec);
  Heard();
  ExpectNothingLeft();
}

INSTANTIATE_TEST_SUITE_P(Seeds, SoakTest, testing::Range<uint32_t>(1, 13));

}  // namespace
}  // namespace virtbay::proxy_net
