// A link with a Lan on it for tests: frames go in as bytes, what the gateway sends is kept.
#ifndef VIRTBAY_TESTS_UNIT_PROXY_NET_LINK_H_
#define VIRTBAY_TESTS_UNIT_PROXY_NET_LINK_H_

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "plugins/proxy-net/lan/lan.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"
#include "tests/unit/proxy_net_bytes.h"

namespace virtbay::proxy_net {

inline const MacAddress kGuestMac{{0x02, 0, 0, 0, 0, 0x02}};
inline const MacAddress kGatewayMac{{0x52, 0x55, 0x0a, 0, 0x02, 0x02}};

inline IpAddress Ip(const char* text) { return *IpAddress::Parse(text); }
inline DomainName Name(const char* text) { return *DomainName::Parse(text); }

class TestLink {
 public:
  explicit TestLink(LanConfig config = {})
      : lan(std::move(config), [this](Bytes frame) { sent.push_back(Exactly(frame)); }) {}

  // Gives a frame to the Lan if it wants it, and the frames that it sends back.
  std::vector<Buffer> Give(const Buffer& frame, bool checksum_given = true) {
    sent.clear();
    const Buffer exact = Exactly(frame);
    const auto parsed = ParseFrame(exact, exact.size());
    wanted = parsed.ok() && lan.Wants(*parsed);
    if (wanted) lan.OnFrame(*parsed, exact, checksum_given, now_ns);
    return sent;
  }

  Lan lan;
  std::vector<Buffer> sent;
  uint64_t now_ns = 1000 * kSecondNs;
  bool wanted = false;
};

// An IP frame of the guest's with a transport's header and payload, its checksum filled in.
inline Buffer GuestFrame(const IpAddress& from, const IpAddress& to, uint8_t protocol,
                         const Buffer& segment, uint8_t hop_limit = 64,
                         MacAddress to_mac = kGatewayMac, MacAddress from_mac = kGuestMac) {
  Buffer bytes(kEthernetSize + kIpv6Size + segment.size());
  Writer out(bytes);
  if (to.IsMulticast() && to.is_v6()) to_mac = to.v6().MulticastMac();
  WriteEthernet({to_mac, from_mac, from.is_v4() ? kEtherIpv4 : kEtherIpv6, std::nullopt, 0}, &out);
  IpHeader ip;
  ip.source = from;
  ip.destination = to;
  ip.protocol = protocol;
  ip.hop_limit = hop_limit;
  ip.payload_length = static_cast<uint32_t>(segment.size());
  WriteIp(ip, &out);
  const size_t start = out.position();
  out.Put(segment);
  FillChecksum(from, to, protocol, out.written(start));
  bytes.resize(out.position());
  return bytes;
}

inline Buffer UdpSegment(uint16_t from, uint16_t to, const Buffer& payload) {
  Buffer header(kUdpSize);
  Writer out(header);
  WriteUdp({from, to, static_cast<uint16_t>(kUdpSize + payload.size()), 0}, &out);
  return Join({header, payload});
}

// The payload of a frame that the gateway sent, its checksums found right.
inline Buffer PayloadOf(const Buffer& frame, Frame* out = nullptr) {
  const auto parsed = ParseFrame(frame, frame.size());
  EXPECT_TRUE(parsed.ok()) << RefusalName(parsed.refusal()) << " " << ToHex(frame);
  if (!parsed.ok()) return {};
  if (out != nullptr) *out = *parsed;
  if (parsed->ip.has_value()) {
    const Bytes segment =
        Bytes(frame).subspan(parsed->transport_offset, parsed->ip->payload_length);
    if (parsed->ip->protocol == kProtocolIcmp) {
      EXPECT_EQ(ChecksumOf(segment), 0);
    } else {
      EXPECT_TRUE(TransportChecksumOk(parsed->ip->source, parsed->ip->destination,
                                      parsed->ip->protocol, segment));
    }
  }
  return Exactly(Bytes(frame).subspan(parsed->payload_offset, parsed->payload_length));
}

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_TESTS_UNIT_PROXY_NET_LINK_H_
