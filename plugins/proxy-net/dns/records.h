// StaticRecords: names that the resolver knows by itself, with addresses or another name.
// A value, owned by the resolver; [queue], filled in on the control thread.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_RECORDS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_RECORDS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/packet/domain_name.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

class StaticRecords {
 public:
  static constexpr uint32_t kTtlS = 60;
  static constexpr size_t kMaxChain = 8;  // names that stand for each other
  static constexpr size_t kMaxRecords = 65536;
  static constexpr size_t kMaxAddresses = 32;  // of one name and kind

  struct Entry {
    std::vector<Ipv4Address> a;
    std::vector<Ipv6Address> aaaa;
    std::optional<DomainName> cname;  // then neither of the others (RFC 1034 3.6.2)
  };

  // [any] Adds a record; an Error when a name would have an alias beside other records, or there
  // are too many.
  sdk::Status AddAddress(const DomainName& name, const IpAddress& address);
  sdk::Status AddAlias(const DomainName& name, const DomainName& target);
  // [any] Adds records given as "NAME=ADDRESS" or "NAME=NAME", several with commas.
  sdk::Status Add(std::string_view text);

  // [any] Whether every alias leads to something else than aliases, within kMaxChain of them; an
  // Error has the names of those that do not. Call it when all records are there.
  sdk::Status CheckAliases() const;

  // [any] What is known of a name, or nullptr.
  const Entry* Find(const DomainName& name) const;
  bool empty() const { return entries_.empty(); }

 private:
  absl::flat_hash_map<DomainName, Entry> entries_;
  size_t count_ = 0;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_RECORDS_H_
