#include "hostif/vhost_user/fd_list.h"

#include <sys/uio.h>

#include <cerrno>
#include <cstring>

namespace virtbay::vhost_user {
namespace {

// Linux 6.5; in no header of the distribution's.
constexpr int kScmPidfd = 4;

}  // namespace

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

bool ReceiveFds(int socket, FdList* fds) {
  std::array<std::byte, 4096> dropped;
  ControlBuffer control;
  iovec part{dropped.data(), dropped.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes.data();
  message.msg_controllen = control.bytes.size();
  ssize_t got = 0;
  do {
    got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return false;
  const size_t before = fds->size();
  AppendFds(message, fds);
  // An empty datagram is no end.
  return got > 0 || fds->size() > before;
}

}  // namespace virtbay::vhost_user
