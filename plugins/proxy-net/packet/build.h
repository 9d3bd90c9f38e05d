// Building: headers into a span, front to back, through a Writer that fails when they do not fit.
// Fields that follow from others (versions, header lengths, IPv4's checksum) are filled in here.
// Stateless functions; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_BUILD_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_BUILD_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "plugins/proxy-net/packet/cursor.h"
#include "plugins/proxy-net/packet/headers.h"

namespace virtbay::proxy_net {

// [any] 14 bytes, 18 with a tag.
void WriteEthernet(const EthernetHeader& header, Writer* out);
// [any] 28 bytes.
void WriteArp(const ArpPacket& packet, Writer* out);
// [any] 20 or 40 bytes without options or extension headers, `payload_length` of which follow;
// fails when the addresses are of two kinds or the length does not fit its field.
void WriteIp(const IpHeader& header, Writer* out);
// [any] The TCP header with its options, padded; `checksum` as given. Returns its length in bytes.
size_t WriteTcp(const TcpHeader& header, Writer* out);
// [any] The length in bytes that WriteTcp will need.
size_t TcpHeaderLength(const TcpOptions& options);
// [any] 8 bytes.
void WriteUdp(const UdpHeader& header, Writer* out);
// [any] 8 bytes.
void WriteIcmp(const IcmpHeader& header, Writer* out);

// [any] Computes the checksum of a whole transport header with its payload and stores it. UDP gets
// 0xffff for 0; ICMP has no pseudo-header. False when the field is not within `segment` or the
// protocol has none.
bool FillChecksum(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                  std::span<uint8_t> segment);
// [any] Where the checksum of a transport's header stands in it, or SIZE_MAX: virtio's csum_offset.
size_t ChecksumOffset(uint8_t protocol);

// [any] A whole frame with an ICMP or ICMPv6 error from `source` to the sender of the IP packet
// `offending`, of which as much is quoted as the standards ask for (RFC 1812 4.3.2.3, RFC
// 4443 2.4). `rest` is the MTU or the pointer. Its size in bytes, or 0 when it does not fit, or
// when there is to be none: for ICMP errors, fragments but the first, and packets to or from groups
// (RFC 1122 3.2.2).
size_t WriteIcmpError(const EthernetHeader& ethernet, const IpAddress& source, uint8_t type,
                      uint8_t code, uint32_t rest, Bytes offending, std::span<uint8_t> out);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_BUILD_H_
