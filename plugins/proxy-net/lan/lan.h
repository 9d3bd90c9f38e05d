// Lan: the guest's link as seen from the gateway. Takes the frames that are for the gateway itself
// (ARP, neighbor discovery, both DHCPs, echo requests), answers them, advertises the IPv6 prefix
// while the host has IPv6, and knows which address of the guest has which MAC address. Owned by the
// device, used on the thread of one queue; [queue] unless tagged otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_LAN_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_LAN_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "plugins/proxy-net/lan/config.h"
#include "plugins/proxy-net/lan/dhcp4.h"
#include "plugins/proxy-net/lan/dhcp6.h"
#include "plugins/proxy-net/lan/neighbors.h"
#include "plugins/proxy-net/lan/router.h"
#include "plugins/proxy-net/packet/parse.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

class Lan {
 public:
  // The largest frame that Wants() may say yes to; a larger one is dropped by OnFrame.
  static constexpr size_t kMaxFrame = 2048;

  struct Counters {
    uint64_t arp_replies = 0;
    uint64_t echo_replies = 0;
    uint64_t neighbor_advertisements = 0;
    uint64_t router_advertisements = 0;
    uint64_t dhcp4_replies = 0;
    uint64_t dhcp6_replies = 0;
    uint64_t dropped = 0;  // frames for the gateway that broke a rule of their protocol
  };

  // [control] `send` gets whole frames for the guest, without offloads; it is called from within
  // the other functions only.
  Lan(LanConfig config, std::function<void(Bytes)> send);
  Lan(const Lan&) = delete;
  Lan& operator=(const Lan&) = delete;

  // Whether a frame is to the gateway's MAC address or to a group, and of no VLAN; no other ends
  // here.
  bool ForGateway(const Frame& frame) const;
  // Whether a frame belongs here rather than to a flow. OnFrame then needs all of its bytes.
  bool Wants(const Frame& frame) const;
  // Handles a frame that Wants() said yes to; `bytes` are all of it. `checksum_given`: false when
  // the guest left the transport's checksum to the device.
  void OnFrame(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns);
  // Notes the sender of any other IP packet: not every guest is asked, or asks, before it sends.
  void Learn(const Frame& frame, uint64_t now_ns);

  // Where to send a packet for an address of the guest: what was learned or told; otherwise the MAC
  // address that was heard of last, since nobody else is on this link; nothing before any was.
  std::optional<MacAddress> MacOf(const IpAddress& address) const;
  // Whether the address is the gateway's own, aliases not among them.
  bool IsGateway(const IpAddress& address) const;
  // Whether the address is one of the gateway's, an alias, or of no host but within the link.
  bool IsOnLink(const IpAddress& address) const;

  // The host has IPv6, or has lost it: advertises, or takes back what was advertised.
  void SetIpv6(bool up, uint64_t now_ns);
  bool ipv6_up() const { return router_.running(); }
  // What the guest is told about names has changed.
  void SetNames(std::vector<IpAddress> dns, std::vector<DomainName> search, uint64_t now_ns);
  // Says good-bye: the guest drops the router, the prefix and the resolvers.
  void Shutdown(uint64_t now_ns);

  // [any] When OnTime has something to do (CLOCK_MONOTONIC in ns), or kNever.
  uint64_t NextDeadline() const { return router_.NextDeadline(); }
  void OnTime(uint64_t now_ns);

  // Leases and neighbors as bytes; times in them are relative.
  std::vector<uint8_t> Save(uint64_t now_ns) const;
  // Takes over what Save gave, of this version or an earlier one; what does not fit the
  // configuration is passed over, what is not well formed is an Error and changes nothing.
  sdk::Status Restore(Bytes state, uint64_t now_ns);

  const LanConfig& config() const { return config_; }
  const Counters& counters() const { return counters_; }

 private:
  void OnArp(const Frame& frame, uint64_t now_ns);
  void OnNdp(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns);
  void OnEcho(const Frame& frame, Bytes bytes, bool checksum_given, uint64_t now_ns);
  void OnDhcp4(const Frame& frame, Bytes message, uint64_t now_ns);
  void OnDhcp6(const Frame& frame, Bytes message, uint64_t now_ns);
  bool UdpOk(const Frame& frame, Bytes bytes, bool checksum_given) const;
  void Advertise(bool withdraw);
  void LearnGuest(const IpAddress& address, const MacAddress& mac, uint64_t now_ns);

  LanConfig config_;
  std::function<void(Bytes)> send_;
  NeighborTable neighbors_;
  Dhcp4Server dhcp4_;
  Dhcp6Server dhcp6_;
  RouterAdvertiser router_;
  Counters counters_;
  MacAddress last_mac_;  // heard of last
  std::array<uint8_t, kMaxFrame> buffer_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_LAN_H_
