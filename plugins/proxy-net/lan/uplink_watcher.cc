#include "plugins/proxy-net/lan/uplink_watcher.h"

#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "plugins/proxy-net/packet/socket_address.h"

namespace virtbay::proxy_net {

UplinkWatcher::UplinkWatcher(UplinkWatcher&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

UplinkWatcher& UplinkWatcher::operator=(UplinkWatcher&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

UplinkWatcher::~UplinkWatcher() {
  if (fd_ >= 0) close(fd_);
}

sdk::Result<UplinkWatcher> UplinkWatcher::Open() {
  UplinkWatcher out;
  out.fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
  if (out.fd_ < 0) return sdk::Errno(errno, "rtnetlink: socket");
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE;
  sockaddr_storage storage{};
  std::memcpy(&storage, &address, sizeof address);
  if (bind(out.fd_, reinterpret_cast<const sockaddr*>(&storage), sizeof address) != 0) {
    return sdk::Errno(errno, "rtnetlink: bind");
  }
  return out;
}

bool UplinkWatcher::OnReady() {
  // What happened is of no interest, only that something did. A socket that overflowed says so as
  // well, and is empty afterwards.
  bool any = false;
  for (int i = 0; i < 64; ++i) {
    char byte;
    const ssize_t n = recv(fd_, &byte, sizeof byte, MSG_DONTWAIT | MSG_TRUNC);
    if (n < 0 && errno != ENOBUFS && errno != EINTR) break;
    any = true;
  }
  return any;
}

bool UplinkWatcher::HasIpv6() {
  const int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return false;
  // Connecting a datagram socket looks up the route and the source address. The first address of
  // 2000::/3, all that is assigned to the internet, is nobody's.
  SocketAddress to = SocketAddress::Of({Ipv6Address::Of({0x2000, 0, 0, 0, 0, 0, 0, 1}), 9});
  bool has = false;
  if (connect(fd, to.get(), to.size) == 0) {
    SocketAddress from;
    if (getsockname(fd, from.get(), &from.size) == 0) {
      const std::optional<Endpoint> source = from.ToEndpoint();
      has = source.has_value() && source->address.is_v6() && !source->address.IsUnspecified() &&
            !source->address.IsLoopback() && !source->address.IsLinkLocal();
    }
  }
  close(fd);
  return has;
}

std::vector<IpAddress> UplinkWatcher::HostAddresses() {
  std::vector<IpAddress> out;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return out;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
    if (i->ifa_addr == nullptr) continue;
    SocketAddress address;
    const int family = i->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    address.size = family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
    std::memcpy(&address.storage, i->ifa_addr, address.size);
    const std::optional<Endpoint> endpoint = address.ToEndpoint();
    if (!endpoint.has_value() || endpoint->address.IsLoopback()) continue;
    if (endpoint->address.is_v6() && endpoint->address.IsLinkLocal()) continue;
    out.push_back(endpoint->address);
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

}  // namespace virtbay::proxy_net
