#include "hostif/device_host/takeover.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/status.h"
#include "hostif/device_host/handover_server.h"

namespace virtbay::device_host {
namespace {

using handover::Kind;

constexpr absl::Duration kShort = absl::Seconds(2);
// Longer than the other side gives itself for each of its steps, so that its word is heard.
constexpr absl::Duration kDevices = absl::Seconds(15);
// Its sockets' names are free at once, unless it hangs.
constexpr absl::Duration kOtherEnds = absl::Seconds(3);
// For the rest of a process whose descriptors are closed already.
constexpr int kDyingMs = 2000;

}  // namespace

Takeover::Takeover(handover::Channel channel, pid_t peer)
    : channel_(std::move(channel)),
      peer_(peer),
      process_(static_cast<int>(syscall(SYS_pidfd_open, peer, 0))) {}

absl::StatusOr<std::unique_ptr<Takeover>> Takeover::Begin(const StateDirectory& dir) {
  absl::StatusOr<handover::Channel> channel = handover::Channel::Connect(dir.fd(), kHandoverSocket);
  if (absl::IsNotFound(channel.status())) return nullptr;
  VIRTBAY_RETURN_IF_ERROR(Annotate(channel.status(), "handover"));
  absl::StatusOr<pid_t> peer = channel->CheckPeer();
  VIRTBAY_RETURN_IF_ERROR(Annotate(peer.status(), "handover"));
  std::unique_ptr<Takeover> self(new Takeover(*std::move(channel), *peer));
  const absl::Status asked = self->channel_.Send(Kind::kHello, "", {}, absl::Now() + kShort);
  absl::StatusOr<handover::Message> offer =
      asked.ok() ? self->channel_.Receive(Kind::kOffer, absl::Now() + kShort) : asked;
  // One that is about to end, or busy with another, or does not answer for whatever reason.
  if (absl::IsUnavailable(offer.status()) || absl::IsDeadlineExceeded(offer.status())) {
    return nullptr;
  }
  const std::string what = absl::StrCat("handover from process ", *peer);
  VIRTBAY_RETURN_IF_ERROR(Annotate(offer.status(), what));
  absl::StatusOr<handover::Offer> unpacked = handover::UnpackOffer(offer->bytes);
  VIRTBAY_RETURN_IF_ERROR(Annotate(unpacked.status(), what));
  self->offer_ = *std::move(unpacked);
  return self;
}

const handover::OfferedDevice* Takeover::Find(absl::string_view name) const {
  const auto found =
      std::find_if(offer_.devices.begin(), offer_.devices.end(),
                   [name](const handover::OfferedDevice& device) { return device.name == name; });
  return found == offer_.devices.end() ? nullptr : &*found;
}

void Takeover::Refuse(const absl::Status& why) {
  channel_.Send(Kind::kRefuse, why.message(), {}, absl::Now() + kShort).IgnoreError();
}

bool Takeover::OtherIsDead() {
  pollfd process{process_.get(), POLLIN, 0};
  return process_ && poll(&process, 1, kDyingMs) == 1;
}

absl::Status Takeover::SayTaken(int withdrawn) {
  absl::Status said = channel_.Send(Kind::kTaken, "", {}, absl::Now() + kShort);
  if (said.ok()) return said;
  // It does not want to hear it any more: it has said why, and serves, or it is dead. Then what it
  // has handed over was its last.
  absl::Status why = channel_.Receive(Kind::kTaken, absl::Now() + kShort).status();
  if (!absl::IsUnavailable(why)) return why;
  hung_up_ = OtherIsDead();
  pollfd served_on{withdrawn, POLLIN, 0};
  return hung_up_ && poll(&served_on, 1, 0) == 0 ? absl::OkStatus() : said;
}

absl::Status Takeover::Take(const std::vector<std::string>& names,
                            absl::FunctionRef<absl::Status()> may_go_on, Service* service) {
  absl::Status asked =
      channel_.Send(Kind::kStaged, handover::PackNames(names), {}, absl::Now() + kShort);
  absl::StatusOr<handover::Message> received =
      channel_.Receive(Kind::kDevices, absl::Now() + kDevices);
  if (!received.ok()) {
    // It may have refused before it was asked for anything.
    hung_up_ = absl::IsUnavailable(received.status());
    return received.status();
  }
  VIRTBAY_RETURN_IF_ERROR(asked);
  handover::Message message = *std::move(received);
  VIRTBAY_ASSIGN_OR_RETURN(handover::Devices devices,
                           handover::UnpackDevices(message.bytes, std::move(message.fds)));
  if (devices.devices.size() != names.size()) {
    return absl::InvalidArgumentError(absl::StrCat(devices.devices.size(), " devices came of ",
                                                   names.size(), " that were asked for"));
  }
  for (handover::HandedDevice& device : devices.devices) {
    VIRTBAY_RETURN_IF_ERROR(service->AdoptDevice(std::move(device)));
  }
  VIRTBAY_RETURN_IF_ERROR(service->state_directory()->TakeLock(std::move(devices.lock)));
  if (!devices.withdrawn) return absl::InvalidArgumentError("a descriptor is missing");
  VIRTBAY_RETURN_IF_ERROR(may_go_on());
  // From this word on the devices are this process's.
  VIRTBAY_RETURN_IF_ERROR(SayTaken(devices.withdrawn.get()));
  service->Begin();
  return absl::OkStatus();
}

void Takeover::AwaitOther() {
  channel_.Receive(Kind::kTaken, absl::Now() + kOtherEnds).IgnoreError();
}

}  // namespace virtbay::device_host
