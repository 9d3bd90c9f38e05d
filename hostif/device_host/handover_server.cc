#include "hostif/device_host/handover_server.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <exception>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"
#include "hostif/handover/format.h"

namespace virtbay::device_host {
namespace {

using handover::Kind;

// For words that need no thinking about.
constexpr absl::Duration kShort = absl::Seconds(2);
constexpr absl::Duration kRefusal = absl::Milliseconds(500);
// For the other process to make its devices, while these serve.
constexpr absl::Duration kStaging = absl::Seconds(10);
// For requests to end or be handed back, and for the state to be taken over: nobody serves then.
constexpr absl::Duration kQuiesce = absl::Seconds(2);
constexpr absl::Duration kTaking = absl::Seconds(5);

}  // namespace

absl::StatusOr<std::unique_ptr<HandoverServer>> HandoverServer::Create(
    int dir, int lock, Service* service, std::function<void()> on_taken) {
  UniqueFd own(fcntl(dir, F_DUPFD_CLOEXEC, 3));
  if (!own) return ErrnoStatus(errno, "state-dir");
  std::unique_ptr<HandoverServer> self(
      new HandoverServer(std::move(own), lock, service, std::move(on_taken)));
  VIRTBAY_ASSIGN_OR_RETURN(self->listener_, handover::Listen(self->dir_.get(), kHandoverSocket));
  self->wake_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!self->wake_) return ErrnoStatus(errno, "eventfd");
  try {
    self->thread_ = std::thread([raw = self.get()] { raw->Loop(); });
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for handovers: ", error.what()));
  }
  return self;
}

HandoverServer::~HandoverServer() {
  Settle();
  if (thread_.joinable()) thread_.join();
  // Of a handover's, the name is the other process's.
  if (!taken() && listener_) unlinkat(dir_.get(), kHandoverSocket, 0);
}

bool HandoverServer::Settle() {
  if (wake_) eventfd_write(wake_.get(), 1);
  absl::MutexLock lock(&mutex_);
  settles_ = true;
  if (phase_ == Phase::kAsked) channel_->HangUp();
  const auto decided = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return phase_ != Phase::kHanding;
  };
  mutex_.Await(absl::Condition(&decided));
  return phase_ == Phase::kTaken;
}

bool HandoverServer::taken() const {
  absl::MutexLock lock(&mutex_);
  return phase_ == Phase::kTaken;
}

pid_t HandoverServer::successor() const {
  absl::MutexLock lock(&mutex_);
  return successor_;
}

absl::Status HandoverServer::Enter(Phase phase, handover::Channel* channel) {
  absl::MutexLock lock(&mutex_);
  if (settles_) return absl::UnavailableError("this process is about to end");
  phase_ = phase;
  channel_ = channel;
  return absl::OkStatus();
}

void HandoverServer::Loop() {
  pthread_setname_np(pthread_self(), "handover");
  for (;;) {
    std::array<pollfd, 2> fds{{{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}}};
    if (poll(fds.data(), fds.size(), -1) < 0 && errno != EINTR) return;
    if (fds[0].revents != 0) return;
    if (fds[1].revents == 0) continue;
    UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      // Out of descriptors: whoever waits has a deadline of its own.
      if (errno == EMFILE || errno == ENFILE) absl::SleepFor(absl::Milliseconds(100));
      continue;
    }
    auto channel = std::make_unique<handover::Channel>(std::move(socket));
    const absl::StatusOr<pid_t> peer = channel->CheckPeer();
    const UniqueFd withdrawn(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    absl::Status status = withdrawn ? peer.status() : ErrnoStatus(errno, "eventfd");
    if (status.ok()) {
      try {
        status = Converse(channel.get(), *peer, withdrawn.get());
      } catch (const std::exception& error) {
        status = absl::InternalError(error.what());
      }
    }
    if (status.ok()) {
      last_ = std::move(channel);
      return;
    }
    // Before anything is served again: who was given the devices goes on with them when this
    // process is dead, unless it is told so.
    if (withdrawn) eventfd_write(withdrawn.get(), 1);
    if (peer.ok()) {
      channel->Send(Kind::kRefuse, status.message(), {}, absl::Now() + kRefusal).IgnoreError();
    }
    service_->Withdraw();
    {
      absl::MutexLock lock(&mutex_);
      phase_ = Phase::kIdle;
      channel_ = nullptr;
    }
    service_->log().Warn(absl::StrCat("not handed over",
                                      peer.ok() ? absl::StrCat(" to process ", *peer) : "", ": ",
                                      status.message(), "; the devices are served on"));
  }
}

absl::Status HandoverServer::Converse(handover::Channel* channel, pid_t peer, int withdrawn) {
  VIRTBAY_RETURN_IF_ERROR(Enter(Phase::kAsked, channel));
  VIRTBAY_ASSIGN_OR_RETURN(const handover::Message hello,
                           channel->Receive(Kind::kHello, absl::Now() + kShort));
  const handover::Packed offer = handover::PackOffer(service_->Offer());
  VIRTBAY_RETURN_IF_ERROR(
      channel->Send(Kind::kOffer, offer.bytes, offer.fds, absl::Now() + kShort));
  VIRTBAY_ASSIGN_OR_RETURN(const handover::Message staged,
                           channel->Receive(Kind::kStaged, absl::Now() + kStaging));
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                           handover::UnpackNames(staged.bytes));
  VIRTBAY_RETURN_IF_ERROR(Enter(Phase::kHanding, nullptr));
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<handover::HandedDevice> devices,
                           service_->Suspend(names, kQuiesce));
  const absl::Time deadline = absl::Now() + kTaking;
  absl::Status status;
  try {
    const handover::Packed packed = handover::PackDevices(devices, lock_, withdrawn);
    status = channel->Send(Kind::kDevices, packed.bytes, packed.fds, deadline);
    if (status.ok()) status = channel->Receive(Kind::kTaken, deadline).status();
  } catch (const std::exception& error) {
    status = absl::InternalError(error.what());
  }
  if (!status.ok()) {
    // Who serves them is whoever this ends for: that word has come, or cannot come any more.
    channel->Close();
    if (!channel->Receive(Kind::kTaken, absl::Now()).ok()) return status;
  }
  service_->GiveAway();
  service_->log().Info(absl::StrCat("process ", peer, " serves the devices from now on"));
  {
    absl::MutexLock lock(&mutex_);
    phase_ = Phase::kTaken;
    successor_ = peer;
  }
  on_taken_();
  service_->LetGo();
  return absl::OkStatus();
}

}  // namespace virtbay::device_host
