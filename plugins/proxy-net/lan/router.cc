#include "plugins/proxy-net/lan/router.h"

#include <algorithm>

#include "plugins/proxy-net/packet/build.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint8_t kHopLimit = 64;
constexpr uint8_t kManaged = 0x80;
constexpr uint8_t kOther = 0x40;
constexpr uint8_t kOnLink = 0x80;
constexpr uint8_t kAutonomous = 0x40;
constexpr uint32_t kValidS = 2592000;
constexpr uint32_t kPreferredS = 604800;
// A host does not let an address go sooner than this (RFC 4862 5.5.3 e).
constexpr uint32_t kWithdrawnValidS = 7200;

}  // namespace

RouterAdvertiser::RouterAdvertiser(const LanConfig* config)
    : config_(config), random_(config->seed) {}

// splitmix64: these times need spreading, not secrecy.
uint64_t RouterAdvertiser::Random(uint64_t low, uint64_t high) {
  uint64_t z = random_ += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  z ^= z >> 31;
  return low + z % (high - low + 1);
}

void RouterAdvertiser::Start(uint64_t now_ns) {
  initial_ = kInitialAdvertisements;
  next_ns_ = sent_ ? std::max(now_ns, last_ns_ + kMinDelayNs) : now_ns;
}

void RouterAdvertiser::Stop() { next_ns_ = kNever; }

void RouterAdvertiser::Changed(uint64_t now_ns) {
  if (running()) Start(now_ns);
}

void RouterAdvertiser::Solicited(uint64_t now_ns) {
  if (!running()) return;
  const uint64_t soonest = sent_ ? std::max(now_ns, last_ns_ + kMinDelayNs) : now_ns;
  next_ns_ = std::min(next_ns_, soonest);
}

bool RouterAdvertiser::Due(uint64_t now_ns) {
  if (now_ns < next_ns_) return false;
  last_ns_ = now_ns;
  sent_ = true;
  if (initial_ != 0) --initial_;
  const uint64_t interval = Random(kMinIntervalNs, kMaxIntervalNs);
  next_ns_ = now_ns + (initial_ != 0 ? std::min(interval, kMaxInitialIntervalNs) : interval);
  return true;
}

size_t RouterAdvertiser::Write(const Ipv6Address& to, const MacAddress& to_mac, bool withdraw,
                               std::span<uint8_t> out) const {
  EthernetHeader ethernet;
  ethernet.source = config_->gateway_mac;
  ethernet.destination = to_mac;
  ethernet.type = kEtherIpv6;
  IpHeader ip;
  ip.source = config_->gateway_link_local();
  ip.destination = to;
  ip.protocol = kProtocolIcmpv6;
  ip.hop_limit = 255;

  // The length of the message is known behind it.
  const size_t headers = kEthernetSize + kIpv6Size;
  if (out.size() < headers) return 0;
  Writer w(out.subspan(headers));
  const uint16_t lifetime = withdraw ? 0 : kLifetimeS;
  const uint8_t flags = config_->dhcp6 ? kManaged | kOther : 0;
  WriteIcmp({IcmpHeader::kV6RouterAdvertisement, 0, 0,
             uint32_t{kHopLimit} << 24 | uint32_t{flags} << 16 | lifetime},
            &w);
  w.U32(0);  // reachable time and retransmission timer: not specified by this router
  w.U32(0);
  // Source link-layer address.
  w.U16(0x0101);
  w.Put(config_->gateway_mac.bytes);
  // MTU.
  w.U16(0x0501);
  w.U16(0);
  w.U32(config_->mtu);
  // Prefix information.
  w.U16(0x0304);
  w.U8(64);
  w.U8(kOnLink | kAutonomous);
  w.U32(withdraw ? kWithdrawnValidS : kValidS);
  w.U32(withdraw ? 0 : kPreferredS);
  w.U32(0);
  w.Put(Bytes(config_->prefix6.bytes).first(8));
  w.Fill(8);
  // RDNSS.
  size_t servers = 0;
  for (const IpAddress& a : config_->dns) servers += a.is_v6() ? size_t{1} : 0;
  w.U8(25);
  w.U8(static_cast<uint8_t>(1 + 2 * std::max<size_t>(servers, 1)));
  w.U16(0);
  w.U32(lifetime);
  for (const IpAddress& a : config_->dns) {
    if (a.is_v6()) w.Put(a.bytes());
  }
  if (servers == 0) w.Put(config_->gateway6().bytes);
  // DNSSL, padded to eight bytes; left out where it is too long for its length or for the link.
  if (!config_->search.empty()) {
    size_t size = 8;
    for (const DomainName& name : config_->search) size += name.wire().size();
    const size_t padded = (size + 7) / 8 * 8;
    if (padded / 8 <= 255 && kIpv6Size + w.position() + padded <= config_->mtu &&
        padded <= w.left()) {
      w.U8(31);
      w.U8(static_cast<uint8_t>(padded / 8));
      w.U16(0);
      w.U32(lifetime);
      WriteNames(config_->search, &w);
      w.Fill(padded - size);
    }
  }
  if (!w.ok()) return 0;
  ip.payload_length = static_cast<uint32_t>(w.position());
  Writer front(out.first(headers));
  WriteEthernet(ethernet, &front);
  WriteIp(ip, &front);
  if (!front.ok()) return 0;
  FillChecksum(ip.source, ip.destination, kProtocolIcmpv6, w.written());
  return headers + w.position();
}

}  // namespace virtbay::proxy_net
