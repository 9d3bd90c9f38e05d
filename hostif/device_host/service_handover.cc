// The devices of a Service on their way from one process to another: Service::Offer to LetGo of the
// one that has served, StageDevice to Begin of the one that goes on.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/device_host/service.h"

namespace virtbay::device_host {
namespace {

// For a front-end's message that is being handled.
constexpr absl::Duration kFreezePatience = absl::Seconds(2);

std::string Milliseconds(uint64_t ns) {
  return absl::StrCat(static_cast<double>(ns / 1000) / 1000, " ms");
}

}  // namespace

absl::Status Service::CheckChangeable() const {
  if (!frozen_) return absl::OkStatus();
  return absl::UnavailableError("the devices are being handed over to another process");
}

handover::Offer Service::Offer() const {
  handover::Offer offer;
  if (const auto pool = pool_.reported(); pool.has_value()) {
    offer.pool_base = pool->swiotlb_base;
    offer.pool_size = pool->swiotlb_size;
  }
  for (const DeviceReport& report : InspectAll()) {
    handover::OfferedDevice& device = offer.devices.emplace_back();
    device.name = report.info.name;
    device.aperture = report.info.aperture;
    const absl::StatusOr<DeviceHandle> handle = Ready(device.name);
    absl::StatusOr<DeviceShape> shape = handle.ok() ? handle->Shape() : handle.status();
    if (shape.ok()) {
      device.shape = *std::move(shape);
    } else {
      device.refusal = std::string(shape.status().message());
    }
    absl::MutexLock lock(&mutex_);
    const auto entry = entries_.find(device.name);
    if (entry != entries_.end() && entry->second.recorder != nullptr) {
      device.refusal = "it is recorded from the start on";
    }
  }
  return offer;
}

absl::StatusOr<std::vector<handover::HandedDevice>> Service::Suspend(
    const std::vector<std::string>& names, absl::Duration quiesce_deadline) {
  std::vector<std::pair<std::string, vhost_user::Server*>> servers;
  {
    absl::MutexLock lock(&mutex_);
    VIRTBAY_RETURN_IF_ERROR(CheckChangeable());
    for (const auto& [name, entry] : entries_) {
      if (entry.ready) continue;
      return absl::UnavailableError(absl::StrCat("device ", name, ": is being added or removed"));
    }
    for (const std::string& name : names) {
      const auto it = entries_.find(name);
      if (it == entries_.end()) {
        return absl::NotFoundError(absl::StrCat("device ", name, ": does not exist"));
      }
      servers.emplace_back(name, it->second.server.get());
    }
    frozen_ = true;
    for (const std::string& name : names) entries_.find(name)->second.frozen = true;
  }
  std::vector<handover::HandedDevice> devices;
  absl::Status status;
  for (const auto& [name, server] : servers) {
    absl::StatusOr<vhost_user::ServerSnapshot> snapshot = server->Freeze(kFreezePatience);
    if (!snapshot.ok()) {
      status = Annotate(snapshot.status(), absl::StrCat("device ", name));
      break;
    }
    handover::HandedDevice& device = devices.emplace_back();
    device.name = name;
    device.server = *std::move(snapshot);
  }
  for (handover::HandedDevice& device : devices) {
    if (!status.ok()) break;
    device.stopped_at_ns = MonotonicNs();
    const absl::StatusOr<DeviceHandle> handle = host_->Find(device.name);
    absl::StatusOr<LeftDevice> left =
        handle.ok() ? handle->Suspend(quiesce_deadline) : handle.status();
    if (!left.ok()) {
      status = Annotate(left.status(), absl::StrCat("device ", device.name));
      break;
    }
    device.left = *std::move(left);
    device.stop_ns = MonotonicNs() - device.stopped_at_ns;
    if (!device.server.connection.has_value()) continue;
    auto& rings = device.server.connection->session.rings;
    for (size_t i = 0; i < rings.size() && i < device.left.rings.size(); ++i) {
      if (rings[i].runs) rings[i].base = device.left.rings[i].base;
    }
  }
  if (status.ok()) return devices;
  Resume();
  return status;
}

void Service::Resume() {
  std::vector<std::pair<std::string, vhost_user::Server*>> servers;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [name, entry] : entries_) {
      if (std::exchange(entry.frozen, false)) servers.emplace_back(name, entry.server.get());
    }
  }
  // One that had not been reached is not suspended, nor is its server frozen.
  for (const auto& [name, server] : servers) {
    if (const auto device = host_->Find(name); device.ok()) device->Resume().IgnoreError();
    server->Thaw();
  }
  absl::MutexLock lock(&mutex_);
  frozen_ = false;
}

void Service::LetGo() {
  absl::MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) {
    if (!entry.frozen) continue;
    const auto device = host_->Find(name);
    const absl::Status released = device.ok() ? device->Release() : device.status();
    if (!released.ok()) log_.Error(absl::StrCat("device ", name, ": ", released.message()));
    entry.server->LetGo();
  }
}

absl::Status Service::TakePoolReport(const handover::Offer& offer) {
  if (offer.pool_base == 0 && offer.pool_size == 0) return absl::OkStatus();
  return pool_.Apply({offer.pool_base, offer.pool_size});
}

absl::Status Service::StageDevice(DeviceConfig config, const handover::OfferedDevice& before) {
  const uint64_t begun = MonotonicNs();
  const std::string name = config.spec.name;
  if (!before.refusal.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("device ", name, " cannot be handed over: ", before.refusal));
  }
  if (!config.record_file.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "device ", name, " cannot be taken over: it is to be recorded from the start on"));
  }
  {
    absl::MutexLock lock(&mutex_);
    if (!entries_.try_emplace(name).second) {
      return absl::AlreadyExistsError(absl::StrCat("device ", name, ": already exists"));
    }
  }
  Warn(config);
  absl::Status status;
  if (config.guest_pool == PoolUse::kNone) {
    status = TakePool(&config);
  } else if (before.aperture.size > 0) {
    // The slice that the guest's driver was given then.
    status = pool_.Claim(name, before.aperture, config.guest_pool == PoolUse::kAll);
    config.spec.aperture = before.aperture;
    config.spec.dma_mode = DmaMode::kAperture;
  }
  if (status.ok()) {
    const auto dir = state_dir_->ForDevice(name);
    if (dir.ok()) config.spec.state_dir = *dir;
    status = dir.status();
  }
  absl::StatusOr<DeviceHandle> device =
      status.ok() ? host_->Stage(config.spec, before.shape) : absl::StatusOr<DeviceHandle>(status);
  absl::MutexLock lock(&mutex_);
  if (!device.ok()) {
    pool_.Release(name);
    entries_.erase(name);
    return device.status();
  }
  Entry& entry = entries_[name];
  entry.staged = std::make_unique<Staged>();
  entry.staged->config = std::move(config);
  entry.staged->device = *std::move(device);
  entry.staged->stage_ns = MonotonicNs() - begun;
  return absl::OkStatus();
}

absl::Status Service::AdoptDevice(handover::HandedDevice device) {
  const uint64_t begun = MonotonicNs();
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(device.name);
  if (it == entries_.end() || it->second.staged == nullptr || it->second.staged->adopted) {
    return absl::InvalidArgumentError(
        absl::StrCat("device ", device.name, " was handed over unasked"));
  }
  Entry& entry = it->second;
  Staged& staged = *entry.staged;
  const std::string what = absl::StrCat("device ", device.name);
  const bool restored = device.left.shape.has_state;
  VIRTBAY_RETURN_IF_ERROR(Annotate(staged.device.Restore(std::move(device.left)), what));
  if (restored && !staged.config.shares.empty()) {
    // Those that came with the state are there.
    VIRTBAY_ASSIGN_OR_RETURN(const std::vector<shares::ShareSpec> there,
                             shares::List(staged.device));
    std::erase_if(staged.config.shares, [&there](const ShareConfig& share) {
      return std::any_of(there.begin(), there.end(), [&share](const shares::ShareSpec& one) {
        return one.name == share.spec.name ||
               (share.spec.name.empty() && one.path == share.spec.path);
      });
    });
  }
  VIRTBAY_RETURN_IF_ERROR(AddShares(staged.config, staged.device));
  VIRTBAY_ASSIGN_OR_RETURN(const gid_t group, GroupOf(staged.config));
  auto server = vhost_user::Server::Adopt(staged.device, ListenOptions(staged.config),
                                          std::move(device.server));
  if (!server.ok()) return Annotate(server.status(), what);
  entry.server = *std::move(server);
  if (!staged.config.socket_group.empty()) {
    VIRTBAY_RETURN_IF_ERROR(SetGroup(staged.config, group));
  }
  entry.socket = staged.config.socket_path.empty() ? absl::StrCat("fd ", staged.config.socket_fd)
                                                   : staged.config.socket_path;
  staged.stopped_at_ns = device.stopped_at_ns;
  staged.stop_ns = device.stop_ns;
  staged.adopt_ns = MonotonicNs() - begun;
  staged.adopted = true;
  return absl::OkStatus();
}

void Service::Begin() {
  absl::MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) {
    if (entry.staged == nullptr) continue;
    entry.server->Begin();
    entry.ready = true;
  }
  const uint64_t now = MonotonicNs();
  for (auto& [name, entry] : entries_) {
    const std::unique_ptr<Staged> staged = std::move(entry.staged);
    if (staged == nullptr) continue;
    log_.Named(name).Info(absl::StrCat("taken over: stage ", Milliseconds(staged->stage_ns),
                                       ", quiesce and save ", Milliseconds(staged->stop_ns),
                                       ", restore ", Milliseconds(staged->adopt_ns), ", pause ",
                                       Milliseconds(now - std::min(now, staged->stopped_at_ns))));
  }
}

}  // namespace virtbay::device_host
