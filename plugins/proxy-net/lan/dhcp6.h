// Dhcp6Server: DHCPv6 for the guest (RFC 8415, options of RFC 3646): one address for each IA_NA,
// and the resolvers for who only asks for those. Nothing is delegated and nothing is temporary.
// Owned by the Lan; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP6_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP6_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "plugins/proxy-net/lan/config.h"
#include "plugins/proxy-net/lan/lease_pool.h"
#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

inline constexpr uint16_t kDhcp6ClientPort = 546;
inline constexpr uint16_t kDhcp6ServerPort = 547;

class Dhcp6Server {
 public:
  static constexpr size_t kMaxIas = 8;  // of one message; those behind them are not answered

  // [control] `config` outlives the server.
  explicit Dhcp6Server(const LanConfig* config);

  struct Reply {
    size_t size = 0;  // bytes of the message; 0: there is none
    // Addresses that the client has from now on, and those that it has no more.
    std::array<std::optional<Ipv6Address>, kMaxIas> bound;
    std::array<std::optional<Ipv6Address>, kMaxIas> released;
  };
  // [queue] Answers one message (the payload of UDP) into `out`, of at least 1232 bytes. `unicast`:
  // it came to an address of the gateway's own, which no client may do here (RFC 8415 16).
  Reply Handle(Bytes message, bool unicast, uint64_t now_ns, std::span<uint8_t> out);

  // [queue] For the state of the device.
  LeasePool& pool() { return pool_; }
  const LeasePool& pool() const { return pool_; }
  Ipv6Address AddressOf(uint32_t index) const;

 private:
  struct Ia;
  struct Request;
  static std::optional<Request> ParseRequest(Bytes message);
  std::optional<uint32_t> IndexOf(const Ipv6Address& address) const;
  bool IsServer(Bytes duid) const;
  void WriteHeader(const Request& request, uint8_t type, Writer* out) const;
  void WriteConfiguration(Writer* out) const;
  void AnswerIa(const Request& request, const Ia& ia, uint64_t now_ns, size_t at, bool brief,
                Writer* out, Reply* reply);
  void EndIa(const Request& request, const Ia& ia, uint64_t now_ns, size_t at, Writer* out,
             Reply* reply);

  const LanConfig* config_;
  LeasePool pool_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_DHCP6_H_
