// FdList: descriptors that came with a message, owned from the system call that received them.
// Free functions and a value type; any thread, one at a time.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_
#define VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/container/inlined_vector.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

using FdList = absl::InlinedVector<UniqueFd, kMaxFds>;

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
void AppendFds(const msghdr& message, FdList* fds);

// Receives one piece of what is queued in `socket`, of any type, for the sake of the fds in it.
// False: there is nothing more. Never waits for data.
bool ReceiveFds(int socket, FdList* fds);

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_
