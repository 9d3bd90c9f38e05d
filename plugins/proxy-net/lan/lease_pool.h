// LeasePool: the addresses of a DHCP server and who has them, for both versions: an address is a
// number from 0 on. A client is known by bytes that it chose, and gets the same address again as
// long as no other needed it.
// Owned by its server; [queue]. O(addresses) per call.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_LEASE_POOL_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_LEASE_POOL_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace virtbay::proxy_net {

class LeasePool {
 public:
  static constexpr uint32_t kMaxSize = 1024;
  static constexpr size_t kMaxClient = 255;  // bytes that a client is known by

  enum class State : uint8_t { kFree, kOffered, kBound, kDeclined };
  struct Lease {
    State state = State::kFree;
    std::string client;       // also of a free one: who had it last
    uint64_t expires_ns = 0;  // when it is free again; of a free one, since when
  };

  // [control] Of `size` addresses, at most kMaxSize.
  explicit LeasePool(uint32_t size);

  // [queue] The address that the client has, or is offered.
  std::optional<uint32_t> Of(const std::string& client, uint64_t now_ns) const;
  // [queue] The address for a client: the one it has, had, wishes, or any that is free; of those
  // that somebody else declined only when there is no other. Nothing when all are taken.
  std::optional<uint32_t> Choose(const std::string& client, std::optional<uint32_t> wish,
                                 uint64_t now_ns) const;
  // [queue] Whether the client may have that address: it is its own, or free.
  bool MayHave(const std::string& client, uint32_t index, uint64_t now_ns) const;
  // [queue] Gives the address to the client until then. Precondition: MayHave.
  void Give(const std::string& client, uint32_t index, State state, uint64_t expires_ns);
  // [queue] The client gives it back; false when it is not the client's.
  bool Release(const std::string& client, uint32_t index, uint64_t now_ns);
  // [queue] The client found it taken; nobody gets it until then unless there is no other.
  bool Decline(const std::string& client, uint32_t index, uint64_t until_ns, uint64_t now_ns);

  // [queue] For saving.
  const std::vector<Lease>& leases() const { return leases_; }
  // [queue] For restoring; out of range is passed over.
  void Set(uint32_t index, Lease lease);

 private:
  bool IsFree(const Lease& lease, uint64_t now_ns) const {
    return lease.state == State::kFree || lease.expires_ns <= now_ns;
  }

  std::vector<Lease> leases_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_LEASE_POOL_H_
