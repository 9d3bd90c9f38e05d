#include "plugins/proxy-net/lan/lan.h"

#include <algorithm>
#include <utility>

#include "plugins/proxy-net/lan/arp.h"
#include "plugins/proxy-net/lan/ndp.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"

namespace virtbay::proxy_net {
namespace {

// From 133 to 137, router solicitation to redirect.
bool IsNdp(const Frame& frame) {
  const IcmpHeader* icmp = frame.icmp();
  return icmp != nullptr && frame.ip->is_v4() == false &&
         icmp->type >= IcmpHeader::kV6RouterSolicitation && icmp->type <= 137;
}

bool IsEchoRequest(const Frame& frame) {
  const IcmpHeader* icmp = frame.icmp();
  return icmp != nullptr && icmp->code == 0 &&
         icmp->type == (frame.ip->is_v4() ? IcmpHeader::kEchoRequest : IcmpHeader::kV6EchoRequest);
}

}  // namespace

Lan::Lan(LanConfig config, std::function<void(Bytes)> send)
    : config_(std::move(config)),
      send_(std::move(send)),
      dhcp4_(&config_),
      dhcp6_(&config_),
      router_(&config_) {
  if (!config_.guest_mac.has_value()) return;
  last_mac_ = *config_.guest_mac;
  if (config_.ipv4) neighbors_.Learn(config_.guest, last_mac_, 0, true);
  if (config_.ipv6) neighbors_.Learn(Ipv6Address::LinkLocalOf(last_mac_), last_mac_, 0, true);
}

bool Lan::ForGateway(const Frame& frame) const {
  // Of another VLAN there is nobody here; one of priority alone is of none (IEEE 802.1Q).
  return frame.ethernet.vlan_id() == 0 && (frame.ethernet.destination == config_.gateway_mac ||
                                           frame.ethernet.destination.IsMulticast());
}

bool Lan::Wants(const Frame& frame) const {
  if (frame.arp.has_value()) return true;
  if (!frame.ip.has_value()) return false;
  if (IsNdp(frame)) return true;
  if (IsEchoRequest(frame)) return IsGateway(frame.ip->destination);
  const UdpHeader* udp = frame.udp();
  if (udp == nullptr) return false;
  const IpAddress& to = frame.ip->destination;
  if (to.is_v4()) {
    return udp->destination_port == kDhcp4ServerPort &&
           (to.v4().IsBroadcast() || to.v4() == config_.gateway ||
            to.v4() == config_.SubnetBroadcast());
  }
  return udp->destination_port == kDhcp6ServerPort && (to.v6() == kAllDhcpServers || IsGateway(to));
}

void Lan::OnFrame(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns) {
  const size_t end = frame.payload_offset + frame.payload_length;
  if (bytes.size() > kMaxFrame || end > bytes.size() || frame.ethernet.source.IsMulticast() ||
      !ForGateway(frame)) {
    ++counters_.dropped;
    return;
  }
  if (frame.arp.has_value()) return OnArp(frame, now_ns);
  if (IsNdp(frame)) return OnNdp(frame, bytes, checksum_given, now_ns);
  if (IsEchoRequest(frame)) return OnEcho(frame, bytes, checksum_given, now_ns);
  if (frame.udp() == nullptr || !UdpOk(frame, bytes, checksum_given)) {
    ++counters_.dropped;
    return;
  }
  const Bytes message = bytes.subspan(frame.payload_offset, frame.payload_length);
  if (frame.ip->is_v4()) {
    OnDhcp4(frame, message, now_ns);
  } else {
    OnDhcp6(frame, message, now_ns);
  }
}

bool Lan::UdpOk(const Frame& frame, Bytes bytes, bool checksum_given) const {
  if (!checksum_given) return true;
  // Only IPv4 may do without.
  if (frame.udp()->checksum == 0) return frame.ip->is_v4();
  return TransportChecksumOk(
      frame.ip->source, frame.ip->destination, kProtocolUdp,
      bytes.subspan(frame.transport_offset, kUdpSize + frame.payload_length));
}

void Lan::LearnGuest(const IpAddress& address, const MacAddress& mac, uint64_t now_ns) {
  if (mac == config_.gateway_mac || mac.IsMulticast() || mac.IsZero()) return;
  last_mac_ = mac;
  if (IsGateway(address) ||
      std::find(config_.aliases.begin(), config_.aliases.end(), address) != config_.aliases.end()) {
    return;
  }
  const bool on_link = address.is_v4()
                           ? config_.InSubnet(address.v4())
                           : address.IsLinkLocal() || address.v6().InPrefix(config_.prefix6, 64);
  if (on_link) neighbors_.Learn(address, mac, now_ns);
}

void Lan::Learn(const Frame& frame, uint64_t now_ns) {
  if (frame.ip.has_value()) LearnGuest(frame.ip->source, frame.ethernet.source, now_ns);
}

std::optional<MacAddress> Lan::MacOf(const IpAddress& address) const {
  if (const auto known = neighbors_.Find(address)) return known;
  return last_mac_.IsZero() ? std::nullopt : std::optional(last_mac_);
}

bool Lan::IsGateway(const IpAddress& address) const {
  if (address.is_v4()) return config_.ipv4 && address.v4() == config_.gateway;
  return config_.ipv6 &&
         (address.v6() == config_.gateway_link_local() || address.v6() == config_.gateway6());
}

bool Lan::IsOnLink(const IpAddress& address) const {
  if (address.is_v4()) return config_.ipv4 && config_.InSubnet(address.v4());
  return config_.ipv6 && (address.IsLinkLocal() || address.v6().InPrefix(config_.prefix6, 64));
}

void Lan::OnArp(const Frame& frame, uint64_t now_ns) {
  if (!config_.ipv4) return;
  const std::optional<ArpPacket> reply = AnswerArp(config_, frame, now_ns, &neighbors_);
  if (!frame.arp->sender_mac.IsMulticast() && frame.arp->sender_mac == frame.ethernet.source &&
      frame.arp->sender_mac != config_.gateway_mac) {
    last_mac_ = frame.arp->sender_mac;
  }
  if (!reply.has_value()) return;
  Writer w(buffer_);
  WriteEthernet({reply->target_mac, config_.gateway_mac, kEtherArp, std::nullopt, 0}, &w);
  WriteArp(*reply, &w);
  ++counters_.arp_replies;
  send_(w.written());
}

void Lan::OnNdp(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns) {
  if (!config_.ipv6) return;
  const std::optional<NdpMessage> message = ParseNdp(frame, bytes, checksum_given);
  if (!message.has_value()) {
    ++counters_.dropped;
    return;
  }
  const MacAddress& mac = frame.ethernet.source;
  const MacAddress source_mac = message->link_layer.value_or(mac);
  if (!message->source.IsUnspecified() && message->type != IcmpHeader::kV6NeighborAdvertisement) {
    LearnGuest(message->source, source_mac, now_ns);
  }
  switch (message->type) {
    case IcmpHeader::kV6NeighborAdvertisement:
      LearnGuest(message->target, source_mac, now_ns);
      return;
    case IcmpHeader::kV6RouterSolicitation: {
      if (!router_.running()) return;
      if (message->source.IsUnspecified()) {
        router_.Solicited(now_ns);
        return OnTime(now_ns);
      }
      const size_t size = router_.Write(message->source, source_mac, false, buffer_);
      if (size == 0) return;
      ++counters_.router_advertisements;
      return send_(Bytes(buffer_).first(size));
    }
    default:
      break;
  }
  const IpAddress target = message->target;
  const bool own = IsGateway(target) || std::find(config_.aliases.begin(), config_.aliases.end(),
                                                  target) != config_.aliases.end();
  if (message->source.IsUnspecified()) {
    // Duplicate address detection. An address that nobody defends is the guest's from now on.
    if (!own) return LearnGuest(target, mac, now_ns);
  } else if (!own && (!config_.proxy_neighbors || !IsOnLink(target) ||
                      neighbors_.Find(target).has_value())) {
    return;
  }
  const size_t size = WriteNeighborAdvertisement(config_.gateway_mac, message->target,
                                                 message->source, source_mac, buffer_);
  if (size == 0) return;
  ++counters_.neighbor_advertisements;
  send_(Bytes(buffer_).first(size));
}

void Lan::OnEcho(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns) {
  const IpAddress& from = frame.ip->source;
  const uint8_t protocol = frame.ip->protocol;
  const size_t size = kIcmpSize + frame.payload_length;
  const Bytes message = bytes.subspan(frame.transport_offset, size);
  const bool right =
      !checksum_given ||
      (from.is_v4() ? ChecksumOf(message) == 0
                    : TransportChecksumOk(from, frame.ip->destination, protocol, message));
  if (!right || from.IsUnspecified() || from.IsMulticast() ||
      (from.is_v4() && from.v4().IsBroadcast())) {
    ++counters_.dropped;
    return;
  }
  LearnGuest(from, frame.ethernet.source, now_ns);
  Writer w(buffer_);
  WriteEthernet({frame.ethernet.source, config_.gateway_mac, frame.ethernet.type, std::nullopt, 0},
                &w);
  IpHeader ip;
  ip.source = frame.ip->destination;
  ip.destination = from;
  ip.protocol = protocol;
  ip.payload_length = static_cast<uint32_t>(size);
  WriteIp(ip, &w);
  const size_t start = w.position();
  WriteIcmp(
      {from.is_v4() ? IcmpHeader::kEchoReply : IcmpHeader::kV6EchoReply, 0, 0, frame.icmp()->rest},
      &w);
  w.Put(message.subspan(kIcmpSize));
  if (!w.ok()) return;
  FillChecksum(ip.source, ip.destination, protocol, w.written(start));
  ++counters_.echo_replies;
  send_(w.written());
}

void Lan::OnDhcp4(const Frame& frame, Bytes message, uint64_t now_ns) {
  if (!config_.ipv4 || !config_.dhcp) return;
  constexpr size_t kHeaders = kEthernetSize + kIpv4Size + kUdpSize;
  const std::span<uint8_t> room = std::span<uint8_t>(buffer_).subspan(kHeaders);
  const Dhcp4Server::Reply reply = dhcp4_.Handle(message, now_ns, room);
  if (reply.released.has_value()) neighbors_.Forget(*reply.released);
  if (reply.bound.has_value()) LearnGuest(*reply.bound, frame.ethernet.source, now_ns);
  if (reply.size == 0) return;
  Writer w(buffer_);
  WriteEthernet({reply.mac, config_.gateway_mac, kEtherIpv4, std::nullopt, 0}, &w);
  IpHeader ip;
  ip.source = config_.gateway;
  ip.destination = reply.destination;
  ip.protocol = kProtocolUdp;
  ip.payload_length = static_cast<uint32_t>(kUdpSize + reply.size);
  WriteIp(ip, &w);
  WriteUdp({kDhcp4ServerPort, kDhcp4ClientPort, static_cast<uint16_t>(kUdpSize + reply.size), 0},
           &w);
  const std::span<uint8_t> datagram =
      std::span<uint8_t>(buffer_).subspan(kHeaders - kUdpSize, kUdpSize + reply.size);
  FillChecksum(ip.source, ip.destination, kProtocolUdp, datagram);
  ++counters_.dhcp4_replies;
  send_(Bytes(buffer_).first(kHeaders + reply.size));
}

void Lan::OnDhcp6(const Frame& frame, Bytes message, uint64_t now_ns) {
  if (!config_.dhcp6 || !router_.running()) return;
  constexpr size_t kHeaders = kEthernetSize + kIpv6Size + kUdpSize;
  const std::span<uint8_t> room =
      std::span<uint8_t>(buffer_).subspan(kHeaders, 1280 - kIpv6Size - kUdpSize);
  const bool unicast = frame.ip->destination.v6() != kAllDhcpServers;
  const Dhcp6Server::Reply reply = dhcp6_.Handle(message, unicast, now_ns, room);
  for (const auto& address : reply.released) {
    if (address.has_value()) neighbors_.Forget(*address);
  }
  for (const auto& address : reply.bound) {
    if (address.has_value()) LearnGuest(*address, frame.ethernet.source, now_ns);
  }
  if (reply.size == 0) return;
  Writer w(buffer_);
  WriteEthernet({frame.ethernet.source, config_.gateway_mac, kEtherIpv6, std::nullopt, 0}, &w);
  IpHeader ip;
  ip.source = config_.gateway_link_local();
  ip.destination = frame.ip->source;
  ip.protocol = kProtocolUdp;
  ip.payload_length = static_cast<uint32_t>(kUdpSize + reply.size);
  WriteIp(ip, &w);
  WriteUdp(
      {kDhcp6ServerPort, frame.udp()->source_port, static_cast<uint16_t>(kUdpSize + reply.size), 0},
      &w);
  const std::span<uint8_t> datagram =
      std::span<uint8_t>(buffer_).subspan(kHeaders - kUdpSize, kUdpSize + reply.size);
  FillChecksum(ip.source, ip.destination, kProtocolUdp, datagram);
  ++counters_.dhcp6_replies;
  send_(Bytes(buffer_).first(kHeaders + reply.size));
}

void Lan::Advertise(bool withdraw) {
  const size_t size = router_.Write(kAllNodes, kAllNodes.MulticastMac(), withdraw, buffer_);
  if (size == 0) return;
  ++counters_.router_advertisements;
  send_(Bytes(buffer_).first(size));
}

void Lan::SetIpv6(bool up, uint64_t now_ns) {
  if (!config_.ipv6 || up == router_.running()) return;
  if (up) {
    router_.Start(now_ns);
    OnTime(now_ns);
  } else {
    router_.Stop();
    Advertise(true);
  }
}

void Lan::SetNames(std::vector<IpAddress> dns, std::vector<DomainName> search, uint64_t now_ns) {
  if (dns == config_.dns && search == config_.search) return;
  config_.dns = std::move(dns);
  config_.search = std::move(search);
  router_.Changed(now_ns);
  OnTime(now_ns);
}

void Lan::Shutdown(uint64_t now_ns) { SetIpv6(false, now_ns); }

void Lan::OnTime(uint64_t now_ns) {
  if (router_.Due(now_ns)) Advertise(false);
}

}  // namespace virtbay::proxy_net
