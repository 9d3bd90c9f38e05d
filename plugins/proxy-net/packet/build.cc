#include "plugins/proxy-net/packet/build.h"

#include <algorithm>

#include "plugins/proxy-net/packet/checksum.h"
#include "plugins/proxy-net/packet/parse.h"

namespace virtbay::proxy_net {

void WriteEthernet(const EthernetHeader& header, Writer* out) {
  out->Put(header.destination.bytes);
  out->Put(header.source.bytes);
  if (header.vlan_tci.has_value()) {
    out->U16(kEtherVlan);
    out->U16(*header.vlan_tci);
  }
  out->U16(header.type);
}

void WriteArp(const ArpPacket& packet, Writer* out) {
  out->U16(1);
  out->U16(kEtherIpv4);
  out->U8(6);
  out->U8(4);
  out->U16(packet.operation);
  out->Put(packet.sender_mac.bytes);
  out->U32(packet.sender.value);
  out->Put(packet.target_mac.bytes);
  out->U32(packet.target.value);
}

void WriteIp(const IpHeader& header, Writer* out) {
  const size_t start = out->position();
  if (header.source.is_v4() != header.destination.is_v4()) return out->Fail();
  if (header.is_v4()) {
    if (header.payload_length > 0xffff - kIpv4Size) return out->Fail();
    out->U8(0x45);
    out->U8(header.traffic_class);
    out->U16(static_cast<uint16_t>(kIpv4Size + header.payload_length));
    out->U16(header.identification);
    out->U16(header.dont_fragment ? 0x4000 : 0);
    out->U8(header.hop_limit);
    out->U8(header.protocol);
    out->U16(0);
    out->Put(header.source.bytes());
    out->Put(header.destination.bytes());
    out->PatchU16(start + 10, ChecksumOf(out->written(start)));
  } else {
    if (header.payload_length > 0xffff) return out->Fail();
    out->U32(uint32_t{6} << 28 | uint32_t{header.traffic_class} << 20 |
             (header.flow_label & 0xfffff));
    out->U16(static_cast<uint16_t>(header.payload_length));
    out->U8(header.protocol);
    out->U8(header.hop_limit);
    out->Put(header.source.bytes());
    out->Put(header.destination.bytes());
  }
}

size_t TcpHeaderLength(const TcpOptions& options) {
  size_t length = 0;
  if (options.mss.has_value()) length += 4;
  if (options.window_scale.has_value()) length += 4;
  if (options.sack_permitted) length += 4;
  if (options.timestamps.has_value()) length += 12;
  if (options.sack_count != 0) length += 4 + size_t{options.sack_count} * 8;
  return kTcpSize + length;
}

// Each option is padded by itself to four bytes, in the order of RFC 7323 appendix A.
size_t WriteTcp(const TcpHeader& header, Writer* out) {
  const TcpOptions& options = header.options;
  const size_t length = TcpHeaderLength(options);
  if (length > kTcpSize + kTcpMaxOptions || options.sack_count > options.sack.size()) {
    out->Fail();
    return 0;
  }
  out->U16(header.source_port);
  out->U16(header.destination_port);
  out->U32(header.sequence);
  out->U32(header.acknowledgement);
  out->U8(static_cast<uint8_t>(length / 4 << 4));
  out->U8(header.flags);
  out->U16(header.window);
  out->U16(header.checksum);
  out->U16(header.urgent);
  if (options.mss.has_value()) {
    out->U16(0x0204);
    out->U16(*options.mss);
  }
  if (options.sack_permitted) out->U32(0x01010402);
  if (options.timestamps.has_value()) {
    out->U32(0x0101080a);
    out->U32(options.timestamps->value);
    out->U32(options.timestamps->echo);
  }
  if (options.window_scale.has_value()) {
    out->U16(0x0103);
    out->U8(3);
    out->U8(*options.window_scale);
  }
  if (options.sack_count != 0) {
    out->U16(0x0101);
    out->U8(5);
    out->U8(static_cast<uint8_t>(2 + options.sack_count * 8));
    for (size_t i = 0; i < options.sack_count; ++i) {
      out->U32(options.sack[i].left);
      out->U32(options.sack[i].right);
    }
  }
  return length;
}

void WriteUdp(const UdpHeader& header, Writer* out) {
  out->U16(header.source_port);
  out->U16(header.destination_port);
  out->U16(header.length);
  out->U16(header.checksum);
}

void WriteIcmp(const IcmpHeader& header, Writer* out) {
  out->U8(header.type);
  out->U8(header.code);
  out->U16(header.checksum);
  out->U32(header.rest);
}

size_t ChecksumOffset(uint8_t protocol) {
  switch (protocol) {
    case kProtocolTcp:
      return 16;
    case kProtocolUdp:
      return 6;
    case kProtocolIcmp:
    case kProtocolIcmpv6:
      return 2;
    default:
      return SIZE_MAX;
  }
}

bool FillChecksum(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                  std::span<uint8_t> segment) {
  const size_t at = ChecksumOffset(protocol);
  if (at == SIZE_MAX || segment.size() < at + 2) return false;
  segment[at] = segment[at + 1] = 0;
  Checksum sum;
  if (protocol != kProtocolIcmp) {
    sum.AddPseudoHeader(source, destination, protocol, static_cast<uint32_t>(segment.size()));
  }
  sum.Add(segment);
  uint16_t value = sum.Finish();
  if (protocol == kProtocolUdp && value == 0) value = 0xffff;
  segment[at] = static_cast<uint8_t>(value >> 8);
  segment[at + 1] = static_cast<uint8_t>(value);
  return true;
}

size_t WriteIcmpError(const EthernetHeader& ethernet, const IpAddress& source, uint8_t type,
                      uint8_t code, uint32_t rest, Bytes offending, std::span<uint8_t> out) {
  const bool v4 = source.is_v4();
  // Only what could be read as a packet is answered, by the length that it claims for itself.
  const Parsed<IpHeader> ip = v4 ? ParseIpv4(offending, SIZE_MAX) : ParseIpv6(offending, SIZE_MAX);
  if (!ip.ok()) return 0;
  const IpAddress& to = ip->source;
  const bool broadcast = to.is_v4() && to.v4().IsBroadcast();
  // Packet Too Big goes to senders to groups as well (RFC 4443 2.4 e).
  const bool too_big = !v4 && type == IcmpHeader::kV6PacketTooBig;
  if (to.IsUnspecified() || to.IsMulticast() || broadcast ||
      (ip->destination.IsMulticast() && !too_big) ||
      (ip->destination.is_v4() && ip->destination.v4().IsBroadcast()) || ip->fragment) {
    return 0;
  }
  if (ip->protocol == (v4 ? kProtocolIcmp : kProtocolIcmpv6)) {
    const Parsed<IcmpHeader> icmp = ParseIcmp(offending.subspan(ip->header_length));
    const bool informational =
        icmp.ok() && (v4 ? icmp->type == IcmpHeader::kEchoRequest : icmp->type >= 128);
    if (!informational) return 0;
  }
  // The whole answer stays within 576 bytes, or 1280.
  const size_t most = (v4 ? 576 - kIpv4Size : 1280 - kIpv6Size) - kIcmpSize;
  const size_t packet = size_t{ip->header_length} + ip->payload_length;
  const size_t quoted = std::min({offending.size(), packet, most});

  Writer writer(out);
  WriteEthernet(ethernet, &writer);
  IpHeader header;
  header.source = source;
  header.destination = to;
  header.protocol = v4 ? kProtocolIcmp : kProtocolIcmpv6;
  header.payload_length = static_cast<uint32_t>(kIcmpSize + quoted);
  WriteIp(header, &writer);
  const size_t start = writer.position();
  WriteIcmp({type, code, 0, rest}, &writer);
  writer.Put(offending.first(quoted));
  if (!writer.ok()) return 0;
  FillChecksum(source, to, header.protocol, writer.written(start));
  return writer.position();
}

}  // namespace virtbay::proxy_net
