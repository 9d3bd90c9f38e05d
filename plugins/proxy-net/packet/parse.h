// Parsing: bytes that the guest wrote into checked headers, or a reason why not. Nothing is
// reassembled and no payload is looked at. A frame may be given by its first bytes and its length,
// as the headers of a large one are: a header that does not end within those bytes is refused.
// Stateless functions; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_PARSE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_PARSE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <variant>

#include "plugins/proxy-net/packet/cursor.h"
#include "plugins/proxy-net/packet/headers.h"

namespace virtbay::proxy_net {

// Why a frame was refused.
enum class Refusal : uint8_t {
  kNone,
  kTruncated,        // a header does not end within the bytes
  kLength,           // a length field contradicts the layer around it
  kVersion,          // of IP
  kHeaderLength,     // too small to be one
  kExtensionHeader,  // of IPv6: misplaced, too many, source routing, or a jumbogram
  kChecksum,         // of an IPv4 header
  kUnsupported,      // ARP of other hardware, a second VLAN tag, frames of IEEE 802.3
};
inline constexpr size_t kRefusals = static_cast<size_t>(Refusal::kUnsupported) + 1;

// [any] A word for counters and logs, with static storage.
const char* RefusalName(Refusal refusal);

// A header or the reason why there is none.
template <typename T>
class [[nodiscard]] Parsed {
 public:
  // NOLINTNEXTLINE(google-explicit-constructor)
  Parsed(const T& value) : value_(value) {}
  // NOLINTNEXTLINE(google-explicit-constructor)
  Parsed(Refusal refusal) : refusal_(refusal) {}

  bool ok() const { return refusal_ == Refusal::kNone; }
  Refusal refusal() const { return refusal_; }
  // [any] Precondition: ok().
  const T& operator*() const { return value_; }
  const T* operator->() const { return &value_; }

 private:
  T value_{};
  Refusal refusal_ = Refusal::kNone;
};

// [any] The header at the front of `bytes`. `length` counts the bytes that there are in all, those
// beyond `bytes` included, and is at least bytes.size().
Parsed<EthernetHeader> ParseEthernet(Bytes bytes);
Parsed<ArpPacket> ParseArp(Bytes bytes);
Parsed<IpHeader> ParseIpv4(Bytes bytes, size_t length);
Parsed<IpHeader> ParseIpv6(Bytes bytes, size_t length);
Parsed<TcpHeader> ParseTcp(Bytes bytes);
Parsed<UdpHeader> ParseUdp(Bytes bytes, size_t length);
Parsed<IcmpHeader> ParseIcmp(Bytes bytes);

// A whole frame, layer by layer.
struct Frame {
  EthernetHeader ethernet;
  // At most one of `arp` and `ip`; neither of another EtherType.
  std::optional<ArpPacket> arp;
  std::optional<IpHeader> ip;
  // At most one; none of a fragment and of other protocols.
  std::variant<std::monostate, TcpHeader, UdpHeader, IcmpHeader> transport;
  size_t network_offset = 0;    // of ARP or IP in the frame
  size_t transport_offset = 0;  // of the transport's header
  size_t payload_offset = 0;    // of what follows the last header that was parsed
  size_t payload_length = 0;    // bytes; Ethernet's padding is none of them

  // [any] The header of that kind, or nullptr.
  const TcpHeader* tcp() const { return std::get_if<TcpHeader>(&transport); }
  const UdpHeader* udp() const { return std::get_if<UdpHeader>(&transport); }
  const IcmpHeader* icmp() const { return std::get_if<IcmpHeader>(&transport); }
};

// [any] The frame that begins with `bytes` and is `length` bytes long; see above. `gso`: it is a
// large one that the device cuts, whose UDP length field counts one segment only.
Parsed<Frame> ParseFrame(Bytes bytes, size_t length, bool gso = false);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_PARSE_H_
