#include "hostif/vhost_user/connection.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::vhost_user {
namespace {

// Messages between two looks at the other fds. A start-up is about 30.
constexpr int kMessagesPerTurn = 64;

std::string Name(const MessageInfo* info, uint32_t request) {
  return info != nullptr ? std::string(info->name) : absl::StrCat("message ", request);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Connection>> Connection::Create(UniqueFd socket,
                                                               const AttachFunction& attach,
                                                               ConnectionEnvironment environment) {
  std::unique_ptr<Connection> connection(new Connection(std::move(socket), environment));
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<DevicePort> port, attach(connection.get()));
  connection->session_.emplace(std::move(port), environment.keeps_fds, environment.log->log());
  return connection;
}

absl::StatusOr<ConnectionSnapshot> Connection::Export() const {
  ConnectionSnapshot snapshot;
  snapshot.socket = socket_.Duplicate();
  if (!snapshot.socket) return ErrnoStatus(errno, "the connection");
  VIRTBAY_ASSIGN_OR_RETURN(snapshot.session, session_->Export());
  snapshot.config_changed = config_changed_.load(std::memory_order_acquire);
  VIRTBAY_RETURN_IF_ERROR(reader_.Export(&snapshot.read, &snapshot.read_fds));
  VIRTBAY_RETURN_IF_ERROR(writer_.Export(&snapshot.unsent, &snapshot.unsent_fd));
  return snapshot;
}

absl::StatusOr<std::unique_ptr<Connection>> Connection::Adopt(ConnectionSnapshot snapshot,
                                                              const AttachFunction& attach,
                                                              ConnectionEnvironment environment) {
  std::unique_ptr<Connection> connection(new Connection(std::move(snapshot.socket), environment));
  connection->lets_go_ = true;
  VIRTBAY_ASSIGN_OR_RETURN(std::unique_ptr<DevicePort> port, attach(connection.get()));
  connection->session_.emplace(std::move(port), environment.keeps_fds, environment.log->log());
  VIRTBAY_RETURN_IF_ERROR(connection->session_->Import(std::move(snapshot.session)));
  connection->config_changed_.store(snapshot.config_changed, std::memory_order_release);
  VIRTBAY_RETURN_IF_ERROR(connection->reader_.Import(snapshot.read, std::move(snapshot.read_fds)));
  VIRTBAY_RETURN_IF_ERROR(
      connection->writer_.Import(snapshot.unsent, std::move(snapshot.unsent_fd)));
  return connection;
}

void Connection::Start() {
  lets_go_ = false;
  session_->Start();
  OnWake();
}

Connection::Connection(UniqueFd socket, ConnectionEnvironment environment)
    : socket_(std::move(socket)),
      environment_(environment),
      log_(environment.log),
      reader_(environment.closer) {}

Connection::~Connection() {
  session_.reset();
  if (lets_go_) return;
  environment_.closer->HangUp(std::move(socket_));
}

short Connection::events() const { return writer_.pending() ? POLLOUT : POLLIN; }

bool Connection::OnReady() {
  if (absl::Status status = writer_.Flush(fd()); !status.ok()) {
    log_->Warn(absl::StrCat("the front-end is gone: ", status.message()));
    return false;
  }
  for (int i = 0; i < kMessagesPerTurn && !writer_.pending(); ++i) {
    auto progress = reader_.Read(fd());
    if (!progress.ok()) {
      log_->Warn(absl::StrCat("closing the connection: ", progress.status().message()));
      return false;
    }
    if (*progress == MessageReader::Progress::kIncomplete) return true;
    if (*progress == MessageReader::Progress::kEnd) {
      log_->Info("the front-end disconnected");
      return false;
    }
    if (absl::Status status = Handle(reader_.message()); !status.ok()) {
      log_->Warn(absl::StrCat("closing the connection: ", status.message()));
      return false;
    }
  }
  return true;
}

absl::Status Connection::Check(const MessageInfo* info, const Message& message) const {
  if (info == nullptr) return absl::UnimplementedError("unknown");
  if (info->handler == nullptr) return absl::UnimplementedError("needs a feature not offered");
  // QEMU enables the rings of a network device before it sets the features that allow it.
  if (info->needs_bit_30 && session_->features_set() &&
      !session_->protocol_features_acknowledged()) {
    return absl::FailedPreconditionError("needs VHOST_USER_F_PROTOCOL_FEATURES acknowledged");
  }
  if (!session_->HasProtocolFeatures(info->needs_protocol_features)) {
    return absl::FailedPreconditionError(
        absl::StrCat("needs protocol features 0x", absl::Hex(info->needs_protocol_features)));
  }
  if (message.header.size < info->min_size || message.header.size > info->max_size) {
    return absl::InvalidArgumentError(absl::StrCat("a payload of ", message.header.size,
                                                   " bytes, not ", info->min_size, " to ",
                                                   info->max_size));
  }
  if (message.fds.size() < info->min_fds || message.fds.size() > info->max_fds) {
    return absl::InvalidArgumentError(absl::StrCat(message.fds.size(), " file descriptors, not ",
                                                   info->min_fds, " to ", info->max_fds));
  }
  return absl::OkStatus();
}

absl::Status Connection::Handle(Message& message) {
  const MessageInfo* const info = FindMessage(message.header.request);
  Reply reply;
  absl::Status result = Check(info, message);
  if (result.ok()) {
    // A literal of the table, so it ends with a zero.
    environment_.activity->store(info->name.data(), std::memory_order_relaxed);
    result = ((*session_).*(info->handler))(message, reply);
  }
  const bool had_fds = !message.fds.empty();
  // What the handler did not keep is closed before the front-end may go on.
  environment_.activity->store("closing its descriptors", std::memory_order_relaxed);
  reader_.DropFds();
  if (!result.ok()) {
    log_->Warn(absl::StrCat(Name(info, message.header.request), ": ", result.message()));
  }
  if (had_fds && GaveItselfAway()) {
    return absl::InvalidArgumentError(
        "the front-end gave its own end of the connection as a descriptor");
  }
  // A change from before the channel was there.
  if (info != nullptr && info->request == Request::kSetBackendReqFd) OnWake();
  return Answer(info, message, result, reply);
}

absl::Status Connection::Answer(const MessageInfo* info, const Message& message,
                                const absl::Status& result, Reply& reply) {
  const uint32_t request = message.header.request;
  if (info != nullptr && info->answer != Answer::kAck) {
    if (result.ok()) return writer_.Send(fd(), request, reply.bytes(), reply.TakeFd());
    if (info->answer == Answer::kOwnOrEmpty) return writer_.Send(fd(), request, {});
    return absl::Status(result.code(),
                        absl::StrCat(info->name, " has no reply that says that it failed"));
  }
  if ((message.header.flags & kFlagNeedReply) == 0) return absl::OkStatus();
  // Only now, after the handler: SET_PROTOCOL_FEATURES may just have negotiated REPLY_ACK, and then
  // it is acknowledged itself. One that failed to is still waited for.
  const bool asks = info != nullptr && info->request == Request::kSetProtocolFeatures &&
                    message.header.size == sizeof(uint64_t) &&
                    (message.Get<uint64_t>() & kProtocolReplyAck) != 0;
  if (!asks && !session_->HasProtocolFeatures(kProtocolReplyAck)) return absl::OkStatus();
  const uint64_t code = result.ok() ? 0 : 1;
  return writer_.Send(fd(), request, std::as_bytes(std::span(&code, 1)));
}

void Connection::OnConfigChanged() {
  config_changed_.store(true, std::memory_order_release);
  // An eventfd that is full is awake anyway.
  static_cast<void>(eventfd_write(environment_.wake_fd, 1));
}

void Connection::OnWake() {
  if (!session_->backend().valid()) return;  // kept until there is a channel
  if (!session_->HasProtocolFeatures(kProtocolBackendReq | kProtocolConfig)) return;
  if (!config_changed_.exchange(false, std::memory_order_acquire)) return;
  const absl::Status status = session_->backend().SendConfigChange();
  if (!status.ok()) {
    log_->Warn(absl::StrCat("BACKEND_CONFIG_CHANGE_MSG dropped: ", status.message()));
  }
}

bool Connection::GaveItselfAway() const {
  // Taking its reading side has taken the writing side of ours; its own end would take both.
  return !PeerGone() && send(fd(), nullptr, 0, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EPIPE;
}

bool Connection::PeerGone() const {
  pollfd entry{fd(), 0, 0};
  return poll(&entry, 1, 0) == 1 && (entry.revents & (POLLHUP | POLLERR)) != 0;
}

}  // namespace virtbay::vhost_user
