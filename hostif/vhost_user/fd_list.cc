#include "hostif/vhost_user/fd_list.h"

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

namespace virtbay::vhost_user {
namespace {

// Linux 6.5; in no header of the distribution's.
constexpr int kScmPidfd = 4;

// Room for as many fds as the kernel lets a message carry (SCM_MAX_FD): those without room it
// closes itself, here and now, however long that takes. An inherited socket may have SO_PASSCRED or
// SO_PASSPIDFD set, whose parts come with the others.
struct ControlBuffer {
  static constexpr size_t kMaxScmFds = 253;
  static constexpr size_t kSize = CMSG_SPACE(kMaxScmFds * sizeof(int)) +
                                  CMSG_SPACE(3 * sizeof(uint32_t)) + CMSG_SPACE(sizeof(int));

  alignas(cmsghdr) std::array<std::byte, kSize> bytes;
};

// Takes over the fds that recvmsg has put into `message`'s control buffer.
void AppendFds(const msghdr& message, FdList* fds) {
  // CMSG_NXTHDR wants a mutable header but does not write to it.
  msghdr walk = message;
  for (cmsghdr* part = CMSG_FIRSTHDR(&walk); part != nullptr; part = CMSG_NXTHDR(&walk, part)) {
    if (part->cmsg_level != SOL_SOCKET) continue;
    if (part->cmsg_type != SCM_RIGHTS && part->cmsg_type != kScmPidfd) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      UniqueFd owned(fd);
      if (part->cmsg_type == SCM_RIGHTS) fds->push_back(std::move(owned));
    }
  }
}

}  // namespace

ssize_t ReceiveWithFds(int socket, std::span<std::byte> into, FdList* fds, int* flags) {
  iovec part{into.data(), into.size()};
  ControlBuffer control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();
  ssize_t got = 0;
  do {
    got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got >= 0) AppendFds(message, fds);
  *flags = message.msg_flags;
  return got;
}

bool ReceiveFds(int socket, FdList* fds) {
  std::array<std::byte, 4096> dropped;
  const size_t before = fds->size();
  int flags = 0;
  const ssize_t got = ReceiveWithFds(socket, dropped, fds, &flags);
  // An empty datagram is no end.
  return got > 0 || (got == 0 && fds->size() > before);
}

}  // namespace virtbay::vhost_user
