#include "hostif/vhost_user/server_loop.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <exception>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/join.h"
#include "framework/base/signals.h"
#include "framework/base/status.h"

namespace virtbay::vhost_user {
namespace {

// How long the listener is left alone when the process has no descriptors for a new connection.
constexpr int kRetryMs = 1000;

// A thread that is over has nothing left to do but to leave.
constexpr absl::Duration kExit = absl::Seconds(5);

// "pid P, uid U" of the other end.
std::string Peer(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return "unknown peer";
  return absl::StrCat("pid ", peer.pid, ", uid ", peer.uid);
}

// As it is for a process with another working directory.
std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error);
  return error ? path : absolute.lexically_normal().native();
}

}  // namespace

absl::StatusOr<std::shared_ptr<ServerLoop>> ServerLoop::Create(AttachFunction attach,
                                                               ServerOptions options) {
  if (options.socket_path.empty() == !options.socket.valid()) {
    return absl::InvalidArgumentError("a server needs either a socket path or a socket");
  }
  const std::string path = options.socket_path;
  const mode_t mode = options.socket_mode;
  UniqueFd inherited = std::move(options.socket);
  std::shared_ptr<ServerLoop> self(new ServerLoop(std::move(attach), std::move(options)));
  VIRTBAY_RETURN_IF_ERROR(self->Open(path, mode, std::move(inherited)));
  VIRTBAY_RETURN_IF_ERROR(Start(self));
  return self;
}

absl::Status ServerLoop::Open(const std::string& path, mode_t mode, UniqueFd inherited) {
  if (inherited) {
    VIRTBAY_ASSIGN_OR_RETURN(const SocketRole role, InspectSocket(inherited));
    (role == SocketRole::kListening ? listener_ : first_) = std::move(inherited);
    return absl::OkStatus();
  }
  VIRTBAY_ASSIGN_OR_RETURN(ListeningSocket socket, ListenAt(path, mode));
  listener_ = std::move(socket.fd);
  file_ = std::move(socket.file);
  listens_alone_ = true;
  return absl::OkStatus();
}

// ---- from one process to another --------------------------------------------------------------

absl::StatusOr<std::shared_ptr<ServerLoop>> ServerLoop::Adopt(AttachFunction attach,
                                                              ServerOptions options,
                                                              ServerSnapshot snapshot) {
  const std::string path = options.socket_path;
  const mode_t mode = options.socket_mode;
  UniqueFd inherited = std::move(options.socket);
  std::shared_ptr<ServerLoop> self(new ServerLoop(std::move(attach), std::move(options)));
  SocketFile former;
  if (snapshot.listener) {
    VIRTBAY_ASSIGN_OR_RETURN(const SocketRole role, InspectSocket(snapshot.listener));
    if (role != SocketRole::kListening) {
      return absl::InvalidArgumentError("what came as a listening socket is none");
    }
    former = SocketFile::At(snapshot.path, snapshot.device, snapshot.inode);
  }
  // Not if its file has gone, or is another's: nobody could connect.
  if (!former.path().empty() && !path.empty() && Absolute(path) == snapshot.path) {
    self->listener_ = std::move(snapshot.listener);
    self->file_ = std::move(former);
    self->listens_alone_ = self->took_over_file_ = true;
  } else {
    self->former_file_ = std::move(former);
    absl::Status opened = self->Open(path, mode, std::move(inherited));
    if (opened.ok() && self->first_) {
      opened = absl::InvalidArgumentError("the socket is connected already");
    }
    if (!opened.ok()) {
      self->former_file_.LetGo();
      return opened;
    }
  }
  absl::Status status;
  self->wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!self->wake_) status = ErrnoStatus(errno, "eventfd");
  if (status.ok() && snapshot.connection.has_value()) {
    if (auto role = InspectSocket(snapshot.connection->socket);
        !role.ok() || *role != SocketRole::kConnected) {
      status = absl::InvalidArgumentError("what came as a front-end's connection is none");
    } else {
      auto connection =
          Connection::Adopt(*std::move(snapshot.connection), self->attach_, self->Environment());
      status = connection.status();
      if (status.ok()) self->connection_ = *std::move(connection);
    }
  }
  {
    absl::MutexLock lock(&self->frost_mutex_);
    self->frost_ = Frost::kAdopted;
  }
  if (status.ok()) status = Start(self);
  if (!status.ok()) {
    self->former_file_.LetGo();
    if (self->took_over_file_) self->file_.LetGo();
    return status;
  }
  return self;
}

void ServerLoop::Begin() {
  absl::MutexLock lock(&frost_mutex_);
  if (frost_ == Frost::kAdopted) frost_ = Frost::kNone;
}

absl::StatusOr<ServerSnapshot> ServerLoop::Freeze(absl::Duration patience) {
  if (!can_freeze_) return absl::FailedPreconditionError("the server was not made to be frozen");
  absl::MutexLock lock(&frost_mutex_);
  if (frost_ != Frost::kNone || ended()) {
    return absl::FailedPreconditionError("the server is frozen already, or has ended");
  }
  frost_ = Frost::kBegun;
  taken_.reset();
  freezes_.store(true, std::memory_order_release);
  eventfd_write(wake_.get(), 1);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(frost_mutex_) {
    return frost_ != Frost::kBegun || ended();
  };
  frost_mutex_.AwaitWithTimeout(absl::Condition(&over), patience);
  if (frost_ != Frost::kFrozen) {
    frost_ = Frost::kNone;
    freezes_.store(false, std::memory_order_release);
    return absl::DeadlineExceededError("the front-end holds the server's thread up");
  }
  absl::StatusOr<ServerSnapshot> snapshot = *std::exchange(taken_, std::nullopt);
  if (!snapshot.ok()) frost_ = Frost::kNone;
  return snapshot;
}

void ServerLoop::Thaw() {
  absl::MutexLock lock(&frost_mutex_);
  if (frost_ == Frost::kFrozen) frost_ = Frost::kNone;
}

void ServerLoop::LetGo() {
  absl::MutexLock lock(&frost_mutex_);
  if (frost_ == Frost::kFrozen) frost_ = Frost::kLeft;
}

absl::StatusOr<ServerSnapshot> ServerLoop::Export() const {
  ServerSnapshot snapshot;
  if (listener_) {
    snapshot.listener = listener_.Duplicate();
    if (!snapshot.listener) return ErrnoStatus(errno, "the listening socket");
    if (!file_.path().empty()) snapshot.path = Absolute(file_.path());
    snapshot.device = file_.device();
    snapshot.inode = file_.inode();
  }
  if (connection_ != nullptr) {
    VIRTBAY_ASSIGN_OR_RETURN(snapshot.connection, connection_->Export());
  }
  return snapshot;
}

bool ServerLoop::Hibernate() {
  if (!freezes_.load(std::memory_order_acquire)) return true;
  absl::StatusOr<ServerSnapshot> snapshot = Export();
  absl::MutexLock lock(&frost_mutex_);
  freezes_.store(false, std::memory_order_release);
  if (frost_ != Frost::kBegun) return true;
  taken_ = std::move(snapshot);
  frost_ = Frost::kFrozen;
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(frost_mutex_) {
    return frost_ != Frost::kFrozen || stop_.load(std::memory_order_acquire);
  };
  frost_mutex_.Await(absl::Condition(&over));
  if (frost_ == Frost::kLeft) {
    Leave();
    return false;
  }
  // After a Thaw another Freeze may have begun.
  if (frost_ == Frost::kFrozen) frost_ = Frost::kNone;
  return true;
}

void ServerLoop::Leave() {
  if (connection_ != nullptr) connection_->LetGo();
  listens_alone_ = false;
  file_.LetGo();
  former_file_.LetGo();
}

ServerLoop::ServerLoop(AttachFunction attach, ServerOptions options)
    : attach_(std::move(attach)),
      log_(std::move(options.log)),
      limited_(log_),
      on_connect_(std::move(options.on_connect)),
      on_disconnect_(std::move(options.on_disconnect)),
      on_ended_(std::move(options.on_ended)),
      can_freeze_(options.can_freeze) {}

ConnectionEnvironment ServerLoop::Environment() {
  return {wake_.get(), &limited_, &closer_, &activity_, can_freeze_};
}

absl::Status ServerLoop::Start(const std::shared_ptr<ServerLoop>& self) {
  if (!self->wake_) self->wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!self->wake_) return ErrnoStatus(errno, "eventfd");
  // A thread begins with its maker's mask, so there is no moment in which a signal could reach it.
  const sigset_t blocked = SignalsToBlock();
  sigset_t before;
  pthread_sigmask(SIG_BLOCK, &blocked, &before);
  absl::Status status;
  try {
    self->thread_ = std::thread([self] { self->Run(); });
    pthread_setname_np(self->thread_.native_handle(), "vhost-user");
  } catch (const std::system_error& error) {
    status = absl::ResourceExhaustedError(absl::StrCat("starting a thread: ", error.what()));
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return status;
}

bool ServerLoop::AwaitEnd(absl::Duration patience) {
  // Nor is the end of a thread without a bound: the kernel may wait in it.
  if (over_.WaitForNotificationWithTimeout(patience) && JoinUntil(&thread_, absl::Now() + kExit))
    return true;
  if (thread_.joinable()) thread_.detach();
  absl::MutexLock lock(&callbacks_mutex_);
  abandoned_ = true;
  return false;
}

void ServerLoop::CallBack(const std::function<void()>& function) {
  if (!function) return;
  absl::MutexLock lock(&callbacks_mutex_);
  if (!abandoned_) function();
}

void ServerLoop::BeginStop() {
  {
    absl::MutexLock lock(&frost_mutex_);
    // Nothing of it is this process's any more, or yet.
    const bool others = frost_ == Frost::kLeft || (frost_ == Frost::kAdopted && took_over_file_);
    if (!others) file_.Remove();
    stop_.store(true, std::memory_order_release);
  }
  if (wake_) eventfd_write(wake_.get(), 1);
}

bool ServerLoop::AwaitBegin() {
  absl::MutexLock lock(&frost_mutex_);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(frost_mutex_) {
    return frost_ != Frost::kAdopted || stop_.load(std::memory_order_acquire);
  };
  frost_mutex_.Await(absl::Condition(&over));
  if (frost_ != Frost::kAdopted) {
    former_file_.Remove();
    return true;
  }
  if (connection_ != nullptr) connection_->LetGo();
  former_file_.LetGo();
  if (took_over_file_) {
    listens_alone_ = false;
    file_.LetGo();
  }
  return false;
}

void ServerLoop::Run() {
  if (!AwaitBegin()) {
    connection_.reset();
    over_.Notify();
    return;
  }
  if (connection_ != nullptr) {
    connected_.store(true, std::memory_order_release);
    connection_->Start();
    CallBack(on_connect_);
  }
  while (!stop_.load(std::memory_order_acquire)) {
    // The control plane may throw (memory, a callback of the embedder); that costs the connection,
    // not the process.
    try {
      if (!Turn()) break;
    } catch (const std::exception& error) {
      log_.Error(absl::StrCat("closing the connection: ", error.what()));
      Disconnect();
    }
  }
  Disconnect();
  StopListening();
  ended_.store(true, std::memory_order_release);
  if (!stop_.load(std::memory_order_acquire)) CallBack(on_ended_);
  over_.Notify();
}

bool ServerLoop::Turn() {
  if (first_) Connect(std::move(first_));
  if (!listener_ && connection_ == nullptr) return false;

  // poll skips negative fds.
  enum { kWake, kListener, kSocket, kBackend, kCount };
  std::array<pollfd, kCount> fds{};
  fds[kWake] = {wake_.get(), POLLIN, 0};
  fds[kListener] = {out_of_fds_ ? -1 : listener_.get(), POLLIN, 0};
  fds[kSocket] = {connection_ ? connection_->fd() : -1,
                  connection_ ? connection_->events() : short{0}, 0};
  fds[kBackend] = {connection_ ? connection_->backend_fd() : -1, 0, 0};
  if (poll(fds.data(), fds.size(), out_of_fds_ ? kRetryMs : -1) < 0 && errno != EINTR) {
    log_.Error(absl::StrCat("poll: ", ErrnoStatus(errno, "server").message()));
    return false;
  }
  out_of_fds_ = false;

  if (fds[kWake].revents != 0) {
    eventfd_t count = 0;
    static_cast<void>(eventfd_read(wake_.get(), &count));
    if (stop_.load(std::memory_order_acquire) || !Hibernate()) return false;
    if (stop_.load(std::memory_order_acquire)) return false;
    if (connection_ != nullptr) connection_->OnWake();
  }
  // Before the socket, whose messages may replace the channel.
  if (fds[kBackend].revents != 0) connection_->OnBackendClosed();
  if (fds[kSocket].revents != 0 && !connection_->OnReady()) Disconnect();
  if (fds[kListener].revents != 0) Accept();
  activity_.store(nullptr, std::memory_order_relaxed);
  return true;
}

void ServerLoop::Accept() {
  UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket) {
    switch (errno) {
      case EAGAIN:
      case EINTR:
      case ECONNABORTED:
        return;
      case EMFILE:
      case ENFILE:
      case ENOBUFS:
      case ENOMEM:
        log_.Error(ErrnoStatus(errno, "a front-end has to wait").message());
        out_of_fds_ = true;
        return;
      default:
        log_.Error(ErrnoStatus(errno, "accept; no longer listening").message());
        listener_.reset();
        return;
    }
  }
  // A front-end that reconnects has closed its old connection first, but both may be seen at once.
  if (connection_ != nullptr && connection_->PeerGone()) {
    limited_.Info("the front-end disconnected");
    Disconnect();
  }
  if (connection_ != nullptr) {
    limited_.Warn(absl::StrCat("refused a second front-end (", Peer(socket.get()),
                               "): the device is in use"));
    closer_.HangUp(std::move(socket));
    return;
  }
  Connect(std::move(socket));
}

void ServerLoop::StopListening() {
  // An inherited one is its giver's too, who may serve what waits there.
  if (!listens_alone_) return;
  static_cast<void>(shutdown(listener_.get(), SHUT_RD));
  for (;;) {
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) break;
    closer_.HangUp(std::move(socket));
  }
  listener_.reset();
}

void ServerLoop::Connect(UniqueFd socket) {
  const std::string peer = Peer(socket.get());
  auto connection = Connection::Create(std::move(socket), attach_, Environment());
  if (!connection.ok()) {
    limited_.Warn(absl::StrCat("closed the connection of a front-end (", peer,
                               "): ", connection.status().message()));
    return;
  }
  limited_.Info(absl::StrCat("a front-end connected (", peer, ")"));
  connection_ = *std::move(connection);
  connected_.store(true, std::memory_order_release);
  CallBack(on_connect_);
}

void ServerLoop::Disconnect() {
  if (connection_ == nullptr) return;
  activity_.store("its disconnect", std::memory_order_relaxed);
  connection_.reset();
  activity_.store(nullptr, std::memory_order_relaxed);
  connected_.store(false, std::memory_order_release);
  try {
    CallBack(on_disconnect_);
  } catch (const std::exception& error) {
    log_.Error(absl::StrCat("on_disconnect: ", error.what()));
  }
}

}  // namespace virtbay::vhost_user
