#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/bench/reload_load.h"
#include "tests/support/tap_guest.h"

namespace virtbay::bench {
namespace {

constexpr char kServer[] = "198.18.0.1";
constexpr size_t kQuestion = 64;  // bytes

// Sends back what it gets, on every connection; a thread of its own.
class EchoServer {
 public:
  // In the calling thread's namespace.
  static absl::StatusOr<std::unique_ptr<EchoServer>> Create() {
    std::unique_ptr<EchoServer> self(new EchoServer);
    self->stop_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    self->epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
    self->listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    ::inet_pton(AF_INET, kServer, &any.sin_addr);
    socklen_t size = sizeof(any);
    if (::bind(self->listener_.get(), reinterpret_cast<sockaddr*>(&any), size) != 0 ||
        ::listen(self->listener_.get(), 4096) != 0 ||
        ::getsockname(self->listener_.get(), reinterpret_cast<sockaddr*>(&any), &size) != 0) {
      return ErrnoStatus(errno, "echo server");
    }
    self->address_ = any;
    self->Watch(self->stop_.get());
    self->Watch(self->listener_.get());
    self->thread_ = std::thread([raw = self.get()] { raw->Main(); });
    return self;
  }
  ~EchoServer() {
    ::eventfd_write(stop_.get(), 1);
    if (thread_.joinable()) thread_.join();
  }
  const sockaddr_in& address() const { return address_; }

 private:
  void Watch(int fd) {
    epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  void Main() {
    std::array<epoll_event, 64> events;
    std::array<char, 4096> bytes;
    for (;;) {
      const int n = ::epoll_wait(epoll_.get(), events.data(), events.size(), -1);
      for (int i = 0; i < n; ++i) {
        const int fd = events[static_cast<size_t>(i)].data.fd;
        if (fd == stop_.get()) return;
        if (fd == listener_.get()) {
          Accept();
          continue;
        }
        const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (got > 0) {
          ::send(fd, bytes.data(), static_cast<size_t>(got), MSG_NOSIGNAL);
        } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
          ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
        }
      }
    }
  }
  void Accept() {
    UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) return;
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    Watch(fd.get());
    connections_.push_back(std::move(fd));
  }

  UniqueFd stop_, epoll_, listener_;
  std::vector<UniqueFd> connections_;
  sockaddr_in address_{};
  std::thread thread_;
};

class NetLoad final : public ReloadLoad {
 public:
  NetLoad(std::unique_ptr<EchoServer> server, std::unique_ptr<guest::NetClient> client,
          uint32_t flows, uint32_t depth)
      : server_(std::move(server)), client_(std::move(client)), flows_(flows), depth_(depth) {}
  ~NetLoad() override { Stop().IgnoreError(); }

 private:
  absl::Status Run() override {
    // The guest's kernel is this thread's namespace.
    VIRTBAY_ASSIGN_OR_RETURN(guest_, testing::TapGuest::Enter(1500));
    if (!testing::TapGuest::Run(
            "ip addr add 10.0.2.15/24 dev tap0 && ip route add default via 10.0.2.2")) {
      return absl::InternalError("ip(8)");
    }
    guest_->Start(std::move(client_));
    const absl::Status asked = Ask();
    connections_.clear();
    guest_.reset();
    return asked;
  }
  absl::Status Ask() {
    const UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
    for (uint32_t i = 0; i < flows_; ++i) {
      UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&server_->address()),
                    sizeof(sockaddr_in)) != 0) {
        return ErrnoStatus(errno, absl::StrCat("connection ", i));
      }
      const int on = 1;
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      epoll_event event{.events = EPOLLIN, .data = {.fd = fd.get()}};
      ::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd.get(), &event);
      connections_.push_back(std::move(fd));
    }
    const std::array<char, kQuestion> question{};
    const auto ask = [&question](int fd) {
      return ::send(fd, question.data(), question.size(), MSG_NOSIGNAL) == kQuestion;
    };
    for (uint32_t i = 0; i < depth_; ++i) {
      if (!ask(connections_[i].get())) return ErrnoStatus(errno, "send");
    }
    std::array<epoll_event, 64> events;
    std::array<char, 4096> bytes;
    while (!stopped()) {
      const int n = ::epoll_wait(epoll.get(), events.data(), events.size(), 1000);
      for (int i = 0; i < n; ++i) {
        const int fd = events[static_cast<size_t>(i)].data.fd;
        // An answer is one segment, as its question.
        const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (got != static_cast<ssize_t>(kQuestion)) {
          return absl::InternalError(absl::StrCat("an answer of ", got, " bytes"));
        }
        if (!ask(fd)) return ErrnoStatus(errno, "send");
      }
      if (n > 0) Answered(static_cast<uint64_t>(n));
    }
    return absl::OkStatus();
  }

  const std::unique_ptr<EchoServer> server_;
  std::unique_ptr<guest::NetClient> client_;
  std::unique_ptr<testing::TapGuest> guest_;
  std::vector<UniqueFd> connections_;
  const uint32_t flows_;
  const uint32_t depth_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ReloadLoad>> MakeNetLoad(Host* host, const std::string& plugin,
                                                        uint32_t flows, uint32_t depth) {
  // A connection has a socket at each end, and one of the device's.
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
  if (::unshare(CLONE_NEWNET) != 0) {
    return absl::UnimplementedError(absl::StrCat("no network namespace: ", std::strerror(errno)));
  }
  if (!testing::TapGuest::Run(
          absl::StrCat("ip link set lo up && ip addr add ", kServer, "/32 dev lo"))) {
    return absl::InternalError("ip(8)");
  }
  DeviceSpec spec;
  spec.name = kReloaded;
  spec.plugin = plugin;
  spec.options = {{"mac", "52:54:00:00:00:01"}};
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceHandle device, host->Add(spec));
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
  guest::NetClientOptions options;
  options.rx_buffers = 256;
  VIRTBAY_ASSIGN_OR_RETURN(auto client,
                           guest::NetClient::Create(std::move(transport), std::move(options)));
  VIRTBAY_ASSIGN_OR_RETURN(auto server, EchoServer::Create());
  return std::make_unique<NetLoad>(std::move(server), std::move(client), flows, depth);
}

}  // namespace virtbay::bench
