// plugins/proxy-net/packet: cursors, addresses, checksums, and headers that are built.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"
#include "plugins/proxy-net/packet/parse.h"
#include "plugins/proxy-net/packet/socket_address.h"
#include "tests/unit/proxy_net_bytes.h"

namespace virtbay::proxy_net {
namespace {

TEST(ProxyNetCursorTest, ReadsInNetworkOrder) {
  const Buffer bytes = Hex("01 0203 04050607 08090a0b0c0d0e0f 1011 12");
  Reader in(bytes);
  EXPECT_EQ(in.U8(), 0x01);
  EXPECT_EQ(in.U16(), 0x0203);
  EXPECT_EQ(in.U32(), 0x04050607u);
  EXPECT_EQ(in.U64(), 0x08090a0b0c0d0e0fu);
  EXPECT_EQ(ToHex(in.Take(2)), "1011");
  EXPECT_EQ(in.left(), 1u);
  in.Skip(1);
  EXPECT_TRUE(in.ok());
  EXPECT_EQ(in.left(), 0u);
}

TEST(ProxyNetCursorTest, EveryReadPastTheEndFailsAndStaysFailed) {
  const Buffer whole(8, 0xff);
  for (size_t size = 0; size < whole.size(); ++size) {
    const Buffer bytes = Exactly(Bytes(whole).first(size));
    const auto fails = [&](auto read) {
      Reader in(bytes);
      const auto value = read(&in);
      EXPECT_FALSE(in.ok()) << size;
      EXPECT_EQ(in.left(), 0u);
      EXPECT_EQ(in.U8(), 0) << "failed cursors read nothing";
      EXPECT_TRUE(in.rest().empty());
      return value;
    };
    EXPECT_EQ(fails([](Reader* in) { return in->U64(); }), 0u);
    EXPECT_TRUE(fails([&](Reader* in) { return in->Take(size + 1); }).empty());
    EXPECT_TRUE(fails([&](Reader* in) { return in->Take(SIZE_MAX); }).empty());
    fails([](Reader* in) { return in->Skip(SIZE_MAX), 0; });
    EXPECT_EQ(fails([](Reader* in) {
                std::array<uint8_t, 9> out;
                out.fill(7);
                in->Copy(out);
                return out;
              }),
              (std::array<uint8_t, 9>{}));
  }
}

TEST(ProxyNetCursorTest, WritesInNetworkOrderAndNothingPastTheEnd) {
  Buffer bytes(20, 0xee);
  Writer out(std::span<uint8_t>(bytes).first(19));
  out.U8(1);
  out.U16(0x0203);
  out.U32(0x04050607);
  out.U64(0x08090a0b0c0d0e0f);
  out.Put(Hex("1011"));
  out.Fill(1, 0x12);
  out.PatchU16(1, 0xaabb);
  out.PatchU8(0, 0xcc);
  EXPECT_EQ(ToHex(out.written()), "ccaabb0405060708090a0b0c0d0e0f101112");
  EXPECT_EQ(out.left(), 1u);
  out.U16(0xffff);
  EXPECT_FALSE(out.ok());
  out.U8(0xff);
  EXPECT_EQ(bytes[18], 0xee) << "a failed cursor writes nothing";
  EXPECT_EQ(bytes[19], 0xee);
  EXPECT_TRUE(out.written().empty());
}

TEST(ProxyNetCursorTest, PatchesOnlyWhatWasWritten) {
  for (size_t at = 0; at < 6; ++at) {
    Buffer bytes(8, 0);
    Writer out(bytes);
    out.Fill(4);
    out.PatchU16(at, 0xffff);
    EXPECT_EQ(out.ok(), at <= 2) << at;
    EXPECT_EQ(bytes[4], 0);
  }
  Buffer none;
  Writer out(none);
  out.PatchU16(SIZE_MAX, 1);
  EXPECT_FALSE(out.ok());
}

TEST(ProxyNetAddressTest, Mac) {
  const auto mac = MacAddress::Parse("52:55:0A:00:01:02");
  ASSERT_TRUE(mac.has_value());
  EXPECT_EQ(mac->ToString(), "52:55:0a:00:01:02");
  EXPECT_EQ(MacAddress::Parse("52-55-0a-00-01-02"), mac);
  for (const char* bad :
       {"", "52:55:0a:00:01", "52:55:0a:00:01:0", "52:55:0a:00:01:0g", "52:55-0a:00:01:02",
        "52:55:0a:00:01:02:", "5255:0a:00:01:02:", "+2:55:0a:00:01:02"}) {
    EXPECT_FALSE(MacAddress::Parse(bad).has_value()) << bad;
  }
  EXPECT_FALSE(mac->IsMulticast());
  EXPECT_TRUE(MacAddress::Broadcast().IsMulticast());
}

TEST(ProxyNetAddressTest, TextOfBothFamilies) {
  for (const char* good : {"10.0.2.15", "255.255.255.255", "::", "::1", "2001:db8::1", "fe80::1",
                           "::ffff:127.0.0.1"}) {
    const auto a = IpAddress::Parse(good);
    ASSERT_TRUE(a.has_value()) << good;
    EXPECT_EQ(a->ToString(), good);
  }
  // What inet_aton would take is as good as a trap for whoever reads a rule.
  for (const char* bad : {"", "10.0.2", "010.0.2.15", "0x7f.1", "2130706433", "10.0.2.15.",
                          "1.2.3.4 ", ":::", "fe80::1%eth0", "[::1]", "1::2::3", "g::"}) {
    EXPECT_FALSE(IpAddress::Parse(bad).has_value()) << bad;
  }
  EXPECT_FALSE(IpAddress::Parse(std::string_view("10.0.2.1\0005", 10)).has_value());
  EXPECT_EQ((Endpoint{*IpAddress::Parse("::1"), 80}.ToString()), "[::1]:80");
  EXPECT_EQ((Endpoint{*IpAddress::Parse("1.2.3.4"), 80}.ToString()), "1.2.3.4:80");
}

TEST(ProxyNetAddressTest, DerivedAddresses) {
  const MacAddress mac = *MacAddress::Parse("52:55:0a:00:01:02");
  EXPECT_EQ(Ipv6Address::LinkLocalOf(mac).ToString(), "fe80::5055:aff:fe00:102");
  EXPECT_EQ(Ipv6Address::EuiOf(*Ipv6Address::Parse("2001:db8:1:2::"), mac).ToString(),
            "2001:db8:1:2:5055:aff:fe00:102");
  const Ipv6Address node = Ipv6Address::LinkLocalOf(mac).SolicitedNode();
  EXPECT_EQ(node.ToString(), "ff02::1:ff00:102");
  EXPECT_EQ(node.MulticastMac().ToString(), "33:33:ff:00:01:02");
  EXPECT_EQ(Netmask(0).ToString(), "0.0.0.0");
  EXPECT_EQ(Netmask(24).ToString(), "255.255.255.0");
  EXPECT_EQ(Netmask(32).ToString(), "255.255.255.255");
}

TEST(ProxyNetAddressTest, ClassesAndEmbeddedAddresses) {
  const auto v6 = [](const char* text) { return *Ipv6Address::Parse(text); };
  const auto inner = [&](const char* text) {
    const auto a = v6(text).EmbeddedIpv4();
    return a.has_value() ? a->ToString() : "none";
  };
  EXPECT_EQ(inner("::ffff:127.0.0.1"), "127.0.0.1");
  EXPECT_EQ(inner("::127.0.0.1"), "127.0.0.1");
  EXPECT_EQ(inner("64:ff9b::7f00:1"), "127.0.0.1");
  EXPECT_EQ(inner("2002:7f00:1::"), "127.0.0.1");
  EXPECT_EQ(inner("2001:db8::5efe:7f00:1"), "127.0.0.1");
  EXPECT_EQ(inner("2001:db8::200:5efe:7f00:1"), "127.0.0.1");
  EXPECT_EQ(inner("::1"), "none");
  EXPECT_EQ(inner("::"), "none");
  EXPECT_EQ(inner("2001:db8::1"), "none");
  EXPECT_TRUE(v6("2001::1").IsTeredo());
  EXPECT_FALSE(v6("2001:db8::1").IsTeredo());
  EXPECT_TRUE(v6("64:ff9b:1::1").IsLocalNat64());
  EXPECT_TRUE(v6("febf::1").IsLinkLocal());
  EXPECT_FALSE(v6("fec0::1").IsLinkLocal());
  EXPECT_EQ(IpAddress(v6("::ffff:1.2.3.4")).Canonical().ToString(), "1.2.3.4");
  EXPECT_EQ(IpAddress(v6("::1.2.3.4")).Canonical().ToString(), "::1.2.3.4");
  EXPECT_NE(IpAddress(v6("::")), IpAddress()) << "families differ";
  EXPECT_TRUE(v6("2001:db8:80::").InPrefix(v6("2001:db8::"), 40));
  EXPECT_FALSE(v6("2001:db8:80::").InPrefix(v6("2001:db8::"), 41));
  EXPECT_TRUE(v6("ffff::").InPrefix(v6("::"), 0));
  EXPECT_FALSE(v6("::2").InPrefix(v6("::3"), 128));
}

TEST(ProxyNetAddressTest, SocketAddresses) {
  for (const char* text : {"127.0.0.1", "::1", "::ffff:1.2.3.4"}) {
    const Endpoint endpoint{*IpAddress::Parse(text), 4711};
    const SocketAddress out = SocketAddress::Of(endpoint, 3);
    EXPECT_EQ(out.get()->sa_family, endpoint.address.is_v4() ? AF_INET : AF_INET6);
    EXPECT_EQ(out.ToEndpoint(), endpoint);
  }
  SocketAddress other;
  other.storage.ss_family = AF_UNIX;
  EXPECT_FALSE(other.ToEndpoint().has_value());
  SocketAddress cut = SocketAddress::Of({*IpAddress::Parse("::1"), 1});
  cut.size = 8;
  EXPECT_FALSE(cut.ToEndpoint().has_value());
}

// RFC 1071 to the letter: 16-bit words, one by one.
uint16_t PlainChecksum(Bytes bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    sum += i % 2 == 0 ? uint32_t{bytes[i]} << 8 : bytes[i];
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<uint16_t>(~sum);
}

TEST(ProxyNetChecksumTest, EqualsAPlainOneForAllLengthsAndAlignments) {
  std::mt19937 random(1);
  Buffer bytes(4096);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (size_t at = 0; at < 9; ++at) {
    for (size_t size = 0; size < 300; ++size) {
      const Bytes piece = Bytes(bytes).subspan(at, size);
      ASSERT_EQ(ChecksumOf(piece), PlainChecksum(piece)) << at << "+" << size;
    }
  }
  // Carries: nothing but ones, as large as a frame can be.
  const Buffer ones(65536, 0xff);
  EXPECT_EQ(ChecksumOf(ones), PlainChecksum(ones));
  EXPECT_EQ(ChecksumOf(Buffer(65536)), 0xffff);
}

TEST(ProxyNetChecksumTest, PiecesOfOddLengthsGoOnInTheSameWord) {
  std::mt19937 random(2);
  for (int run = 0; run < 500; ++run) {
    Buffer bytes(1 + random() % 200);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
    Checksum sum;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = std::min<size_t>(random() % 9, bytes.size() - at);
      sum.Add(Bytes(bytes).subspan(at, n));
      at += n;
    }
    ASSERT_EQ(sum.Finish(), PlainChecksum(bytes));
  }
}

TEST(ProxyNetChecksumTest, AdjustingEqualsComputingAnew) {
  std::mt19937 random(3);
  for (int run = 0; run < 2000; ++run) {
    Buffer bytes(20);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random() % 3 == 0 ? 0xff : random());
    const uint16_t field = PlainChecksum(bytes);
    const uint16_t before = static_cast<uint16_t>(bytes[4] << 8 | bytes[5]);
    const auto after = static_cast<uint16_t>(random());
    bytes[4] = static_cast<uint8_t>(after >> 8);
    bytes[5] = static_cast<uint8_t>(after);
    ASSERT_EQ(AdjustChecksum(field, before, after), PlainChecksum(bytes));
  }
}

TEST(ProxyNetChecksumTest, PseudoHeaders) {
  const IpAddress a = Ipv4Address::Of(10, 0, 2, 15);
  const IpAddress b = Ipv4Address::Of(1, 2, 3, 4);
  EXPECT_EQ(static_cast<uint16_t>(~PseudoHeaderSum(a, b, 17, 0x1234)),
            PlainChecksum(Hex("0a00020f 01020304 00 11 1234")));
  const IpAddress c = *IpAddress::Parse("2001:db8::1");
  const IpAddress d = *IpAddress::Parse("fe80::2");
  EXPECT_EQ(static_cast<uint16_t>(~PseudoHeaderSum(c, d, 58, 0x12345)),
            PlainChecksum(Hex("20010db8000000000000000000000001 fe800000000000000000000000000002"
                              "00012345 0000003a")));
}

TEST(ProxyNetBuildTest, WhatIsBuiltParsesToTheSame) {
  for (const bool v4 : {true, false}) {
    Buffer bytes(200);
    Writer out(bytes);
    EthernetHeader ethernet;
    ethernet.destination = *MacAddress::Parse("02:00:00:00:00:01");
    ethernet.source = *MacAddress::Parse("02:00:00:00:00:02");
    ethernet.type = v4 ? kEtherIpv4 : kEtherIpv6;
    ethernet.vlan_tci = 0x2005;
    WriteEthernet(ethernet, &out);
    TcpHeader tcp;
    tcp.source_port = 1;
    tcp.destination_port = 2;
    tcp.sequence = 0xdeadbeef;
    tcp.acknowledgement = 0xcafebabe;
    tcp.flags = TcpHeader::kSyn | TcpHeader::kAck;
    tcp.window = 0x1234;
    tcp.options.mss = 1460;
    tcp.options.window_scale = uint8_t{7};
    tcp.options.sack_permitted = true;
    tcp.options.timestamps = TcpOptions::Timestamps{1, 2};
    IpHeader ip;
    ip.source = v4 ? IpAddress(Ipv4Address::Of(10, 0, 2, 2)) : *IpAddress::Parse("2001:db8::2");
    ip.destination =
        v4 ? IpAddress(Ipv4Address::Of(10, 0, 2, 15)) : *IpAddress::Parse("2001:db8::3");
    ip.protocol = kProtocolTcp;
    ip.traffic_class = 0xb9;
    ip.flow_label = v4 ? 0 : 0x12345;
    ip.hop_limit = 63;
    ip.dont_fragment = v4;
    ip.payload_length = static_cast<uint32_t>(TcpHeaderLength(tcp.options) + 3);
    WriteIp(ip, &out);
    const size_t start = out.position();
    EXPECT_EQ(WriteTcp(tcp, &out), 44u);
    out.Put(Hex("616263"));
    ASSERT_TRUE(out.ok());
    ASSERT_TRUE(FillChecksum(ip.source, ip.destination, kProtocolTcp, out.written(start)));
    EXPECT_TRUE(TransportChecksumOk(ip.source, ip.destination, kProtocolTcp, out.written(start)));

    const auto frame = ParseFrame(out.written(), out.position());
    ASSERT_TRUE(frame.ok()) << RefusalName(frame.refusal());
    EXPECT_EQ(frame->ethernet.destination, ethernet.destination);
    EXPECT_EQ(frame->ethernet.source, ethernet.source);
    EXPECT_EQ(frame->ethernet.vlan_id(), 5);
    EXPECT_EQ(frame->ip->source, ip.source);
    EXPECT_EQ(frame->ip->destination, ip.destination);
    EXPECT_EQ(frame->ip->traffic_class, 0xb9);
    EXPECT_EQ(frame->ip->flow_label, ip.flow_label);
    EXPECT_EQ(frame->ip->hop_limit, 63);
    EXPECT_EQ(frame->ip->dont_fragment, v4);
    const TcpHeader* parsed = frame->tcp();
    ASSERT_NE(parsed, nullptr);
    EXPECT_EQ(parsed->sequence, 0xdeadbeef);
    EXPECT_EQ(parsed->acknowledgement, 0xcafebabe);
    EXPECT_EQ(parsed->flags, tcp.flags);
    EXPECT_EQ(parsed->window, 0x1234);
    EXPECT_EQ(parsed->options.mss, 1460);
    EXPECT_EQ(parsed->options.window_scale, 7);
    EXPECT_TRUE(parsed->options.sack_permitted);
    EXPECT_EQ(parsed->options.timestamps, (TcpOptions::Timestamps{1, 2}));
    EXPECT_FALSE(parsed->options.malformed);
    EXPECT_EQ(frame->payload_length, 3u);
    EXPECT_EQ(frame->payload_offset, out.position() - 3);

    // None of it fits into less, and nothing is written behind.
    for (size_t size = 0; size < out.position() - 3; ++size) {
      Buffer small(size);
      Writer cut(small);
      WriteEthernet(ethernet, &cut);
      WriteIp(ip, &cut);
      WriteTcp(tcp, &cut);
      EXPECT_FALSE(cut.ok());
    }
  }
}

TEST(ProxyNetBuildTest, SackBlocks) {
  TcpHeader tcp;
  tcp.options.sack_count = 2;
  tcp.options.sack[0] = {10, 20};
  tcp.options.sack[1] = {30, 40};
  Buffer bytes(60);
  Writer out(bytes);
  EXPECT_EQ(WriteTcp(tcp, &out), 40u);
  EXPECT_EQ(ToHex(out.written(20)), "010105120000000a000000140000001e00000028");
  const auto parsed = ParseTcp(out.written());
  ASSERT_TRUE(parsed.ok());
  ASSERT_EQ(parsed->options.sack_count, 2);
  EXPECT_EQ(parsed->options.sack, tcp.options.sack);
  // More options than a header has room for.
  tcp.options.sack_count = 4;
  tcp.options.timestamps.emplace();
  Writer over(bytes);
  EXPECT_EQ(WriteTcp(tcp, &over), 0u);
  EXPECT_FALSE(over.ok());
}

TEST(ProxyNetBuildTest, LengthsThatDoNotFitTheirFieldFail) {
  Buffer bytes(60);
  IpHeader ip;
  ip.source = ip.destination = Ipv4Address::Of(1, 2, 3, 4);
  ip.payload_length = 65515;
  Writer fits(bytes);
  WriteIp(ip, &fits);
  EXPECT_TRUE(fits.ok());
  ip.payload_length = 65516;
  Writer over(bytes);
  WriteIp(ip, &over);
  EXPECT_FALSE(over.ok());
  ip.payload_length = 1;
  ip.destination = Ipv6Address();
  Writer mixed(bytes);
  WriteIp(ip, &mixed);
  EXPECT_FALSE(mixed.ok());
}

TEST(ProxyNetBuildTest, UdpChecksumOfZeroIsWrittenAsOnes) {
  const IpAddress a = Ipv4Address::Of(0, 0, 0, 0);
  // Ports that take what is left of the sum to 0xffff.
  Buffer datagram = Hex("0000 0000 0008 0000");
  const uint16_t rest = ChecksumOf(Hex("0011 0008 0008"));
  datagram[0] = static_cast<uint8_t>(rest >> 8);
  datagram[1] = static_cast<uint8_t>(rest);
  ASSERT_TRUE(FillChecksum(a, a, kProtocolUdp, datagram));
  EXPECT_EQ(ToHex(Bytes(datagram).subspan(6)), "ffff");
  for (size_t size = 0; size < 8; ++size) {
    EXPECT_FALSE(FillChecksum(a, a, kProtocolUdp, std::span(datagram).first(size)));
  }
  EXPECT_FALSE(FillChecksum(a, a, 47, datagram));
}

Buffer Packet4(const char* source, const char* destination, uint8_t protocol,
               const Buffer& payload) {
  Buffer bytes(kIpv4Size);
  Writer out(bytes);
  IpHeader ip;
  ip.source = *IpAddress::Parse(source);
  ip.destination = *IpAddress::Parse(destination);
  ip.protocol = protocol;
  ip.payload_length = static_cast<uint32_t>(payload.size());
  WriteIp(ip, &out);
  return Join({bytes, payload});
}

TEST(ProxyNetBuildTest, IcmpErrors) {
  EthernetHeader ethernet;
  ethernet.type = kEtherIpv4;
  const IpAddress gateway = Ipv4Address::Of(10, 0, 2, 2);
  Buffer out(1500);
  const auto error = [&](const Buffer& offending) {
    return WriteIcmpError(ethernet, gateway, 3, 4, 1400, offending, out);
  };
  const Buffer datagram =
      Packet4("10.0.2.15", "1.2.3.4", kProtocolUdp, Hex("0001 0002 0009 0000 61"));
  const size_t size = error(datagram);
  ASSERT_EQ(size, 14u + 20 + 8 + datagram.size());
  const auto frame = ParseFrame(Bytes(out).first(size), size);
  ASSERT_TRUE(frame.ok());
  EXPECT_EQ(frame->ip->destination.ToString(), "10.0.2.15");
  EXPECT_EQ(frame->icmp()->type, 3);
  EXPECT_EQ(frame->icmp()->rest, 1400u);
  EXPECT_EQ(ChecksumOf(Bytes(out).subspan(34, size - 34)), 0);
  EXPECT_EQ(ToHex(Bytes(out).subspan(42, size - 42)), ToHex(datagram));
  // At most 576 bytes of IP.
  EXPECT_EQ(error(Packet4("10.0.2.15", "1.2.3.4", kProtocolUdp, Buffer(1400))), 14u + 576);
  // RFC 1122 3.2.2: none for those.
  EXPECT_EQ(error(Packet4("10.0.2.15", "224.0.0.1", kProtocolUdp, Buffer(8))), 0u);
  EXPECT_EQ(error(Packet4("10.0.2.15", "255.255.255.255", kProtocolUdp, Buffer(8))), 0u);
  EXPECT_EQ(error(Packet4("0.0.0.0", "1.2.3.4", kProtocolUdp, Buffer(8))), 0u);
  EXPECT_EQ(error(Packet4("10.0.2.15", "1.2.3.4", kProtocolIcmp, Hex("0301 0000 00000000"))), 0u);
  EXPECT_NE(error(Packet4("10.0.2.15", "1.2.3.4", kProtocolIcmp, Hex("0800 0000 00000000"))), 0u);
  for (size_t cut = 0; cut < 20; ++cut) {
    EXPECT_EQ(error(Buffer(datagram.begin(), datagram.begin() + static_cast<long>(cut))), 0u);
  }
  for (size_t room = 0; room < size; ++room) {
    EXPECT_EQ(WriteIcmpError(ethernet, gateway, 3, 1, 0, datagram, std::span(out).first(room)), 0u);
  }
}

TEST(ProxyNetBuildTest, Icmpv6PacketTooBigAnswersAlsoWhatWentToGroups) {
  EthernetHeader ethernet;
  ethernet.type = kEtherIpv6;
  Buffer packet(kIpv6Size + 8);
  Writer in(packet);
  IpHeader ip;
  ip.source = *IpAddress::Parse("2001:db8::15");
  ip.destination = *IpAddress::Parse("ff02::1");
  ip.protocol = kProtocolUdp;
  ip.payload_length = 8;
  WriteIp(ip, &in);
  Buffer out(1500);
  const IpAddress gateway = *IpAddress::Parse("fe80::1");
  EXPECT_EQ(WriteIcmpError(ethernet, gateway, IcmpHeader::kV6Unreachable, 1, 0, packet, out), 0u);
  const size_t size =
      WriteIcmpError(ethernet, gateway, IcmpHeader::kV6PacketTooBig, 0, 1280, packet, out);
  ASSERT_EQ(size, 14u + 40 + 8 + 48);
  EXPECT_TRUE(
      TransportChecksumOk(gateway, ip.source, kProtocolIcmpv6, Bytes(out).subspan(54, size - 54)));
}

}  // namespace
}  // namespace virtbay::proxy_net
