#include "plugins/proxy-net/lan/neighbors.h"

#include <algorithm>

namespace virtbay::proxy_net {

void NeighborTable::Learn(const IpAddress& address, const MacAddress& mac, uint64_t now_ns,
                          bool told) {
  if (address.IsUnspecified() || address.IsMulticast() || mac.IsMulticast() || mac.IsZero()) return;
  auto entry = std::find_if(entries_.begin(), entries_.end(),
                            [&](const Entry& e) { return e.address == address; });
  if (entry == entries_.end()) {
    if (entries_.size() == kMax) {
      entry =
          std::min_element(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
            return std::pair(a.told, a.heard_ns) < std::pair(b.told, b.heard_ns);
          });
      if (entry->told) return;
      *entry = Entry();
    } else {
      entry = entries_.insert(entries_.end(), Entry());
    }
  }
  *entry = {address, mac, now_ns, told || entry->told};
}

void NeighborTable::Forget(const IpAddress& address) {
  entries_.erase(std::remove_if(entries_.begin(), entries_.end(),
                                [&](const Entry& e) { return e.address == address; }),
                 entries_.end());
}

std::optional<MacAddress> NeighborTable::Find(const IpAddress& address) const {
  for (const Entry& e : entries_) {
    if (e.address == address) return e.mac;
  }
  return std::nullopt;
}

}  // namespace virtbay::proxy_net
