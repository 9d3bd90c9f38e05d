// Connection: one front-end from its connect to its disconnect: messages in, answers out.
// Owned by a Server (or a test), which polls its fds and calls it on one thread; nothing here waits
// for the front-end. OnConfigChanged alone is [any].
#ifndef VIRTBAY_HOSTIF_VHOST_USER_CONNECTION_H_
#define VIRTBAY_HOSTIF_VHOST_USER_CONNECTION_H_

#include <atomic>
#include <memory>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/log.h"
#include "framework/base/log_limiter.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/attach.h"
#include "hostif/vhost_user/fd_closer.h"
#include "hostif/vhost_user/message_table.h"
#include "hostif/vhost_user/session.h"
#include "hostif/vhost_user/snapshot.h"
#include "hostif/vhost_user/wire.h"
#include "virtbay/device_port.h"

namespace virtbay::vhost_user {

// What a connection uses of its caller's, and what must outlive it.
struct ConnectionEnvironment {
  int wake_fd = -1;  // an eventfd, written when OnWake should be called
  LogLimiter* log = nullptr;
  FdCloser* closer = nullptr;
  // What the thread does for the front-end, with static storage; null: it waits.
  std::atomic<const char*>* activity = nullptr;
  bool keeps_fds = false;  // of what the front-end gives, for Export
};

class Connection final : public DevicePortEvents {
 public:
  // Attaches the device. The attach function's error.
  static absl::StatusOr<std::unique_ptr<Connection>> Create(UniqueFd socket,
                                                            const AttachFunction& attach,
                                                            ConnectionEnvironment environment);
  ~Connection() override;

  // Where the conversation stands; between two calls of the others. Errors of Session::Export.
  absl::StatusOr<ConnectionSnapshot> Export() const;
  // A connection that goes on where one of another process stood. Until Start it does nothing, and
  // lets go of the socket and the device without the front-end's hearing of it. Errors of the
  // attach function and of Session::Import.
  static absl::StatusOr<std::unique_ptr<Connection>> Adopt(ConnectionSnapshot snapshot,
                                                           const AttachFunction& attach,
                                                           ConnectionEnvironment environment);
  void Start();
  // Another process goes on with it: the end of this one is none for the front-end.
  void LetGo() { lets_go_ = true; }

  int fd() const { return socket_.get(); }
  // What to poll fd() for.
  short events() const;
  // The back-end channel, to be polled for its end; -1 when there is none.
  int backend_fd() { return session_->backend().poll_fd(); }

  // The socket is ready. False when the connection is over; the reason has been logged. Handles a
  // bounded number of messages, so that the caller gets its turn.
  bool OnReady();
  void OnBackendClosed() { session_->backend().Close(); }
  // wake_fd was written: tells the front-end of a change of configuration or status.
  void OnWake();
  // The front-end has closed its end.
  bool PeerGone() const;

  void OnConfigChanged() override;

 private:
  Connection(UniqueFd socket, ConnectionEnvironment environment);

  // Both return an error only when the connection has to end.
  absl::Status Handle(Message& message);
  absl::Status Answer(const MessageInfo* info, const Message& message, const absl::Status& result,
                      Reply& reply);
  absl::Status Check(const MessageInfo* info, const Message& message) const;
  // The front-end has given us its own end of this very connection, and its end would never come.
  bool GaveItselfAway() const;

  UniqueFd socket_;
  const ConnectionEnvironment environment_;
  LogLimiter* const log_;
  MessageReader reader_;
  ReplyWriter writer_;
  std::atomic<bool> config_changed_{false};
  bool lets_go_ = false;
  // Last: its port may call OnConfigChanged until it is gone.
  std::optional<Session> session_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_CONNECTION_H_
