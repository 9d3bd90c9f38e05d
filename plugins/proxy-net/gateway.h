// Gateway: what answers the guest at the gateway's addresses: the link (ARP, neighbor discovery,
// DHCP, router advertisements), the resolver, and what is known of the guest's own addresses.
// Owned by the device. It belongs to the first queue pair: [queue] of that, unless said otherwise;
// the other pairs hand frames over to it.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_GATEWAY_H_
#define VIRTBAY_PLUGINS_PROXY_NET_GATEWAY_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/flow/shard.h"
#include "plugins/proxy-net/lan/lan.h"
#include "plugins/proxy-net/lan/uplink_watcher.h"
#include "plugins/proxy-net/options.h"
#include "plugins/proxy-net/part_metrics.h"
#include "virtbay/sdk/net_device.h"

namespace virtbay::proxy_net {

class Gateway {
 public:
  // Descriptors that the pair's shard is to watch (Shard::WatchOther), by token.
  enum Token : uint32_t { kDnsToken = 16, kUplinkToken };

  // [control] `options` and `mac`, the guest's MAC address as a number, are the device's.
  Gateway(sdk::NetDevice* device, const Options* options, std::atomic<uint64_t>* mac);
  // [control] Opens what it needs; `shard` is the first pair's, `rules_changed` is called when the
  // host's addresses have changed and the policy depends on them.
  sdk::Status Open(DnsConfig dns, Shard* shard, std::function<void()> rules_changed);

  // ---- frames ---------------------------------------------------------------------------------
  // [any] Whether a frame is one that the guest may send here.
  bool IsForUs(const Frame& frame) const { return lan_.ForGateway(frame); }
  // [any] Whether it ends here: then OnFrame has to get it.
  bool Wants(const Frame& frame) const;
  void OnFrame(const sdk::TxFrame& frame, const Frame& parsed);
  // Notes which addresses the guest has, and its hardware address.
  void Note(const Frame& frame, Bytes headers);
  // Takes over a stream of the guest's to the resolver. False: there was no room; it is closed.
  bool AddStream(int fd) { return dns_->AddStream(fd, device_->host().NowNs()); }

  // ---- events ---------------------------------------------------------------------------------
  void Start();
  void Stop() { running_ = false; }
  // The device ends for good: the guest is told that there is no router any more (RFC 4861 6.2.5).
  void TakeBack();
  void OnOther(uint32_t token);
  uint64_t NextLanDeadline() const { return lan_.NextDeadline(); }
  uint64_t NextDnsDeadline() const { return dns_->NextDeadline(); }
  void OnLanTime() { lan_.OnTime(device_->host().NowNs()); }
  void OnDnsTime() { dns_->OnTime(device_->host().NowNs()); }
  void UpdateMetrics() { metrics_.Update(lan_.counters(), dns_->resolver().counters()); }

  // ---- state [control], while nobody serves the pair ------------------------------------------
  // Leases, neighbors, the guest's own addresses, and what the resolver is asked.
  void Save(sdk::StateWriter* state) const;
  sdk::Status Restore(sdk::StateReader* state);

  // ---- what it knows --------------------------------------------------------------------------
  // [any] Whether the address is the gateway's own.
  bool IsGateway(const IpAddress& address) const { return lan_.IsGateway(address); }
  // [any]
  IpAddress Address(bool v6) const;
  std::optional<IpAddress> GuestAddress(bool v6) const;
  bool ipv6_up() const { return lan_.ipv6_up(); }
  size_t dns_in_flight() const { return dns_->resolver().in_flight(); }

 private:
  uint64_t NowNs() const { return device_->host().NowNs(); }
  MacAddress Mac() const;
  void OnDnsQuery(const sdk::TxFrame& frame, const Frame& parsed, const UdpHeader& udp);
  void SendDnsAnswer(const Endpoint& to, Bytes answer);

  sdk::NetDevice* const device_;
  const Options* const options_;
  std::atomic<uint64_t>* const mac_;
  Lan lan_;
  std::unique_ptr<DnsService> dns_;
  UplinkWatcher uplink_;
  PartMetrics metrics_;
  Shard* shard_ = nullptr;
  std::function<void()> rules_changed_;
  std::optional<IpAddress> guest4_;
  std::optional<IpAddress> guest6_;
  bool running_ = false;
  bool ends_ = false;  // it has taken back what it advertised
  std::array<uint8_t, 65536> transport_{};
};

// [any] A MAC address as a number, and back.
uint64_t NumberOf(const MacAddress& mac);
MacAddress MacOf(uint64_t number);
// [any] The address that an IP packet of the guest's shows to be its own, if it does: its source,
// or what it asks for before it takes it (RFC 4862 5.4.2).
std::optional<IpAddress> OwnAddress(const Frame& frame, Bytes headers);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_GATEWAY_H_
