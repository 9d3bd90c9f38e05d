// FdCloser: closes descriptors of front-ends that are not kept. The last close of one may wait: of
// a connection for its peer (SO_LINGER), of a socket for the descriptors in its queue, of a pipe
// for a lock, of a file for who serves it. That is left to a thread of its own, which nobody waits
// for. Owned by a Server's loop, for all its front-ends; its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_FD_CLOSER_H_
#define VIRTBAY_HOSTIF_VHOST_USER_FD_CLOSER_H_

#include <atomic>
#include <memory>

#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/fd_list.h"

namespace virtbay::vhost_user {

class FdCloser {
 public:
  // Closes them. With many threads that did not come back, on the calling one.
  void Close(FdList fds);
  // Ends a connection: receives what the front-end has sent and closes the descriptors in it, then
  // closes the socket.
  void HangUp(UniqueFd socket);
  // Threads that have not come back. [any]
  int busy() const { return busy_->load(std::memory_order_acquire); }

 private:
  // The threads may outlive this.
  const std::shared_ptr<std::atomic<int>> busy_ = std::make_shared<std::atomic<int>>(0);
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_FD_CLOSER_H_
