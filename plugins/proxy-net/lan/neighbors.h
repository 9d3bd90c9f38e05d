// NeighborTable: which MAC address of the guest has which IP address, told or learned from what the
// guest sends. Bounded; the one that was heard of longest ago makes room.
// Owned by the Lan; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_NEIGHBORS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_NEIGHBORS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

class NeighborTable {
 public:
  static constexpr size_t kMax = 64;

  struct Entry {
    IpAddress address;
    MacAddress mac;
    uint64_t heard_ns = 0;
    bool told = false;  // never makes room
  };

  // [queue] Notes that `mac` has `address`; replaces what was known.
  void Learn(const IpAddress& address, const MacAddress& mac, uint64_t now_ns, bool told = false);
  // [queue] Forgets an address, as one that was released.
  void Forget(const IpAddress& address);
  // [queue] The MAC address, or nothing.
  std::optional<MacAddress> Find(const IpAddress& address) const;
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  std::vector<Entry> entries_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_NEIGHBORS_H_
