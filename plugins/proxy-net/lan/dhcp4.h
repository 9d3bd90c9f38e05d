// Dhcp4Server: DHCP for the guest (RFC 2131, options of RFC 2132, 3396, 3397, 4039). It is the only
// server of its link and therefore authoritative: a guest with an address of another network hears
// so at once.
// Owned by the Lan; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP4_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP4_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "plugins/proxy-net/lan/config.h"
#include "plugins/proxy-net/lan/lease_pool.h"
#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

inline constexpr uint16_t kDhcp4ServerPort = 67;
inline constexpr uint16_t kDhcp4ClientPort = 68;

class Dhcp4Server {
 public:
  // [control] `config` outlives the server; its pool lies within its subnet.
  explicit Dhcp4Server(const LanConfig* config);

  struct Reply {
    size_t size = 0;  // bytes of the message; 0: there is none
    Ipv4Address destination;
    MacAddress mac;
    std::optional<Ipv4Address> bound;     // the address that the client has from now on
    std::optional<Ipv4Address> released;  // the one that it has no more
  };
  // [queue] Answers one message (the payload of UDP) into `out`, of at least 576 bytes.
  Reply Handle(Bytes message, uint64_t now_ns, std::span<uint8_t> out);

  // [queue] For the state of the device.
  LeasePool& pool() { return pool_; }
  const LeasePool& pool() const { return pool_; }

 private:
  struct Request;
  static std::optional<Request> ParseRequest(Bytes message);
  std::optional<uint32_t> IndexOf(Ipv4Address address) const;
  Ipv4Address AddressOf(uint32_t index) const { return {config_->guest.value + index}; }
  uint32_t LeaseSeconds(const Request& request) const;
  Reply Discover(const Request& request, uint64_t now_ns, std::span<uint8_t> out);
  Reply HandleRequest(const Request& request, uint64_t now_ns, std::span<uint8_t> out);
  Reply Nak(const Request& request, std::span<uint8_t> out) const;
  Reply Write(const Request& request, uint8_t type, std::optional<Ipv4Address> address,
              std::span<uint8_t> out) const;

  const LanConfig* config_;
  LeasePool pool_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP4_H_
