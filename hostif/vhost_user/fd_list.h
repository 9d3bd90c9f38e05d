// FdList: descriptors that came with a message, owned from the system call that received them.
// Free functions and a value type; any thread, one at a time.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_
#define VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_

#include <sys/types.h>

#include <cstddef>
#include <span>

#include "absl/container/inlined_vector.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

using FdList = absl::InlinedVector<UniqueFd, kMaxFds>;

// recvmsg without waiting, begun anew when interrupted; the fds that came are in `fds`, behind what
// was there. `flags`: the message's.
ssize_t ReceiveWithFds(int socket, std::span<std::byte> into, FdList* fds, int* flags);

// Receives one piece of what is queued in `socket`, of any type, for the sake of the fds in it.
// False: there is nothing more. Never waits for data.
bool ReceiveFds(int socket, FdList* fds);

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_FD_LIST_H_
