#include "plugins/proxy-net/flow/icmp_translation.h"

#include <algorithm>

#include "plugins/proxy-net/packet/headers.h"

namespace virtbay::proxy_net {
namespace {

// Codes of an unreachable destination of ICMP (RFC 792, RFC 1812 5.2.7.1).
enum V4Code : uint8_t {
  kProtocol = 2,
  kPort = 3,
  kFragmentationNeeded = 4,
  kNetProhibited = 9,
  kHostProhibited = 10,
  kProhibited = 13,
  kPrecedenceViolation = 14,
  kPrecedenceCutoff = 15,
};
// Codes of ICMPv6 (RFC 4443 3.1, 3.4).
constexpr uint8_t kNoRoute = 0;
constexpr uint8_t kAdministrative = 1;
constexpr uint8_t kPortUnreachable = 4;
constexpr uint8_t kUnknownNextHeader = 1;
constexpr uint32_t kNextHeaderAt = 6;  // in the IPv6 header

// The least MTU of IPv6, and how much longer its header is.
constexpr uint32_t kLeastMtu = 1280;
constexpr uint32_t kLongerHeader = kIpv6Size - kIpv4Size;

}  // namespace

std::optional<IcmpError> ToIcmpv6(const IcmpError& error) {
  if (error.type == IcmpHeader::kTimeExceeded) {
    return IcmpError{IcmpHeader::kV6TimeExceeded, error.code, 0};
  }
  if (error.type != IcmpHeader::kUnreachable) return std::nullopt;
  switch (error.code) {
    case kPort:
      return IcmpError{IcmpHeader::kV6Unreachable, kPortUnreachable, 0};
    case kFragmentationNeeded: {
      // A router of long ago says 0 (RFC 1191 5).
      const uint32_t mtu = std::min<uint32_t>(error.rest, 65535) + kLongerHeader;
      return IcmpError{IcmpHeader::kV6PacketTooBig, 0, std::max(mtu, kLeastMtu)};
    }
    case kNetProhibited:
    case kHostProhibited:
    case kProhibited:
    case kPrecedenceCutoff:
      return IcmpError{IcmpHeader::kV6Unreachable, kAdministrative, 0};
    case kProtocol:
      return IcmpError{IcmpHeader::kV6ParameterProblem, kUnknownNextHeader, kNextHeaderAt};
    case kPrecedenceViolation:
      return std::nullopt;
    default:
      if (error.code > kPrecedenceCutoff) return std::nullopt;
      return IcmpError{IcmpHeader::kV6Unreachable, kNoRoute, 0};
  }
}

}  // namespace virtbay::proxy_net
