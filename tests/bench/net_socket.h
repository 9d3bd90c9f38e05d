// Sockets of the network benchmark's client and server: addresses, ports, options.
// Stateless; any thread.
#ifndef VIRTBAY_TESTS_BENCH_NET_SOCKET_H_
#define VIRTBAY_TESTS_BENCH_NET_SOCKET_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "framework/base/unique_fd.h"

namespace virtbay::bench {

// Ports of the server, from its first one on.
enum NetPort : uint16_t {
  kSinkPort,     // TCP: takes all it gets
  kSourcePort,   // TCP: sends without end
  kEchoPort,     // TCP: sends back, connection by connection
  kOneShotPort,  // TCP: sends one message back and waits for the end
  kIdlePort,     // TCP: keeps the connection
  kUdpEchoPort,  // UDP: sends back
};

struct NetAddress {
  std::string host;  // IPv4
  uint16_t port = 0;

  // Precondition: `host` is an IPv4 address, else 255.255.255.255 is meant.
  sockaddr_in At(NetPort which) const {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port + which));
    address.sin_addr.s_addr = inet_addr(host.c_str());
    return address;
  }
};

// Bytes of one system call of the bulk workloads.
inline constexpr size_t kBulkBytes = 128 * 1024;

inline void SetNoDelay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

// Sending and receiving give up with EAGAIN after that many milliseconds.
inline void SetTimeouts(int fd, int ms) {
  const timeval limit = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NET_SOCKET_H_
