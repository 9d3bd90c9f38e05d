// RouterAdvertiser: the router advertisements of the gateway (RFC 4861 6.2, options of RFC 8106),
// in answer, periodically, and the last one that takes all of it back. Times come from its caller.
// Owned by the Lan; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_ROUTER_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_ROUTER_H_

#include <cstdint>
#include <optional>
#include <span>

#include "plugins/proxy-net/lan/config.h"

namespace virtbay::proxy_net {

class RouterAdvertiser {
 public:
  // The protocol constants of RFC 4861 10 and the defaults of 6.2.1.
  static constexpr uint64_t kMaxIntervalNs = 600 * kSecondNs;
  static constexpr uint64_t kMinIntervalNs = 200 * kSecondNs;
  static constexpr uint64_t kMaxInitialIntervalNs = 16 * kSecondNs;
  static constexpr uint32_t kInitialAdvertisements = 3;
  static constexpr uint64_t kMinDelayNs = 3 * kSecondNs;
  static constexpr uint16_t kLifetimeS = 1800;

  // [control] `config` outlives it.
  explicit RouterAdvertiser(const LanConfig* config);

  // [queue] Begins to advertise, the first time at once.
  void Start(uint64_t now_ns);
  // [queue] Stops; the caller sends a last one with Write(withdraw).
  void Stop();
  bool running() const { return next_ns_ != kNever; }
  // [queue] Something that it says has changed: says so soon.
  void Changed(uint64_t now_ns);
  // [queue] Somebody without an address asked; the answer goes to all, not oftener than the
  // standard allows.
  void Solicited(uint64_t now_ns);

  // [queue] When the next one is due, or kNever.
  uint64_t NextDeadline() const { return next_ns_; }
  // [queue] True when one is to be sent to all nodes now.
  bool Due(uint64_t now_ns);

  // [queue] Writes a frame with an advertisement to `to`. `withdraw`: the one that says that there
  // is no router any more. Its size in bytes, 0 when it does not fit.
  size_t Write(const Ipv6Address& to, const MacAddress& to_mac, bool withdraw,
               std::span<uint8_t> out) const;

 private:
  uint64_t Random(uint64_t low, uint64_t high);

  const LanConfig* config_;
  uint64_t next_ns_ = kNever;
  uint64_t last_ns_ = 0;  // when the last one to all went, if any did
  bool sent_ = false;
  uint32_t initial_ = 0;  // of those at the beginning, how many are to come
  uint64_t random_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_ROUTER_H_
