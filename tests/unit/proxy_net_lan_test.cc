// plugins/proxy-net/lan: ARP, neighbor discovery, router advertisements, saved state, names.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/ipv6_route.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "plugins/proxy-net/lan/uplink_watcher.h"
#include "tests/unit/proxy_net_link.h"

namespace virtbay::proxy_net {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kGateway6[] = "fe80::5055:aff:fe00:202";

TEST(ProxyNetNameTest, Text) {
  EXPECT_EQ(Name("Example.ORG.").ToString(), "example.org");
  EXPECT_EQ(ToHex(Name("a.bc").wire()),
            "0161"
            "026263"
            "00");
  EXPECT_TRUE(Name(".").IsRoot());
  const std::string label(63, 'a');
  EXPECT_TRUE(DomainName::Parse(label + "." + label + "." + label + "." + label.substr(2)));
  EXPECT_FALSE(DomainName::Parse(label + "." + label + "." + label + "." + label.substr(1)));
  for (const std::string& bad :
       {std::string(), std::string(".."), std::string(".a"), std::string("a..b"), label + "a",
        std::string("a b"), std::string("a\0b", 3), std::string("ä")}) {
    EXPECT_FALSE(DomainName::Parse(bad).has_value()) << bad;
  }
}

TEST(ProxyNetNameTest, PointersGoBackwardsOnly) {
  const Buffer message = Hex("0161 00 0162 c000 c003 c007 c008 40 0163");
  const auto read = [&](size_t at) {
    size_t offset = at;
    const auto name = DomainName::Read(message, &offset);
    return name.has_value() ? name->ToString() + "+" + std::to_string(offset - at) : "none";
  };
  EXPECT_EQ(read(0), "a+3");
  EXPECT_EQ(read(3), "b.a+4");
  EXPECT_EQ(read(7), "b.a+2");
  EXPECT_EQ(read(9), "b.a+2");
  EXPECT_EQ(read(11), "none")
      << "forwards into the middle of a pointer, to one that points to itself";
  EXPECT_EQ(read(13), "none") << "a reserved kind of label";
  EXPECT_EQ(read(14), "none") << "cut";
  EXPECT_EQ(read(16), "none");
  // To itself, and in a circle.
  for (const char* loop : {"c000", "c002 c000", "0161 c000"}) {
    size_t offset = 0;
    EXPECT_FALSE(DomainName::Read(Hex(loop), &offset).has_value()) << loop;
    EXPECT_EQ(offset, 0u);
  }
  // Longer than a name may be, through pointers.
  Buffer chain;
  for (int i = 0; i < 5; ++i) {
    const size_t before = chain.size();
    chain.push_back(63);
    chain.insert(chain.end(), 63, 'x');
    if (i == 0) {
      chain.push_back(0);
    } else {
      chain.push_back(static_cast<uint8_t>(0xc0 | (before - (i == 1 ? 65 : 66)) >> 8));
      chain.push_back(static_cast<uint8_t>(before - (i == 1 ? 65 : 66)));
    }
  }
  size_t third = 65 + 66;
  EXPECT_TRUE(DomainName::Read(chain, &third).has_value());
  size_t fourth = 65 + 66 * 2;
  EXPECT_FALSE(DomainName::Read(chain, &fourth).has_value());
}

Buffer Arp(const char* operation, const char* sender_mac, const char* sender, const char* target,
           const char* source = "020000000002") {
  return Hex(std::string("ffffffffffff") + source + "0806 0001 0800 06 04" + operation +
             sender_mac + sender + "000000000000" + target);
}

TEST(ProxyNetArpTest, TheGatewayAnswersByteByByte) {
  TestLink link;
  const auto sent = link.Give(Arp("0001", "020000000002", "0a00020f", "0a000202"));
  ASSERT_THAT(sent, SizeIs(1));
  EXPECT_EQ(ToHex(sent[0]),
            "020000000002"
            "52550a000202"
            "0806"
            "0001080006040002"
            "52550a000202"
            "0a000202"
            "020000000002"
            "0a00020f");
  EXPECT_EQ(link.lan.MacOf(Ip("10.0.2.15")), kGuestMac);
}

TEST(ProxyNetArpTest, WhomItAnswersFor) {
  LanConfig config;
  config.aliases = {Ip("10.0.2.254")};
  TestLink link(config);
  const auto answers = [&](const char* target, const char* sender = "0a00020f") {
    return !link.Give(Arp("0001", "020000000002", sender, target)).empty();
  };
  EXPECT_TRUE(answers("0a0002fe"));
  EXPECT_TRUE(answers("0a000264")) << "a host outside with an address of this network";
  EXPECT_FALSE(answers("0a00020f")) << "the guest's own";
  EXPECT_FALSE(answers("0a0002ff")) << "broadcast";
  EXPECT_FALSE(answers("0a000200"));
  EXPECT_FALSE(answers("0a000302")) << "another network";
  // RFC 5227: probes are answered for what is taken only.
  EXPECT_FALSE(answers("0a000264", "00000000"));
  EXPECT_FALSE(answers("0a00020f", "00000000"));
  EXPECT_TRUE(answers("0a000202", "00000000"));
  EXPECT_TRUE(answers("0a0002fe", "00000000"));
  // An address that a guest has is that guest's.
  link.Give(Arp("0001", "020000000003", "0a000264", "0a000264", "020000000003"));
  EXPECT_FALSE(answers("0a000264"));
  // One that claims the gateway's is told whose it is.
  const auto sent = link.Give(Arp("0001", "020000000002", "0a000202", "0a000202"));
  ASSERT_THAT(sent, SizeIs(1));
  EXPECT_EQ(ToHex(Bytes(sent[0]).subspan(22, 10)), "52550a0002020a000202");
  config.proxy_neighbors = false;
  TestLink strict(config);
  EXPECT_THAT(strict.Give(Arp("0001", "020000000002", "0a00020f", "0a000264")), IsEmpty());
  EXPECT_THAT(strict.Give(Arp("0001", "020000000002", "0a00020f", "0a000202")), SizeIs(1));
}

// CVE-2020-29130: ARP from who it is not.
TEST(ProxyNetArpTest, Cve202029130SendersThatAreNotThemselvesAreIgnored) {
  TestLink link;
  for (const char* mac : {"020000000003", "52550a000202", "ffffffffffff", "000000000000"}) {
    EXPECT_THAT(link.Give(Arp("0001", mac, "0a000210", "0a000202")), IsEmpty()) << mac;
    EXPECT_FALSE(link.lan.MacOf(Ip("10.0.2.16")).has_value());
  }
  const Buffer whole = Arp("0001", "020000000002", "0a00020f", "0a000202");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(link.Give(Exactly(Bytes(whole).first(size))), IsEmpty()) << size;
  }
  EXPECT_THAT(link.Give(Arp("0002", "020000000002", "0a00020f", "0a000202")), IsEmpty())
      << "a reply";
}

Buffer Icmp6(const std::string& digits) { return Hex(digits); }

Buffer Solicitation(const char* from, const char* to, const char* target,
                    const std::string& options = "", uint8_t hop_limit = 255) {
  const std::string target_hex = ToHex(Ip(target).bytes());
  return GuestFrame(Ip(from), Ip(to), kProtocolIcmpv6,
                    Icmp6("8700 0000 00000000" + target_hex + options), hop_limit);
}

TEST(ProxyNetNdpTest, TheGatewayAnswersByteByByte) {
  TestLink link;
  const auto sent =
      link.Give(Solicitation("fe80::2", "ff02::1:ff00:202", kGateway6, "0101 020000000002"));
  ASSERT_THAT(sent, SizeIs(1));
  Frame frame;
  const Buffer rest = PayloadOf(sent[0], &frame);
  EXPECT_EQ(ToHex(Bytes(sent[0]).first(54)),
            "020000000002"
            "52550a000202"
            "86dd"
            "60000000"
            "0020"
            "3a"
            "ff"
            "fe8000000000000050550afffe000202"
            "fe800000000000000000000000000002");
  EXPECT_EQ(frame.icmp()->type, 136);
  EXPECT_EQ(frame.icmp()->rest, 0xe0000000u) << "router, solicited, override";
  EXPECT_EQ(ToHex(rest),
            "fe8000000000000050550afffe000202"
            "0201"
            "52550a000202");
  EXPECT_EQ(link.lan.MacOf(Ip("fe80::2")), kGuestMac);
}

TEST(ProxyNetNdpTest, DuplicateAddressDetection) {
  TestLink link;
  // The gateway's: defended, to all nodes.
  const auto sent = link.Give(Solicitation("::", "ff02::1:ff00:202", kGateway6));
  ASSERT_THAT(sent, SizeIs(1));
  Frame frame;
  PayloadOf(sent[0], &frame);
  EXPECT_EQ(frame.ip->destination, Ip("ff02::1"));
  EXPECT_EQ(frame.ethernet.destination.ToString(), "33:33:00:00:00:01");
  EXPECT_EQ(frame.icmp()->rest, 0xa0000000u) << "not solicited";
  // Any other is the guest's.
  EXPECT_THAT(link.Give(Solicitation("::", "ff02::1:ff00:77", "fe80::77")), IsEmpty());
  EXPECT_EQ(link.lan.MacOf(Ip("fe80::77")), kGuestMac);
  EXPECT_THAT(link.Give(Solicitation("fe80::2", "ff02::1:ff00:77", "fe80::77")), IsEmpty());
  // One of another host of the prefix is answered for.
  EXPECT_THAT(link.Give(Solicitation("fe80::2", "ff02::1:ff00:78", "fd76:6972:7462:6179::78")),
              SizeIs(1));
  EXPECT_THAT(link.Give(Solicitation("fe80::2", "ff02::1:ff00:78", "2001:db8::78")), IsEmpty());
}

TEST(ProxyNetNdpTest, WhatRfc4861Discards) {
  TestLink link;
  const auto silent = [&](const Buffer& frame) {
    const uint64_t before = link.lan.counters().dropped;
    EXPECT_THAT(link.Give(frame), IsEmpty());
    return link.lan.counters().dropped == before + 1;
  };
  EXPECT_TRUE(silent(Solicitation("fe80::2", kGateway6, kGateway6, "", 254)))
      << "from beyond the link";
  EXPECT_TRUE(silent(Solicitation("fe80::2", kGateway6, "ff02::1")));
  EXPECT_TRUE(silent(Solicitation("::", kGateway6, kGateway6)))
      << "not to the solicited-node group";
  EXPECT_TRUE(silent(Solicitation("::", "ff02::1:ff00:202", kGateway6, "0101 020000000002")));
  EXPECT_TRUE(silent(Solicitation("fe80::2", kGateway6, kGateway6, "0100 020000000002")))
      << "length 0";
  EXPECT_TRUE(silent(Solicitation("fe80::2", kGateway6, kGateway6, "0102 020000000002")));
  EXPECT_TRUE(silent(Solicitation("fe80::2", kGateway6, kGateway6, "01")));
  EXPECT_TRUE(silent(Solicitation("ff02::2", kGateway6, kGateway6)));
  EXPECT_TRUE(silent(GuestFrame(Ip("fe80::2"), Ip(kGateway6), kProtocolIcmpv6,
                                Icmp6("8701 0000 00000000" + ToHex(Ip(kGateway6).bytes())), 255)))
      << "a code";
  EXPECT_TRUE(silent(GuestFrame(Ip("fe80::2"), Ip("ff02::1"), kProtocolIcmpv6,
                                Icmp6("8600 0000 40c00708 00000000 00000000"), 255)))
      << "routers are none of the guest's";
  EXPECT_TRUE(silent(
      GuestFrame(Ip("fe80::2"), Ip(kGateway6), kProtocolIcmpv6, Icmp6("8900 0000 00000000"), 255)))
      << "nor are redirects";
  Buffer wrong = Solicitation("fe80::2", kGateway6, kGateway6);
  wrong[56] ^= 1;
  EXPECT_TRUE(silent(wrong));
  EXPECT_THAT(link.Give(wrong, false), SizeIs(1)) << "the checksum is the device's to fill";
  const Buffer whole = Solicitation("fe80::2", kGateway6, kGateway6, "0101 020000000002");
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(link.Give(Exactly(Bytes(whole).first(size))), IsEmpty()) << size;
  }
}

TEST(ProxyNetNdpTest, AdvertisementsAreLearned) {
  TestLink link;
  EXPECT_THAT(
      link.Give(GuestFrame(
          Ip("fe80::2"), Ip("ff02::1"), kProtocolIcmpv6,
          Icmp6("8800 0000 20000000" + ToHex(Ip("fe80::9").bytes()) + "0201 020000000009"), 255)),
      IsEmpty());
  EXPECT_EQ(link.lan.MacOf(Ip("fe80::9"))->ToString(), "02:00:00:00:00:09");
  // The gateway's own address cannot be taken that way.
  link.Give(GuestFrame(
      Ip("fe80::2"), Ip("ff02::1"), kProtocolIcmpv6,
      Icmp6("8800 0000 20000000" + ToHex(Ip(kGateway6).bytes()) + "0201 020000000009"), 255));
  EXPECT_THAT(link.Give(Solicitation("fe80::2", kGateway6, kGateway6)), SizeIs(1));
}

LanConfig NamesConfig() {
  LanConfig config;
  config.mtu = 1400;
  config.dns = {Ip("fd00::53")};
  config.search = {Name("example.org")};
  return config;
}

TEST(ProxyNetRouterTest, TheAdvertisementByteByByte) {
  TestLink link(NamesConfig());
  link.lan.SetIpv6(true, link.now_ns);
  ASSERT_THAT(link.sent, SizeIs(1)) << "the first one at once";
  EXPECT_EQ(ToHex(Bytes(link.sent[0]).first(14)),
            "333300000001"
            "52550a000202"
            "86dd");
  const auto answer = link.Give(GuestFrame(Ip("fe80::2"), Ip("ff02::2"), kProtocolIcmpv6,
                                           Icmp6("8500 0000 00000000 0101 020000000002"), 255));
  ASSERT_THAT(answer, SizeIs(1)) << "who asks from an address is answered there, and at once";
  Frame frame;
  const Buffer rest = PayloadOf(answer[0], &frame);
  EXPECT_EQ(frame.ip->destination, Ip("fe80::2"));
  EXPECT_EQ(frame.ethernet.destination, kGuestMac);
  EXPECT_EQ(frame.ip->hop_limit, 255);
  EXPECT_EQ(frame.icmp()->type, 134);
  EXPECT_EQ(frame.icmp()->rest, 0x40c00708u) << "hop limit 64, managed and other, 1800 s";
  EXPECT_EQ(ToHex(rest),
            "00000000"
            "00000000"
            "0101"
            "52550a000202"
            "05010000"
            "00000578"
            "030440c0"
            "00278d00"
            "00093a80"
            "00000000"
            "fd766972746261790000000000000000"
            "19030000"
            "00000708"
            "fd000000000000000000000000000053"
            "1f030000"
            "00000708"
            "076578616d706c65036f726700"
            "000000");
}

TEST(ProxyNetRouterTest, TimersOfRfc4861) {
  TestLink link;
  link.lan.SetIpv6(true, link.now_ns);
  EXPECT_THAT(link.sent, SizeIs(1));
  uint64_t last = link.now_ns;
  for (int i = 0; i < 200; ++i) {
    const uint64_t next = link.lan.NextDeadline();
    const uint64_t interval = next - last;
    if (i < 2) {
      EXPECT_LE(interval, 16 * kSecondNs) << i;
    } else {
      EXPECT_GE(interval, 200 * kSecondNs);
      EXPECT_LE(interval, 600 * kSecondNs);
    }
    link.sent.clear();
    link.lan.OnTime(next - 1);
    EXPECT_THAT(link.sent, IsEmpty()) << "not before its time";
    link.lan.OnTime(next);
    EXPECT_THAT(link.sent, SizeIs(1));
    last = next;
  }
  // Who asks without an address is answered to all, at most every three seconds.
  const Buffer nobody =
      GuestFrame(Ip("::"), Ip("ff02::2"), kProtocolIcmpv6, Icmp6("8500 0000 00000000"), 255);
  link.now_ns = last + kSecondNs;
  EXPECT_THAT(link.Give(nobody), IsEmpty());
  EXPECT_EQ(link.lan.NextDeadline(), last + 3 * kSecondNs);
  link.now_ns = last + 3 * kSecondNs;
  link.lan.OnTime(link.now_ns);
  EXPECT_THAT(link.sent, SizeIs(1));
  link.now_ns += 3 * kSecondNs;
  EXPECT_THAT(link.Give(nobody), SizeIs(1));
}

TEST(ProxyNetRouterTest, IsWithdrawnAndComesBack) {
  TestLink link(NamesConfig());
  const Buffer asks =
      GuestFrame(Ip("fe80::2"), Ip("ff02::2"), kProtocolIcmpv6, Icmp6("8500 0000 00000000"), 255);
  EXPECT_THAT(link.Give(asks), IsEmpty()) << "the host has no IPv6 yet";
  EXPECT_EQ(link.lan.NextDeadline(), kNever);
  link.lan.Shutdown(link.now_ns);
  EXPECT_THAT(link.sent, IsEmpty()) << "nothing to take back";
  link.lan.SetIpv6(true, link.now_ns);
  EXPECT_THAT(link.sent, SizeIs(1));
  link.lan.SetIpv6(true, link.now_ns);
  EXPECT_THAT(link.sent, SizeIs(1)) << "no change";
  link.sent.clear();
  link.lan.Shutdown(link.now_ns);
  ASSERT_THAT(link.sent, SizeIs(1));
  Frame frame;
  const std::string rest = ToHex(PayloadOf(link.sent[0], &frame));
  EXPECT_EQ(frame.ip->destination, Ip("ff02::1"));
  EXPECT_EQ(frame.icmp()->rest & 0xffff, 0u) << "no router";
  EXPECT_NE(rest.find("030440c0"
                      "00001c20"
                      "00000000"),
            std::string::npos)
      << "nothing preferred";
  EXPECT_NE(rest.find("19030000"
                      "00000000"),
            std::string::npos)
      << "no resolvers";
  EXPECT_NE(rest.find("1f030000"
                      "00000000"),
            std::string::npos)
      << "no search list";
  EXPECT_EQ(link.lan.NextDeadline(), kNever);
  EXPECT_THAT(link.Give(asks), IsEmpty());
  link.lan.SetIpv6(true, link.now_ns + 10 * kSecondNs);
  EXPECT_THAT(link.sent, SizeIs(1));
}

TEST(ProxyNetRouterTest, ChangedNamesAreAdvertisedSoon) {
  TestLink link;
  link.lan.SetIpv6(true, link.now_ns);
  link.sent.clear();
  link.lan.SetNames({Ip("fd00::1")}, {Name("example.net")}, link.now_ns);
  EXPECT_THAT(link.sent, IsEmpty());
  EXPECT_EQ(link.lan.NextDeadline(), link.now_ns + 3 * kSecondNs);
  link.lan.OnTime(link.now_ns + 3 * kSecondNs);
  ASSERT_THAT(link.sent, SizeIs(1));
  EXPECT_NE(ToHex(link.sent[0]).find("fd000000000000000000000000000001"), std::string::npos);
}

TEST(ProxyNetLanTest, FramesForOthersAreDropped) {
  TestLink link;
  Buffer frame = Arp("0001", "020000000002", "0a00020f", "0a000202");
  frame[0] = 0x02;
  EXPECT_THAT(link.Give(frame), IsEmpty());
  EXPECT_EQ(link.lan.counters().dropped, 1u);
  // Of a VLAN; one of priority alone is of none.
  const Buffer tagged =
      Hex("ffffffffffff 020000000002 8100 0005 0806 0001 0800 06 04 0001 020000000002 0a00020f "
          "000000000000 0a000202");
  EXPECT_THAT(link.Give(tagged), IsEmpty());
  Buffer priority = tagged;
  priority[14] = 0xe0;
  priority[15] = 0;
  EXPECT_THAT(link.Give(priority), SizeIs(1));
  const Buffer large =
      Join({Arp("0001", "020000000002", "0a00020f", "0a000202"), Buffer(Lan::kMaxFrame)});
  EXPECT_THAT(link.Give(large), IsEmpty());
}

// CVE-2020-10756: an echo request whose answer had bytes that were never sent.
TEST(ProxyNetLanTest, Cve202010756TheGatewayEchoesWhatItGotAndNoMore) {
  TestLink link;
  struct Case {
    const char* from;
    const char* to;
    uint8_t protocol;
    const char* request;
    const char* reply;
  };
  for (const Case& c :
       {Case{"10.0.2.15", "10.0.2.2", kProtocolIcmp, "0800 0000 12340001 616263", "00"},
        Case{"fe80::2", kGateway6, kProtocolIcmpv6, "8000 0000 12340001 616263", "81"},
        Case{"fe80::2", "fd76:6972:7462:6179::2", kProtocolIcmpv6, "8000 0000 12340001", "81"}}) {
    const Buffer frame = GuestFrame(Ip(c.from), Ip(c.to), c.protocol, Hex(c.request));
    const auto sent = link.Give(Join({frame, Buffer(20)}));
    ASSERT_THAT(sent, SizeIs(1)) << c.to;
    EXPECT_EQ(sent[0].size(), frame.size()) << "padding is none of it";
    Frame answer;
    const Buffer payload = PayloadOf(sent[0], &answer);
    EXPECT_EQ(answer.ip->source, Ip(c.to));
    EXPECT_EQ(answer.ip->destination, Ip(c.from));
    EXPECT_EQ(ToHex(Buffer{answer.icmp()->type}), c.reply);
    EXPECT_EQ(answer.icmp()->rest, 0x12340001u);
    EXPECT_EQ(ToHex(payload), ToHex(Hex(c.request)).substr(16));
    // Lengths that go on behind the frame, wrong checksums: no answer.
    Buffer longer = frame;
    const size_t length_at = c.protocol == kProtocolIcmp ? 17 : 19;
    longer[length_at] = static_cast<uint8_t>(longer[length_at] + 9);
    EXPECT_THAT(link.Give(longer), IsEmpty());
    Buffer wrong = frame;
    wrong.back() ^= 1;
    EXPECT_THAT(link.Give(wrong), IsEmpty());
    for (size_t size = 0; size < frame.size(); ++size) {
      EXPECT_THAT(link.Give(Exactly(Bytes(frame).first(size))), IsEmpty()) << size;
    }
  }
  link.Give(GuestFrame(Ip("10.0.2.15"), Ip("1.2.3.4"), kProtocolIcmp, Hex("0800 0000 12340001")));
  EXPECT_FALSE(link.wanted) << "a flow's";
}

// CVE-2019-6778, CVE-2020-7039, CVE-2020-8608: helpers that read and rewrote IRC, FTP and ident;
// CVE-2020-7211: a TFTP server inside. The gateway takes its own protocols, and no other.
TEST(ProxyNetLanTest, Cve20196778Cve20207039Cve20208608Cve20207211NoOtherProtocolEndsHere) {
  TestLink link;
  for (const uint16_t port : {uint16_t{21}, uint16_t{69}, uint16_t{113}, uint16_t{6667}}) {
    EXPECT_THAT(link.Give(GuestFrame(Ip("10.0.2.15"), Ip("10.0.2.2"), kProtocolUdp,
                                     UdpSegment(4000, port, Hex("0001 2e2e5c61 00 6f6374657400")))),
                IsEmpty());
    EXPECT_FALSE(link.wanted) << port;
    Buffer segment(kTcpSize);
    Writer out(segment);
    TcpHeader tcp;
    tcp.source_port = 4000;
    tcp.destination_port = port;
    tcp.flags = TcpHeader::kSyn;
    WriteTcp(tcp, &out);
    link.Give(GuestFrame(Ip("10.0.2.15"), Ip("10.0.2.2"), kProtocolTcp, segment));
    EXPECT_FALSE(link.wanted) << port;
  }
}

TEST(ProxyNetLanTest, TheTableOfNeighborsIsBounded) {
  LanConfig config;
  config.guest_mac = kGuestMac;
  TestLink link(config);
  EXPECT_EQ(link.lan.MacOf(Ip("10.0.2.15")), kGuestMac) << "told";
  NeighborTable table;
  table.Learn(Ip("10.0.2.15"), kGuestMac, 0, true);
  for (uint32_t i = 0; i < 1000; ++i) {
    table.Learn(Ipv4Address{0x0a010000 + i}, kGuestMac, i + 1);
  }
  EXPECT_EQ(table.entries().size(), NeighborTable::kMax);
  EXPECT_TRUE(table.Find(Ip("10.0.2.15")).has_value());
  EXPECT_TRUE(table.Find(Ipv4Address{0x0a010000 + 999}).has_value());
  EXPECT_FALSE(table.Find(Ipv4Address{0x0a010000}).has_value());
}

TEST(ProxyNetLanTest, StateIsSavedAndRestored) {
  TestLink before;
  before.lan.SetIpv6(true, before.now_ns);
  const auto dhcp = [](const char* options, const char* mac) {
    return GuestFrame(
        Ip("0.0.0.0"), Ip("255.255.255.255"), kProtocolUdp,
        UdpSegment(68, 67,
                   Join({Hex(std::string(
                                 "01010600 12345678 00000000 00000000 00000000 00000000 00000000") +
                             mac + "00000000000000000000"),
                         Buffer(192), Hex("63825363"), Hex(options)})),
        64, MacAddress::Broadcast());
  };
  EXPECT_THAT(before.Give(dhcp("350101 5000 ff", "020000000002")), SizeIs(1));
  EXPECT_THAT(before.Give(dhcp("350101 5000 ff", "020000000003")), SizeIs(1));
  const std::vector<uint8_t> state = before.lan.Save(before.now_ns + 100 * kSecondNs);

  // Another clock: what counts is what is left.
  TestLink after;
  after.now_ns = 5 * kSecondNs;
  ASSERT_TRUE(after.lan.Restore(state, after.now_ns).ok());
  EXPECT_THAT(after.sent, SizeIs(1)) << "the router is advertised again";
  EXPECT_EQ(after.lan.MacOf(Ip("10.0.2.15")), kGuestMac);
  EXPECT_EQ(after.lan.Save(after.now_ns), state);
  // The second guest's address is its own still, and until its lease ends.
  after.now_ns += 86299 * kSecondNs;
  Frame frame;
  EXPECT_EQ(PayloadOf(after.Give(dhcp("350103 32040a000210 ff", "020000000002"))[0], &frame)[242],
            6);
  after.now_ns += 2 * kSecondNs;
  EXPECT_EQ(PayloadOf(after.Give(dhcp("350103 32040a000210 ff", "020000000004"))[0], &frame)[242],
            5);

  // A smaller pool takes what fits.
  LanConfig small;
  small.pool_size = 1;
  TestLink other(small);
  EXPECT_TRUE(other.lan.Restore(state, other.now_ns).ok());

  // Hostile bytes: an error, or a state, and never more.
  for (size_t size = 0; size < state.size(); ++size) {
    TestLink cut;
    (void)cut.lan.Restore(Exactly(Bytes(state).first(size)), 0);
  }
  const auto refused = [](const Buffer& bytes) {
    TestLink link;
    return !link.lan.Restore(bytes, 0).ok();
  };
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused(Hex("76626c6e 0002"))) << "a later version";
  EXPECT_TRUE(refused(Hex("76626c6e 0001 0001 0001 00")));
  EXPECT_TRUE(refused(Hex("76626c6e 0001 0001 000d 00000000 09 0000000000000000")));
  EXPECT_TRUE(refused(Hex("76626c6e 0001 0003 0003 050000")));
  EXPECT_FALSE(refused(Hex("76626c6e 0001 7777 0002 0000"))) << "a record that is not known";
  EXPECT_FALSE(refused(Hex("76626c6e 0001 0001 000d ffffffff 02 ffffffffffffffff")));
}

TEST(ProxyNetUplinkTest, Opens) {
  auto watcher = UplinkWatcher::Open();
  ASSERT_TRUE(watcher.ok()) << watcher.error().text;
  EXPECT_FALSE(watcher->OnReady()) << "nothing has happened, and nothing blocks";
  for (const IpAddress& a : UplinkWatcher::HostAddresses()) EXPECT_FALSE(a.IsLoopback());
}

// In a network of its own, where loopback gets an address and a route to the internet.
int ComesUpAndGoes() {
  auto watcher = UplinkWatcher::Open();
  if (!watcher.ok() || UplinkWatcher::HasIpv6()) return 1;
  const int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  ifreq flags{};
  std::strcpy(flags.ifr_name, "lo");
  flags.ifr_flags = IFF_UP;
  if (ioctl(fd, SIOCSIFFLAGS, &flags) != 0) return 2;
  struct {
    in6_addr address;
    uint32_t prefix_length;
    int index;
  } address{};
  inet_pton(AF_INET6, "2001:db8::7", &address.address);
  address.prefix_length = 64;
  address.index = static_cast<int>(if_nametoindex("lo"));
  if (ioctl(fd, SIOCSIFADDR, &address) != 0) return 3;
  in6_rtmsg route{};
  inet_pton(AF_INET6, "2000::", &route.rtmsg_dst);
  route.rtmsg_dst_len = 3;
  route.rtmsg_metric = 1;
  route.rtmsg_flags = 1;  // up
  route.rtmsg_ifindex = address.index;
  if (ioctl(fd, SIOCADDRT, &route) != 0) return 4;
  // Each change is told, the last of them that the address is nobody else's.
  const auto becomes = [&](bool up) {
    pollfd ready{watcher->fd(), POLLIN, 0};
    while (UplinkWatcher::HasIpv6() != up) {
      if (poll(&ready, 1, 10000) != 1 || !watcher->OnReady()) return false;
    }
    return true;
  };
  if (!becomes(true)) return 5;
  if (UplinkWatcher::HostAddresses() != std::vector<IpAddress>{Ip("2001:db8::7")}) return 7;
  watcher->OnReady();
  if (ioctl(fd, SIOCDELRT, &route) != 0) return 8;
  pollfd ready{watcher->fd(), POLLIN, 0};
  if (poll(&ready, 1, 10000) != 1 || !watcher->OnReady()) return 9;
  return becomes(false) ? 0 : 10;
}

TEST(ProxyNetUplinkTest, Ipv6ThatComesUpLaterIsSeen) {
  const pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0 && unshare(CLONE_NEWNET) != 0) _exit(77);
    _exit(ComesUpAndGoes());
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no network namespaces";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace virtbay::proxy_net
