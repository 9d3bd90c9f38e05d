#include "tests/bench/net_server.h"

#include <sys/epoll.h>

#include <array>
#include <cerrno>
#include <iostream>
#include <thread>
#include <utility>
#include <vector>

#include "framework/base/status.h"
#include "tests/bench/net_counters.h"

namespace virtbay::bench {
namespace {

absl::StatusOr<UniqueFd> Listen(const NetAddress& address, NetPort port) {
  const bool udp = port == kUdpEchoPort;
  UniqueFd fd(::socket(AF_INET, (udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0));
  const int on = 1;
  const sockaddr_in at = address.At(port);
  if (!fd.valid() || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) != 0 ||
      (!udp && ::listen(fd.get(), 1024) != 0)) {
    return ErrnoStatus(errno, absl::StrCat("port ", address.port + port));
  }
  return fd;
}

// Every connection in a thread: `serve` has it until it ends.
template <typename Serve>
void AcceptEach(const UniqueFd& listening, Serve serve) {
  for (;;) {
    UniqueFd fd(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.valid()) continue;
    SetNoDelay(fd.get());
    std::thread([serve, fd = std::move(fd)] { serve(fd.get()); }).detach();
  }
}

void Sink(int fd, NetCounters* counters) {
  std::vector<char> buffer(kBulkBytes);
  for (ssize_t n = 0; (n = ::recv(fd, buffer.data(), buffer.size(), 0)) > 0;) {
    counters->sunk_bytes.fetch_add(static_cast<uint64_t>(n), std::memory_order_relaxed);
  }
}

void Source(int fd) {
  const std::vector<char> buffer(kBulkBytes, 'x');
  while (::send(fd, buffer.data(), buffer.size(), MSG_NOSIGNAL) > 0) {
  }
}

void Echo(int fd) {
  std::array<char, 4096> buffer;
  for (ssize_t n = 0; (n = ::recv(fd, buffer.data(), buffer.size(), 0)) > 0;) {
    if (::send(fd, buffer.data(), static_cast<size_t>(n), MSG_NOSIGNAL) != n) return;
  }
}

// One connection after the other: making a thread would take longer than all the rest. Closing
// first is the client's part, so that TIME_WAIT is not here.
void OneShot(const UniqueFd& listening) {
  for (;;) {
    const UniqueFd fd(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd.valid()) continue;
    SetTimeouts(fd.get(), 1000);
    std::array<char, 64> buffer;
    const ssize_t n = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
    if (n <= 0 || ::send(fd.get(), buffer.data(), static_cast<size_t>(n), MSG_NOSIGNAL) != n)
      continue;
    [[maybe_unused]] const ssize_t end = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
  }
}

void Idle(const UniqueFd& listening, NetCounters* counters) {
  const UniqueFd events(::epoll_create1(EPOLL_CLOEXEC));
  const auto watch = [&](int fd) {
    epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data = {.fd = fd}};
    ::epoll_ctl(events.get(), EPOLL_CTL_ADD, fd, &event);
  };
  watch(listening.get());
  for (;;) {
    epoll_event event;
    if (::epoll_wait(events.get(), &event, 1, -1) != 1) continue;
    if (event.data.fd != listening.get()) {
      ::close(event.data.fd);
      counters->idle_flows.fetch_sub(1);
      continue;
    }
    const int fd = ::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    watch(fd);
    counters->idle_flows.fetch_add(1);
  }
}

void UdpEcho(const UniqueFd& socket) {
  // Batches, so that the server is not what limits the rate.
  constexpr unsigned kBatch = 64;
  struct Slot {
    sockaddr_in from;
    iovec data;
    std::array<char, 2048> bytes;
  };
  std::vector<Slot> slots(kBatch);
  std::array<mmsghdr, kBatch> messages = {};
  for (;;) {
    for (unsigned i = 0; i < kBatch; ++i) {
      slots[i].data = {slots[i].bytes.data(), slots[i].bytes.size()};
      messages[i].msg_hdr = {};
      messages[i].msg_hdr.msg_name = &slots[i].from;
      messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in);
      messages[i].msg_hdr.msg_iov = &slots[i].data;
      messages[i].msg_hdr.msg_iovlen = 1;
    }
    const int n = ::recvmmsg(socket.get(), messages.data(), kBatch, MSG_WAITFORONE, nullptr);
    if (n <= 0) continue;
    for (int i = 0; i < n; ++i)
      slots[static_cast<size_t>(i)].data.iov_len = messages[static_cast<size_t>(i)].msg_len;
    ::sendmmsg(socket.get(), messages.data(), static_cast<unsigned>(n), 0);
  }
}

}  // namespace

absl::Status ServeNet(const NetAddress& address, const std::string& counters_file) {
  VIRTBAY_ASSIGN_OR_RETURN(const NetCounters::Ref counters, NetCounters::Map(counters_file));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd sink, Listen(address, kSinkPort));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd source, Listen(address, kSourcePort));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd echo, Listen(address, kEchoPort));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd one_shot, Listen(address, kOneShotPort));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd idle, Listen(address, kIdlePort));
  VIRTBAY_ASSIGN_OR_RETURN(const UniqueFd udp, Listen(address, kUdpEchoPort));
  std::vector<std::thread> threads;
  threads.emplace_back(
      [&] { AcceptEach(sink, [counters = counters.get()](int fd) { Sink(fd, counters); }); });
  threads.emplace_back([&] { AcceptEach(source, Source); });
  threads.emplace_back([&] { AcceptEach(echo, Echo); });
  threads.emplace_back([&] { OneShot(one_shot); });
  threads.emplace_back([&] { Idle(idle, counters.get()); });
  threads.emplace_back([&] { UdpEcho(udp); });
  std::cout << "ready" << std::endl;
  for (std::thread& thread : threads) thread.join();
  return absl::OkStatus();
}

}  // namespace virtbay::bench
