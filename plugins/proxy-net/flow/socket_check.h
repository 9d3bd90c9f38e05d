// What a descriptor of a saved state really is, before a flow is built on it: a socket of another
// kind would make the flow ask the kernel for ever what it cannot answer.
// Stateless functions; [any].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SOCKET_CHECK_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SOCKET_CHECK_H_

#include <cstdint>

namespace virtbay::proxy_net {

enum class SocketRole : uint8_t {
  kListener,   // bound; of TCP, listening
  kUndecided,  // may be connected, or on its way there
  kPeer,       // connected, or a connection that the other end has reset since
  kService,    // one end of a pair of stream sockets within the process
};

// [any] Why a descriptor is no socket of that kind as flows have them, as a literal; nullptr: it is
// one. `protocol`: kProtocolTcp, Udp, Icmp or Icmpv6; neither it nor `v4` matters to a kService.
const char* WhyNotSocket(int fd, uint8_t protocol, bool v4, SocketRole role);

// [any] The kernel's name of the socket, the same for every descriptor of it; 0: it has none.
uint64_t SocketCookie(int fd);

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SOCKET_CHECK_H_
