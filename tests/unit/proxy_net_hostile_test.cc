// What other user-space networks were broken by, done to the flows of proxy-net: each test has the
// numbers of its class. Those of the parsers, the link, DHCP and the resolver are with their tests.
#include <string>
#include <vector>

#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

class HostileTest : public FlowTest {
 protected:
  // A UDP socket of the host's side to which every datagram goes.
  UniqueFd Bind() {
    UniqueFd fd(socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    SocketAddress any = SocketAddress::Of({*IpAddress::Parse(v6 ? "::1" : "127.0.0.1"), 0});
    EXPECT_EQ(bind(fd.get(), any.get(), any.size), 0);
    EXPECT_EQ(getsockname(fd.get(), any.get(), &any.size), 0);
    host.redirect_port = any.ToEndpoint()->port;
    return fd;
  }
  static std::string Receive(int fd) {
    char buffer[4096];
    WaitFor(fd, POLLIN);
    const ssize_t n = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
    return n < 0 ? "nothing" : std::string(buffer, static_cast<size_t>(n));
  }
  static bool Silent(int fd) {
    char byte = 0;
    return recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0;
  }
  // A transport's bytes: its header, and text behind it.
  std::vector<uint8_t> Transport(uint8_t protocol, std::string_view text = "") {
    std::vector<uint8_t> bytes(128 + text.size());
    Writer writer(bytes);
    if (protocol == kProtocolUdp) {
      WriteUdp({guest_port, port_, static_cast<uint16_t>(kUdpSize + text.size()), 0}, &writer);
    } else if (protocol == kProtocolTcp) {
      TcpHeader tcp;
      tcp.source_port = guest_port;
      tcp.destination_port = port_;
      tcp.sequence = kIsn;
      tcp.flags = kSyn;
      tcp.window = 65535;
      WriteTcp(tcp, &writer);
    } else {
      WriteIcmp({v6 ? IcmpHeader::kV6EchoRequest : IcmpHeader::kEchoRequest, 0, 0, 0x1234'0001},
                &writer);
    }
    writer.Put({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
    bytes.resize(writer.position());
    FillChecksum(GuestAddress(), RemoteAddress(), protocol, bytes);
    return bytes;
  }
  uint8_t Icmp() const { return v6 ? kProtocolIcmpv6 : kProtocolIcmp; }
  // As the device does: what cannot be read goes no further. Whether it could.
  bool Try(std::vector<uint8_t> bytes) {
    const sdk::TxFrame frame = link.Frame(std::move(bytes));
    const Bytes headers(reinterpret_cast<const uint8_t*>(frame.headers().data()),
                        frame.headers().size());
    const Parsed<Frame> parsed = ParseFrame(headers, frame.size(), /*gso=*/false);
    if (!parsed.ok()) return false;
    shard().BeginBurst();
    shard().OnPacket(frame, *parsed);
    shard().EndBurst();
    return true;
  }
  // The IPv4 header's checksum again, after a change.
  static void Sum(std::vector<uint8_t>* frame) {
    const std::span<uint8_t> header = std::span(*frame).subspan(kEthernetSize, kIpv4Size);
    header[10] = header[11] = 0;
    const uint16_t sum = ChecksumOf(header);
    header[10] = static_cast<uint8_t>(sum >> 8);
    header[11] = static_cast<uint8_t>(sum);
  }
};

// CVE-2019-6778, CVE-2020-7039, CVE-2020-8608: helpers that read and rewrote the addresses and
// ports in FTP, IRC DCC and ident; CVE-2020-7211: TFTP. What is in a flow is nobody's business.
TEST_F(HostileTest, Cve20196778Cve20207039Cve20208608Cve20207211NoPayloadIsRewritten) {
  const struct {
    uint16_t port;
    std::string_view up;
    std::string_view down;
  } kTalks[] = {
      {21, "PORT 10,0,2,15,4,1\r\nEPRT |1|10.0.2.15|1025|\r\n",
       "227 Entering Passive Mode (10,0,2,2,200,1)\r\n"},
      {6667, "PRIVMSG b :\1DCC SEND f 167772687 1025 100\1\r\n",
       "PRIVMSG a :\1DCC CHAT chat 167772674 65535\1\r\n"},
      {113, "40000, 23\r\n", "40000, 23 : USERID : UNIX : root\r\n"},
      {514, "1025", "0"},
      {7070, "PNA\0\x0a", "PNA"},
  };
  for (const bool over6 : {false, true}) {
    v6 = over6;
    for (const auto& talk : kTalks) {
      ++guest_port;
      host.redirect_port = Listen();
      port_ = talk.port;
      Connect(Full());
      Say(kAck, ours, theirs, talk.up);
      EXPECT_EQ(Read(peer.get(), talk.up.size()), talk.up) << talk.port;
      Write(peer.get(), talk.down);
      Heard();
      PollUntil([&] { return !link.received.empty(); });
      EXPECT_EQ(HeardBytes(theirs), talk.down) << talk.port;
    }
    const UniqueFd server = Bind();
    for (const uint16_t port : std::initializer_list<uint16_t>{69, 21, 137, 5060}) {
      port_ = port;
      ++guest_port;
      const std::string_view ask(
          "\0\1..\\..\\secret\0octet\0blksize\0"
          "65464\0",
          35);
      Deliver({IpFrame(kProtocolUdp, Transport(kProtocolUdp, ask))});
      EXPECT_EQ(Receive(server.get()), ask) << port;
    }
  }
}

// CVE-2019-14378, CVE-2019-15890, CVE-2020-1983: what puts fragments together. Nothing here does:
// they are counted, make no flow, and get no answer, the first with its header as little as others.
TEST_F(HostileTest, Cve201914378Cve201915890Cve20201983FragmentsMakeNoFlow) {
  const UniqueFd server = Bind();
  host.redirect_port.reset();
  uint64_t fragments = 0;
  for (const uint8_t protocol : {kProtocolTcp, kProtocolUdp, kProtocolIcmp}) {
    // First, middle and last, one that would reach behind 64 KiB, and two that overlap.
    for (const uint16_t field :
         std::initializer_list<uint16_t>{0x2000, 0x2001, 0x0001, 0x1fff, 0x3fff, 0x2000, 0x0002}) {
      std::vector<uint8_t> frame = IpFrame(protocol, Transport(protocol, "part"));
      frame[kEthernetSize + 6] = static_cast<uint8_t>(field >> 8);
      frame[kEthernetSize + 7] = static_cast<uint8_t>(field);
      Sum(&frame);
      ASSERT_TRUE(Try(frame));
      ++fragments;
    }
  }
  v6 = true;
  for (const uint8_t protocol : {kProtocolTcp, kProtocolUdp, kProtocolIcmpv6}) {
    for (const uint16_t field :
         std::initializer_list<uint16_t>{0x0001, 0x0009, 0x0008, 0xfff8, 0xfff9}) {
      std::vector<uint8_t> bytes = {
          protocol, 0, static_cast<uint8_t>(field >> 8), static_cast<uint8_t>(field), 0, 0, 0, 1};
      const std::vector<uint8_t> transport = Transport(protocol, "part");
      bytes.insert(bytes.end(), transport.begin(), transport.end());
      constexpr uint8_t kFragmentHeader = 44;
      ASSERT_TRUE(Try(IpFrame(kFragmentHeader, bytes)));
      ++fragments;
    }
  }
  EXPECT_EQ(Count(Event::kFragments), fragments);
  EXPECT_TRUE(Heard().empty());
  EXPECT_TRUE(Silent(server.get()));
  ExpectNothingLeft();
}

// CVE-2021-3593, CVE-2021-3594, CVE-2020-29129: headers taken for present. The IP packet ends
// inside the transport's header, or the frame inside the packet.
TEST_F(HostileTest, Cve20213593Cve20213594Cve202029129HeadersThatEndTooEarlyMakeNoFlow) {
  for (const bool over6 : {false, true}) {
    v6 = over6;
    for (const uint8_t protocol : {kProtocolTcp, kProtocolUdp, Icmp()}) {
      const size_t header = protocol == kProtocolTcp ? kTcpSize : kUdpSize;
      const std::vector<uint8_t> transport = Transport(protocol);
      ASSERT_EQ(transport.size(), header);
      for (size_t size = 0; size < header; ++size) {
        EXPECT_FALSE(Try(IpFrame(protocol, Bytes(transport).first(size)))) << size;
      }
      std::vector<uint8_t> frame = IpFrame(protocol, transport);
      while (!frame.empty()) {
        frame.pop_back();
        // Of less than an IP header the Ethernet header may still be read.
        Try(frame);
      }
    }
  }
  EXPECT_TRUE(Heard().empty());
  ExpectNothingLeft();
}

// CVE-2020-10756: a length field that reached behind the packet, whose answer showed what lies
// there. What goes out is what the packet has, by the smallest of all lengths; a larger one is
// refused.
TEST_F(HostileTest, Cve202010756OnlyThePacketsOwnBytesGoOut) {
  for (const bool over6 : {false, true}) {
    v6 = over6;
    const UniqueFd server = Bind();
    port_ = 7;
    // Padding of the frame, behind the packet.
    std::vector<uint8_t> padded = IpFrame(kProtocolUdp, Transport(kProtocolUdp, "mine"));
    padded.insert(padded.end(), 40, 0x55);
    ASSERT_TRUE(Try(padded));
    EXPECT_EQ(Receive(server.get()), "mine");
    for (const uint16_t length : std::initializer_list<uint16_t>{0, 7, 13, 1000, 65535}) {
      if (over6 && length == 0) continue;  // a jumbogram's, which is refused by its own test
      std::vector<uint8_t> transport = Transport(kProtocolUdp, "mine");
      transport[4] = static_cast<uint8_t>(length >> 8);
      transport[5] = static_cast<uint8_t>(length);
      EXPECT_FALSE(Try(IpFrame(kProtocolUdp, transport))) << length;
    }
    // An IP packet that is longer than its frame.
    std::vector<uint8_t> longer = IpFrame(kProtocolUdp, Transport(kProtocolUdp, "mine"));
    longer[kEthernetSize + (over6 ? 4 : 2)] = 0x7f;
    if (!over6) Sum(&longer);
    EXPECT_FALSE(Try(longer));
    EXPECT_TRUE(Silent(server.get()));
  }
}

// CVE-2026-9539: arithmetic on the urgent pointer, which reached outside the segment. Whatever it
// says, before, in or behind the data, and wherever the segment lies: the bytes come once, in
// order.
TEST_F(HostileTest, Cve20269539UrgentDataIsDataAtEveryPointer) {
  Listen();
  Connect(Full());
  std::string expected;
  for (const uint16_t pointer :
       std::initializer_list<uint16_t>{0, 1, 2, 3, 4, 1000, 32767, 32768, 65535}) {
    std::vector<uint8_t> urgent = Segment(
        kAck | TcpHeader::kUrg, ours + static_cast<uint32_t>(expected.size()), theirs, "abc");
    const size_t at = kEthernetSize + kIpv4Size + 18;
    urgent[at] = static_cast<uint8_t>(pointer >> 8);
    urgent[at + 1] = static_cast<uint8_t>(pointer);
    Deliver({urgent});
    expected += "abc";
  }
  // Of nothing, and of what has come already.
  std::vector<uint8_t> nothing =
      Segment(kAck | TcpHeader::kUrg, ours + static_cast<uint32_t>(expected.size()), theirs);
  Deliver({nothing});
  Deliver({Segment(kAck | TcpHeader::kUrg, ours, theirs, "abcabc")});
  EXPECT_EQ(Read(peer.get(), expected.size()), expected);
  EXPECT_EQ(Count(Event::kTcpUrgentIgnored), 11u);
  char byte = 0;
  EXPECT_LT(recv(peer.get(), &byte, 1, MSG_OOB | MSG_DONTWAIT), 0) << "nothing out of band";
}

}  // namespace
}  // namespace virtbay::proxy_net
