// Flows of proxy-net that another shard goes on with.
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <map>

#include "plugins/proxy-net/flow/state.h"
#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

class StateTest : public FlowTest {
 protected:
  static std::vector<int> Duplicates(const std::vector<int>& fds) {
    std::vector<int> copies;
    for (const int fd : fds) copies.push_back(fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return copies;
  }
  // A datagram of the guest's to a socket of the test's, which is returned.
  UniqueFd SayDatagram() {
    UniqueFd server(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SocketAddress any = SocketAddress::Of({*IpAddress::Parse("127.0.0.1"), 0});
    EXPECT_EQ(bind(server.get(), any.get(), any.size), 0);
    EXPECT_EQ(getsockname(server.get(), any.get(), &any.size), 0);
    port_ = any.ToEndpoint()->port;
    std::vector<uint8_t> bytes(kUdpSize + 1);
    Writer writer(bytes);
    WriteUdp({guest_port, port_, 9, 0}, &writer);
    writer.U8('x');
    Deliver({IpFrame(kProtocolUdp, bytes)});
    return server;
  }
  // The next generation takes over.
  RestoredFlows Move() {
    Shard* const old = &shard();
    const SavedFlows saved = SaveFlows({&old, 1});
    const std::vector<int> fds = Duplicates(saved.fds);
    shard().Forget();
    ExpectNothingLeft();
    DropShard();
    auto restored = RestoreFlows(&shard(), saved.bytes, fds);
    EXPECT_TRUE(restored.ok());
    shard().Continue();
    RunContinues();
    return restored.value();
  }
};

TEST_F(StateTest, AConnectionGoesOnWithWhatItHolds) {
  Listen();
  Connect(Full());
  // To the guest: in flight, not acknowledged. To the host: held, with a gap.
  Write(peer.get(), "in flight");
  Poll();
  EXPECT_EQ(HeardOne().payload, "in flight");
  link.send_limit = 0;
  Say(kAck, ours, theirs, "held");
  Say(kAck, ours + 8, theirs, "late");
  Heard();
  link.send_limit = INT64_MAX;
  const RestoredFlows moved = Move();
  EXPECT_EQ(moved.flows, 1u);
  EXPECT_EQ(moved.dropped, 0u);
  EXPECT_EQ(Read(peer.get(), 4), "held");
  Say(kAck, ours + 4, theirs, "gap!");
  EXPECT_EQ(Read(peer.get(), 8), "gap!late");
  EXPECT_EQ(Heard().back().tcp.acknowledgement, ours + 12);
  Pass(1100 * kMs);  // what was in flight is lost and comes again
  EXPECT_EQ(HeardOne().payload, "in flight");
  Say(kAck, ours + 12, theirs + 9);
  Write(peer.get(), "more");
  Poll();
  EXPECT_EQ(HeardBytes(theirs + 9), "more");
  Say(kAck | kFin, ours + 12, theirs + 13);
  EXPECT_EQ(Ending(peer.get()), "EOF");
  peer.reset();
  Poll();
  Heard();
  Say(kAck, ours + 13, theirs + 14);
  ExpectNothingLeft();
}

TEST_F(StateTest, AConnectionThatIsBeingMadeGoesOn) {
  Listen();
  Say(kSyn, kIsn, 0, "", 65535, Full());
  EXPECT_EQ(Move().flows, 1u);
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_TRUE(HeardOne().has(kSyn));
}

TEST_F(StateTest, ListenersAndDatagramsGoOn) {
  const UniqueFd server = SayDatagram();
  const ForwardSpec spec = AddForward(kProtocolTcp, 80, 7);
  EXPECT_EQ(Move().flows, 2u);
  SocketAddress from;
  char buffer[8];
  ASSERT_EQ(recvfrom(server.get(), buffer, 8, 0, from.get(), &from.size), 1);
  ASSERT_EQ(sendto(server.get(), "back", 4, 0, from.get(), from.size), 4);
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_EQ(HeardOne().payload, "back");
  UniqueFd client(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  SocketAddress to = SocketAddress::Of(spec.host);
  ASSERT_EQ(connect(client.get(), to.get(), to.size), 0);
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_EQ(HeardOne().tcp.destination_port, 80);
  EXPECT_EQ(shard().RemoveListener(7), 1u);
}

TEST_F(StateTest, BytesThatAreCutOrWrongDoNoHarm) {
  Listen();
  Connect(Full());
  link.send_limit = 0;
  Say(kAck, ours, theirs, "held");
  Say(kAck, ours + 8, theirs, "late");
  Shard* const old = &shard();
  const SavedFlows saved = SaveFlows({&old, 1});
  const std::vector<int> keep = Duplicates(saved.fds);
  shard().Forget();
  DropShard();
  for (size_t n = 0; n < saved.bytes.size(); ++n) {
    const auto restored = RestoreFlows(&shard(), Bytes(saved.bytes).first(n), Duplicates(keep));
    EXPECT_FALSE(restored.ok()) << n;
    ExpectNothingLeft();
  }
  for (size_t n = 0; n < saved.bytes.size(); ++n) {
    std::vector<uint8_t> wrong = saved.bytes;
    wrong[n] ^= 0xff;
    std::ignore = RestoreFlows(&shard(), wrong, Duplicates(keep));
    shard().Clear();
    link.received.clear();
    ExpectNothingLeft();
    DropShard();
  }
  for (const int fd : keep) close(fd);
}

// What the other end did meanwhile is no fault of the state.
TEST_F(StateTest, AConnectionThatWasResetMeanwhileIsReset) {
  Listen();
  Connect(Full());
  Shard* const old = &shard();
  const SavedFlows saved = SaveFlows({&old, 1});
  const std::vector<int> fds = Duplicates(saved.fds);
  shard().Forget();
  DropShard();
  const linger abort = {1, 0};
  setsockopt(peer.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
  peer.reset();
  ASSERT_TRUE(WaitFor(fds[0], POLLIN));
  const auto restored = RestoreFlows(&shard(), saved.bytes, fds);
  ASSERT_TRUE(restored.ok()) << restored.error().text;
  EXPECT_EQ(restored.value().flows, 1u);
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_TRUE(Heard().back().has(kRst));
  ExpectNothingLeft();
}

// Two connections, a datagram flow, and listeners of both protocols, and descriptors that are not
// theirs: nothing is made, and nothing of what was given stays open.
TEST_F(StateTest, OnlyTheSocketsThatWereSavedAreTaken) {
  Listen();
  Connect(Full());
  const UniqueFd first_peer = std::move(peer);
  ++guest_port;
  Connect(Full());
  const UniqueFd server = SayDatagram();
  AddForward(kProtocolTcp, 80, 7);
  AddForward(kProtocolUdp, 80, 7);
  Shard* const old = &shard();
  const SavedFlows saved = SaveFlows({&old, 1});
  ASSERT_EQ(saved.fds.size(), 5u);
  const std::vector<int> keep = Duplicates(saved.fds);
  shard().Forget();
  DropShard();
  // The record that names the sockets is the first; one that does not know it has what is behind.
  uint32_t named = 0;
  std::memcpy(&named, saved.bytes.data() + 8, sizeof(named));
  std::vector<uint8_t> nameless(saved.bytes.begin(), saved.bytes.begin() + 6);
  nameless.insert(nameless.end(), saved.bytes.begin() + 12 + named, saved.bytes.end());

  const auto refused = [&](const std::string& what, const std::vector<int>& fds,
                           const std::vector<uint8_t>& bytes, const std::string& why) {
    SCOPED_TRACE(what);
    const auto restored = RestoreFlows(&shard(), bytes, fds);
    ASSERT_FALSE(restored.ok());
    EXPECT_THAT(restored.error().text, testing::HasSubstr(why));
    ExpectNothingLeft();
    EXPECT_EQ(shard().totals().listeners, 0u);
    for (const int fd : fds) EXPECT_LT(fcntl(fd, F_GETFD), 0) << "still open";
  };
  for (size_t i = 0; i < keep.size(); ++i) {
    std::vector<int> fds = Duplicates(keep);
    close(fds[i]);
    fds.erase(fds.begin() + static_cast<std::ptrdiff_t>(i));
    refused("without " + std::to_string(i), fds, saved.bytes, "4 descriptors");
    fds = Duplicates(keep);
    close(fds.back());
    fds.pop_back();
    refused("fewer, nameless", fds, nameless, "is missing");
  }
  std::vector<int> more = Duplicates(keep);
  more.push_back(fcntl(keep[0], F_DUPFD_CLOEXEC, 0));
  refused("one more", more, saved.bytes, "6 descriptors");
  more = Duplicates(keep);
  more.push_back(fcntl(keep[0], F_DUPFD_CLOEXEC, 0));
  refused("one more, nameless", more, nameless, "flows for 5");
  std::vector<int> swapped = Duplicates(keep);
  std::swap(swapped[2], swapped[3]);
  refused("two connections", swapped, saved.bytes, "not the socket");
  std::vector<int> reversed = Duplicates(keep);
  std::reverse(reversed.begin(), reversed.end());
  refused("reversed", reversed, saved.bytes, "not the socket");
  reversed = Duplicates(keep);
  std::reverse(reversed.begin(), reversed.end());
  refused("reversed, nameless", reversed, nameless, "another protocol");

  int ends[2] = {-1, -1};
  ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  const int kStream = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;
  const std::map<std::string, std::function<int()>> others = {
      {"a pipe", [&] { return dup(read_end.get()); }},
      {"an event", [] { return eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); }},
      {"an epoll", [] { return epoll_create1(EPOLL_CLOEXEC); }},
      {"a file", [] { return open("/dev/null", O_RDWR | O_CLOEXEC | O_NONBLOCK); }},
      {"a directory", [] { return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC); }},
      {"nothing", [] { return -1; }},
      {"a fresh socket", [&] { return socket(AF_INET, kStream, 0); }},
      {"one that blocks", [&] { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }},
      {"another family", [&] { return socket(AF_INET6, kStream, 0); }},
      {"a local one", [&] { return socket(AF_UNIX, kStream, 0); }},
      {"a fresh datagram one",
       [] { return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); }},
      {"one that listens", [&] { return fcntl(keep[0], F_DUPFD_CLOEXEC, 0); }},
  };
  for (const auto& [what, make] : others) {
    for (size_t i = 0; i < keep.size(); ++i) {
      // It is what it has to be.
      if (i == 0 && what == "one that listens") continue;
      if (i == 1 && what == "a fresh datagram one") continue;
      std::vector<int> fds = Duplicates(keep);
      close(std::exchange(fds[i], make()));
      refused(what + " for " + std::to_string(i), fds, nameless,
              "descriptor " + std::to_string(i) + " of the state's flows, for 127.0.0.1:");
    }
  }
  const auto restored = RestoreFlows(&shard(), nameless, Duplicates(keep));
  ASSERT_TRUE(restored.ok()) << restored.error().text;
  EXPECT_EQ(restored.value().flows, 5u);
  for (const int fd : keep) close(fd);
}

// A flow whose socket fails in a way that nobody foresaw ends: it does not ask again for ever.
TEST_F(StateTest, FlowsOnWhatIsNoSocketEnd) {
  AddForward(kProtocolTcp, 80, 7);
  AddForward(kProtocolUdp, 80, 7);
  Listen();
  Connect(Full());
  Say(kAck, ours, theirs, "held");
  const UniqueFd server = SayDatagram();
  Shard* const old = &shard();
  SavedFlows saved = SaveFlows({&old, 1});
  const size_t count = saved.fds.size();
  ASSERT_EQ(count, 4u);
  shard().Forget();
  DropShard();
  int ends[2] = {-1, -1};
  ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const UniqueFd read_end(ends[0]), write_end(ends[1]);
  ASSERT_EQ(write(write_end.get(), "in the pipe", 11), 11);
  const std::function<int()> makes[] = {
      [&] { return fcntl(read_end.get(), F_DUPFD_CLOEXEC, 0); },
      [] { return eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK); },
      [] { return socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0); },
      [&] { return fcntl(listener_.get(), F_DUPFD_CLOEXEC, 0); },
  };
  for (size_t kind = 0; kind < std::size(makes); ++kind) {
    SCOPED_TRACE(kind);
    saved.fds.clear();
    for (size_t i = 0; i < count; ++i) {
      saved.fds.push_back(makes[kind]());
      ASSERT_TRUE(host.TakeDescriptor());
    }
    // Between the shards of a device nobody looks.
    Adopt(&shard(), saved);
    for (int turn = 0; turn < 20; ++turn) {
      shard().Continue();
      RunContinues();
      shard().OnReady();
      Pass(25 * kMs);
    }
    EXPECT_EQ(shard().totals().tcp, 0u);
    EXPECT_EQ(shard().totals().datagram, 0u);
    shard().RemoveListener(7);
    Heard();
    ExpectNothingLeft();
    DropShard();
  }
}

}  // namespace
}  // namespace virtbay::proxy_net
