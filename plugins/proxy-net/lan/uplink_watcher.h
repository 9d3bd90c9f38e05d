// UplinkWatcher: whether the host reaches the IPv6 internet now, and a descriptor that becomes
// readable when that may have changed (addresses and routes, over rtnetlink). Nothing is sent.
// Owned by the device; [queue] unless tagged otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_LAN_UPLINK_WATCHER_H_
#define VIRTBAY_PLUGINS_PROXY_NET_LAN_UPLINK_WATCHER_H_

#include <vector>

#include "plugins/proxy-net/packet/address.h"
#include "virtbay/sdk/result.h"

namespace virtbay::proxy_net {

class UplinkWatcher {
 public:
  UplinkWatcher() = default;
  UplinkWatcher(UplinkWatcher&& other) noexcept;
  UplinkWatcher& operator=(UplinkWatcher&& other) noexcept;
  ~UplinkWatcher();

  // [control] Begins to listen; an Error names the call that failed.
  static sdk::Result<UplinkWatcher> Open();
  // [any] For the device's epoll, for reading.
  int fd() const { return fd_; }
  // Takes what there is to read; true when something may have changed. Never blocks.
  bool OnReady();

  // [any] Whether a datagram to the IPv6 internet would leave from an address that is not of this
  // link alone. Four system calls, none that blocks.
  static bool HasIpv6();
  // [control] The addresses of the host's interfaces, without those of loopback and IPv6
  // link-local.
  static std::vector<IpAddress> HostAddresses();

 private:
  int fd_ = -1;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_LAN_UPLINK_WATCHER_H_
