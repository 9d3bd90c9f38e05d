// UDP, ICMP echo and port forwards of proxy-net, against real sockets of the host.
#include <string>

#include "plugins/proxy-net/flow/icmp_translation.h"
#include "plugins/proxy-net/flow/listener.h"
#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::SizeIs;

class DatagramTest : public FlowTest {
 protected:
  // A UDP socket of the host's side, bound to the loopback.
  UniqueFd Bind() {
    UniqueFd fd(socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SocketAddress any = SocketAddress::Of({*IpAddress::Parse(v6 ? "::1" : "127.0.0.1"), 0});
    EXPECT_EQ(bind(fd.get(), any.get(), any.size), 0);
    EXPECT_EQ(getsockname(fd.get(), any.get(), &any.size), 0);
    port_ = any.ToEndpoint()->port;
    return fd;
  }
  std::vector<uint8_t> Datagram(std::string_view payload, uint8_t hop_limit = 64) {
    std::vector<uint8_t> bytes(kUdpSize + payload.size());
    Writer writer(bytes);
    UdpHeader udp;
    udp.source_port = guest_port;
    udp.destination_port = port_;
    udp.length = static_cast<uint16_t>(bytes.size());
    WriteUdp(udp, &writer);
    writer.Put({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
    FillChecksum(GuestAddress(), RemoteAddress(), kProtocolUdp, bytes);
    return IpFrame(kProtocolUdp, bytes, hop_limit);
  }
  // One datagram, with its sender.
  static std::pair<std::string, SocketAddress> Receive(int fd) {
    char buffer[65536];
    SocketAddress from;
    WaitFor(fd, POLLIN);
    const ssize_t n = recvfrom(fd, buffer, sizeof(buffer), MSG_DONTWAIT, from.get(), &from.size);
    return {n < 0 ? std::string("none") : std::string(buffer, static_cast<size_t>(n)), from};
  }
  void Echo(uint16_t identifier, std::string_view payload, uint8_t hop_limit = 64) {
    std::vector<uint8_t> bytes(kIcmpSize + payload.size());
    Writer writer(bytes);
    WriteIcmp({v6 ? IcmpHeader::kV6EchoRequest : IcmpHeader::kEchoRequest, 0, 0,
               uint32_t{identifier} << 16 | 7},
              &writer);
    writer.Put({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
    const uint8_t protocol = v6 ? kProtocolIcmpv6 : kProtocolIcmp;
    FillChecksum(GuestAddress(), RemoteAddress(), protocol, bytes);
    Deliver({IpFrame(protocol, bytes, hop_limit)});
  }
};

// What is for a program of the host's stays that program's, also when it shares its port with
// others.
TEST_F(DatagramTest, APortThatSomebodyHasIsNotPreserved) {
  const UniqueFd server = Bind();
  const UniqueFd other(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const int one = 1;
  ASSERT_EQ(setsockopt(other.get(), SOL_SOCKET, SO_REUSEPORT, &one, sizeof(one)), 0);
  SocketAddress any = SocketAddress::Of({*IpAddress::Parse("0.0.0.0"), 0});
  ASSERT_EQ(bind(other.get(), any.get(), any.size), 0);
  ASSERT_EQ(getsockname(other.get(), any.get(), &any.size), 0);
  guest_port = any.ToEndpoint()->port;
  Deliver({Datagram("guest's")});
  const auto [asked, guest] = Receive(server.get());
  EXPECT_EQ(asked, "guest's");
  EXPECT_NE(guest.ToEndpoint()->port, guest_port);
  SocketAddress to = SocketAddress::Of({*IpAddress::Parse("127.0.0.1"), port_});
  ASSERT_EQ(sendto(other.get(), "other's", 7, 0, to.get(), to.size), 7);
  auto [again, program] = Receive(server.get());
  EXPECT_EQ(again, "other's");
  ASSERT_EQ(sendto(server.get(), "answer", 6, 0, program.get(), program.size), 6);
  EXPECT_EQ(Receive(other.get()).first, "answer");
}

// To several peers from one port, and then it is free again.
TEST_F(DatagramTest, FlowsOfOneAddressShareItsPort) {
  UniqueFd probe = Bind();
  guest_port = port_;
  probe.reset();
  UniqueFd servers[2];
  for (UniqueFd& server : servers) {
    server = Bind();
    Deliver({Datagram("x")});
    EXPECT_EQ(Receive(server.get()).second.ToEndpoint()->port, guest_port);
  }
  shard().Clear();
  SocketAddress any = SocketAddress::Of({*IpAddress::Parse("0.0.0.0"), guest_port});
  const UniqueFd free(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(bind(free.get(), any.get(), any.size), 0);
}

TEST(PortClaimsTest, APortIsForOneAddress) {
  PortClaims claims;
  const IpAddress one = *IpAddress::Parse("10.0.2.15");
  const IpAddress other = *IpAddress::Parse("10.0.2.16");
  using Claim = PortClaims::Claim;
  EXPECT_EQ(claims.Take(7, one), Claim::kFirst);
  EXPECT_EQ(claims.Take(7, one), Claim::kJoined);
  EXPECT_EQ(claims.Take(7, other), Claim::kNone);
  EXPECT_EQ(claims.Take(8, other), Claim::kFirst);
  EXPECT_EQ(claims.Take(7, *IpAddress::Parse("fd00::1")), Claim::kFirst);
  claims.Give(7, one);
  EXPECT_EQ(claims.Take(7, other), Claim::kNone);
  claims.Give(7, one);
  EXPECT_EQ(claims.Take(7, other), Claim::kFirst);
}

TEST_F(DatagramTest, PassesDatagramsBothWaysAndKeepsThePort) {
  const UniqueFd server = Bind();
  Deliver({Datagram("ask"), Datagram("again"), Datagram("")});
  auto [text, from] = Receive(server.get());
  EXPECT_EQ(text, "ask");
  EXPECT_EQ(from.ToEndpoint()->port, guest_port);
  EXPECT_EQ(Receive(server.get()).first, "again");
  EXPECT_EQ(Receive(server.get()).first, "");
  ASSERT_EQ(sendto(server.get(), "answer", 6, 0, from.get(), from.size), 6);
  ASSERT_EQ(sendto(server.get(), "", 0, 0, from.get(), from.size), 0);
  PollUntil([&] { return link.received.size() >= 2; });
  const std::vector<Seen> heard = Heard();
  EXPECT_EQ(heard[0].payload, "answer");
  EXPECT_EQ(heard[0].frame.udp()->source_port, port_);
  EXPECT_EQ(heard[0].frame.ip->source, RemoteAddress());
  EXPECT_TRUE(heard[0].offload.needs_csum);
  EXPECT_EQ(heard[1].payload, "");
  EXPECT_EQ(shard().totals().datagram, 1u);
}

TEST_F(DatagramTest, WorksOverIpv6AndWithoutOffloads) {
  v6 = true;
  link.guest = {};
  link.buffer_size = 2000;
  const UniqueFd server = Bind();
  Deliver({Datagram("ask")});
  auto [text, from] = Receive(server.get());
  EXPECT_EQ(text, "ask");
  ASSERT_EQ(sendto(server.get(), "answer", 6, 0, from.get(), from.size), 6);
  Poll();
  const Seen answer = HeardOne();  // which checks the sum
  EXPECT_EQ(answer.payload, "answer");
  EXPECT_FALSE(answer.offload.needs_csum);
}

TEST_F(DatagramTest, FlowsOfOnePortShareItAndAreKeptApart) {
  const UniqueFd one = Bind();
  const uint16_t first = port_;
  const UniqueFd two = Bind();
  Deliver({Datagram("two")});
  port_ = first;
  Deliver({Datagram("one")});
  auto [text1, from1] = Receive(one.get());
  auto [text2, from2] = Receive(two.get());
  EXPECT_EQ(text1, "one");
  EXPECT_EQ(text2, "two");
  EXPECT_EQ(from1.ToEndpoint()->port, guest_port);
  EXPECT_EQ(from2.ToEndpoint()->port, guest_port);
  EXPECT_EQ(shard().totals().datagram, 2u);
  // What a stranger sends to that port reaches nobody.
  const UniqueFd stranger = Bind();
  sendto(stranger.get(), "evil", 4, 0, from1.get(), from1.size);
  ASSERT_EQ(sendto(one.get(), "good", 4, 0, from1.get(), from1.size), 4);
  PollUntil([&] { return !link.received.empty(); });
  EXPECT_EQ(HeardOne().payload, "good");
}

TEST_F(DatagramTest, CutsLargeFramesInTheKernelAndPutsThemTogether) {
  const UniqueFd server = Bind();
  std::string all;
  for (int i = 0; i < 10; ++i) all += std::string(1000, static_cast<char>('a' + i));
  all += "tail";
  std::vector<uint8_t> frame = Datagram(all);
  sdk::Offload offload;
  offload.needs_csum = true;
  offload.gso = sdk::Gso::kUdp;
  offload.gso_size = 1000;
  Deliver({frame}, offload);
  SocketAddress from;
  for (int i = 0; i < 10; ++i) {
    auto [text, sender] = Receive(server.get());
    EXPECT_EQ(text, std::string(1000, static_cast<char>('a' + i)));
    from = sender;
  }
  EXPECT_EQ(Receive(server.get()).first, "tail");
  // Back, in one call of the server's: in one frame to the guest.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))] = {};
  iovec vector = {all.data(), all.size()};
  msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_name = from.get();
  message.msg_namelen = from.size;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = IPPROTO_UDP;
  header->cmsg_type = 103;  // UDP_SEGMENT
  header->cmsg_len = CMSG_LEN(sizeof(uint16_t));
  const uint16_t segment = 1000;
  std::memcpy(CMSG_DATA(header), &segment, sizeof(segment));
  ASSERT_EQ(sendmsg(server.get(), &message, 0), static_cast<ssize_t>(all.size()));
  PollUntil([&] { return !link.received.empty(); });
  std::string got;
  for (const Seen& seen : Heard()) {
    if (seen.payload.size() > 1000) {
      EXPECT_EQ(seen.offload.gso, sdk::Gso::kUdp);
      EXPECT_EQ(seen.offload.gso_size, 1000);
    }
    got += seen.payload;
  }
  EXPECT_EQ(got, all);
}

TEST_F(DatagramTest, PassesErrorsOfTheNetworkBack) {
  Bind();  // and closed again: nobody is there
  Deliver({Datagram("anyone?")});
  PollUntil([&] { return !link.received.empty(); });
  const Seen error = HeardOne();
  ASSERT_NE(error.frame.icmp(), nullptr);
  EXPECT_EQ(error.frame.icmp()->type, IcmpHeader::kUnreachable);
  EXPECT_EQ(error.frame.icmp()->code, 3);
  EXPECT_EQ(error.frame.ip->source, RemoteAddress());
  // The packet that it is about, as the guest sent it.
  const Parsed<IpHeader> inner =
      ParseIpv4(Bytes(reinterpret_cast<const uint8_t*>(error.payload.data()), error.payload.size()),
                SIZE_MAX);
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(inner->source, GuestAddress());
  EXPECT_EQ(inner->destination, RemoteAddress());
  EXPECT_THAT(error.payload, HasSubstr("anyone?"));
  EXPECT_EQ(Count(Event::kIcmpErrorsPassed), 1u);
  EXPECT_EQ(shard().totals().datagram, 1u);
}

TEST_F(DatagramTest, PassesErrorsOfIpv4ToAGuestThatSentIpv6) {
  Bind();  // on IPv4, and closed again
  v6 = true;
  host.redirect = *IpAddress::Parse("127.0.0.1");  // as a v4-mapped address is
  Deliver({Datagram("anyone?")});
  PollUntil([&] { return !link.received.empty(); });
  const Seen error = HeardOne();
  ASSERT_NE(error.frame.icmp(), nullptr);
  EXPECT_EQ(error.frame.icmp()->type, IcmpHeader::kV6Unreachable);
  EXPECT_EQ(error.frame.icmp()->code, 4);
  EXPECT_EQ(error.frame.ip->source, RemoteAddress());
  const Parsed<IpHeader> inner =
      ParseIpv6(Bytes(reinterpret_cast<const uint8_t*>(error.payload.data()), error.payload.size()),
                SIZE_MAX);
  ASSERT_TRUE(inner.ok());
  EXPECT_EQ(inner->source, GuestAddress());
  EXPECT_EQ(inner->destination, RemoteAddress());
}

TEST(IcmpTranslation, FollowsRfc7915) {
  const auto unreachable = [](uint8_t code, uint32_t rest = 0) {
    return ToIcmpv6({IcmpHeader::kUnreachable, code, rest});
  };
  using E = IcmpError;
  for (const uint8_t code : std::initializer_list<uint8_t>{0, 1, 5, 6, 7, 8, 11, 12}) {
    EXPECT_EQ(unreachable(code), (E{IcmpHeader::kV6Unreachable, 0, 0})) << int{code};
  }
  for (const uint8_t code : std::initializer_list<uint8_t>{9, 10, 13, 15}) {
    EXPECT_EQ(unreachable(code), (E{IcmpHeader::kV6Unreachable, 1, 0})) << int{code};
  }
  EXPECT_EQ(unreachable(2), (E{IcmpHeader::kV6ParameterProblem, 1, 6}));
  EXPECT_EQ(unreachable(3), (E{IcmpHeader::kV6Unreachable, 4, 0}));
  EXPECT_EQ(unreachable(4, 1400), (E{IcmpHeader::kV6PacketTooBig, 0, 1420}));
  EXPECT_EQ(unreachable(4, 0), (E{IcmpHeader::kV6PacketTooBig, 0, 1280}));
  EXPECT_EQ(unreachable(4, UINT32_MAX), (E{IcmpHeader::kV6PacketTooBig, 0, 65555}));
  EXPECT_EQ(ToIcmpv6({IcmpHeader::kTimeExceeded, 1, 7}), (E{IcmpHeader::kV6TimeExceeded, 1, 0}));
  EXPECT_EQ(unreachable(14), std::nullopt);
  EXPECT_EQ(unreachable(16), std::nullopt);
  for (const uint8_t type : std::initializer_list<uint8_t>{0, 4, 5, 8, 12})
    EXPECT_EQ(ToIcmpv6({type, 0, 0}), std::nullopt);
}

TEST_F(DatagramTest, SaysWhatTheRulesForbid) {
  Bind();
  host.denied = true;
  Deliver({Datagram("secret")});
  const Seen error = HeardOne();
  ASSERT_NE(error.frame.icmp(), nullptr);
  EXPECT_EQ(error.frame.icmp()->code, 13);
  EXPECT_EQ(shard().totals().datagram, 0u);
}

TEST_F(DatagramTest, IsTheFirstHopOfATraceroute) {
  Bind();
  Deliver({Datagram("probe", 1)});
  const Seen error = HeardOne();
  ASSERT_NE(error.frame.icmp(), nullptr);
  EXPECT_EQ(error.frame.icmp()->type, IcmpHeader::kTimeExceeded);
  EXPECT_EQ(error.frame.ip->source, host.GatewayAddress(false));
  EXPECT_EQ(shard().totals().datagram, 0u);
}

TEST_F(DatagramTest, EndsIdleFlows) {
  UniqueFd server = Bind();
  Deliver({Datagram("x")});
  Pass(200 * kSec);
  Deliver({Datagram("x")});
  Pass(200 * kSec);
  EXPECT_EQ(shard().totals().datagram, 1u);
  Pass(101 * kSec);
  ExpectNothingLeft();
}

TEST_F(DatagramTest, TheOldestGivesWay) {
  limits.datagram_flows = 2;
  const UniqueFd server = Bind();
  for (uint16_t i = 0; i < 3; ++i) {
    guest_port = static_cast<uint16_t>(41000 + i);
    Deliver({Datagram("x")});
    host.now += 2 * kSec;
    if (i == 1) {
      guest_port = 41000;  // the first is younger now
      Deliver({Datagram("y")});
    }
  }
  EXPECT_EQ(Count(Event::kFlowsEvicted), 1u);
  EXPECT_THAT(shard().Describe(10), HasSubstr(":41000"));
  EXPECT_THAT(shard().Describe(10), testing::Not(HasSubstr(":41001")));
}

TEST_F(DatagramTest, WaitsForReceiveBuffers) {
  const UniqueFd server = Bind();
  Deliver({Datagram("x")});
  auto [text, from] = Receive(server.get());
  const std::string large(5000, 'L');
  ASSERT_EQ(sendto(server.get(), large.data(), large.size(), 0, from.get(), from.size), 5000);
  link.buffers = 0;
  Poll();
  EXPECT_TRUE(Heard().empty());
  link.buffers = 100;
  shard().OnRxBuffers();
  EXPECT_EQ(HeardOne().payload, large);
}

TEST_F(DatagramTest, TenThousandFlowsLeaveNothing) {
  const UniqueFd server = Bind();
  for (uint32_t i = 0; i < 10'000; ++i) {
    guest_port = static_cast<uint16_t>(20'000 + i);
    Deliver({Datagram("x")});
    char buffer[8];
    ASSERT_EQ(recv(server.get(), buffer, sizeof(buffer), 0), 1);
    if (i % 100 == 0) Pass(10 * kSec);
  }
  EXPECT_EQ(Count(Event::kUdpOpened), 10'000u);
  Pass(301 * kSec);
  ExpectNothingLeft();
}

TEST_F(DatagramTest, IdleFlowsTakeNoTime) {
  Listen(4096);
  const UniqueFd server = Bind();
  limits.udp_idle_s = 100'000;
  for (uint32_t i = 0; i < 5000; ++i) {
    guest_port = static_cast<uint16_t>(20'000 + i);
    Deliver({Datagram("x")});
    char buffer[8];
    ASSERT_EQ(recv(server.get(), buffer, sizeof(buffer), 0), 1);
  }
  // Nothing is due before the flows end, in one slot of the wheel's or a few.
  const uint64_t next = shard().NextTimer();
  EXPECT_GT(next, host.now + 3600 * kSec);
  Pass(3600 * kSec);
  EXPECT_EQ(shard().totals().datagram, 5000u);
}

// ---- echo --------------------------------------------------------------------------------------

TEST_F(DatagramTest, AnswersAnEchoOrSaysWhyNot) {
  UniqueFd ping(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP));
  const bool allowed = ping.get() >= 0;
  Echo(0x1234, "are you there?");
  if (!allowed) {
    EXPECT_EQ(Count(Event::kPingForbidden), 1u);
    ASSERT_THAT(host.notes, SizeIs(1));
    EXPECT_THAT(host.notes[0], HasSubstr("ping_group_range"));
    ExpectNothingLeft();
    return;
  }
  PollUntil([&] { return !link.received.empty(); });
  const Seen answer = HeardOne();
  ASSERT_NE(answer.frame.icmp(), nullptr);
  EXPECT_EQ(answer.frame.icmp()->type, IcmpHeader::kEchoReply);
  EXPECT_EQ(answer.frame.icmp()->identifier(), 0x1234);
  EXPECT_EQ(answer.frame.icmp()->sequence(), 7);
  EXPECT_EQ(answer.payload, "are you there?");
  EXPECT_EQ(answer.frame.ip->source, RemoteAddress());
  Pass(61 * kSec);
  ExpectNothingLeft();
}

TEST_F(DatagramTest, OtherIcmpIsIgnored) {
  std::vector<uint8_t> bytes(kIcmpSize);
  bytes[0] = IcmpHeader::kEchoReply;
  FillChecksum(GuestAddress(), RemoteAddress(), kProtocolIcmp, bytes);
  Deliver({IpFrame(kProtocolIcmp, bytes)});
  EXPECT_EQ(Count(Event::kIcmpIgnored), 1u);
}

// ---- forwards ----------------------------------------------------------------------------------

TEST_F(DatagramTest, ForwardsConnectionsToTheGuest) {
  const Endpoint forward = AddForward(kProtocolTcp, 80).host;
  const UniqueFd client = ConnectTo(forward);
  Poll();
  const Seen syn = HeardOne();
  ASSERT_TRUE(syn.has(kSyn));
  EXPECT_FALSE(syn.has(kAck));
  EXPECT_EQ(syn.tcp.destination_port, 80);
  // The loopback cannot be answered by the guest.
  EXPECT_EQ(syn.frame.ip->source, host.GatewayAddress(false));
  EXPECT_EQ(syn.frame.ip->destination, GuestAddress());

  // The guest's words go back the same way.
  auto say = [&](uint8_t flags, uint32_t sequence, uint32_t ack, std::string_view payload = "",
                 const TcpOptions& options = {}) {
    std::vector<uint8_t> frame = Segment(flags, sequence, ack, payload, 65535, options);
    const std::array<uint8_t, 4> to = {10, 0, 2, 2};
    std::copy(to.begin(), to.end(), frame.begin() + kEthernetSize + 16);
    frame[kEthernetSize + 10] = frame[kEthernetSize + 11] = 0;
    const uint16_t sum = ChecksumOf(Bytes(frame).subspan(kEthernetSize, kIpv4Size));
    frame[kEthernetSize + 10] = static_cast<uint8_t>(sum >> 8);
    frame[kEthernetSize + 11] = static_cast<uint8_t>(sum);
    Deliver({frame});
  };
  guest_port = 80;
  port_ = syn.tcp.source_port;
  say(kSyn | kAck, 9000, syn.tcp.sequence + 1, "", Full());
  const Seen ack = HeardOne();
  EXPECT_TRUE(ack.has(kAck));
  EXPECT_FALSE(ack.has(kSyn));
  EXPECT_EQ(ack.tcp.acknowledgement, 9001u);
  Write(client.get(), "GET");
  Poll();
  EXPECT_EQ(HeardOne().payload, "GET");
  say(kAck, 9001, syn.tcp.sequence + 4, "200");
  EXPECT_EQ(Read(client.get(), 3), "200");
  say(kRst, 9004, 0);
  EXPECT_EQ(Ending(client.get()), "RESET");
  EXPECT_EQ(shard().totals().tcp, 0u);
  EXPECT_EQ(shard().RemoveListener(1), 1u);
  ExpectNothingLeft();
}

TEST_F(DatagramTest, AForwardedConnectionThatTheGuestRefusesIsReset) {
  const Endpoint forward = AddForward(kProtocolTcp, 80).host;
  const UniqueFd client = ConnectTo(forward);
  Poll();
  HeardOne();
  for (int i = 0; i < 8; ++i) Pass(65 * kSec);  // the guest says nothing at all
  EXPECT_EQ(Ending(client.get()), "RESET");
  host.has_address = false;
  const UniqueFd second = ConnectTo(forward);
  Poll();
  EXPECT_EQ(Ending(second.get()), "RESET");
  EXPECT_EQ(Count(Event::kForwardNoGuest), 1u);
}

TEST_F(DatagramTest, AcceptsInBatches) {
  const Endpoint forward = AddForward(kProtocolTcp, 80).host;
  std::vector<UniqueFd> clients;
  for (int i = 0; i < 300; ++i) clients.push_back(ConnectTo(forward));
  Poll();
  PollUntil([&] { return shard().totals().half_open == 300; });
  EXPECT_THAT(Heard(), SizeIs(300));
  shard().DropFlows();
  shard().RemoveListener(1);
  ExpectNothingLeft();
}

TEST_F(DatagramTest, ForwardsDatagramsAndAnswersFromThatPort) {
  const Endpoint forward = AddForward(kProtocolUdp, 53).host;
  const UniqueFd client = ConnectTo(forward, SOCK_DGRAM);
  Write(client.get(), "query");
  Poll();
  const Seen query = HeardOne();
  EXPECT_EQ(query.payload, "query");
  EXPECT_EQ(query.frame.udp()->destination_port, 53);
  EXPECT_EQ(query.frame.ip->source, host.GatewayAddress(false));
  guest_port = 53;
  port_ = query.frame.udp()->source_port;
  std::vector<uint8_t> answer = Datagram("answer");
  const std::array<uint8_t, 4> to = {10, 0, 2, 2};
  std::copy(to.begin(), to.end(), answer.begin() + kEthernetSize + 16);
  answer[kEthernetSize + 10] = answer[kEthernetSize + 11] = 0;
  const uint16_t sum = ChecksumOf(Bytes(answer).subspan(kEthernetSize, kIpv4Size));
  answer[kEthernetSize + 10] = static_cast<uint8_t>(sum >> 8);
  answer[kEthernetSize + 11] = static_cast<uint8_t>(sum);
  Deliver({answer});
  EXPECT_EQ(Read(client.get(), 6), "answer");  // a connected socket: from that port only
  // Its flows end with the forward: they have no other socket.
  EXPECT_EQ(shard().RemoveListener(1), 1u);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace virtbay::proxy_net
