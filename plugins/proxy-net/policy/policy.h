// Policy: whether the guest may reach a destination, asked when a flow begins and again when the
// rules change. Judged is what a socket of the host would reach, not what the packet says: an IPv4
// address inside an IPv6 one is judged as well. Order: the host's virtual address; what is never a
// destination; the rules, the first that matches; what is denied by default; allowed.
// A value; each queue thread has its own copy (policy_store.h). [any] for const functions.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_H_
#define VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_H_

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/policy/rule.h"

namespace virtbay::proxy_net {

// Why a destination is denied.
enum class Denial : uint8_t {
  kNone,
  kRule,         // one of the rules
  kUnspecified,  // 0.0.0.0/8 and ::, which reach the host itself; no rule allows them
  kTransition,   // Teredo, whose embedded addresses nobody can check; no rule allows it
  kLoopback,
  kLinkLocal,  // 169.254.169.254, the metadata service, is one, and others are taken for such
  kMulticast,
  kBroadcast,
  kReserved,  // 240.0.0.0/4, fec0::/10, 64:ff9b:1::/48
  kHostPort,  // the host's virtual address, a port that was not opened
  kHostOwn,   // an address of the host's interfaces
};
inline constexpr size_t kDenials = static_cast<size_t>(Denial::kHostOwn) + 1;

// [any] A word for counters and logs.
std::string_view DenialName(Denial denial);

// The host under an address of the guest's network.
struct HostAlias {
  std::optional<Ipv4Address> v4;
  std::optional<Ipv6Address> v6;
  std::vector<HostPorts> ports;  // reachable; ICMP echo is, when there is one
};

struct Decision {
  Denial denial = Denial::kNone;
  // Where a socket is to connect to: the canonical address, or loopback for the virtual address.
  IpAddress target;
  bool allowed() const { return denial == Denial::kNone; }
};

class Policy {
 public:
  static constexpr size_t kMaxRules = 4096;

  // [any] Replaces the rules. A rule opens what is denied by default only when its network lies
  // within what is denied: "allow any" does not open loopback, "allow 127.0.0.1:8080" does.
  void SetRules(std::vector<Rule> rules);
  void SetHostAlias(HostAlias alias) { alias_ = std::move(alias); }
  // [any] Addresses of the host's interfaces, which are denied like loopback; none by default.
  void SetDeniedHostAddresses(std::vector<IpAddress> addresses);

  const std::vector<Rule>& rules() const { return rules_; }

  // [any] Judges a destination as the guest named it; `port` is not looked at for ICMP. O(rules).
  Decision Judge(const IpAddress& destination, uint16_t port, Protocol protocol) const;

  // [any] Counts the changes; a flow that was allowed under another number is judged again.
  uint64_t generation() const { return generation_; }

 private:
  friend class PolicyStore;
  Denial JudgeOne(const IpAddress& address, uint16_t port, Protocol protocol) const;

  std::vector<Rule> rules_;
  HostAlias alias_;
  std::vector<IpAddress> host_addresses_;  // sorted
  uint64_t generation_ = 0;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_POLICY_POLICY_H_
