#include "hostif/handover/channel.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"

namespace virtbay::handover {
namespace {

constexpr uint32_t kMagic = 0x6f686276;  // "vbho"
// One message, with all of its packets.
constexpr uint64_t kMaxBytes = uint64_t{2} << 30;
constexpr uint64_t kMaxFds = 1u << 20;
// One packet. The kernel takes no more descriptors at once (SCM_MAX_FD).
constexpr size_t kPacketBytes = size_t{128} << 10;
constexpr size_t kPacketFds = 253;

// In front of each packet.
struct PacketHeader {
  uint32_t magic = kMagic;
  uint16_t version = kVersion;
  uint16_t kind = 0;
  uint64_t bytes = 0;  // of the whole message
  uint64_t fds = 0;
};
static_assert(sizeof(PacketHeader) == 24);

absl::Status Gone() { return absl::UnavailableError("the other process has gone"); }

// Waits until the socket is ready for `events`.
absl::Status Await(int fd, short events, absl::Time deadline) {
  for (;;) {
    pollfd entry{fd, events, 0};
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    const int64_t ms = std::min<int64_t>(
        absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1))), 60'000);
    const int ready = poll(&entry, 1, static_cast<int>(ms));
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus(errno, "poll");
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("the other process does not answer in time");
    }
  }
}

// A name in a directory that is open, however long its path is.
absl::StatusOr<sockaddr_un> AddressIn(int dir, const std::string& name) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = absl::StrCat("/proc/self/fd/", dir, "/", name);
  if (path.size() >= sizeof address.sun_path) return absl::InvalidArgumentError("name too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

const sockaddr* Generic(const sockaddr_un& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

absl::StatusOr<UniqueFd> NewSocket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return ErrnoStatus(errno, "socket");
  return fd;
}

}  // namespace

absl::StatusOr<UniqueFd> Listen(int dir, const std::string& name) {
  // Made under another name and moved, so that there is always one or the other.
  const std::string fresh = absl::StrCat(name, ".", getpid());
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  VIRTBAY_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir, fresh));
  unlinkat(dir, fresh.c_str(), 0);
  if (bind(fd.get(), Generic(address), sizeof address) != 0 || listen(fd.get(), 4) != 0 ||
      renameat(dir, fresh.c_str(), dir, name.c_str()) != 0) {
    absl::Status status = ErrnoStatus(errno, name);
    unlinkat(dir, fresh.c_str(), 0);
    return status;
  }
  return fd;
}

absl::StatusOr<Channel> Channel::Connect(int dir, const std::string& name) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, NewSocket());
  VIRTBAY_ASSIGN_OR_RETURN(const sockaddr_un address, AddressIn(dir, name));
  if (connect(fd.get(), Generic(address), sizeof address) == 0) return Channel(std::move(fd));
  if (errno == ENOENT || errno == ECONNREFUSED || errno == EAGAIN || errno == EPROTOTYPE) {
    return absl::NotFoundError("nobody listens");
  }
  return ErrnoStatus(errno, name);
}

absl::StatusOr<pid_t> Channel::CheckPeer() const {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(fd(), SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return ErrnoStatus(errno, "SO_PEERCRED");
  }
  if (peer.uid == geteuid()) return peer.pid;
  return absl::PermissionDeniedError(absl::StrCat("process ", peer.pid, " is of user ", peer.uid));
}

void Channel::Close() { static_cast<void>(shutdown(fd(), SHUT_RD)); }

void Channel::HangUp() { static_cast<void>(shutdown(fd(), SHUT_RDWR)); }

absl::Status Channel::Send(Kind kind, absl::string_view bytes, std::span<const int> fds,
                           absl::Time deadline) {
  PacketHeader header;
  header.kind = static_cast<uint16_t>(kind);
  header.bytes = bytes.size();
  header.fds = fds.size();
  do {
    const size_t size = std::min(bytes.size(), kPacketBytes);
    const size_t count = std::min(fds.size(), kPacketFds);
    std::array<iovec, 2> parts{{{&header, sizeof header}, {const_cast<char*>(bytes.data()), size}}};
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kPacketFds * sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    if (count > 0) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(count * sizeof(int));
      cmsghdr* const rights = CMSG_FIRSTHDR(&message);
      rights->cmsg_level = SOL_SOCKET;
      rights->cmsg_type = SCM_RIGHTS;
      rights->cmsg_len = CMSG_LEN(count * sizeof(int));
      std::memcpy(CMSG_DATA(rights), fds.data(), count * sizeof(int));
    }
    if (sendmsg(fd(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      if (errno == EINTR) continue;
      if (errno == EPIPE || errno == ECONNRESET) return Gone();
      if (errno == ETOOMANYREFS || errno == ENOBUFS) {
        // Those that are under way count as open files of the user's, until they are received.
        if (absl::Now() >= deadline) return ErrnoStatus(errno, "handing descriptors over");
        absl::SleepFor(absl::Milliseconds(1));
        continue;
      }
      if (errno != EAGAIN) return ErrnoStatus(errno, "sendmsg");
      VIRTBAY_RETURN_IF_ERROR(Await(fd(), POLLOUT, deadline));
      continue;
    }
    bytes.remove_prefix(size);
    fds = fds.subspan(count);
  } while (!bytes.empty() || !fds.empty());
  return absl::OkStatus();
}

absl::Status Channel::ReceivePacket(Message* message, uint64_t* bytes, uint64_t* fds, bool* first,
                                    absl::Time deadline) {
  PacketHeader header;
  const size_t before = message->bytes.size();
  message->bytes.resize(before + kPacketBytes);
  std::array<iovec, 2> parts{
      {{&header, sizeof header}, {message->bytes.data() + before, kPacketBytes}}};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(kPacketFds * sizeof(int))> control{};
  msghdr wanted{};
  wanted.msg_iov = parts.data();
  wanted.msg_iovlen = parts.size();
  wanted.msg_control = control.data();
  wanted.msg_controllen = control.size();
  ssize_t got = 0;
  while ((got = recvmsg(fd(), &wanted, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)) < 0) {
    if (errno == ECONNRESET) return Gone();
    if (errno == EAGAIN) {
      VIRTBAY_RETURN_IF_ERROR(Await(fd(), POLLIN, deadline));
    } else if (errno != EINTR) {
      return ErrnoStatus(errno, "recvmsg");
    }
  }
  for (cmsghdr* part = CMSG_FIRSTHDR(&wanted); part != nullptr; part = CMSG_NXTHDR(&wanted, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
      message->fds.emplace_back(fd);
    }
  }
  if (got == 0) return Gone();
  if ((wanted.msg_flags & MSG_CTRUNC) != 0) {
    return absl::ResourceExhaustedError(
        "descriptors were lost: this process may not have so many open files (RLIMIT_NOFILE)");
  }
  if ((wanted.msg_flags & MSG_TRUNC) != 0 || got < static_cast<ssize_t>(sizeof header) ||
      header.magic != kMagic) {
    return absl::InvalidArgumentError("what the other process sent is no message of a handover");
  }
  const size_t payload = static_cast<size_t>(got) - sizeof header;
  message->bytes.resize(before + payload);
  const auto kind = static_cast<Kind>(header.kind);
  if (kind == Kind::kRefuse) {
    // Of any version, and in one packet.
    return absl::FailedPreconditionError(
        absl::StrCat("the other process refuses: ", message->bytes.substr(before)));
  }
  if (header.version != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("the other process speaks version ",
                                                   header.version, " of the handover, this one ",
                                                   kVersion));
  }
  if (std::exchange(*first, false)) {
    message->kind = kind;
    *bytes = header.bytes;
    *fds = header.fds;
  }
  if (kind != message->kind || header.bytes != *bytes || header.fds != *fds || *bytes > kMaxBytes ||
      *fds > kMaxFds || message->bytes.size() > *bytes || message->fds.size() > *fds) {
    return absl::InvalidArgumentError("the packets of a message contradict each other");
  }
  // One that brings nothing could come for ever.
  const bool whole = message->bytes.size() == *bytes && message->fds.size() == *fds;
  if (!whole && payload == 0 && wanted.msg_controllen == 0) {
    return absl::InvalidArgumentError("a packet of a message is empty");
  }
  return absl::OkStatus();
}

absl::StatusOr<Message> Channel::Receive(Kind kind, absl::Time deadline) {
  Message message;
  uint64_t bytes = 0;
  uint64_t fds = 0;
  bool first = true;
  do {
    VIRTBAY_RETURN_IF_ERROR(ReceivePacket(&message, &bytes, &fds, &first, deadline));
    if (message.kind != kind) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", static_cast<uint16_t>(message.kind), " comes out of turn"));
    }
  } while (message.bytes.size() < bytes || message.fds.size() < fds);
  return message;
}

}  // namespace virtbay::handover
