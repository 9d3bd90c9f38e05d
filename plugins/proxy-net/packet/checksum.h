// Checksum: the Internet checksum (RFC 1071), summed piece by piece in 64 bits.
// A plain value; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_CHECKSUM_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_CHECKSUM_H_

#include <cstdint>

#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

class Checksum {
 public:
  // [any] Appends bytes; a piece may have an odd length, the next one goes on in the same word.
  void Add(Bytes bytes);
  // [any] Appends a number in network byte order.
  void AddU16(uint16_t value);
  void AddU32(uint32_t value);
  // [any] The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 3.1, RFC 8200 8.1). Both addresses are
  // of one kind; `length` is that of the transport header and what follows.
  void AddPseudoHeader(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                       uint32_t length);

  // [any] The sum in 16 bits, not complemented: what NEEDS_CSUM wants in the field
  // (virtio 5.1.6.2).
  uint16_t Folded() const;
  // [any] What goes into the field; a whole packet, its field included, gives 0.
  uint16_t Finish() const { return static_cast<uint16_t>(~Folded()); }

 private:
  uint64_t sum_ = 0;  // of words in the machine's byte order
  bool odd_ = false;  // whether the next byte is the second of its word
};

// [any] The checksum of `bytes` alone.
uint16_t ChecksumOf(Bytes bytes);
// [any] The field of a header in which one word changes from `before` to `after` (RFC 1624).
uint16_t AdjustChecksum(uint16_t field, uint16_t before, uint16_t after);
// [any] What NEEDS_CSUM wants in the field of a transport header: the pseudo-header alone.
uint16_t PseudoHeaderSum(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                         uint32_t length);
// [any] Whether a transport header with its payload, whole, has the right checksum.
bool TransportChecksumOk(const IpAddress& source, const IpAddress& destination, uint8_t protocol,
                         Bytes segment);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_CHECKSUM_H_
