#include "plugins/proxy-net/flow/socket_check.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <optional>

#include "plugins/proxy-net/packet/headers.h"
#include "plugins/proxy-net/packet/socket_address.h"

#ifndef SO_COOKIE
#define SO_COOKIE 57
#endif
#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

namespace virtbay::proxy_net {
namespace {

std::optional<int> Option(int fd, int name) {
  int value = 0;
  socklen_t size = sizeof(value);
  if (getsockopt(fd, SOL_SOCKET, name, &value, &size) != 0) return std::nullopt;
  return value;
}

bool IsOf(int fd, uint8_t protocol) {
  const std::optional<int> type = Option(fd, SO_TYPE);
  const std::optional<int> number = Option(fd, SO_PROTOCOL);
  if (protocol == kProtocolTcp) {
    // Administrators can have the kernel make the latter of the former.
    return type == SOCK_STREAM && (number == IPPROTO_TCP || number == IPPROTO_MPTCP);
  }
  return type == SOCK_DGRAM && number == int{protocol};
}

// A connection that is over has no peer any more, but the port that it had.
bool WasConnected(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof(info);
  SocketAddress local;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 || info.tcpi_state != TCP_CLOSE ||
      getsockname(fd, local.get(), &local.size) != 0) {
    return false;
  }
  const std::optional<Endpoint> end = local.ToEndpoint();
  return end.has_value() && end->port != 0;
}

}  // namespace

const char* WhyNotSocket(int fd, uint8_t protocol, bool v4, SocketRole role) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return "it is not open";
  const std::optional<int> domain = Option(fd, SO_DOMAIN);
  if (!domain.has_value()) return "it is no socket";
  if (role == SocketRole::kService) {
    if (domain != AF_UNIX || Option(fd, SO_TYPE) != SOCK_STREAM) return "it is no end of a pair";
    if ((flags & O_NONBLOCK) == 0) return "its operations would block";
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    const bool connected = getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0;
    return connected ? nullptr : "it is not connected";
  }
  if (domain != (v4 ? AF_INET : AF_INET6)) return "it is of another address family";
  if (!IsOf(fd, protocol)) return "it is of another protocol";
  if ((flags & O_NONBLOCK) == 0) return "its operations would block";
  const bool tcp = protocol == kProtocolTcp;
  const bool listens = Option(fd, SO_ACCEPTCONN).value_or(0) != 0;
  if (listens != (tcp && role == SocketRole::kListener)) {
    return listens ? "it listens" : "it does not listen";
  }
  // Sockets of echo requests have no port, without which the kernel tells of no peer.
  if (role != SocketRole::kPeer || (!tcp && protocol != kProtocolUdp)) return nullptr;
  SocketAddress peer;
  const bool connected = getpeername(fd, peer.get(), &peer.size) == 0 || (tcp && WasConnected(fd));
  return connected ? nullptr : "it is not connected";
}

uint64_t SocketCookie(int fd) {
  uint64_t cookie = 0;
  socklen_t size = sizeof(cookie);
  return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

}  // namespace virtbay::proxy_net
