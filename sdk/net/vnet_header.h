// The virtio-net header of a frame (virtio 1.3 5.1.6): its wire form, and the checks of it in both
// directions. Every field of a header from the guest is the guest's word only.
// Stateless; [any].
#ifndef VIRTBAY_SDK_NET_VNET_HEADER_H_
#define VIRTBAY_SDK_NET_VNET_HEADER_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "virtbay/sdk/net_link.h"

namespace virtbay::sdk::net {

// virtio 1.3 5.1.6, little endian as the machine.
struct VnetHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;
  uint16_t gso_size = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
  uint16_t num_buffers = 0;
};
static_assert(sizeof(VnetHeader) == 12);
inline constexpr uint32_t kVnetHeader = sizeof(VnetHeader);
// Without num_buffers: of a driver that takes neither VERSION_1 nor mergeable buffers.
inline constexpr uint32_t kLegacyVnetHeader = 10;

inline constexpr uint8_t kVnetNeedsCsum = 1;
inline constexpr uint8_t kVnetDataValid = 2;
inline constexpr uint8_t kVnetGsoNone = 0;
inline constexpr uint8_t kVnetGsoTcp4 = 1;
inline constexpr uint8_t kVnetGsoUfo = 3;
inline constexpr uint8_t kVnetGsoTcp6 = 4;
inline constexpr uint8_t kVnetGsoUdp = 5;
inline constexpr uint8_t kVnetGsoEcn = 0x80;

// The most segments of one frame: 64 KiB at the smallest MSS that is in use (a minimum MTU of 68
// makes 28-byte segments, which nobody segments in hardware); and what UDP_SEGMENT takes.
inline constexpr uint32_t kMaxTcpSegments = 1024;
inline constexpr uint32_t kMaxUdpSegments = 128;

// Why a frame from the guest is dropped.
enum class TxDrop : uint8_t {
  kShort,           // no whole vnet and Ethernet header
  kTooLong,         // above the MTU, or 64 KiB
  kCsumRefused,     // needs a checksum: not negotiated
  kCsumRange,       // csum_start or csum_offset beyond the frame
  kGsoUnknown,      // a type that there is not
  kGsoRefused,      // a type that was not negotiated
  kGsoWithoutCsum,  // must have one
  kGsoSizeZero,     // gso_size 0
  kGsoSegments,     // too many segments, or none
  kGsoHeaders,      // the frame is not of that type, or its headers are not where it says
  kHdrLen,          // hdr_len beyond the frame
  kLinkDown,
  kCount,
};
const char* TxDropName(TxDrop drop);

// Why a frame is not given to the guest.
enum class RxDrop : uint8_t {
  kNoBuffers,    // too few, or too small ones
  kNoMemory,     // no arena slots
  kTooLong,      // above what a buffer of the guest's takes
  kShort,        // no whole Ethernet header
  kFiltered,     // by its address (virtio 1.3 5.1.6.5.1)
  kVlan,         // by its VLAN
  kCsumRange,    // of the back-end's: as for TxDrop
  kCsumRefused,  // and it cannot be computed here
  kGsoRefused,   // the guest does not take it
  kGsoSize,      // 0
  kLinkDown,
  kBadBuffer,  // of the guest's, smaller than a header
  kCount,
};
const char* RxDropName(RxDrop drop);

// What was negotiated of the guest's side of sending.
struct HostOffloads {
  bool csum = false, tso4 = false, tso6 = false, ecn = false, uso = false;
};

// Checks a header of the guest's against the frame behind it, of which `headers` are the first
// bytes. TxDrop::kCount: good, and *offload is filled, with the headers' true length.
TxDrop CheckTxOffload(const VnetHeader& header, const HostOffloads& allowed,
                      std::span<const std::byte> headers, uint32_t size, Offload* offload);
inline TxDrop CheckTx(const VnetHeader& header, const HostOffloads& allowed,
                      std::span<const std::byte> headers, uint32_t size, Offload* offload) {
  *offload = Offload();
  // Small frames are without, and there are most of them.
  if ((header.flags & kVnetNeedsCsum) == 0 && header.gso_type == kVnetGsoNone) [[likely]] {
    return TxDrop::kCount;
  }
  return CheckTxOffload(header, allowed, headers, size, offload);
}

// Checks what a back-end says of a frame to the guest; RxDrop::kCount: good. That the guest does
// not take needs_csum is for the caller.
RxDrop CheckRx(const Offload& offload, const GuestOffloads& guest, uint32_t size);

// An Offload as a header, and back (of a header that comes from the kernel: CheckRx comes next).
// False: an unknown type.
VnetHeader Encode(const Offload& offload, uint16_t num_buffers);
bool Decode(const VnetHeader& header, Offload* offload);

// Where the layers of a frame begin.
struct Layers {
  bool ipv6 = false;
  bool fragment = false;
  uint8_t protocol = 0;
  uint32_t transport = 0;    // offset
  uint32_t headers_len = 0;  // with the TCP or UDP header
};
// False: not TCP or UDP over IP, or the headers are cut off.
bool FindLayers(std::span<const std::byte> headers, Layers* layers);

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_VNET_HEADER_H_
