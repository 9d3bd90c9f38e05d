#include "hostif/device_host/guest_address.h"

#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

constexpr int kBacklog = 16;

absl::Status Wrong(absl::string_view text, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("'", text, "': ", reason));
}

std::string Text(const GuestAddress& address, uint32_t port) {
  switch (address.kind) {
    case GuestAddress::Kind::kUnix:
      return absl::StrCat("unix:", address.name);
    case GuestAddress::Kind::kVsock:
      return address.cid.has_value() ? absl::StrCat("vsock:", *address.cid, ":", port)
                                     : absl::StrCat("vsock:", port);
    case GuestAddress::Kind::kTcp:
      break;
  }
  const bool v6 = address.name.find(':') != std::string::npos;
  return absl::StrCat("tcp:", v6 ? "[" : "", address.name, v6 ? "]" : "", ":", port);
}

// Only this machine's own addresses: whoever can connect can report.
bool IsLoopback(const std::string& name) {
  in_addr v4 = {};
  in6_addr v6 = {};
  if (::inet_pton(AF_INET, name.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  return ::inet_pton(AF_INET6, name.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

absl::StatusOr<UniqueFd> Listen(const sockaddr* address, socklen_t size) {
  UniqueFd fd(::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return ErrnoStatus(errno, "socket");
  const int on = 1;
  if (address->sa_family != AF_VSOCK) {
    ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  }
  if (::bind(fd.get(), address, size) != 0) return ErrnoStatus(errno, "bind");
  if (::listen(fd.get(), kBacklog) != 0) return ErrnoStatus(errno, "listen");
  return fd;
}

absl::StatusOr<UniqueFd> ListenTcp(const GuestAddress& address, uint32_t* port) {
  sockaddr_in v4 = {};
  sockaddr_in6 v6 = {};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(static_cast<uint16_t>(address.port));
  v6.sin6_family = AF_INET6;
  v6.sin6_port = v4.sin_port;
  absl::StatusOr<UniqueFd> fd;
  if (::inet_pton(AF_INET, address.name.c_str(), &v4.sin_addr) == 1) {
    fd = Listen(reinterpret_cast<const sockaddr*>(&v4), sizeof(v4));
  } else {
    ::inet_pton(AF_INET6, address.name.c_str(), &v6.sin6_addr);
    fd = Listen(reinterpret_cast<const sockaddr*>(&v6), sizeof(v6));
  }
  if (!fd.ok()) return fd;
  // sin_port and sin6_port are at the same place.
  socklen_t size = sizeof(v6);
  if (::getsockname(fd->get(), reinterpret_cast<sockaddr*>(&v6), &size) != 0) {
    return ErrnoStatus(errno, "getsockname");
  }
  *port = ntohs(v6.sin6_port);
  return fd;
}

}  // namespace

absl::StatusOr<GuestAddress> ParseGuestAddress(absl::string_view text) {
  GuestAddress address;
  absl::string_view rest = text;
  if (text.find('\0') != absl::string_view::npos) return Wrong("", "contains a NUL");
  if (absl::ConsumePrefix(&rest, "unix:")) {
    if (rest.empty()) return Wrong(text, "the path is empty");
    address.name = std::string(rest);
    return address;
  }
  const bool vsock = absl::ConsumePrefix(&rest, "vsock:");
  if (!vsock && !absl::ConsumePrefix(&rest, "tcp:")) {
    return Wrong(text, "is none of unix:PATH, vsock:[CID:]PORT, tcp:ADDRESS:PORT");
  }
  const size_t colon = rest.rfind(':');
  const absl::string_view port = colon == absl::string_view::npos ? rest : rest.substr(colon + 1);
  if (!absl::SimpleAtoi(port, &address.port) || (vsock && address.port == 0) ||
      address.port > (vsock ? UINT32_MAX - 1 : 65535)) {
    return Wrong(text, "the port is not a port number");
  }
  if (vsock) {
    address.kind = GuestAddress::Kind::kVsock;
    if (colon == absl::string_view::npos) return address;
    uint32_t cid = 0;
    if (!absl::SimpleAtoi(rest.substr(0, colon), &cid) || cid == UINT32_MAX) {
      return Wrong(text, "the CID is not a number");
    }
    address.cid = cid;
    return address;
  }
  if (colon == absl::string_view::npos) return Wrong(text, "the address is missing");
  absl::string_view host = rest.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[") && !absl::ConsumeSuffix(&host, "]")) {
    return Wrong(text, "a bracket is missing");
  }
  address.kind = GuestAddress::Kind::kTcp;
  address.name = std::string(host);
  if (!IsLoopback(address.name)) return Wrong(text, "the address is not one of the loopback's");
  return address;
}

absl::StatusOr<GuestListener> ListenForGuest(const GuestAddress& address) {
  const std::string what = absl::StrCat("guest channel ", Text(address, address.port));
  GuestListener listener;
  if (address.kind == GuestAddress::Kind::kUnix) {
    auto socket = vhost_user::ListenAt(address.name, 0600);
    if (!socket.ok()) return Annotate(socket.status(), "guest channel");
    listener.socket = std::move(socket).value();
    listener.address = Text(address, 0);
    return listener;
  }
  uint32_t port = address.port;
  absl::StatusOr<UniqueFd> fd;
  if (address.kind == GuestAddress::Kind::kVsock) {
    sockaddr_vm vm = {};
    vm.svm_family = AF_VSOCK;
    vm.svm_cid = VMADDR_CID_ANY;
    vm.svm_port = address.port;
    fd = Listen(reinterpret_cast<const sockaddr*>(&vm), sizeof(vm));
  } else {
    fd = ListenTcp(address, &port);
  }
  if (!fd.ok()) return Annotate(fd.status(), what);
  listener.socket.fd = std::move(fd).value();
  listener.address = Text(address, port);
  return listener;
}

bool MayReport(const GuestAddress& address, const UniqueFd& connection) {
  if (address.kind != GuestAddress::Kind::kVsock || !address.cid.has_value()) return true;
  sockaddr_vm peer = {};
  socklen_t size = sizeof(peer);
  return ::getpeername(connection.get(), reinterpret_cast<sockaddr*>(&peer), &size) == 0 &&
         peer.svm_cid == *address.cid;
}

}  // namespace virtbay::device_host
