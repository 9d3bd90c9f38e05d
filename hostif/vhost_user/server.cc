#include "hostif/vhost_user/server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/vhost_user/server_loop.h"

namespace virtbay::vhost_user {

absl::StatusOr<std::unique_ptr<Server>> Server::Create(DeviceHandle device, ServerOptions options) {
  return Create(
      [device = std::move(device)](DevicePortEvents* events) { return device.Attach(events); },
      std::move(options));
}

absl::StatusOr<std::unique_ptr<Server>> Server::Create(AttachFunction attach,
                                                       ServerOptions options) {
  const absl::Duration patience = options.stop_patience;
  VIRTBAY_ASSIGN_OR_RETURN(std::shared_ptr<ServerLoop> loop,
                           ServerLoop::Create(std::move(attach), std::move(options)));
  return std::unique_ptr<Server>(new Server(std::move(loop), patience));
}

absl::StatusOr<std::unique_ptr<Server>> Server::Adopt(DeviceHandle device, ServerOptions options,
                                                      ServerSnapshot snapshot) {
  const absl::Duration patience = options.stop_patience;
  VIRTBAY_ASSIGN_OR_RETURN(
      std::shared_ptr<ServerLoop> loop,
      ServerLoop::Adopt(
          [device = std::move(device)](DevicePortEvents* events) { return device.Attach(events); },
          std::move(options), std::move(snapshot)));
  return std::unique_ptr<Server>(new Server(std::move(loop), patience));
}

void Server::Begin() { loop_->Begin(); }

absl::StatusOr<ServerSnapshot> Server::Freeze(absl::Duration patience) {
  return loop_->Freeze(patience);
}

void Server::Thaw() { loop_->Thaw(); }
void Server::LetGo() { loop_->LetGo(); }

Server::Server(std::shared_ptr<ServerLoop> loop, absl::Duration patience)
    : loop_(std::move(loop)), patience_(patience) {}

Server::~Server() {
  BeginStop();
  if (loop_->AwaitEnd(patience_)) return;
  const char* const activity = loop_->activity();
  loop_->log().Error(absl::StrCat("the server's thread does not end, ",
                                  activity == nullptr
                                      ? "although it does nothing for a front-end"
                                      : absl::StrCat("held up by the front-end in ", activity),
                                  "; it is left behind"));
}

void Server::BeginStop() { loop_->BeginStop(); }

bool Server::connected() const { return loop_->connected(); }
bool Server::ended() const { return loop_->ended(); }

}  // namespace virtbay::vhost_user
