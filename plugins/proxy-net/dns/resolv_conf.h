// The host's resolvers: what resolv.conf says (resolv.conf(5)), and a watcher that tells when it
// says something else: also when it is replaced, or is a link whose target is.
// Owned by the DnsService; [queue] unless tagged otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLV_CONF_H_
#define VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLV_CONF_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/proxy-net/dns/fd.h"
#include "plugins/proxy-net/packet/address.h"
#include "plugins/proxy-net/packet/domain_name.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

// A resolver to ask.
struct DnsServer {
  Endpoint endpoint;
  uint32_t scope = 0;  // the interface of a link-local address
  bool operator==(const DnsServer&) const = default;
};

struct ResolvConf {
  static constexpr size_t kMaxServers = 8;
  static constexpr size_t kMaxSearch = 32;
  std::vector<DnsServer> servers;
  std::vector<DomainName> search;
  bool operator==(const ResolvConf&) const = default;

  // [any] Reads the text; lines that nobody understands are passed over, as the C library does.
  // Without servers it is the one on 127.0.0.1.
  static ResolvConf Parse(std::string_view text);
  // [any] Reads the file, at most 64 KiB; one that cannot be read is an empty one.
  static ResolvConf Load(const std::string& path);
};

class ResolvConfWatcher {
 public:
  // [control] Begins to watch; an Error names the call that failed.
  static sdk::Result<ResolvConfWatcher> Open(std::string path);
  // [any] For an epoll, for reading.
  int fd() const { return fd_.get(); }
  // Takes what there is to read; true when `current()` has changed.
  bool OnReady();
  const ResolvConf& current() const { return current_; }

 private:
  void Watch();

  std::string path_;
  Fd fd_;
  std::vector<int> watches_;
  ResolvConf current_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_DNS_RESOLV_CONF_H_
