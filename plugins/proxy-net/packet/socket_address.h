// SocketAddress: an Endpoint as the kernel's socket calls take and give it.
// A plain value; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_SOCKET_ADDRESS_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_SOCKET_ADDRESS_H_

#include <sys/socket.h>

#include <cstdint>
#include <optional>

#include "plugins/proxy-net/packet/address.h"

namespace virtbay::proxy_net {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t size = sizeof(sockaddr_storage);

  // [any] Of an endpoint; `scope` is the interface of a link-local IPv6 address, or 0.
  static SocketAddress Of(const Endpoint& endpoint, uint32_t scope = 0);
  // [any] The endpoint, or nothing when it is not one of IPv4 or IPv6. v4-mapped stays v4-mapped.
  std::optional<Endpoint> ToEndpoint() const;

  // [any] For bind, connect, recvfrom.
  sockaddr* get();
  const sockaddr* get() const;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_SOCKET_ADDRESS_H_
