// Flows of proxy-net that another shard goes on with.
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
  UniqueFd server(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  SocketAddress any = SocketAddress::Of({*IpAddress::Parse("127.0.0.1"), 0});
  ASSERT_EQ(bind(server.get(), any.get(), any.size), 0);
  ASSERT_EQ(getsockname(server.get(), any.get(), &any.size), 0);
  port_ = any.ToEndpoint()->port;
  std::vector<uint8_t> bytes(kUdpSize + 1);
  Writer writer(bytes);
  WriteUdp({guest_port, port_, 9, 0}, &writer);
  writer.U8('x');
  Deliver({IpFrame(kProtocolUdp, bytes)});
  ForwardSpec spec;
  spec.protocol = kProtocolTcp;
  spec.host = {*IpAddress::Parse("127.0.0.1"), 0};
  spec.guest_port = 80;
  spec.forward = 7;
  auto fd = ForwardSpec::OpenSocket(&spec, false);
  ASSERT_TRUE(fd.ok());
  ASSERT_TRUE(host.TakeDescriptor());
  ASSERT_TRUE(shard().AddListener(spec, fd.value()));
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
    EXPECT_TRUE(n == 6 || !restored.ok()) << n;
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

}  // namespace
}  // namespace virtbay::proxy_net
