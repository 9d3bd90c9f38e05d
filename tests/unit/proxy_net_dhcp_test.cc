// plugins/proxy-net/lan: DHCPv4 and DHCPv6 exchanges, byte by byte where they are answered.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "tests/unit/proxy_net_link.h"

namespace virtbay::proxy_net {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr char kCookie[] = "63825363";

std::string U32Hex(uint32_t value) {
  Buffer bytes(4);
  Writer out(bytes);
  out.U32(value);
  return ToHex(bytes);
}

// A message of the guest's: ciaddr, flags and options as given.
Buffer Dhcp4(const std::string& options, const char* ciaddr = "00000000",
             const char* flags = "0000", const char* mac = "020000000002") {
  return Join({Hex(std::string("01 01 06 00 12345678 0003") + flags + ciaddr +
                   "00000000 00000000 00000000" + mac + "00000000000000000000"),
               Buffer(192), Hex(kCookie), Hex(options)});
}

struct Reply4 {
  Frame frame;
  Buffer message;
  std::map<int, std::string> options;  // values of one code joined (RFC 3396)
  std::vector<int> order;

  std::string at(size_t from, size_t n) const { return ToHex(Bytes(message).subspan(from, n)); }
  std::string yiaddr() const { return at(16, 4); }
};

class ProxyNetDhcp4Test : public ::testing::Test {
 protected:
  explicit ProxyNetDhcp4Test(LanConfig config = {}) : link(std::move(config)) {}

  std::vector<Buffer> Send(const Buffer& message, const char* from = "0.0.0.0",
                           const char* to = "255.255.255.255") {
    const bool broadcast = Ip(to).v4().IsBroadcast();
    return link.Give(GuestFrame(Ip(from), Ip(to), kProtocolUdp, UdpSegment(68, 67, message), 64,
                                broadcast ? MacAddress::Broadcast() : kGatewayMac));
  }
  static Reply4 Read(const Buffer& frame) {
    Reply4 out;
    out.message = PayloadOf(frame, &out.frame);
    EXPECT_EQ(out.frame.udp()->source_port, 67);
    EXPECT_EQ(out.frame.udp()->destination_port, 68);
    EXPECT_EQ(out.frame.ip->source, Ip("10.0.2.2"));
    EXPECT_GE(out.message.size(), 300u);
    Reader in(Bytes(out.message).subspan(236));
    EXPECT_EQ(in.U32(), 0x63825363u);
    while (true) {
      const uint8_t code = in.U8();
      if (code == 255 || !in.ok()) break;
      const Bytes value = in.Take(in.U8());
      out.options[code] += ToHex(value);
      out.order.push_back(code);
    }
    EXPECT_TRUE(in.ok());
    return out;
  }
  Reply4 Exchange(const Buffer& message, const char* from = "0.0.0.0",
                  const char* to = "255.255.255.255") {
    const auto frames = Send(message, from, to);
    EXPECT_THAT(frames, SizeIs(1));
    return frames.empty() ? Reply4() : Read(frames[0]);
  }
  // DISCOVER and REQUEST.
  void Bind() {
    EXPECT_EQ(Exchange(Dhcp4("350101 ff")).options[53], "02");
    EXPECT_EQ(Exchange(Dhcp4("350103 32040a00020f 36040a000202 ff")).options[53], "05");
  }

  TestLink link;
};

LanConfig FullConfig() {
  LanConfig config;
  config.mtu = 9000;
  config.domain = Name("example.org");
  config.search = {Name("example.org"), Name("lab.example.org"), Name("example.net")};
  config.hostname = "guest7";
  config.lease_s = 3600;
  config.dns = {Ip("10.0.2.3"), Ip("fd00::3"), Ip("192.0.2.53")};
  return config;
}

class ProxyNetDhcp4FullTest : public ProxyNetDhcp4Test {
 protected:
  ProxyNetDhcp4FullTest() : ProxyNetDhcp4Test(FullConfig()) {}
};

class ProxyNetDhcp4SmallTest : public ProxyNetDhcp4Test {
 protected:
  ProxyNetDhcp4SmallTest()
      : ProxyNetDhcp4Test([] {
          LanConfig config;
          config.pool_size = 2;
          return config;
        }()) {}
};

TEST_F(ProxyNetDhcp4FullTest, TheOfferByteByByte) {
  const auto frames = Send(Dhcp4("350101 370d0103061a0f770c330636373a3b 3d0701020000000002 ff"));
  ASSERT_THAT(frames, SizeIs(1));
  // To the MAC address and to the address that it is to have.
  EXPECT_EQ(ToHex(Bytes(frames[0]).first(14)),
            "020000000002"
            "52550a000202"
            "0800");
  Reply4 offer = Read(frames[0]);
  EXPECT_EQ(offer.frame.ip->destination, Ip("10.0.2.15"));
  EXPECT_EQ(offer.at(0, 28),
            "02010600"
            "12345678"
            "00000000"
            "00000000"
            "0a00020f"
            "00000000"
            "00000000");
  EXPECT_EQ(offer.at(28, 16), "02000000000200000000000000000000");
  EXPECT_EQ(ToHex(Bytes(offer.message).subspan(236)),
            "63825363"
            "350102"
            "36040a000202"
            "330400000e10"
            "3a0400000708"
            "3b0400000c4e"
            "0104ffffff00"
            "03040a000202"
            "06080a000203c0000235"
            "1a022328"
            "1c040a0002ff"
            "0f0b6578616d706c652e6f7267"
            "0c06677565737437"
            // example.org, lab -> example.org, example.net (RFC 3397).
            "7720"
            "076578616d706c65036f726700"
            "036c6162c000"
            "076578616d706c65036e657400"
            "3d0701020000000002"
            "ff");
  EXPECT_EQ(link.lan.counters().dhcp4_replies, 1u);
}

TEST_F(ProxyNetDhcp4Test, SelectingIsAcknowledgedAndTheAddressLearned) {
  Bind();
  EXPECT_EQ(link.lan.MacOf(Ip("10.0.2.15")), kGuestMac);
  // The answer may be lost: the same again.
  Reply4 again = Exchange(Dhcp4("350103 32040a00020f 36040a000202 ff"));
  EXPECT_EQ(again.options[53], "05");
  EXPECT_EQ(again.yiaddr(), "0a00020f");
  EXPECT_EQ(again.options[51], "00015180");
}

TEST_F(ProxyNetDhcp4Test, TheBroadcastFlagIsHonoured) {
  Reply4 offer = Exchange(Dhcp4("350101 ff", "00000000", "8000"));
  EXPECT_EQ(offer.frame.ethernet.destination, MacAddress::Broadcast());
  EXPECT_EQ(offer.frame.ip->destination, Ip("255.255.255.255"));
  EXPECT_EQ(offer.at(10, 2), "8000");
}

TEST_F(ProxyNetDhcp4Test, AnotherServersOfferWasTaken) {
  Exchange(Dhcp4("350101 ff"));
  EXPECT_THAT(Send(Dhcp4("350103 32040a00020f 36040a000203 ff")), IsEmpty());
  // The address is free for another at once.
  EXPECT_EQ(Exchange(Dhcp4("350101 32040a00020f ff", "00000000", "0000", "020000000003")).yiaddr(),
            "0a00020f");
}

TEST_F(ProxyNetDhcp4Test, SelectingWhatWasNotOfferedIsRefusedToAll) {
  Reply4 nak = Exchange(Dhcp4("350103 32040a000210 36040a000202 ff"));
  EXPECT_EQ(nak.options[53], "06");
  EXPECT_EQ(nak.yiaddr(), "00000000");
  EXPECT_EQ(nak.frame.ethernet.destination, MacAddress::Broadcast());
  EXPECT_EQ(nak.frame.ip->destination, Ip("255.255.255.255"));
  EXPECT_THAT(nak.order, ElementsAre(53, 54)) << "no configuration";
}

TEST_F(ProxyNetDhcp4Test, InitReboot) {
  // Of another network.
  EXPECT_EQ(Exchange(Dhcp4("350103 3204c0a80105 ff")).options[53], "06");
  // The gateway's own, and the network's.
  EXPECT_EQ(Exchange(Dhcp4("350103 32040a000202 ff")).options[53], "06");
  // One of the pool that is free: the device may have been made anew.
  EXPECT_EQ(Exchange(Dhcp4("350103 32040a000212 ff")).options[53], "05");
  // Another than it has.
  EXPECT_EQ(Exchange(Dhcp4("350103 32040a000211 ff")).options[53], "06");
  // One that somebody else has.
  EXPECT_EQ(
      Exchange(Dhcp4("350103 32040a000212 ff", "00000000", "0000", "020000000003")).options[53],
      "06");
}

TEST_F(ProxyNetDhcp4Test, RenewingAndRebinding) {
  Bind();
  link.now_ns += 43200 * kSecondNs;
  Reply4 renewed = Exchange(Dhcp4("350103 ff", "0a00020f"), "10.0.2.15", "10.0.2.2");
  EXPECT_EQ(renewed.options[53], "05");
  EXPECT_EQ(renewed.frame.ip->destination, Ip("10.0.2.15"));
  EXPECT_EQ(renewed.at(12, 8), "0a00020f0a00020f");
  // The lease counts from the renewal.
  link.now_ns += 60000 * kSecondNs;
  EXPECT_EQ(Exchange(Dhcp4("350103 ff", "0a00020f"), "10.0.2.15").options[53], "05");
  Reply4 nak = Exchange(Dhcp4("350103 ff", "0a000210"), "10.0.2.16", "10.0.2.2");
  EXPECT_EQ(nak.options[53], "06");
  EXPECT_EQ(nak.at(12, 4), "00000000");
}

TEST_F(ProxyNetDhcp4Test, InformGetsConfigurationWithoutALease) {
  Reply4 ack = Exchange(Dhcp4("350108 ff", "0a000264"), "10.0.2.100", "10.0.2.2");
  EXPECT_EQ(ack.options[53], "05");
  EXPECT_EQ(ack.yiaddr(), "00000000");
  EXPECT_EQ(ack.frame.ip->destination, Ip("10.0.2.100"));
  EXPECT_EQ(ack.options.count(51) + ack.options.count(58) + ack.options.count(59), 0u);
  EXPECT_EQ(ack.options[6], "0a000202");
  EXPECT_THAT(Send(Dhcp4("350108 ff", "c0a80105")), IsEmpty()) << "not of this network";
}

TEST_F(ProxyNetDhcp4SmallTest, Decline) {
  Bind();
  EXPECT_THAT(Send(Dhcp4("350104 32040a00020f 36040a000203 ff")), IsEmpty())
      << "not to this server";
  EXPECT_EQ(Exchange(Dhcp4("350101 ff")).yiaddr(), "0a00020f");
  EXPECT_THAT(Send(Dhcp4("350104 32040a00020f 36040a000202 ff")), IsEmpty());
  Reply4 next = Exchange(Dhcp4("350101 32040a00020f ff"));
  EXPECT_EQ(next.yiaddr(), "0a000210");
  // Only who has it may decline it.
  EXPECT_THAT(
      Send(Dhcp4("350104 32040a000210 36040a000202 ff", "00000000", "0000", "020000000003")),
      IsEmpty());
  EXPECT_EQ(Exchange(Dhcp4("350103 32040a000210 36040a000202 ff")).options[53], "05");
  // Nothing else is left: better that than none.
  EXPECT_EQ(Exchange(Dhcp4("350101 ff", "00000000", "0000", "020000000003")).yiaddr(), "0a00020f");
}

TEST_F(ProxyNetDhcp4SmallTest, ReleaseFreesTheAddressForOthersAndForItself) {
  Bind();
  const char* third = "020000000004";
  EXPECT_EQ(Exchange(Dhcp4("350101 ff", "00000000", "0000", "020000000003")).yiaddr(), "0a000210");
  EXPECT_EQ(
      Exchange(Dhcp4("350103 32040a000210 36040a000202 ff", "00000000", "0000", "020000000003"))
          .options[53],
      "05");
  EXPECT_THAT(Send(Dhcp4("350101 ff", "00000000", "0000", third)), IsEmpty()) << "all taken";
  EXPECT_THAT(
      Send(Dhcp4("350107 36040a000202 ff", "0a00020f", "0000", third), "10.0.2.15", "10.0.2.2"),
      IsEmpty());
  EXPECT_THAT(Send(Dhcp4("350101 ff", "00000000", "0000", third)), IsEmpty()) << "not its own";
  EXPECT_THAT(Send(Dhcp4("350107 36040a000202 ff", "0a00020f"), "10.0.2.15", "10.0.2.2"),
              IsEmpty());
  // It comes back and gets the same.
  EXPECT_EQ(Exchange(Dhcp4("350101 ff")).yiaddr(), "0a00020f");
  // An offer that is not taken goes.
  link.now_ns += 121 * kSecondNs;
  EXPECT_EQ(Exchange(Dhcp4("350101 ff", "00000000", "0000", third)).yiaddr(), "0a00020f");
}

TEST_F(ProxyNetDhcp4SmallTest, ALeaseEnds) {
  Bind();
  link.now_ns += uint64_t{86400} * kSecondNs;
  EXPECT_EQ(
      Exchange(Dhcp4("350103 32040a00020f ff", "00000000", "0000", "020000000003")).options[53],
      "05");
}

TEST_F(ProxyNetDhcp4Test, RapidCommit) {
  Reply4 ack = Exchange(Dhcp4("350101 5000 ff"));
  EXPECT_EQ(ack.options[53], "05");
  EXPECT_EQ(ack.options.count(80), 1u);
  EXPECT_EQ(link.lan.MacOf(Ip("10.0.2.15")), kGuestMac);
}

TEST_F(ProxyNetDhcp4Test, AShorterLeaseIsGrantedALongerOneNot) {
  EXPECT_EQ(Exchange(Dhcp4("350101 3304" + U32Hex(600) + "ff")).options[51], U32Hex(600));
  EXPECT_EQ(Exchange(Dhcp4("350101 3304ffffffff ff")).options[51], U32Hex(86400));
  EXPECT_EQ(Exchange(Dhcp4("350101 330400000000 ff")).options[51], U32Hex(1));
}

TEST_F(ProxyNetDhcp4Test, OptionsInTheOtherFields) {
  // Overload 3: the type is in `file`, the address in `sname` (RFC 2132 9.3).
  Buffer message = Dhcp4("340103 ff");
  const Buffer file = Hex("350101 ff");
  const Buffer name = Hex("32040a000213 ff");
  std::copy(file.begin(), file.end(), message.begin() + 108);
  std::copy(name.begin(), name.end(), message.begin() + 44);
  EXPECT_EQ(Exchange(message).yiaddr(), "0a000213");
}

TEST_F(ProxyNetDhcp4Test, IsSilentForWhatIsNotForIt) {
  const Buffer discover = Dhcp4("350101 ff");
  const auto with = [&](size_t at, uint8_t value) {
    Buffer other = discover;
    other[at] = value;
    return other;
  };
  EXPECT_THAT(Send(with(0, 2)), IsEmpty()) << "a reply";
  EXPECT_THAT(Send(with(1, 6)), IsEmpty()) << "other hardware";
  EXPECT_THAT(Send(with(2, 16)), IsEmpty());
  EXPECT_THAT(Send(with(24, 10)), IsEmpty()) << "a relay";
  EXPECT_THAT(Send(with(28, 1)), IsEmpty()) << "a group's hardware address";
  EXPECT_THAT(Send(with(236, 0)), IsEmpty()) << "no cookie";
  for (const char* options : {"ff", "350102 ff", "350105 ff", "3500 ff", "35020101 ff",
                              "350101 3203010203 ff", "350101 360105 ff", "350109 ff"}) {
    EXPECT_THAT(Send(Dhcp4(options)), IsEmpty()) << options;
  }
  EXPECT_THAT(Send(discover, "10.0.2.15", "10.0.2.3"), IsEmpty());
  EXPECT_FALSE(link.wanted) << "another host's port 67 is a flow's";
}

// CVE-2021-3592: a BOOTP message taken for whole.
TEST_F(ProxyNetDhcp4FullTest, Cve20213592EveryTruncation) {
  const Buffer message =
      Dhcp4("350101 370d0103061a0f770c330636373a3b 3d0701020000000002 32040a00020f ff");
  for (size_t size = 0; size < message.size(); ++size) {
    const auto frames = Send(Exactly(Bytes(message).first(size)));
    // From the type on it may be taken for a shorter one.
    EXPECT_TRUE(frames.empty() || size >= 243) << size;
    for (const Buffer& frame : frames) Read(frame);
  }
  EXPECT_THAT(Send(message), SizeIs(1));
}

TEST_F(ProxyNetDhcp4Test, WrongChecksumsAreDroppedUnlessTheDeviceIsToFillThem) {
  Buffer frame = GuestFrame(Ip("0.0.0.0"), Ip("255.255.255.255"), kProtocolUdp,
                            UdpSegment(68, 67, Dhcp4("350101 ff")), 64, MacAddress::Broadcast());
  frame[40] ^= 0x55;
  EXPECT_THAT(link.Give(frame), IsEmpty());
  EXPECT_EQ(link.lan.counters().dropped, 1u);
  EXPECT_THAT(link.Give(frame, false), SizeIs(1));
  frame[40] = frame[41] = 0;
  EXPECT_THAT(link.Give(frame), SizeIs(1)) << "none at all";
}

TEST_F(ProxyNetDhcp4FullTest, ALongSearchListGoesOnInMoreOptionsOrIsLeftOut) {
  LanConfig config = FullConfig();
  config.search.clear();
  for (char c = 'a'; c < 'a' + 12; ++c) {
    config.search.push_back(Name((std::string(40, c) + ".example").c_str()));
  }
  TestLink other(config);
  const auto ask = [&](const char* options) {
    const auto frames =
        other.Give(GuestFrame(Ip("0.0.0.0"), Ip("255.255.255.255"), kProtocolUdp,
                              UdpSegment(68, 67, Dhcp4(options)), 64, MacAddress::Broadcast()));
    return frames.empty() ? Reply4() : Read(frames[0]);
  };
  // 576 bytes are all that every client takes.
  Reply4 small = ask("350101 ff");
  EXPECT_EQ(small.options.count(119), 0u);
  EXPECT_LE(small.message.size(), 548u);
  EXPECT_EQ(small.options[15], "6578616d706c652e6f7267");
  Reply4 large = ask("350101 390205dc ff");
  EXPECT_EQ(std::count(large.order.begin(), large.order.end(), 119), 3);
  const Buffer list = Hex(large.options[119]);
  size_t at = 0;
  for (const DomainName& name : config.search) EXPECT_EQ(DomainName::Read(list, &at), name);
  EXPECT_EQ(at, list.size());
}

// --- DHCPv6 ---

constexpr char kClientDuid[] = "0001 000a 00030001 020000000002";
constexpr char kServerDuid[] = "0002 000a 00030001 52550a000202";
constexpr char kServerDuidHex[] = "0002000a0003000152550a000202";
constexpr char kClientDuidHex[] = "0001000a00030001020000000002";
constexpr char kGuest6[] = "fd766972746261790000000000010000";
constexpr char kDns6[] = "00170010fd766972746261790000000000000002";

class ProxyNetDhcp6Test : public ::testing::Test {
 protected:
  explicit ProxyNetDhcp6Test(LanConfig config = {}) : link(std::move(config)) {
    link.lan.SetIpv6(true, link.now_ns);
  }
  // The answer's payload in digits, or nothing.
  std::string Send(const std::string& message, const char* to = "ff02::1:2") {
    const auto frames = link.Give(
        GuestFrame(Ip("fe80::2"), Ip(to), kProtocolUdp, UdpSegment(546, 547, Hex(message))));
    if (frames.empty()) return "";
    EXPECT_THAT(frames, SizeIs(1));
    Frame frame;
    const Buffer payload = PayloadOf(frames[0], &frame);
    EXPECT_EQ(frame.ip->destination, Ip("fe80::2"));
    EXPECT_EQ(frame.ip->source, Ip("fe80::5055:aff:fe00:202"));
    EXPECT_EQ(frame.udp()->source_port, 547);
    EXPECT_EQ(frame.udp()->destination_port, 546);
    return ToHex(payload);
  }
  static std::string Ia(const std::string& addresses = "", const char* id = "00000001") {
    const std::string body = std::string(id) + "00000000 00000000" + addresses;
    const size_t size = Hex(body).size();
    return "0003 00" + ToHex(Buffer{static_cast<uint8_t>(size)}) + body;
  }
  static std::string Address(const char* address, const char* lifetime = "00015180") {
    return std::string("0005 0018") + address + lifetime + lifetime;
  }
  static std::string IaReply(const std::string& content) {
    return "0003" + ToHex(Buffer{0, static_cast<uint8_t>(12 + content.size() / 2)}) + "00000001" +
           "0000a8c0"
           "00010e00" +
           content;
  }
  static std::string Plain(const std::string& text) { return ToHex(Hex(text)); }

  TestLink link;
};

TEST_F(ProxyNetDhcp6Test, SolicitRequestRenewRebindByteByByte) {
  const std::string with_address = IaReply(Plain(Address(kGuest6)));
  const std::string head = std::string(kClientDuidHex) + kServerDuidHex;
  EXPECT_EQ(
      Send(std::string("01abcdef") + kClientDuid + Ia() + "0008 0002 0000 0006 0004 00170018"),
      "02abcdef" + head + with_address + kDns6);
  EXPECT_EQ(Send(std::string("03abcdf0") + kClientDuid + kServerDuid + Ia(Address(kGuest6))),
            "07abcdf0" + head + with_address + kDns6);
  EXPECT_EQ(link.lan.MacOf(Ip("fd76:6972:7462:6179::1:0")), kGuestMac);
  EXPECT_EQ(Send(std::string("05abcdf1") + kClientDuid + kServerDuid + Ia(Address(kGuest6))),
            "07abcdf1" + head + with_address + kDns6);
  EXPECT_EQ(Send(std::string("06abcdf2") + kClientDuid + Ia(Address(kGuest6))),
            "07abcdf2" + head + with_address + kDns6);
}

TEST_F(ProxyNetDhcp6Test, AnAddressOfElsewhereIsTakenBackWhenItIsRenewed) {
  const char* old = "20010db8000000000000000000000099";
  EXPECT_EQ(Send(std::string("06abcdef") + kClientDuid + Ia(Address(old))),
            "07abcdef" + std::string(kClientDuidHex) + kServerDuidHex +
                IaReply(Plain(Address(kGuest6) + Address(old, "00000000"))) + kDns6);
}

TEST_F(ProxyNetDhcp6Test, RapidCommitBindsAtOnce) {
  const std::string reply = Send(std::string("01abcdef") + kClientDuid + Ia() + "000e 0000");
  EXPECT_EQ(reply, "07abcdef" + std::string(kClientDuidHex) + kServerDuidHex + "000e0000" +
                       IaReply(Plain(Address(kGuest6))) + kDns6);
  EXPECT_EQ(link.lan.MacOf(Ip("fd76:6972:7462:6179::1:0")), kGuestMac);
}

TEST_F(ProxyNetDhcp6Test, ConfirmSaysWhetherAddressesAreOfThisLink) {
  const std::string head = "07abcdef" + std::string(kClientDuidHex) + kServerDuidHex;
  EXPECT_EQ(Send(std::string("04abcdef") + kClientDuid + Ia(Address(kGuest6))),
            head + "000d00020000");
  EXPECT_EQ(Send(std::string("04abcdef") + kClientDuid +
                 Ia(Address(kGuest6) + Address("20010db8000000000000000000000099"))),
            head + "000d00020004");
  EXPECT_EQ(Send(std::string("04abcdef") + kClientDuid + Ia()), "");
}

TEST_F(ProxyNetDhcp6Test, ReleaseAndDecline) {
  const std::string head = std::string(kClientDuidHex) + kServerDuidHex;
  const std::string ours = std::string(kClientDuid) + kServerDuid + Ia(Address(kGuest6));
  const std::string no_binding =
      "0003001200000001"
      "0000000000000000"
      "000d00020003";
  EXPECT_EQ(Send("08abcdef" + ours), "07abcdef" + head + "000d00020000" + no_binding);
  Send("03abcdef" + ours);
  EXPECT_EQ(Send("08abcdef" + ours), "07abcdef" + head + "000d00020000");
  EXPECT_EQ(Send("08abcdef" + ours), "07abcdef" + head + "000d00020000" + no_binding);
  Send("03abcdef" + ours);
  EXPECT_EQ(Send("09abcdef" + ours), "07abcdef" + head + "000d00020000");
  // It gets another.
  EXPECT_EQ(
      Send(std::string("01abcdef") + kClientDuid + Ia(Address(kGuest6))),
      "02abcdef" + head + IaReply(Plain(Address("fd766972746261790000000000010001"))) + kDns6);
}

TEST_F(ProxyNetDhcp6Test, InformationRequest) {
  EXPECT_EQ(Send(std::string("0babcdef") + kClientDuid + "0006 0004 00170018"),
            "07abcdef" + std::string(kClientDuidHex) + kServerDuidHex + kDns6);
  // A client may keep its name to itself.
  EXPECT_EQ(Send("0babcdef"), "07abcdef" + std::string(kServerDuidHex) + kDns6);
  EXPECT_EQ(Send(std::string("0babcdef") + kClientDuid + Ia()), "");
}

class ProxyNetDhcp6NamesTest : public ProxyNetDhcp6Test {
 protected:
  ProxyNetDhcp6NamesTest()
      : ProxyNetDhcp6Test([] {
          LanConfig config;
          config.dns = {Ip("10.0.2.3"), Ip("fd00::53")};
          config.search = {Name("example.org"), Name("a.example.org")};
          config.pool_size = 1;
          return config;
        }()) {}
};

TEST_F(ProxyNetDhcp6NamesTest, ResolversAndSearchListWithoutPointers) {
  EXPECT_EQ(Send("0babcdef"), "07abcdef" + std::string(kServerDuidHex) +
                                  "00170010fd000000000000000000000000000053" +
                                  "0018001c"
                                  "076578616d706c65036f726700"
                                  "0161076578616d706c65036f726700");
}

TEST_F(ProxyNetDhcp6NamesTest, NoAddressIsLeft) {
  Send(std::string("03abcdef") + kClientDuid + kServerDuid + Ia());
  const std::string reply = Send(std::string("01abcdef") + kClientDuid + Ia("", "00000002"));
  EXPECT_NE(reply.find("0003001200000002"
                       "0000000000000000"
                       "000d00020002"),
            std::string::npos)
      << reply;
}

TEST_F(ProxyNetDhcp6Test, TemporaryAddressesAndPrefixesAreNotGiven) {
  const std::string reply = Send(std::string("01abcdef") + kClientDuid + "0004 0004 00000007" +
                                 "0019 000c 00000008 00000000 00000000");
  EXPECT_EQ(reply, "02abcdef" + std::string(kClientDuidHex) + kServerDuidHex +
                       "0004000a00000007"
                       "000d00020002" +
                       "0019001200000008"
                       "0000000000000000"
                       "000d00020006" +
                       kDns6);
}

TEST_F(ProxyNetDhcp6Test, IsSilentForWhatRfc8415Section16Discards) {
  const std::string client = kClientDuid;
  const std::string server = kServerDuid;
  const std::string other = "0002 000a 00030001 020000000099";
  for (const std::string& message : {
           "01abcdef" + Ia(),                    // no client
           "01abcdef" + client + server + Ia(),  // a server named
           "03abcdef" + client + Ia(),           // none named
           "03abcdef" + client + other + Ia(),   // another
           "05abcdef" + server + Ia(),
           "06abcdef" + client + server + Ia(),
           "04abcdef" + server + Ia(Address(kGuest6)),
           "08abcdef" + client + other + Ia(),
           "0babcdef" + other,
           "02abcdef" + client + server,
           "07abcdef" + client + server,
           "0aabcdef" + client + server,
           "0cabcdef" + client,
           "00abcdef" + client,
           "ffabcdef" + client,
       }) {
    EXPECT_EQ(Send(message), "") << message;
  }
  // To the gateway's own address: only to be told not to (RFC 8415 18.4).
  EXPECT_EQ(Send("01abcdef" + client + Ia(), "fe80::5055:aff:fe00:202"), "");
  EXPECT_EQ(Send("05abcdef" + client + server + Ia(), "fe80::5055:aff:fe00:202"),
            "07abcdef" + std::string(kClientDuidHex) + kServerDuidHex + "000d00020005");
}

// CVE-2021-3593: a datagram over IPv6 taken for whole.
TEST_F(ProxyNetDhcp6Test, EveryTruncation) {
  const Buffer message = Hex(std::string("03abcdef") + kClientDuid + kServerDuid +
                             Ia(Address(kGuest6)) + "0008 0002 0000");
  for (size_t size = 0; size < message.size(); ++size) {
    const std::string reply = Send(ToHex(Bytes(message).first(size)));
    // Between two options it is a shorter message.
    const bool whole = size == 32 || size == 76;
    EXPECT_EQ(!reply.empty(), whole) << size;
  }
}

TEST_F(ProxyNetDhcp6Test, OptionsThatContradictThemselvesAreOfNoMessage) {
  const std::string client = kClientDuid;
  const auto duid = [](size_t size) {
    return ToHex(Buffer{0, 1, 0, static_cast<uint8_t>(size)}) + ToHex(Buffer(size, 0x42));
  };
  for (const std::string& options : {
           client + "0003 000b 00000001 00000000 000000",    // too short for an association
           client + "0003 0004 00000001",                    // without its times
           client + "0004 0003 000001",                      // a temporary one
           client + "0019 0008 00000001 00000000",           // prefixes
           client + Ia("0005 0018 20010db8"),                // longer than what it lies in
           client + Ia("0005 0004 20010db8"),                // too short for an address
           client + Ia("0005 0010" + std::string(kGuest6)),  // without its lifetimes
           client + Ia("ffff ffff"),                         //
           client + Ia("00"),                                // half an option
           client + Ia() + "0006 0004 0017",                 // longer than the message
           client + Ia() + "ffff ffff",                      //
           client + Ia() + "0008 00",                        //
           duid(0) + Ia(),                                   //
           duid(2) + Ia(),                                   //
           duid(131) + Ia(),                                 // RFC 8415 11.1
           client + "0002 0002 0003" + Ia(),                 // a server without a name
       }) {
    EXPECT_EQ(Send("01abcdef" + options), "") << options;
    EXPECT_EQ(Send("03abcdef" + std::string(kServerDuid) + options), "") << options;
  }
  for (const std::string& options : {
           client + Ia() + "ffff 0000",                       // of no kind that is known
           client + Ia(Address(kGuest6) + "000d 0002 0000"),  // a status beside the address
           client + "0003 0010 00000001 00000000 00000000 0000 0000",  // an empty option in it
           duid(3) + Ia(),
           duid(130) + Ia(),
       }) {
    EXPECT_NE(Send("01abcdef" + options), "") << options;
  }
  // More associations, and addresses in one, than anybody has.
  std::string many = client;
  for (char id = '1'; id <= '9'; ++id) {
    std::string addresses;
    for (int i = 0; i < 7; ++i) addresses += Address(kGuest6);
    many += Ia(addresses, (std::string("0000000") + id).c_str());
  }
  const std::string reply = Send("01abcdef" + many);
  size_t answered = 0;
  for (size_t at = reply.find("00030028"); at != reply.npos; at = reply.find("00030028", at + 8)) {
    ++answered;
  }
  EXPECT_EQ(answered, 8u) << reply;
}

// What is to be said is more than every link carries: then not what the addresses of elsewhere are.
TEST_F(ProxyNetDhcp6Test, AnAnswerThatDoesNotFitSaysLess) {
  std::string many = "0001 0082 " + ToHex(Buffer(130, 0x42));
  for (char id = '1'; id <= '8'; ++id) {
    std::string addresses;
    for (char last = '1'; last <= '4'; ++last) {
      addresses += Address((std::string("20010db800000000000000000000000") + last).c_str());
    }
    many += Ia(addresses, (std::string("0000000") + id).c_str());
  }
  const std::string reply = Send("06abcdef" + many);
  EXPECT_EQ(reply.substr(0, 8), "07abcdef");
  EXPECT_NE(reply.find(kGuest6), std::string::npos);
  EXPECT_EQ(reply.find("20010db8"), std::string::npos);
  EXPECT_NE(reply.find(kDns6), std::string::npos);
}

TEST_F(ProxyNetDhcp6Test, NothingIsGivenWhileTheHostHasNoIpv6) {
  link.lan.SetIpv6(false, link.now_ns);
  EXPECT_EQ(Send(std::string("01abcdef") + kClientDuid + Ia()), "");
}

}  // namespace
}  // namespace virtbay::proxy_net
