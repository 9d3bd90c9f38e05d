// ServerLoop: the thread of a Server: accepts front-ends one after the other and serves each its
// connection. Shared by the Server and the thread, because a front-end may hold the thread up in
// the kernel for longer than the Server lives (the last close of a descriptor that it has given).
// Create, Stop and the queries are [any]; the rest is the thread's own.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_SERVER_LOOP_H_
#define VIRTBAY_HOSTIF_VHOST_USER_SERVER_LOOP_H_

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "framework/base/log.h"
#include "framework/base/log_limiter.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/connection.h"
#include "hostif/vhost_user/fd_closer.h"
#include "hostif/vhost_user/server.h"
#include "hostif/vhost_user/snapshot.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::vhost_user {

class ServerLoop {
 public:
  // Starts the thread. Errors as Server::Create.
  static absl::StatusOr<std::shared_ptr<ServerLoop>> Create(AttachFunction attach,
                                                            ServerOptions options);
  // Server::Adopt and what follows.
  static absl::StatusOr<std::shared_ptr<ServerLoop>> Adopt(AttachFunction attach,
                                                           ServerOptions options,
                                                           ServerSnapshot snapshot);
  void Begin();
  absl::StatusOr<ServerSnapshot> Freeze(absl::Duration patience);
  void Thaw();
  void LetGo();
  // The socket file goes at once, the connection when the thread comes to it.
  void BeginStop();
  // Waits for the thread, once, after BeginStop. False: it did not end in time, or does not leave
  // the kernel; from now on it calls nobody back, and goes when what holds it up lets it.
  bool AwaitEnd(absl::Duration patience);

  bool connected() const { return connected_.load(std::memory_order_acquire); }
  bool ended() const { return ended_.load(std::memory_order_acquire); }
  const Log& log() const { return log_; }
  // What the thread does for its front-end, with static storage; null: it waits.
  const char* activity() const { return activity_.load(std::memory_order_relaxed); }

 private:
  ServerLoop(AttachFunction attach, ServerOptions options);

  // What Freeze and the thread agree on.
  enum class Frost {
    kNone,
    kBegun,   // Freeze waits
    kFrozen,  // the thread waits
    kLeft,    // another process goes on
    kAdopted  // the thread waits for Begin
  };

  static absl::Status Start(const std::shared_ptr<ServerLoop>& self);
  // Listens, or takes over what listens.
  absl::Status Open(const std::string& path, mode_t mode, UniqueFd inherited);
  ConnectionEnvironment Environment();
  absl::StatusOr<ServerSnapshot> Export() const;
  // The thread in the frost, if it is asked for; returns whether it goes on.
  bool Hibernate();
  // False: it was stopped before it was to begin, and has let go of everything.
  bool AwaitBegin();
  // All of it is another process's.
  void Leave();
  void Run();
  // One poll and what it says; false when there is nothing left to do.
  bool Turn();
  void Accept();
  // Closes our own listening socket, and the connections that wait there with all they have sent.
  void StopListening();
  void Connect(UniqueFd socket);
  void Disconnect();
  void CallBack(const std::function<void()>& function) ABSL_LOCKS_EXCLUDED(callbacks_mutex_);

  const AttachFunction attach_;
  const Log log_;
  LogLimiter limited_;  // for lines that a front-end can cause
  FdCloser closer_;
  std::atomic<const char*> activity_{nullptr};
  const std::function<void()> on_connect_;
  const std::function<void()> on_disconnect_;
  const std::function<void()> on_ended_;
  UniqueFd listener_;
  bool listens_alone_ = false;  // nobody else has listener_
  SocketFile file_;
  SocketFile former_file_;       // of a server that this one goes on for at another place
  bool took_over_file_ = false;  // file_ is still the other one's until Begin
  UniqueFd first_;               // an inherited connection, until it is served
  UniqueFd wake_;                // eventfd: stop, or a change to tell the front-end of
  std::atomic<bool> stop_{false};
  std::atomic<bool> connected_{false};
  std::atomic<bool> ended_{false};
  bool out_of_fds_ = false;
  std::unique_ptr<Connection> connection_;
  const bool can_freeze_;
  std::atomic<bool> freezes_{false};
  absl::Mutex frost_mutex_;
  Frost frost_ ABSL_GUARDED_BY(frost_mutex_) = Frost::kNone;
  std::optional<absl::StatusOr<ServerSnapshot>> taken_ ABSL_GUARDED_BY(frost_mutex_);
  absl::Mutex callbacks_mutex_;  // held in a callback
  bool abandoned_ ABSL_GUARDED_BY(callbacks_mutex_) = false;
  std::thread thread_;       // its own reference goes with it
  absl::Notification over_;  // nothing is called back any more, and the connection is gone
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_SERVER_LOOP_H_
