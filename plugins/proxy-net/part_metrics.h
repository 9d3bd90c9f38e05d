// PartMetrics: what the link and the resolver count, as metrics of the device. They count for
// themselves, on the queue's thread; this carries it over.
// Owned by the device; Bind is [control], Update [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PART_METRICS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PART_METRICS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "plugins/proxy-net/dns/resolver.h"
#include "plugins/proxy-net/lan/lan.h"
#include "virtbay/sdk/host.h"

namespace virtbay::proxy_net {

class PartMetrics {
 public:
  // Names them to the host. [control]
  void Bind(const sdk::Host& host);
  // Adds what has been counted since the last time: before the guest can see what it was for.
  void Update(const Lan::Counters& lan, const Resolver::Counters& dns);

 private:
  static constexpr size_t kLan = 7;
  static constexpr size_t kDns = 10;

  struct Cell {
    uint64_t* metric = nullptr;
    uint64_t told = 0;

    void Set(uint64_t now);
  };
  std::array<Cell, kLan> lan_;
  std::array<Cell, kDns> dns_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PART_METRICS_H_
