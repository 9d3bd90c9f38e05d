// plugins/proxy-net/packet: what the guest wrote, at every length and with every lie.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"
#include "plugins/proxy-net/packet/parse.h"
#include "tests/unit/proxy_net_bytes.h"

namespace virtbay::proxy_net {
namespace {

constexpr char kEthernet4[] = "020000000001 020000000002 0800";
constexpr char kEthernet6[] = "020000000001 020000000002 86dd";

// An IPv4 packet with its header checksum put right.
Buffer Ip4(const Buffer& header, const Buffer& payload = {}) {
  Buffer packet = header;
  const size_t length = (packet[0] & size_t{15}) * 4;
  packet[10] = packet[11] = 0;
  const uint16_t sum = ChecksumOf(Bytes(packet).first(std::min(length, packet.size())));
  packet[10] = static_cast<uint8_t>(sum >> 8);
  packet[11] = static_cast<uint8_t>(sum);
  return Join({packet, payload});
}

Buffer Frame4(const Buffer& header, const Buffer& payload = {}) {
  return Join({Hex(kEthernet4), Ip4(header, payload)});
}

// An IPv6 frame whose payload begins with a header of type `next`.
Buffer Frame6(uint8_t next, const Buffer& payload, size_t length = SIZE_MAX) {
  if (length == SIZE_MAX) length = payload.size();
  Buffer header =
      Hex("60000000 0000 00 40 20010db8000000000000000000000001 20010db8000000000000000000000002");
  header[4] = static_cast<uint8_t>(length >> 8);
  header[5] = static_cast<uint8_t>(length);
  header[6] = next;
  return Join({Hex(kEthernet6), header, payload});
}

Refusal RefusalOf(const Buffer& frame) { return ParseFrame(frame, frame.size()).refusal(); }

TEST(ProxyNetParseTest, Arp) {
  const Buffer frame =
      Hex("ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 0a00020f 000000000000 "
          "0a000202");
  const auto parsed = ParseFrame(frame, frame.size());
  ASSERT_TRUE(parsed.ok());
  ASSERT_TRUE(parsed->arp.has_value());
  EXPECT_EQ(parsed->arp->operation, ArpPacket::kRequest);
  EXPECT_EQ(parsed->arp->sender.ToString(), "10.0.2.15");
  EXPECT_EQ(parsed->arp->target.ToString(), "10.0.2.2");
  EXPECT_EQ(parsed->arp->sender_mac.ToString(), "02:00:00:00:00:02");
  for (const size_t at : {size_t{14}, size_t{16}, size_t{18}, size_t{19}}) {
    Buffer other = frame;
    other[at] ^= 0x40;
    EXPECT_EQ(RefusalOf(other), Refusal::kUnsupported) << at;
  }
}

TEST(ProxyNetParseTest, EthernetTypes) {
  EXPECT_EQ(RefusalOf(Hex("020000000001 020000000002 0040 aaaa")), Refusal::kUnsupported);
  EXPECT_EQ(RefusalOf(Hex("020000000001 020000000002 8100 0001 8100 0002 0800")),
            Refusal::kUnsupported);
  EXPECT_EQ(RefusalOf(Hex("020000000001 020000000002 88a8 0001 0800")), Refusal::kUnsupported);
  const Buffer other = Hex("020000000001 020000000002 88cc 0207");
  const auto parsed = ParseFrame(other, other.size());
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->ip.has_value() || parsed->arp.has_value());
  EXPECT_EQ(parsed->payload_length, 2u);
}

TEST(ProxyNetParseTest, PaddingIsNoPayload) {
  const Buffer frame =
      Join({Frame4(Hex("45000000 0000 4000 40 11 0000 0a00020f 01020304")), Buffer(60)});
  Buffer whole = frame;
  whole[17] = 29;  // IP length: UDP with one byte
  whole[34 + 5] = 9;
  const Buffer packet = Ip4(Buffer(whole.begin() + 14, whole.begin() + 34));
  std::copy(packet.begin(), packet.end(), whole.begin() + 14);
  const auto parsed = ParseFrame(whole, whole.size());
  ASSERT_TRUE(parsed.ok()) << RefusalName(parsed.refusal());
  EXPECT_EQ(parsed->payload_length, 1u);
  EXPECT_EQ(parsed->payload_offset, 42u);
  EXPECT_TRUE(parsed->ip->dont_fragment);
}

TEST(ProxyNetParseTest, Ipv4LengthsThatContradictTheFrame) {
  const auto header = [](uint8_t version, uint16_t total) {
    Buffer h = Hex("45000000 0000 0000 40 2f 0000 0a00020f 01020304");
    h[0] = version;
    h[2] = static_cast<uint8_t>(total >> 8);
    h[3] = static_cast<uint8_t>(total);
    return h;
  };
  EXPECT_EQ(RefusalOf(Frame4(header(0x45, 20))), Refusal::kNone);
  EXPECT_EQ(RefusalOf(Frame4(header(0x45, 21))), Refusal::kLength);
  EXPECT_EQ(RefusalOf(Frame4(header(0x45, 19))), Refusal::kLength);
  EXPECT_EQ(RefusalOf(Frame4(header(0x45, 0))), Refusal::kLength);
  EXPECT_EQ(RefusalOf(Frame4(header(0x45, 65535))), Refusal::kLength);
  EXPECT_EQ(RefusalOf(Frame4(header(0x44, 20))), Refusal::kHeaderLength);
  EXPECT_EQ(RefusalOf(Frame4(header(0x46, 24))), Refusal::kTruncated);
  EXPECT_EQ(RefusalOf(Frame4(header(0x55, 20))), Refusal::kVersion);
  Buffer wrong = Frame4(header(0x45, 20));
  wrong[14 + 8] ^= 1;
  EXPECT_EQ(RefusalOf(wrong), Refusal::kChecksum);
}

TEST(ProxyNetParseTest, Ipv4OptionsAreSkipped) {
  const Buffer frame =
      Frame4(Hex("47000024 0000 0000 40 11 0000 0a00020f 01020304 8308040000000000"),
             Hex("0001 0002 0008 0000"));
  const auto parsed = ParseFrame(frame, frame.size());
  ASSERT_TRUE(parsed.ok()) << RefusalName(parsed.refusal());
  EXPECT_TRUE(parsed->ip->has_extensions);
  EXPECT_EQ(parsed->transport_offset, 14u + 28);
  EXPECT_EQ(parsed->udp()->destination_port, 2);
}

// CVE-2019-14378, CVE-2019-15890, CVE-2020-1983: fragments put together. Here they are recognised
// and nothing behind the IP header is looked at.
TEST(ProxyNetParseTest, Cve201914378Cve201915890Cve20201983FragmentsAreRecognisedOnly) {
  for (const char* flags : {"2000", "0001", "3fff", "1fff", "2001"}) {
    const Buffer frame =
        Frame4(Hex(std::string("4500001c 0000 ") + flags + " 40 11 0000 0a00020f 01020304"),
               Hex("ffff ffff ffff ffff"));
    const auto parsed = ParseFrame(frame, frame.size());
    ASSERT_TRUE(parsed.ok());
    EXPECT_TRUE(parsed->ip->fragment) << flags;
    EXPECT_EQ(parsed->udp(), nullptr);
  }
  for (const char* fragment : {"1100 0001 00000000", "1100 0008 00000000", "1100 fff8 00000000"}) {
    const Buffer frame = Frame6(44, Join({Hex(fragment), Hex("ffff ffff ffff ffff")}));
    const auto parsed = ParseFrame(frame, frame.size());
    ASSERT_TRUE(parsed.ok());
    EXPECT_TRUE(parsed->ip->fragment) << fragment;
    EXPECT_EQ(parsed->ip->protocol, kProtocolUdp);
    EXPECT_EQ(parsed->udp(), nullptr);
  }
  // The only fragment of its packet is the packet (RFC 6946).
  const Buffer atomic = Frame6(44, Hex("1100 0006 12345678 0001 0002 0008 0000"));
  const auto parsed = ParseFrame(atomic, atomic.size());
  ASSERT_TRUE(parsed.ok());
  EXPECT_FALSE(parsed->ip->fragment);
  EXPECT_EQ(parsed->udp()->destination_port, 2);
}

TEST(ProxyNetParseTest, Ipv6ExtensionHeaders) {
  const Buffer udp = Hex("0001 0002 0008 0000");
  const auto parse = [](const Buffer& frame) { return ParseFrame(frame, frame.size()); };
  const auto ok =
      parse(Frame6(0, Join({Hex("3c00 0502 0000 0100"), Hex("2b01 00000000000000000000000000 00"),
                            Hex("1100 0000 0000 0000"), udp})));
  ASSERT_TRUE(ok.ok()) << RefusalName(ok.refusal());
  EXPECT_EQ(ok->ip->header_length, 40 + 8 + 16 + 8);
  EXPECT_EQ(ok->udp()->source_port, 1);
  EXPECT_TRUE(ok->ip->has_extensions);
  // Authentication counts in fours.
  const auto ah =
      parse(Frame6(51, Join({Hex("1104 0000 00000000 00000000 000000000000000000000000"), udp})));
  ASSERT_TRUE(ah.ok()) << RefusalName(ah.refusal());
  EXPECT_EQ(ah->udp()->source_port, 1);
  // Hop-by-hop is the first or none.
  EXPECT_EQ(
      RefusalOf(Frame6(60, Join({Hex("0000 0000 0000 0000"), Hex("1100 0000 0000 0000"), udp}))),
      Refusal::kExtensionHeader);
  // Source routing, RFC 5095.
  EXPECT_EQ(RefusalOf(Frame6(43, Join({Hex("1100 00 01 00000000"), udp}))),
            Refusal::kExtensionHeader);
  EXPECT_EQ(RefusalOf(Frame6(43, Join({Hex("1100 00 00 00000000"), udp}))), Refusal::kNone);
  // Jumbograms, RFC 2675.
  EXPECT_EQ(RefusalOf(Frame6(0, Join({Hex("1100 c204 00010000"), udp}), 0)),
            Refusal::kExtensionHeader);
  // Without end.
  Buffer endless;
  for (int i = 0; i < 9; ++i) endless = Join({endless, Hex("3c00 0000 0000 0000")});
  EXPECT_EQ(RefusalOf(Frame6(60, endless)), Refusal::kExtensionHeader);
  // One that runs past the payload; one that the frame does not have.
  EXPECT_EQ(RefusalOf(Frame6(60, Join({Hex("1102 0000 0000 0000"), udp}))), Refusal::kLength);
  EXPECT_EQ(RefusalOf(Frame6(17, udp, 9)), Refusal::kLength);
  // No next header.
  const auto none = parse(Frame6(59, Hex("0102")));
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->payload_length, 2u);
}

TEST(ProxyNetParseTest, TcpOptions) {
  const auto options = [](const Buffer& bytes) {
    Buffer segment = Hex("0001 0002 00000003 00000004 50 02 0005 0000 0000");
    segment[12] = static_cast<uint8_t>((20 + bytes.size()) / 4 << 4);
    const Buffer whole = Join({segment, bytes});
    return ParseTcp(whole)->options;
  };
  const TcpOptions syn = options(Hex("020405b4 0402 080a00000001000000020103030e"));
  EXPECT_EQ(syn.mss, 1460);
  EXPECT_TRUE(syn.sack_permitted);
  EXPECT_EQ(syn.timestamps, (TcpOptions::Timestamps{1, 2}));
  EXPECT_EQ(syn.window_scale, 14);
  EXPECT_FALSE(syn.malformed);
  const TcpOptions sack =
      options(Hex("0101 051a 0000000100000002 0000000300000004 0000000500000006"));
  ASSERT_EQ(sack.sack_count, 3);
  EXPECT_EQ(sack.sack[2].right, 6u);
  // Ends at 0; what follows is not looked at.
  EXPECT_FALSE(options(Hex("00 ff ff ff")).malformed);
  // Unknown ones are passed over.
  EXPECT_EQ(options(Hex("fe04 1234 020405b4")).mss, 1460);
  // No length, length 0 and 1, past the end, a wrong one for its kind.
  for (const char* bad :
       {"01010102", "02000000", "02010000", "0205 05b4", "080b00000000000000000000", "03040000",
        "04030000", "0509 00000000000000 010101"}) {
    const TcpOptions o = options(Hex(bad));
    EXPECT_TRUE(o.malformed) << bad;
    EXPECT_FALSE(o.mss.has_value() || o.window_scale.has_value() || o.sack_permitted ||
                 o.timestamps.has_value() || o.sack_count != 0)
        << bad;
  }
}

TEST(ProxyNetParseTest, TcpHeaderLengths) {
  Buffer segment = Hex("0001 0002 00000003 00000004 50 12 0005 0006 0007");
  EXPECT_TRUE(ParseTcp(segment).ok());
  segment[12] = 0x40;
  EXPECT_EQ(ParseTcp(segment).refusal(), Refusal::kHeaderLength);
  segment[12] = 0x60;
  EXPECT_EQ(ParseTcp(segment).refusal(), Refusal::kTruncated);
  // In a packet whose IP length ends there it is a lie.
  EXPECT_EQ(RefusalOf(Frame4(Hex("45000028 0000 0000 40 06 0000 0a00020f 01020304"), segment)),
            Refusal::kLength);
}

// CVE-2026-9539: arithmetic on the urgent pointer. It is carried and used for nothing.
TEST(ProxyNetParseTest, Cve20269539UrgentPointerChangesNoLength) {
  Buffer segment = Hex("0001 0002 00000003 00000004 50 38 0005 0006 ffff 61");
  const Buffer frame = Frame4(Hex("45000029 0000 0000 40 06 0000 0a00020f 01020304"), segment);
  const auto parsed = ParseFrame(frame, frame.size());
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->tcp()->has(TcpHeader::kUrg));
  EXPECT_EQ(parsed->payload_length, 1u);
}

// CVE-2021-3593, CVE-2021-3594: a UDP header taken for present; and UDP lengths that contradict IP.
TEST(ProxyNetParseTest, Cve20213593Cve20213594UdpLengthsAreChecked) {
  const auto frame4 = [](const char* udp) {
    const Buffer payload = Hex(udp);
    Buffer header = Hex("45000000 0000 0000 40 11 0000 0a00020f 01020304");
    header[3] = static_cast<uint8_t>(20 + payload.size());
    return Frame4(header, payload);
  };
  for (const char* udp : {"", "00", "0001 0002 0008", "0001 0002 0008 00"}) {
    EXPECT_EQ(RefusalOf(frame4(udp)), Refusal::kLength) << udp;
    EXPECT_EQ(RefusalOf(Frame6(17, Hex(udp))), Refusal::kLength) << udp;
  }
  for (const char* udp : {"0001 0002 0000 0000", "0001 0002 0007 0000", "0001 0002 0009 0000",
                          "0001 0002 ffff 0000 6162"}) {
    EXPECT_EQ(RefusalOf(frame4(udp)), Refusal::kLength) << udp;
    EXPECT_EQ(RefusalOf(Frame6(17, Hex(udp))), Refusal::kLength) << udp;
  }
  // Shorter than IP says: the rest is none of the datagram.
  const Buffer shorter = frame4("0001 0002 0009 0000 616263");
  EXPECT_EQ(ParseFrame(shorter, shorter.size())->payload_length, 1u);
  // A large one that the device cuts counts by IP.
  const auto gso = ParseFrame(shorter, shorter.size(), true);
  ASSERT_TRUE(gso.ok());
  EXPECT_EQ(gso->payload_length, 3u);
}

// CVE-2020-10756: an echo request whose length reached behind the packet.
TEST(ProxyNetParseTest, Cve202010756EchoLengthsAreTheSmallerOfBoth) {
  const Buffer echo = Hex("8000 0000 0001 0002 61626364");
  EXPECT_EQ(RefusalOf(Frame6(58, echo, 1000)), Refusal::kLength);
  const Buffer frame = Join({Frame6(58, echo), Buffer(20)});
  const auto parsed = ParseFrame(frame, frame.size());
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->payload_length, 4u);
  EXPECT_EQ(parsed->icmp()->identifier(), 1);
  EXPECT_EQ(parsed->icmp()->sequence(), 2);
  EXPECT_EQ(RefusalOf(Frame6(58, Hex("8000 0000 0001"))), Refusal::kLength);
}

TEST(ProxyNetParseTest, AFrameByItsFirstBytes) {
  Buffer segment = Hex("0001 0002 00000003 00000004 50 10 0005 0006 0000");
  const Buffer head = Frame4(Hex("4500ffff 0000 0000 40 06 0000 0a00020f 01020304"), segment);
  const auto parsed = ParseFrame(head, 14 + 65535);
  ASSERT_TRUE(parsed.ok()) << RefusalName(parsed.refusal());
  EXPECT_EQ(parsed->payload_length, 65535u - 40);
  EXPECT_EQ(ParseFrame(head, 14 + 65534).refusal(), Refusal::kLength);
  // A header beyond those bytes is not guessed at.
  const Buffer cut(head.begin(), head.end() - 1);
  EXPECT_EQ(ParseFrame(cut, 14 + 65535).refusal(), Refusal::kTruncated);
}

// CVE-2021-3592, CVE-2021-3595, CVE-2020-29129, CVE-2020-29130: headers taken for present. Every
// prefix of every kind of frame, each at the end of its allocation: refused, or nothing beyond it.
TEST(ProxyNetParseTest, Cve20213592Cve20213595Cve202029129Cve202029130EveryTruncation) {
  const Buffer udp = Hex("0001 0002 0010 0000 6162636465666768");
  const Buffer tcp =
      Hex("0001 0002 00000003 00000004 a0 02 0005 0000 0000 020405b4 0402 080a0000000100000002 "
          "0103030e 6162");
  const std::vector<Buffer> frames = {
      Hex("ffffffffffff 020000000002 0806 0001 0800 06 04 0001 020000000002 0a00020f 000000000000 "
          "0a000202"),
      Join({Hex("020000000001 020000000002 8100 0005 0800"),
            Ip4(Hex("45000024 0000 0000 40 11 0000 0a00020f 01020304"), udp)}),
      Frame4(Hex("4500003e 0000 0000 40 06 0000 0a00020f 01020304"), tcp),
      Frame4(Hex("47000024 0000 0000 40 01 0000 0a00020f 01020304 8308040000000000"),
             Hex("0800 0000 0001 0002")),
      Frame6(0, Join({Hex("3c00 0502 0000 0100"), Hex("2b01 00000000000000000000000000 00"),
                      Hex("1100 0000 0000 0000"), udp})),
      Frame6(6, tcp),
      Frame6(58, Hex("8000 0000 0001 0002 61626364")),
      Frame6(44, Join({Hex("1100 0001 00000000"), udp})),
  };
  for (const Buffer& frame : frames) {
    ASSERT_EQ(RefusalOf(frame), Refusal::kNone) << ToHex(frame);
    for (size_t size = 0; size < frame.size(); ++size) {
      const Buffer cut = Exactly(Bytes(frame).first(size));
      EXPECT_FALSE(ParseFrame(cut, size).ok()) << size << " of " << ToHex(frame);
      // As the first bytes of the whole.
      const auto head = ParseFrame(cut, frame.size());
      if (head.ok()) {
        EXPECT_LE(head->payload_offset, size);
        EXPECT_LE(head->payload_offset + head->payload_length, frame.size());
      }
    }
  }
}

TEST(ProxyNetParseTest, EachParserAloneAtEveryTruncation) {
  struct Case {
    Buffer bytes;
    size_t needed;
    std::function<bool(Bytes)> parse;
  };
  const std::vector<Case> cases = {
      {Hex(kEthernet4), 14, [](Bytes b) { return ParseEthernet(b).ok(); }},
      {Hex("020000000001 020000000002 8100 0005 0800"), 18,
       [](Bytes b) { return ParseEthernet(b).ok(); }},
      {Hex("0001 0800 06 04 0001 020000000002 0a00020f 000000000000 0a000202"), 28,
       [](Bytes b) { return ParseArp(b).ok(); }},
      {Ip4(Hex("4600 0018 0000 0000 40 11 0000 0a00020f 01020304 01010101")), 24,
       [](Bytes b) { return ParseIpv4(b, b.size()).ok(); }},
      {Hex("0001 0002 00000003 00000004 60 02 0005 0000 0000 020405b4"), 24,
       [](Bytes b) { return ParseTcp(b).ok(); }},
      {Hex("0001 0002 0008 0000"), 8, [](Bytes b) { return ParseUdp(b, b.size()).ok(); }},
      {Hex("0800 0000 0001 0002"), 8, [](Bytes b) { return ParseIcmp(b).ok(); }},
  };
  for (const Case& c : cases) {
    for (size_t size = 0; size <= c.bytes.size(); ++size) {
      EXPECT_EQ(c.parse(Exactly(Bytes(c.bytes).first(size))), size >= c.needed) << size;
    }
  }
  const Buffer frame6 = Frame6(17, Hex("0001 0002 0008 0000"));
  for (size_t size = 0; size + 14 < frame6.size(); ++size) {
    const Buffer cut = Exactly(Bytes(frame6).subspan(14, size));
    EXPECT_FALSE(ParseIpv6(cut, size).ok()) << size;
  }
}

}  // namespace
}  // namespace virtbay::proxy_net
