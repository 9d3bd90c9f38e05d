// BackendChannel: the fd on which a back-end speaks first (VHOST_USER_SET_BACKEND_REQ_FD).
// A Unix socket that is written and never read, since a reader waits for one that sleeps in another
// process; nothing here ever waits.
// Owned by a Session; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_
#define VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_

#include "absl/status/status.h"
#include "framework/base/unique_fd.h"

namespace virtbay::vhost_user {

class BackendChannel {
 public:
  // Takes the front-end's fd in place of the one before, if CheckOneWaySocket allows it; its error
  // otherwise, and then `fd` stays the caller's.
  absl::Status Set(UniqueFd&& fd);
  bool valid() const { return fd_.valid(); }
  // What to poll for its end (no events but those that cannot be left out), or -1.
  int poll_fd() const { return fd_.get(); }

  // VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, without NEED_REPLY: there is nothing to do about a
  // refusal. ResourceExhausted when the front-end reads too slowly
  // (the message is dropped), another error when the channel is gone for good.
  absl::Status SendConfigChange();
  // The front-end has closed it.
  void Close();

 private:
  UniqueFd fd_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_BACKEND_CHANNEL_H_
