#include "plugins/proxy-net/lan/ndp.h"

#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint8_t kSourceLinkLayer = 1;
constexpr uint8_t kTargetLinkLayer = 2;

}  // namespace

std::optional<NdpMessage> ParseNdp(const Frame& frame, Bytes bytes, bool checksum_given) {
  if (!frame.ip.has_value() || frame.ip->is_v4() || frame.icmp() == nullptr) return std::nullopt;
  const IcmpHeader& icmp = *frame.icmp();
  // A hop limit of 255 proves that it comes from this link.
  if (frame.ip->hop_limit != 255 || icmp.code != 0) return std::nullopt;
  const size_t end = frame.payload_offset + frame.payload_length;
  if (end > bytes.size()) return std::nullopt;
  const Bytes message = bytes.subspan(frame.transport_offset, end - frame.transport_offset);
  if (checksum_given &&
      !TransportChecksumOk(frame.ip->source, frame.ip->destination, kProtocolIcmpv6, message)) {
    return std::nullopt;
  }
  NdpMessage out;
  out.type = icmp.type;
  out.source = frame.ip->source.v6();
  const Ipv6Address destination = frame.ip->destination.v6();
  const bool from_nobody = out.source.IsUnspecified();
  if (out.source.IsMulticast()) return std::nullopt;

  Reader in(message);
  in.Skip(kIcmpSize);
  uint8_t link_layer = kSourceLinkLayer;
  switch (icmp.type) {
    case IcmpHeader::kV6RouterSolicitation:
      break;
    case IcmpHeader::kV6NeighborSolicitation:
      out.target = ReadIpv6(&in);
      if (out.target.IsMulticast() || out.target.IsUnspecified()) return std::nullopt;
      if (from_nobody && destination != out.target.SolicitedNode()) return std::nullopt;
      break;
    case IcmpHeader::kV6NeighborAdvertisement:
      out.target = ReadIpv6(&in);
      link_layer = kTargetLinkLayer;
      // A solicited one does not go to a group.
      if (out.target.IsMulticast() || from_nobody ||
          (destination.IsMulticast() && (icmp.rest >> 30 & 1) != 0)) {
        return std::nullopt;
      }
      break;
    default:
      return std::nullopt;
  }
  while (in.left() != 0) {
    const uint8_t kind = in.U8();
    const size_t length = in.U8() * size_t{8};
    if (!in.ok() || length == 0) return std::nullopt;
    Reader option(in.Take(length - 2));
    if (!in.ok()) return std::nullopt;
    if (kind == link_layer) out.link_layer = ReadMac(&option);
  }
  if (!in.ok()) return std::nullopt;
  if (from_nobody && out.link_layer.has_value()) return std::nullopt;
  return out;
}

size_t WriteNeighborAdvertisement(const MacAddress& mac, const Ipv6Address& target,
                                  const Ipv6Address& to, const MacAddress& to_mac,
                                  std::span<uint8_t> out) {
  constexpr uint32_t kRouter = uint32_t{1} << 31;
  constexpr uint32_t kSolicited = 1u << 30;
  constexpr uint32_t kOverride = 1u << 29;
  const bool everybody = to.IsUnspecified();
  EthernetHeader ethernet;
  ethernet.source = mac;
  ethernet.destination = everybody ? kAllNodes.MulticastMac() : to_mac;
  ethernet.type = kEtherIpv6;
  IpHeader ip;
  ip.source = target;
  ip.destination = everybody ? kAllNodes : to;
  ip.protocol = kProtocolIcmpv6;
  ip.hop_limit = 255;
  ip.payload_length = 32;
  Writer w(out);
  WriteEthernet(ethernet, &w);
  WriteIp(ip, &w);
  const size_t start = w.position();
  WriteIcmp({IcmpHeader::kV6NeighborAdvertisement, 0, 0,
             kRouter | kOverride | (everybody ? 0 : kSolicited)},
            &w);
  w.Put(target.bytes);
  w.U8(kTargetLinkLayer);
  w.U8(1);
  w.Put(mac.bytes);
  if (!w.ok()) return 0;
  FillChecksum(ip.source, ip.destination, kProtocolIcmpv6, w.written(start));
  return w.position();
}

}  // namespace virtbay::proxy_net
