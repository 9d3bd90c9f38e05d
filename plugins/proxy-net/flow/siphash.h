// SipHash-2-4: a keyed hash that a guest which does not know the key can make no collisions of.
// Plain values and a stateless function; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SIPHASH_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SIPHASH_H_

#include <cstdint>

#include "plugins/proxy-net/packet/cursor.h"

namespace virtbay::proxy_net {

// 128 secret bits.
struct SipKey {
  uint64_t k0 = 0;
  uint64_t k1 = 0;

  // [control] From the kernel's generator.
  static SipKey Random();
};

// [any] The hash of `bytes` under `key` (Aumasson and Bernstein, 2012).
uint64_t SipHash(const SipKey& key, Bytes bytes);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SIPHASH_H_
