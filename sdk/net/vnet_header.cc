#include "sdk/net/vnet_header.h"

#include <algorithm>
#include <array>

namespace virtbay::sdk::net {
namespace {

constexpr uint8_t kTcp = 6;
constexpr uint8_t kUdpProtocol = 17;
constexpr uint32_t kTcpHeader = 20;
constexpr uint32_t kUdpHeader = 8;
constexpr uint16_t kTcpCsum = 16;
constexpr uint16_t kUdpCsum = 6;

// Bytes in network order, at an offset that may lie beyond the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  bool Has(uint32_t offset, uint32_t len) const {
    return offset <= bytes_.size() && bytes_.size() - offset >= len;
  }
  // Precondition of both: Has.
  uint8_t U8(uint32_t offset) const { return std::to_integer<uint8_t>(bytes_[offset]); }
  uint16_t U16(uint32_t offset) const {
    return static_cast<uint16_t>(U8(offset) << 8 | U8(offset + 1));
  }

 private:
  std::span<const std::byte> bytes_;
};

bool FindIpv6Transport(const Reader& in, uint32_t at, Layers* layers) {
  if (!in.Has(at, 40) || in.U8(at) >> 4 != 6) return false;
  uint8_t next = in.U8(at + 6);
  at += 40;
  // Hop-by-hop, routing and destination options (RFC 8200 4); a chain of more is nobody's.
  for (int i = 0; i < 8; ++i) {
    if (next == 44) {
      layers->fragment = true;
      return true;
    }
    if (next != 0 && next != 43 && next != 60) break;
    if (!in.Has(at, 8)) return false;
    next = in.U8(at);
    at += (in.U8(at + 1) + 1u) * 8;
  }
  layers->ipv6 = true;
  layers->protocol = next;
  layers->transport = at;
  return true;
}

bool FindIpv4Transport(const Reader& in, uint32_t at, Layers* layers) {
  if (!in.Has(at, 20) || in.U8(at) >> 4 != 4) return false;
  const uint32_t length = (in.U8(at) & 15u) * 4;
  if (length < 20) return false;
  layers->fragment = (in.U16(at + 6) & 0x3fff) != 0;
  layers->protocol = in.U8(at + 9);
  layers->transport = at + length;
  return true;
}

bool InFrame(uint32_t csum_start, uint32_t csum_offset, uint32_t size) {
  return csum_start >= kEthernetHeader && csum_start + csum_offset + 2 <= size;
}

TxDrop CheckGso(const VnetHeader& header, const HostOffloads& allowed,
                std::span<const std::byte> headers, uint32_t size, Offload* offload) {
  const bool ecn = (header.gso_type & kVnetGsoEcn) != 0;
  switch (header.gso_type & ~kVnetGsoEcn) {
    case kVnetGsoTcp4:
      if (!allowed.tso4) return TxDrop::kGsoRefused;
      offload->gso = Gso::kTcp4;
      break;
    case kVnetGsoTcp6:
      if (!allowed.tso6) return TxDrop::kGsoRefused;
      offload->gso = Gso::kTcp6;
      break;
    case kVnetGsoUdp:
      if (ecn) return TxDrop::kGsoUnknown;
      if (!allowed.uso) return TxDrop::kGsoRefused;
      offload->gso = Gso::kUdp;
      break;
    case kVnetGsoUfo:
      return TxDrop::kGsoRefused;
    default:
      return TxDrop::kGsoUnknown;
  }
  if (ecn && !allowed.ecn) return TxDrop::kGsoRefused;
  offload->ecn = ecn;
  if (!offload->needs_csum) return TxDrop::kGsoWithoutCsum;
  if (header.gso_size == 0) return TxDrop::kGsoSizeZero;
  // hdr_len is a hint, often more than the headers; one beyond the frame is a lie.
  if (header.hdr_len > size) return TxDrop::kHdrLen;
  Layers layers;
  if (!FindLayers(headers, &layers) || layers.fragment) return TxDrop::kGsoHeaders;
  const bool udp = offload->gso == Gso::kUdp;
  if (layers.protocol != (udp ? kUdpProtocol : kTcp) || layers.headers_len > size ||
      (!udp && layers.ipv6 != (offload->gso == Gso::kTcp6)) ||
      header.csum_start != layers.transport || header.csum_offset != (udp ? kUdpCsum : kTcpCsum)) {
    return TxDrop::kGsoHeaders;
  }
  const uint32_t payload = size - layers.headers_len;
  const uint32_t segments = (payload + header.gso_size - 1) / header.gso_size;
  if (segments == 0 || segments > (udp ? kMaxUdpSegments : kMaxTcpSegments)) {
    return TxDrop::kGsoSegments;
  }
  offload->gso_size = header.gso_size;
  offload->hdr_len = static_cast<uint16_t>(layers.headers_len);
  return TxDrop::kCount;
}

}  // namespace

const char* TxDropName(TxDrop drop) {
  static constexpr std::array<const char*, static_cast<size_t>(TxDrop::kCount)> kNames = {
      "short",        "too_long",           "csum_not_negotiated",  "csum_beyond_frame",
      "gso_unknown",  "gso_not_negotiated", "gso_without_csum",     "gso_size_zero",
      "gso_segments", "gso_headers",        "hdr_len_beyond_frame", "link_down"};
  return kNames[static_cast<size_t>(drop)];
}

const char* RxDropName(RxDrop drop) {
  static constexpr std::array<const char*, static_cast<size_t>(RxDrop::kCount)> kNames = {
      "no_buffers",         "no_memory",     "too_long",          "short",
      "filtered",           "vlan",          "csum_beyond_frame", "csum_not_negotiated",
      "gso_not_negotiated", "gso_size_zero", "link_down",         "bad_buffer"};
  return kNames[static_cast<size_t>(drop)];
}

bool FindLayers(std::span<const std::byte> headers, Layers* layers) {
  const Reader in(headers);
  *layers = Layers();
  if (!in.Has(0, kEthernetHeader)) return false;
  uint32_t at = 12;
  uint16_t type = in.U16(at);
  for (int i = 0; i < 2 && (type == 0x8100 || type == 0x88a8); ++i) {
    at += 4;
    if (!in.Has(at, 2)) return false;
    type = in.U16(at);
  }
  at += 2;
  if (type == 0x0800) {
    if (!FindIpv4Transport(in, at, layers)) return false;
  } else if (type == 0x86dd) {
    if (!FindIpv6Transport(in, at, layers)) return false;
  } else {
    return false;
  }
  if (layers->fragment) return true;
  if (layers->protocol == kTcp) {
    if (!in.Has(layers->transport, kTcpHeader)) return false;
    const uint32_t length = (in.U8(layers->transport + 12) >> 4) * 4u;
    if (length < kTcpHeader) return false;
    layers->headers_len = layers->transport + length;
    return true;
  }
  if (layers->protocol != kUdpProtocol || !in.Has(layers->transport, kUdpHeader)) return false;
  layers->headers_len = layers->transport + kUdpHeader;
  return true;
}

TxDrop CheckTxOffload(const VnetHeader& header, const HostOffloads& allowed,
                      std::span<const std::byte> headers, uint32_t size, Offload* offload) {
  if ((header.flags & kVnetNeedsCsum) != 0) {
    if (!allowed.csum) return TxDrop::kCsumRefused;
    if (!InFrame(header.csum_start, header.csum_offset, size)) return TxDrop::kCsumRange;
    offload->needs_csum = true;
    offload->csum_start = header.csum_start;
    offload->csum_offset = header.csum_offset;
  }
  if (header.gso_type == kVnetGsoNone) return TxDrop::kCount;
  return CheckGso(header, allowed, headers, size, offload);
}

RxDrop CheckRx(const Offload& offload, const GuestOffloads& guest, uint32_t size) {
  if (size < kEthernetHeader) return RxDrop::kShort;
  if (offload.needs_csum && !InFrame(offload.csum_start, offload.csum_offset, size)) {
    return RxDrop::kCsumRange;
  }
  if (offload.gso == Gso::kNone) return RxDrop::kCount;
  const bool takes = (offload.gso == Gso::kTcp4 && guest.tso4) ||
                     (offload.gso == Gso::kTcp6 && guest.tso6) ||
                     (offload.gso == Gso::kUdp && (guest.uso4 || guest.uso6));
  if (!takes || !guest.csum || (offload.ecn && !guest.ecn)) return RxDrop::kGsoRefused;
  if (offload.gso_size == 0) return RxDrop::kGsoSize;
  if (!offload.needs_csum || offload.hdr_len > size) return RxDrop::kCsumRange;
  return RxDrop::kCount;
}

VnetHeader Encode(const Offload& offload, uint16_t num_buffers) {
  VnetHeader header;
  if (offload.needs_csum) {
    header.flags = kVnetNeedsCsum;
    header.csum_start = offload.csum_start;
    header.csum_offset = offload.csum_offset;
  } else if (offload.data_valid) {
    header.flags = kVnetDataValid;
  }
  static constexpr std::array<uint8_t, 4> kTypes = {kVnetGsoNone, kVnetGsoTcp4, kVnetGsoTcp6,
                                                    kVnetGsoUdp};
  header.gso_type = kTypes[static_cast<size_t>(offload.gso)];
  if (offload.gso != Gso::kNone) {
    if (offload.ecn) header.gso_type |= kVnetGsoEcn;
    header.gso_size = offload.gso_size;
    header.hdr_len = offload.hdr_len;
  }
  header.num_buffers = num_buffers;
  return header;
}

bool Decode(const VnetHeader& header, Offload* offload) {
  *offload = Offload();
  offload->needs_csum = (header.flags & kVnetNeedsCsum) != 0;
  offload->data_valid = (header.flags & kVnetDataValid) != 0;
  offload->csum_start = header.csum_start;
  offload->csum_offset = header.csum_offset;
  offload->ecn = (header.gso_type & kVnetGsoEcn) != 0;
  switch (header.gso_type & ~kVnetGsoEcn) {
    case kVnetGsoNone:
      return true;
    case kVnetGsoTcp4:
      offload->gso = Gso::kTcp4;
      break;
    case kVnetGsoTcp6:
      offload->gso = Gso::kTcp6;
      break;
    case kVnetGsoUdp:
      offload->gso = Gso::kUdp;
      break;
    default:
      return false;
  }
  offload->gso_size = header.gso_size;
  offload->hdr_len = header.hdr_len;
  return true;
}

}  // namespace virtbay::sdk::net
