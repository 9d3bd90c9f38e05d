#include "hostif/vhost_user/wire.h"

#include <sys/uio.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "framework/base/event_fd.h"
#include "framework/base/status.h"

namespace virtbay::vhost_user {
namespace {

// Room for more fds than are allowed: they are better received and closed here than left to the
// kernel's truncation, which cannot be told from running out of descriptors.
constexpr size_t kControlFds = size_t{4} * kMaxFds;
// An inherited socket may have SO_PASSCRED or SO_PASSPIDFD set.
constexpr size_t kControlSize = CMSG_SPACE(kControlFds * sizeof(int)) +
                                CMSG_SPACE(3 * sizeof(uint32_t)) + CMSG_SPACE(sizeof(int));

}  // namespace

absl::StatusOr<MessageReader::Progress> MessageReader::Read(int socket) {
  if (whole_) {
    whole_ = false;
    received_ = 0;
    message_.fds.clear();
  }
  while (received_ < sizeof(Header)) {
    std::array<std::byte, sizeof(Header)> bytes{};
    std::memcpy(bytes.data(), &message_.header, sizeof(Header));
    auto got = Receive(socket, std::span(bytes).subspan(received_), true);
    if (!got.ok()) {
      if (absl::IsUnavailable(got.status())) return Progress::kIncomplete;
      return got.status();
    }
    if (*got == 0) {
      if (received_ == 0) return Progress::kEnd;
      return absl::InvalidArgumentError("the connection ended inside a message header");
    }
    received_ += *got;
    std::memcpy(&message_.header, bytes.data(), sizeof(Header));
    if (received_ == sizeof(Header)) VIRTBAY_RETURN_IF_ERROR(CheckHeader());
  }
  while (received_ < sizeof(Header) + message_.header.size) {
    const size_t have = received_ - sizeof(Header);
    auto got = Receive(
        socket, std::span(message_.payload).subspan(have, message_.header.size - have), false);
    if (!got.ok()) {
      if (absl::IsUnavailable(got.status())) return Progress::kIncomplete;
      return got.status();
    }
    if (*got == 0) return absl::InvalidArgumentError("the connection ended inside a payload");
    received_ += *got;
  }
  whole_ = true;
  return Progress::kMessage;
}

absl::StatusOr<size_t> MessageReader::Receive(int socket, std::span<std::byte> into,
                                              bool with_fds) {
  iovec part{into.data(), into.size()};
  alignas(cmsghdr) std::array<std::byte, kControlSize> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (with_fds) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
  }
  ssize_t got = 0;
  do {
    got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::UnavailableError("nothing to read");
    const absl::Status status = ErrnoStatus(errno, "recvmsg");
    // Unavailable is this function's word for "later".
    return absl::IsUnavailable(status) ? absl::InternalError(status.message()) : status;
  }
  // The fds first: from here on they are owned, whatever else is wrong.
  if (with_fds) VIRTBAY_RETURN_IF_ERROR(TakeFds(message));
  if ((message.msg_flags & MSG_CTRUNC) != 0) {
    // Fds belong to the header's bytes; without a control buffer the kernel has closed them.
    return with_fds ? absl::ResourceExhaustedError(
                          "file descriptors were lost: too many, or none left in this process")
                    : absl::InvalidArgumentError("file descriptors inside a payload");
  }
  return static_cast<size_t>(got);
}

absl::Status MessageReader::TakeFds(const msghdr& message) {
  // CMSG_NXTHDR wants a mutable header but does not write to it.
  msghdr walk = message;
  for (cmsghdr* part = CMSG_FIRSTHDR(&walk); part != nullptr; part = CMSG_NXTHDR(&walk, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      message_.fds.emplace_back(fd);
      CloseAtOnce(fd);
    }
  }
  if (message_.fds.size() > kMaxFds) {
    return absl::InvalidArgumentError(absl::StrCat(message_.fds.size(),
                                                   " file descriptors in one message; at most ",
                                                   kMaxFds, " are ever sent"));
  }
  return absl::OkStatus();
}

absl::Status MessageReader::CheckHeader() const {
  const Header& header = message_.header;
  if ((header.flags & kVersionMask) != kVersion || (header.flags & kFlagReply) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("message ", header.request, " has flags 0x",
                                                   absl::Hex(header.flags),
                                                   ": not a request of protocol version 1"));
  }
  if (header.size > kMaxPayload) {
    return absl::InvalidArgumentError(absl::StrCat("message ", header.request,
                                                   " announces a payload of ", header.size,
                                                   " bytes; at most ", kMaxPayload));
  }
  return absl::OkStatus();
}

absl::Status ReplyWriter::Send(int socket, uint32_t request, std::span<const std::byte> payload) {
  if (pending() || sizeof(Header) + payload.size() > buffer_.size()) {
    return absl::InternalError("the reply does not fit");
  }
  const Header header{request, kReplyFlags, static_cast<uint32_t>(payload.size())};
  std::memcpy(buffer_.data(), &header, sizeof header);
  if (!payload.empty()) {
    std::memcpy(buffer_.data() + sizeof header, payload.data(), payload.size());
  }
  size_ = sizeof header + payload.size();
  sent_ = 0;
  return Flush(socket);
}

absl::Status ReplyWriter::Flush(int socket) {
  while (pending()) {
    const ssize_t done =
        send(socket, buffer_.data() + sent_, size_ - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
      return ErrnoStatus(errno, "sending a reply");
    }
    sent_ += static_cast<size_t>(done);
  }
  return absl::OkStatus();
}

}  // namespace virtbay::vhost_user
