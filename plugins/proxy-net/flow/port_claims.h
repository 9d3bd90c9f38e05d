// PortClaims: which of the guest's addresses the host's UDP ports stand for, while flows have them:
// a port that the guest's own is preserved as. Two sockets with one port and one peer would take
// each other's datagrams, so a port is for one address of the guest's, and for nobody else on the
// host: the first flow finds it free, and only flows of the same address join it.
// Owned by the SharedFlows; [any], without locks.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_PORT_CLAIMS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_PORT_CLAIMS_H_

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

class PortClaims {
 public:
  enum class Claim : uint8_t { kNone, kFirst, kJoined };

  // For a flow of the guest's address; kNone: the port stands for another, or there is no memory.
  Claim Take(uint16_t port, const IpAddress& guest) {
    if (claims_ == nullptr) return Claim::kNone;
    std::atomic<uint64_t>& claim = Of(port, guest);
    const uint64_t owner = uint64_t{OwnerOf(guest)} << 32;
    uint64_t now = claim.load(std::memory_order_relaxed);
    do {
      const bool free = Flows(now) == 0;
      if (!free && (now & kOwner) != owner) return Claim::kNone;
      if (claim.compare_exchange_weak(now, owner | (Flows(now) + 1), std::memory_order_acq_rel)) {
        return free ? Claim::kFirst : Claim::kJoined;
      }
    } while (true);
  }
  // The flow has ended, or has another port after all.
  void Give(uint16_t port, const IpAddress& guest) {
    Of(port, guest).fetch_sub(1, std::memory_order_acq_rel);
  }

 private:
  static constexpr uint64_t kOwner = uint64_t{0xffffffff} << 32;
  static constexpr size_t kPorts = 65536;
  struct Free {
    void operator()(std::atomic<uint64_t>* claims) const { std::free(claims); }
  };

  static uint64_t Flows(uint64_t claim) { return claim & 0xffffffff; }
  static uint32_t OwnerOf(const IpAddress& guest) {
    uint32_t hash = 2166136261u;
    for (const uint8_t byte : guest.bytes()) hash = (hash ^ byte) * 16777619u;
    return hash;
  }
  std::atomic<uint64_t>& Of(uint16_t port, const IpAddress& guest) {
    return claims_[port + (guest.is_v6() ? kPorts : 0)];
  }

  // Zeros that take memory where they are used: owner, flows.
  const std::unique_ptr<std::atomic<uint64_t>[], Free> claims_ {
    static_cast<std::atomic<uint64_t>*>(std::calloc(2 * kPorts, sizeof(std::atomic<uint64_t>)))
  };
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_PORT_CLAIMS_H_
