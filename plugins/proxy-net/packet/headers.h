// The headers of a frame as values: what parsing gives and what building takes. A parsed header is
// checked; it refers to no bytes, its payload is an offset and a length within the frame.
// Plain data; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_HEADERS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_HEADERS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

inline constexpr uint16_t kEtherIpv4 = 0x0800;
inline constexpr uint16_t kEtherArp = 0x0806;
inline constexpr uint16_t kEtherVlan = 0x8100;
inline constexpr uint16_t kEtherQinQ = 0x88a8;
inline constexpr uint16_t kEtherIpv6 = 0x86dd;

inline constexpr uint8_t kProtocolIcmp = 1;
inline constexpr uint8_t kProtocolTcp = 6;
inline constexpr uint8_t kProtocolUdp = 17;
inline constexpr uint8_t kProtocolIcmpv6 = 58;

inline constexpr size_t kEthernetSize = 14;
inline constexpr size_t kArpSize = 28;
inline constexpr size_t kIpv4Size = 20;
inline constexpr size_t kIpv6Size = 40;
inline constexpr size_t kTcpSize = 20;
inline constexpr size_t kTcpMaxOptions = 40;
inline constexpr size_t kUdpSize = 8;
inline constexpr size_t kIcmpSize = 8;

// Ethernet II, with at most one tag of IEEE 802.1Q.
struct EthernetHeader {
  MacAddress destination;
  MacAddress source;
  uint16_t type = 0;                 // after the tag
  std::optional<uint16_t> vlan_tci;  // priority, DEI and VLAN identifier
  uint8_t header_length = kEthernetSize;

  uint16_t vlan_id() const { return vlan_tci.value_or(0) & 0x0fff; }
};

// ARP of Ethernet and IPv4 (RFC 826).
struct ArpPacket {
  static constexpr uint16_t kRequest = 1;
  static constexpr uint16_t kReply = 2;
  uint16_t operation = 0;
  MacAddress sender_mac;
  Ipv4Address sender;
  MacAddress target_mac;
  Ipv4Address target;
};

// IPv4 (RFC 791) or IPv6 (RFC 8200) with its extension headers.
struct IpHeader {
  IpAddress source;
  IpAddress destination;
  uint8_t protocol = 0;  // of the payload, after IPv6's extension headers
  uint8_t hop_limit = 64;
  uint8_t traffic_class = 0;    // DSCP and ECN
  uint32_t flow_label = 0;      // IPv6
  uint16_t identification = 0;  // IPv4
  bool dont_fragment = false;   // IPv4
  bool fragment = false;        // one of several; the payload is none of a transport
  bool has_extensions = false;  // IPv4 options or IPv6 extension headers, skipped
  uint16_t header_length = 0;   // with those
  uint32_t payload_length = 0;  // as the header says; within the frame when parsed

  bool is_v4() const { return source.is_v4(); }
};

// The two numbers of the timestamps option (RFC 7323 3.2).
struct TcpTimestamps {
  uint32_t value = 0;
  uint32_t echo = 0;
  bool operator==(const TcpTimestamps&) const = default;
};

// One block of the SACK option (RFC 2018 3).
struct TcpSackBlock {
  uint32_t left = 0;   // first sequence number of the block
  uint32_t right = 0;  // the one after its last
  bool operator==(const TcpSackBlock&) const = default;
};

// What a SYN offers, and what any segment may carry.
struct TcpOptions {
  using Timestamps = TcpTimestamps;
  using SackBlock = TcpSackBlock;
  std::optional<uint16_t> mss;
  std::optional<uint8_t> window_scale;  // as sent; what is over 14 counts as 14 (RFC 7323 2.3)
  bool sack_permitted = false;
  std::optional<Timestamps> timestamps;
  uint8_t sack_count = 0;
  std::array<SackBlock, 4> sack{};
  bool malformed = false;  // an option without a right length; those behind it were not read
};

// TCP (RFC 9293).
struct TcpHeader {
  static constexpr uint8_t kFin = 0x01;
  static constexpr uint8_t kSyn = 0x02;
  static constexpr uint8_t kRst = 0x04;
  static constexpr uint8_t kPsh = 0x08;
  static constexpr uint8_t kAck = 0x10;
  static constexpr uint8_t kUrg = 0x20;
  static constexpr uint8_t kEce = 0x40;
  static constexpr uint8_t kCwr = 0x80;
  uint16_t source_port = 0;
  uint16_t destination_port = 0;
  uint32_t sequence = 0;
  uint32_t acknowledgement = 0;
  uint8_t flags = 0;
  uint16_t window = 0;  // not scaled
  uint16_t checksum = 0;
  uint16_t urgent = 0;  // never used
  uint8_t header_length = kTcpSize;
  TcpOptions options;

  bool has(uint8_t flag) const { return (flags & flag) != 0; }
};

// UDP (RFC 768).
struct UdpHeader {
  uint16_t source_port = 0;
  uint16_t destination_port = 0;
  uint16_t length = 0;    // with the header
  uint16_t checksum = 0;  // 0: none, with IPv4
};

// ICMP (RFC 792) and ICMPv6 (RFC 4443): the first eight bytes.
struct IcmpHeader {
  static constexpr uint8_t kEchoReply = 0;
  static constexpr uint8_t kUnreachable = 3;
  static constexpr uint8_t kEchoRequest = 8;
  static constexpr uint8_t kTimeExceeded = 11;
  static constexpr uint8_t kV6Unreachable = 1;
  static constexpr uint8_t kV6PacketTooBig = 2;
  static constexpr uint8_t kV6TimeExceeded = 3;
  static constexpr uint8_t kV6ParameterProblem = 4;
  static constexpr uint8_t kV6EchoRequest = 128;
  static constexpr uint8_t kV6EchoReply = 129;
  static constexpr uint8_t kV6RouterSolicitation = 133;
  static constexpr uint8_t kV6RouterAdvertisement = 134;
  static constexpr uint8_t kV6NeighborSolicitation = 135;
  static constexpr uint8_t kV6NeighborAdvertisement = 136;
  uint8_t type = 0;
  uint8_t code = 0;
  uint16_t checksum = 0;
  uint32_t rest = 0;  // identifier and sequence number, MTU, pointer ...

  uint16_t identifier() const { return static_cast<uint16_t>(rest >> 16); }
  uint16_t sequence() const { return static_cast<uint16_t>(rest); }
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_HEADERS_H_
