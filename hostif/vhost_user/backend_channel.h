// BackendChannel: the fd on which a back-end speaks first (VHOST_USER_SET_BACKEND_REQ_FD).
// A socket as a rule; user-mode Linux may pass one end of a pipe. Nothing here ever waits.
// Owned by a Session; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_
#define VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_

#include "absl/status/status.h"
#include "framework/base/event_fd.h"
#include "framework/base/unique_fd.h"

namespace virtbay::vhost_user {

class BackendChannel {
 public:
  // Takes the front-end's fd in place of the one before; InvalidArgument when it is neither a
  // socket nor a pipe.
  absl::Status Set(UniqueFd fd);
  bool valid() const { return fd_.valid(); }
  // What to poll for input, or -1. Only a socket: other kinds of fd may be readable for ever.
  int poll_fd() const { return kind_ == EventFdKind::kSocket ? fd_.get() : -1; }

  // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, without NEED_REPLY: there is nothing to do about a
  // refusal, and a pipe could not answer. ResourceExhausted when the front-end reads too slowly
  // (the message is dropped), another error when the channel is gone for good.
  absl::Status SendConfigChange();
  // Reads and drops what came back, and closes the channel when the front-end has; `revents` are
  // those of poll.
  void Drain(short revents);

 private:
  void Close();

  UniqueFd fd_;
  EventFdKind kind_ = EventFdKind::kSocket;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_
