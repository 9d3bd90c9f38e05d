#include "hostif/guest/vhost_user_channel.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

constexpr size_t kMaxFds = 16;
constexpr size_t kMaxPayload = 4096;

absl::Status Gone() { return absl::UnavailableError("the vhost-user peer closed the connection"); }

absl::Status AwaitReadable(int fd, absl::Time deadline) {
  for (;;) {
    const int64_t ms = std::max<int64_t>(0, absl::ToInt64Milliseconds(deadline - absl::Now()));
    pollfd one{.fd = fd, .events = POLLIN, .revents = 0};
    const int n = ::poll(&one, 1, static_cast<int>(std::min<int64_t>(ms, 1'000'000)));
    if (n > 0) return absl::OkStatus();
    if (n < 0 && errno != EINTR) return ErrnoStatus(errno, "waiting for a vhost-user message");
    if (n == 0 && absl::Now() >= deadline) {
      return absl::DeadlineExceededError("the vhost-user peer did not answer in time");
    }
  }
}

void TakeFds(msghdr* message, std::vector<UniqueFd>* fds) {
  for (cmsghdr* c = CMSG_FIRSTHDR(message); c != nullptr; c = CMSG_NXTHDR(message, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
      fds->push_back(UniqueFd(fd));
    }
  }
}

}  // namespace

absl::StatusOr<VhostUserChannel> VhostUserChannel::Connect(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("not a usable socket path: ", path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return ErrnoStatus(errno, "socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("connecting to ", path));
  }
  return VhostUserChannel(std::move(socket));
}

absl::Status VhostUserChannel::SendMessage(uint32_t request, uint32_t flags,
                                           std::span<const std::byte> payload,
                                           std::span<const int> fds) {
  const VhostUserHeader header{
      .request = request, .flags = flags, .size = static_cast<uint32_t>(payload.size())};
  std::vector<std::byte> bytes(sizeof(header) + payload.size());
  std::memcpy(bytes.data(), &header, sizeof(header));
  if (!payload.empty()) {
    std::memcpy(bytes.data() + sizeof(header), payload.data(), payload.size());
  }
  return SendBytes(bytes, fds);
}

absl::Status VhostUserChannel::SendBytes(std::span<const std::byte> bytes,
                                         std::span<const int> fds) {
  if (fds.size() > kMaxFds) return absl::InvalidArgumentError("too many descriptors");
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFds)> control{};
  size_t sent = 0;
  while (sent < bytes.size()) {
    iovec part{.iov_base = const_cast<std::byte*>(bytes.data() + sent),
               .iov_len = bytes.size() - sent};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (sent == 0 && !fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(fds.size_bytes());
      cmsghdr* const c = CMSG_FIRSTHDR(&message);
      c->cmsg_level = SOL_SOCKET;
      c->cmsg_type = SCM_RIGHTS;
      c->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(c), fds.data(), fds.size_bytes());
    }
    const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EINTR) continue;
      if (errno == EPIPE || errno == ECONNRESET) return Gone();
      return ErrnoStatus(errno, "sending a vhost-user message");
    }
    sent += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status VhostUserChannel::ReadAll(std::byte* data, size_t size, std::vector<UniqueFd>* fds,
                                       absl::Time deadline) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * kMaxFds)> control{};
  size_t got = 0;
  while (got < size) {
    VIRTBAY_RETURN_IF_ERROR(AwaitReadable(socket_.get(), deadline));
    iovec part{.iov_base = data + got, .iov_len = size - got};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
    if (n < 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      if (errno == ECONNRESET) return Gone();
      return ErrnoStatus(errno, "receiving a vhost-user message");
    }
    TakeFds(&message, fds);
    if (n == 0) return Gone();
    got += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<VhostUserMessage> VhostUserChannel::Receive(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  VhostUserMessage message;
  VIRTBAY_RETURN_IF_ERROR(ReadAll(reinterpret_cast<std::byte*>(&message.header),
                                  sizeof(message.header), &message.fds, deadline));
  if (message.header.size > kMaxPayload) {
    return absl::InvalidArgumentError(
        absl::StrCat("the vhost-user peer sent a payload of ", message.header.size, " bytes"));
  }
  message.payload.resize(message.header.size);
  VIRTBAY_RETURN_IF_ERROR(
      ReadAll(message.payload.data(), message.payload.size(), &message.fds, deadline));
  return message;
}

absl::Status VhostUserChannel::AwaitClose(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::array<std::byte, 256> dropped{};
  for (;;) {
    std::vector<UniqueFd> fds;
    const absl::Status status = ReadAll(dropped.data(), 1, &fds, deadline);
    if (absl::IsUnavailable(status)) return absl::OkStatus();
    VIRTBAY_RETURN_IF_ERROR(status);
  }
}

}  // namespace virtbay::guest
