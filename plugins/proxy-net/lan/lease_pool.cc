#include "plugins/proxy-net/lan/lease_pool.h"

#include <algorithm>
#include <utility>

namespace virtbay::proxy_net {

LeasePool::LeasePool(uint32_t size) : leases_(std::min(size, kMaxSize)) {}

std::optional<uint32_t> LeasePool::Of(const std::string& client, uint64_t now_ns) const {
  for (uint32_t i = 0; i < leases_.size(); ++i) {
    const Lease& lease = leases_[i];
    if (lease.state != State::kDeclined && !IsFree(lease, now_ns) && lease.client == client)
      return i;
  }
  return std::nullopt;
}

bool LeasePool::MayHave(const std::string& client, uint32_t index, uint64_t now_ns) const {
  if (index >= leases_.size()) return false;
  const Lease& lease = leases_[index];
  return IsFree(lease, now_ns) || (lease.state != State::kDeclined && lease.client == client);
}

std::optional<uint32_t> LeasePool::Choose(const std::string& client, std::optional<uint32_t> wish,
                                          uint64_t now_ns) const {
  if (const auto own = Of(client, now_ns)) return own;
  std::optional<uint32_t> had;
  std::optional<uint32_t> untouched;
  std::optional<uint32_t> oldest;
  std::optional<uint32_t> declined;
  for (uint32_t i = 0; i < leases_.size(); ++i) {
    const Lease& lease = leases_[i];
    if (!IsFree(lease, now_ns)) {
      if (lease.state == State::kDeclined &&
          (!declined || lease.expires_ns < leases_[*declined].expires_ns)) {
        declined = i;
      }
      continue;
    }
    if (!lease.client.empty() && lease.client == client) had = i;
    if (lease.client.empty() && !untouched) untouched = i;
    if (!oldest || lease.expires_ns < leases_[*oldest].expires_ns) oldest = i;
  }
  if (wish && *wish < leases_.size() && IsFree(leases_[*wish], now_ns)) return wish;
  if (had) return had;
  if (untouched) return untouched;
  if (oldest) return oldest;
  return declined;
}

void LeasePool::Give(const std::string& client, uint32_t index, State state, uint64_t expires_ns) {
  if (index >= leases_.size()) return;
  // One address for each client.
  for (Lease& lease : leases_) {
    if (lease.state != State::kDeclined && lease.client == client) lease = Lease();
  }
  leases_[index] = {state, client, expires_ns};
}

bool LeasePool::Release(const std::string& client, uint32_t index, uint64_t now_ns) {
  if (index >= leases_.size()) return false;
  Lease& lease = leases_[index];
  if (IsFree(lease, now_ns) || lease.state == State::kDeclined || lease.client != client)
    return false;
  lease.state = State::kFree;
  lease.expires_ns = now_ns;
  return true;
}

bool LeasePool::Decline(const std::string& client, uint32_t index, uint64_t until_ns,
                        uint64_t now_ns) {
  if (!Release(client, index, now_ns)) return false;
  leases_[index] = {State::kDeclined, std::string(), until_ns};
  return true;
}

void LeasePool::Set(uint32_t index, Lease lease) {
  if (index < leases_.size() && lease.client.size() <= kMaxClient)
    leases_[index] = std::move(lease);
}

}  // namespace virtbay::proxy_net
