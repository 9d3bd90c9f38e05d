// The Internet checksum (RFC 1071), for frames to guests that take no partial ones.
// Stateless; [any].
#ifndef VIRTBAY_SDK_NET_CHECKSUM_H_
#define VIRTBAY_SDK_NET_CHECKSUM_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "virtbay/sdk/net_link.h"

namespace virtbay::sdk::net {

// The folded ones' complement sum, not inverted, as it lies in memory.
uint16_t OnesSum(std::span<const std::byte> bytes);

// Does what `offload` leaves to do on the checksum of a whole frame. Its range is inside the frame.
void FinishChecksum(std::span<std::byte> frame, const Offload& offload);

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_CHECKSUM_H_
