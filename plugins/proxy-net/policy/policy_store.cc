#include "plugins/proxy-net/policy/policy_store.h"

namespace virtbay::proxy_net {

void PolicyStore::Change(const std::function<void(Policy*)>& change) {
  const std::lock_guard lock(mutex_);
  change(&current_);
  ++current_.generation_;
  generation_.store(current_.generation_, std::memory_order_release);
}

bool PolicyStore::Refresh(Policy* mine) const {
  if (generation_.load(std::memory_order_acquire) == mine->generation()) return false;
  const std::lock_guard lock(mutex_);
  *mine = current_;
  return true;
}

Policy PolicyStore::Get() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

}  // namespace virtbay::proxy_net
