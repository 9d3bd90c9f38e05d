#include "plugins/proxy-net/packet/socket_address.h"

#include <netinet/in.h>

#include <cstring>

namespace virtbay::proxy_net {

SocketAddress SocketAddress::Of(const Endpoint& endpoint, uint32_t scope) {
  SocketAddress out;
  const Bytes bytes = endpoint.address.bytes();
  if (endpoint.address.is_v4()) {
    sockaddr_in in{};
    in.sin_family = AF_INET;
    in.sin_port = htons(endpoint.port);
    std::memcpy(&in.sin_addr, bytes.data(), bytes.size());
    std::memcpy(&out.storage, &in, sizeof in);
    out.size = sizeof in;
  } else {
    sockaddr_in6 in{};
    in.sin6_family = AF_INET6;
    in.sin6_port = htons(endpoint.port);
    in.sin6_scope_id = scope;
    std::memcpy(&in.sin6_addr, bytes.data(), bytes.size());
    std::memcpy(&out.storage, &in, sizeof in);
    out.size = sizeof in;
  }
  return out;
}

std::optional<Endpoint> SocketAddress::ToEndpoint() const {
  if (storage.ss_family == AF_INET && size >= sizeof(sockaddr_in)) {
    sockaddr_in in;
    std::memcpy(&in, &storage, sizeof in);
    return Endpoint{Ipv4Address{ntohl(in.sin_addr.s_addr)}, ntohs(in.sin_port)};
  }
  if (storage.ss_family == AF_INET6 && size >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in;
    std::memcpy(&in, &storage, sizeof in);
    Ipv6Address a;
    std::memcpy(a.bytes.data(), &in.sin6_addr, a.bytes.size());
    return Endpoint{a, ntohs(in.sin6_port)};
  }
  return std::nullopt;
}

// The one cast that the socket interface asks for; the bytes behind it are only copied.
sockaddr* SocketAddress::get() { return reinterpret_cast<sockaddr*>(&storage); }
const sockaddr* SocketAddress::get() const { return reinterpret_cast<const sockaddr*>(&storage); }

}  // namespace virtbay::proxy_net
