// PolicyStore: where a change of the policy is put by the control thread and picked up by the queue
// threads, each into its own copy. A look at whether there is one costs one atomic load.
// Owned by the device.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_STORE_H_
#define VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

#include "plugins/proxy-net/policy/policy.h"

namespace virtbay::proxy_net {

class PolicyStore {
 public:
  // [control] Changes the policy in place and gives it the next generation.
  void Change(const std::function<void(Policy*)>& change);
  // [queue] Brings `mine` up to date; true when it was not, and its flows are to be judged again.
  bool Refresh(Policy* mine) const;
  // [any] A copy.
  Policy Get() const;

 private:
  mutable std::mutex mutex_;  // never held while a rule is judged
  Policy current_;
  std::atomic<uint64_t> generation_{0};
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_STORE_H_
