#include "plugins/proxy-net/packet/parse.h"

#include <algorithm>

#include "plugins/proxy-net/packet/checksum.h"

namespace virtbay::proxy_net {
namespace {

// IPv6 extension headers (RFC 8200 4).
constexpr uint8_t kHopByHop = 0;
constexpr uint8_t kRouting = 43;
constexpr uint8_t kFragment = 44;
constexpr uint8_t kAuthentication = 51;
constexpr uint8_t kDestinationOptions = 60;
constexpr uint8_t kMobility = 135;
constexpr uint8_t kHip = 139;
constexpr uint8_t kShim6 = 140;
// Hop-by-hop, destination options twice, routing, fragment, authentication, and room.
constexpr int kMaxExtensions = 8;

TcpOptions ParseTcpOptions(Bytes bytes) {
  TcpOptions out;
  Reader in(bytes);
  while (in.left() != 0) {
    const uint8_t kind = in.U8();
    if (kind == 0) break;
    if (kind == 1) continue;
    const uint8_t length = in.U8();
    if (!in.ok() || length < 2) {
      out.malformed = true;
      break;
    }
    Reader value(in.Take(length - size_t{2}));
    if (!in.ok()) {
      out.malformed = true;
      break;
    }
    const size_t size = value.left();
    if (kind == 2 && size == 2) {
      out.mss = value.U16();
    } else if (kind == 3 && size == 1) {
      out.window_scale = value.U8();
    } else if (kind == 4 && size == 0) {
      out.sack_permitted = true;
    } else if (kind == 5 && size % 8 == 0 && size / 8 <= out.sack.size()) {
      out.sack_count = static_cast<uint8_t>(size / 8);
      for (size_t i = 0; i < out.sack_count; ++i) {
        out.sack[i].left = value.U32();
        out.sack[i].right = value.U32();
      }
    } else if (kind == 8 && size == 8) {
      TcpOptions::Timestamps stamps;
      stamps.value = value.U32();
      stamps.echo = value.U32();
      out.timestamps = stamps;
    } else if (kind <= 8 && kind != 6 && kind != 7) {
      // A known option of a length that is not its own; what follows is found all the same.
      out.malformed = true;
    }
  }
  return out;
}

// Passes over the extension headers behind an IPv6 header whose payload is `in`.
Refusal WalkExtensions(uint8_t next, Reader* in, IpHeader* ip) {
  for (int count = 0;; ++count) {
    switch (next) {
      case kHopByHop:
        if (count != 0) return Refusal::kExtensionHeader;
        break;
      case kRouting:
      case kFragment:
      case kAuthentication:
      case kDestinationOptions:
      case kMobility:
      case kHip:
      case kShim6:
        break;
      default:
        ip->protocol = next;
        return Refusal::kNone;
    }
    if (count == kMaxExtensions) return Refusal::kExtensionHeader;
    ip->has_extensions = true;
    const uint8_t kind = next;
    next = in->U8();
    const uint8_t length = in->U8();
    if (kind == kFragment) {
      const uint16_t offset_and_more = in->U16();
      in->Skip(4);
      if (!in->ok()) return Refusal::kTruncated;
      // One that is all of the packet is none (RFC 6946).
      if ((offset_and_more & 0xfff9) != 0) {
        ip->fragment = true;
        ip->protocol = next;
        return Refusal::kNone;
      }
      continue;
    }
    // Counted in eight bytes after the first eight, that of AH in four after the first eight.
    const size_t rest = kind == kAuthentication ? size_t{length} * 4 + 6 : size_t{length} * 8 + 6;
    if (kind == kRouting) {
      Reader routing(in->rest());
      routing.Skip(1);
      const uint8_t segments_left = routing.U8();
      // Of a route through other nodes this one is none (RFC 5095 for type 0).
      if (routing.ok() && segments_left != 0) return Refusal::kExtensionHeader;
    }
    in->Skip(rest);
    if (!in->ok()) return Refusal::kTruncated;
  }
}

}  // namespace

const char* RefusalName(Refusal refusal) {
  switch (refusal) {
    case Refusal::kNone:
      return "none";
    case Refusal::kTruncated:
      return "truncated";
    case Refusal::kLength:
      return "length";
    case Refusal::kVersion:
      return "version";
    case Refusal::kHeaderLength:
      return "header_length";
    case Refusal::kExtensionHeader:
      return "extension_header";
    case Refusal::kChecksum:
      return "ip_checksum";
    case Refusal::kUnsupported:
      return "unsupported";
  }
  return "unknown";
}

Parsed<EthernetHeader> ParseEthernet(Bytes bytes) {
  Reader in(bytes);
  EthernetHeader out;
  out.destination = ReadMac(&in);
  out.source = ReadMac(&in);
  out.type = in.U16();
  if (in.ok() && out.type == kEtherVlan) {
    out.vlan_tci = in.U16();
    out.type = in.U16();
  }
  if (!in.ok()) return Refusal::kTruncated;
  // Below 0x600 it is a length, of IEEE 802.3.
  if (out.type == kEtherVlan || out.type == kEtherQinQ || out.type < 0x600) {
    return Refusal::kUnsupported;
  }
  out.header_length = static_cast<uint8_t>(in.position());
  return out;
}

Parsed<ArpPacket> ParseArp(Bytes bytes) {
  Reader in(bytes);
  const uint16_t hardware = in.U16();
  const uint16_t protocol = in.U16();
  const uint8_t hardware_length = in.U8();
  const uint8_t protocol_length = in.U8();
  ArpPacket out;
  out.operation = in.U16();
  if (in.ok() &&
      (hardware != 1 || protocol != kEtherIpv4 || hardware_length != 6 || protocol_length != 4)) {
    return Refusal::kUnsupported;
  }
  out.sender_mac = ReadMac(&in);
  out.sender = ReadIpv4(&in);
  out.target_mac = ReadMac(&in);
  out.target = ReadIpv4(&in);
  if (!in.ok()) return Refusal::kTruncated;
  return out;
}

Parsed<IpHeader> ParseIpv4(Bytes bytes, size_t length) {
  Reader in(bytes);
  IpHeader out;
  const uint8_t version_and_length = in.U8();
  out.traffic_class = in.U8();
  const size_t total = in.U16();
  out.identification = in.U16();
  const uint16_t flags_and_offset = in.U16();
  out.hop_limit = in.U8();
  out.protocol = in.U8();
  in.Skip(2);
  out.source = ReadIpv4(&in);
  out.destination = ReadIpv4(&in);
  if (!in.ok()) return Refusal::kTruncated;
  if (version_and_length >> 4 != 4) return Refusal::kVersion;
  const size_t header = (version_and_length & size_t{15}) * 4;
  if (header < kIpv4Size) return Refusal::kHeaderLength;
  if (header > bytes.size()) return Refusal::kTruncated;
  if (total < header || total > length) return Refusal::kLength;
  if (ChecksumOf(bytes.first(header)) != 0) return Refusal::kChecksum;
  out.dont_fragment = (flags_and_offset & 0x4000) != 0;
  out.fragment = (flags_and_offset & 0x3fff) != 0;
  out.has_extensions = header > kIpv4Size;
  out.header_length = static_cast<uint16_t>(header);
  out.payload_length = static_cast<uint32_t>(total - header);
  return out;
}

Parsed<IpHeader> ParseIpv6(Bytes bytes, size_t length) {
  Reader in(bytes);
  IpHeader out;
  const uint32_t first = in.U32();
  const size_t payload = in.U16();
  const uint8_t next = in.U8();
  out.hop_limit = in.U8();
  out.source = ReadIpv6(&in);
  out.destination = ReadIpv6(&in);
  if (!in.ok()) return Refusal::kTruncated;
  if (first >> 28 != 6) return Refusal::kVersion;
  if (payload > length - kIpv6Size) return Refusal::kLength;
  // A length of 0 with options is that of a jumbogram (RFC 2675).
  if (payload == 0 && next == kHopByHop) return Refusal::kExtensionHeader;
  out.traffic_class = static_cast<uint8_t>(first >> 20);
  out.flow_label = first & 0xfffff;
  // The walk ends where the payload ends, and where the bytes do: which of the two decides why.
  Reader extensions(bytes.subspan(kIpv6Size, std::min(payload, bytes.size() - kIpv6Size)));
  if (const Refusal refusal = WalkExtensions(next, &extensions, &out); refusal != Refusal::kNone) {
    const bool whole = payload <= bytes.size() - kIpv6Size;
    return refusal == Refusal::kTruncated && whole ? Refusal::kLength : refusal;
  }
  out.header_length = static_cast<uint16_t>(kIpv6Size + extensions.position());
  out.payload_length = static_cast<uint32_t>(payload - extensions.position());
  return out;
}

Parsed<TcpHeader> ParseTcp(Bytes bytes) {
  Reader in(bytes);
  TcpHeader out;
  out.source_port = in.U16();
  out.destination_port = in.U16();
  out.sequence = in.U32();
  out.acknowledgement = in.U32();
  const uint8_t offset = in.U8();
  out.flags = in.U8();
  out.window = in.U16();
  out.checksum = in.U16();
  out.urgent = in.U16();
  if (!in.ok()) return Refusal::kTruncated;
  const size_t header = (offset >> 4) * size_t{4};
  if (header < kTcpSize) return Refusal::kHeaderLength;
  const Bytes options = in.Take(header - kTcpSize);
  if (!in.ok()) return Refusal::kTruncated;
  out.header_length = static_cast<uint8_t>(header);
  out.options = ParseTcpOptions(options);
  return out;
}

Parsed<UdpHeader> ParseUdp(Bytes bytes, size_t length) {
  Reader in(bytes);
  UdpHeader out;
  out.source_port = in.U16();
  out.destination_port = in.U16();
  out.length = in.U16();
  out.checksum = in.U16();
  if (!in.ok()) return Refusal::kTruncated;
  if (out.length < kUdpSize || out.length > length) return Refusal::kLength;
  return out;
}

Parsed<IcmpHeader> ParseIcmp(Bytes bytes) {
  Reader in(bytes);
  IcmpHeader out;
  out.type = in.U8();
  out.code = in.U8();
  out.checksum = in.U16();
  out.rest = in.U32();
  if (!in.ok()) return Refusal::kTruncated;
  return out;
}

Parsed<Frame> ParseFrame(Bytes bytes, size_t length, bool gso) {
  length = std::max(length, bytes.size());
  const Parsed<EthernetHeader> ethernet = ParseEthernet(bytes);
  if (!ethernet.ok()) return ethernet.refusal();
  Frame out;
  out.ethernet = *ethernet;
  out.network_offset = ethernet->header_length;
  out.payload_offset = out.network_offset;
  out.payload_length = length - out.payload_offset;
  const Bytes network = bytes.subspan(out.network_offset);
  if (ethernet->type == kEtherArp) {
    const Parsed<ArpPacket> arp = ParseArp(network);
    if (!arp.ok()) return arp.refusal();
    out.arp = *arp;
    out.payload_offset += kArpSize;
    out.payload_length = 0;
    return out;
  }
  if (ethernet->type != kEtherIpv4 && ethernet->type != kEtherIpv6) return out;

  const bool v4 = ethernet->type == kEtherIpv4;
  const Parsed<IpHeader> ip =
      v4 ? ParseIpv4(network, out.payload_length) : ParseIpv6(network, out.payload_length);
  if (!ip.ok()) return ip.refusal();
  out.ip = *ip;
  out.transport_offset = out.network_offset + ip->header_length;
  out.payload_offset = out.transport_offset;
  out.payload_length = ip->payload_length;
  if (ip->fragment) return out;

  const Bytes from_transport = bytes.subspan(out.transport_offset);
  const Bytes transport = from_transport.first(std::min(from_transport.size(), out.payload_length));
  // A header that the IP length cuts is a lie about lengths, one that the snapshot cuts is not.
  const auto refused = [&](Refusal why) {
    return why == Refusal::kTruncated && transport.size() == out.payload_length ? Refusal::kLength
                                                                                : why;
  };
  size_t header = 0;
  if (ip->protocol == kProtocolTcp) {
    const Parsed<TcpHeader> tcp = ParseTcp(transport);
    if (!tcp.ok()) return refused(tcp.refusal());
    out.transport = *tcp;
    header = tcp->header_length;
  } else if (ip->protocol == kProtocolUdp) {
    // Of a datagram to be cut the field may be that of each piece, and 65535 does not hold them
    // all.
    const Parsed<UdpHeader> udp = ParseUdp(transport, gso ? SIZE_MAX : out.payload_length);
    if (!udp.ok()) return refused(udp.refusal());
    out.transport = *udp;
    header = kUdpSize;
    if (!gso) out.payload_length = udp->length;
  } else if (ip->protocol == (v4 ? kProtocolIcmp : kProtocolIcmpv6)) {
    const Parsed<IcmpHeader> icmp = ParseIcmp(transport);
    if (!icmp.ok()) return refused(icmp.refusal());
    out.transport = *icmp;
    header = kIcmpSize;
  }
  out.payload_offset += header;
  out.payload_length -= header;
  return out;
}

}  // namespace virtbay::proxy_net
