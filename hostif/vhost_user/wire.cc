#include "hostif/vhost_user/wire.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::vhost_user {

MessageReader::~MessageReader() { DropFds(); }

void MessageReader::DropFds() { closer_->Close(std::exchange(message_.fds, FdList())); }

absl::StatusOr<MessageReader::Progress> MessageReader::Read(int socket) {
  if (whole_) {
    whole_ = false;
    received_ = 0;
    DropFds();
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

absl::Status MessageReader::Export(std::vector<std::byte>* bytes, FdList* fds) const {
  bytes->clear();
  fds->clear();
  if (whole_ || received_ == 0) return absl::OkStatus();
  bytes->resize(received_);
  const size_t header = std::min(received_, sizeof(Header));
  std::memcpy(bytes->data(), &message_.header, header);
  if (received_ > header) {
    std::memcpy(bytes->data() + header, message_.payload.data(), received_ - header);
  }
  for (const UniqueFd& fd : message_.fds) {
    fds->push_back(fd.Duplicate());
    if (!fds->back()) return ErrnoStatus(errno, "a descriptor of a message");
  }
  return absl::OkStatus();
}

absl::Status MessageReader::Import(std::span<const std::byte> bytes, FdList fds) {
  if (bytes.empty() && fds.empty()) return absl::OkStatus();
  const size_t header = std::min(bytes.size(), sizeof(Header));
  std::memcpy(&message_.header, bytes.data(), header);
  message_.fds = std::move(fds);
  if (message_.fds.size() > kMaxFds || bytes.empty()) {
    return absl::InvalidArgumentError("this is no beginning of a message");
  }
  if (header == sizeof(Header)) {
    VIRTBAY_RETURN_IF_ERROR(CheckHeader());
    if (bytes.size() - header > message_.header.size) {
      return absl::InvalidArgumentError("this is more than a message");
    }
    if (bytes.size() > header) {
      std::memcpy(message_.payload.data(), bytes.data() + header, bytes.size() - header);
    }
  }
  received_ = bytes.size();
  return absl::OkStatus();
}

absl::StatusOr<size_t> MessageReader::Receive(int socket, std::span<std::byte> into,
                                              bool with_fds) {
  const size_t before = message_.fds.size();
  int flags = 0;
  const ssize_t got = ReceiveWithFds(socket, into, &message_.fds, &flags);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::UnavailableError("nothing to read");
    const absl::Status status = ErrnoStatus(errno, "recvmsg");
    // Unavailable is this function's word for "later".
    return absl::IsUnavailable(status) ? absl::InternalError(status.message()) : status;
  }
  // Fds belong to the header's bytes.
  if (!with_fds && message_.fds.size() > before) {
    return absl::InvalidArgumentError("file descriptors inside a payload");
  }
  if ((flags & MSG_CTRUNC) != 0) {
    return absl::ResourceExhaustedError(
        "file descriptors were lost: none are left in this process");
  }
  if (message_.fds.size() > kMaxFds) {
    return absl::InvalidArgumentError(absl::StrCat(message_.fds.size(),
                                                   " file descriptors in one message; at most ",
                                                   kMaxFds, " are ever sent"));
  }
  return static_cast<size_t>(got);
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

absl::Status ReplyWriter::Send(int socket, uint32_t request, std::span<const std::byte> payload,
                               UniqueFd fd) {
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
  fd_ = std::move(fd);
  return Flush(socket);
}

absl::Status ReplyWriter::Export(std::vector<std::byte>* bytes, UniqueFd* fd) const {
  bytes->assign(buffer_.begin() + static_cast<std::ptrdiff_t>(sent_),
                buffer_.begin() + static_cast<std::ptrdiff_t>(size_));
  if (!fd_) return absl::OkStatus();
  *fd = fd_.Duplicate();
  return *fd ? absl::OkStatus() : ErrnoStatus(errno, "the descriptor of a reply");
}

absl::Status ReplyWriter::Import(std::span<const std::byte> bytes, UniqueFd fd) {
  if (bytes.size() > buffer_.size()) {
    return absl::InvalidArgumentError("this is more than a reply");
  }
  std::copy(bytes.begin(), bytes.end(), buffer_.begin());
  sent_ = 0;
  size_ = bytes.size();
  fd_ = std::move(fd);
  return absl::OkStatus();
}

absl::Status ReplyWriter::Flush(int socket) {
  while (pending()) {
    iovec part{buffer_.data() + sent_, size_ - sent_};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    if (fd_) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      cmsghdr* const rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(sizeof(int));
      const int fd = fd_.get();
      std::memcpy(CMSG_DATA(rights), &fd, sizeof fd);
    }
    const ssize_t done = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::OkStatus();
      return ErrnoStatus(errno, "sending a reply");
    }
    sent_ += static_cast<size_t>(done);
    fd_.reset();
  }
  return absl::OkStatus();
}

}  // namespace virtbay::vhost_user
