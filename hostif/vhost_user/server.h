// Server: serves one device over vhost-user, as the back-end, to one front-end after another.
// Owned by the embedder (or the device host); create, query and destroy it on any thread, one at a
// time. It has one thread of its own, on which the front-end's messages and the callbacks run;
// requests do not pass through it. docs/vhost-user.md says what is supported.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_SERVER_H_
#define VIRTBAY_HOSTIF_VHOST_USER_SERVER_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "framework/base/export.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/attach.h"
#include "virtbay/host.h"

namespace virtbay::vhost_user {

class ServerLoop;
struct ServerSnapshot;

struct ServerOptions {
  // Where to listen: exactly one of these two.
  std::string socket_path;
  // A listening socket (inherited, or from ActivationSockets), or one that a front-end is connected
  // to already. In the latter case the server has ended with that front-end.
  UniqueFd socket;

  mode_t socket_mode = 0600;  // of the file at socket_path, whatever the umask
  Log log;                    // default: drops everything
  // How long the destructor waits for its thread: longer than the device takes to stop.
  absl::Duration stop_patience = absl::Seconds(30);
  // What Freeze needs is kept, which costs a descriptor per region of guest memory.
  bool can_freeze = false;
  // Called on the server's thread, which serves nobody meanwhile; must not destroy the server.
  std::function<void()> on_connect;     // a front-end has the device
  std::function<void()> on_disconnect;  // and has it no more
  std::function<void()> on_ended;       // ended() has become true by itself
};

class VIRTBAY_EXPORT Server {
 public:
  // Listens, and serves until destroyed. The error names the path or fd: AlreadyExists (in use, or
  // no socket), InvalidArgument (too long, wrong kind of fd), or of the system call. A device that
  // another front-end holds is no error here: connections are closed, with a line in the log,
  // until it is free. [any]
  static absl::StatusOr<std::unique_ptr<Server>> Create(DeviceHandle device, ServerOptions options);
  // The same for anything that has a port.
  static absl::StatusOr<std::unique_ptr<Server>> Create(AttachFunction attach,
                                                        ServerOptions options);
  // A server that goes on where that of another process was frozen. With the same socket_path it
  // has its listening socket, too; else it listens as with Create, and the other one's file goes.
  // It does nothing before Begin, and if it is destroyed before, neither front-ends nor the file
  // hear of it. The errors of Create; what the device or the snapshot has against it. [any]
  static absl::StatusOr<std::unique_ptr<Server>> Adopt(DeviceHandle device, ServerOptions options,
                                                       ServerSnapshot snapshot);
  // The rings go on, and the front-end is served. [any]
  void Begin();
  // Stops between two messages, and says where everything stands. Nothing is received or called
  // back until Thaw. DeadlineExceeded when the front-end holds the thread up, FailedPrecondition
  // without can_freeze. [any]
  absl::StatusOr<ServerSnapshot> Freeze(absl::Duration patience);
  void Thaw();
  // After Freeze: another process goes on; the destructor lets go of everything. [any]
  void LetGo();
  // Disconnects the front-end, which stops its rings, and removes the socket file. A thread that
  // the front-end holds up in the kernel for longer than stop_patience is left behind, with a line
  // in the log; it calls nobody back any more. [any]
  ~Server();
  // Begins with what the destructor does: the socket file is gone on return, the disconnect is not
  // waited for. [any]
  void BeginStop();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // A front-end has the device. [any]
  bool connected() const;
  // There will be no further front-end: the inherited connection is over, or the listening socket
  // has failed. [any]
  bool ended() const;

 private:
  Server(std::shared_ptr<ServerLoop> loop, absl::Duration patience);

  const std::shared_ptr<ServerLoop> loop_;
  const absl::Duration patience_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_SERVER_H_
