// The devices of a Service on their way from one process to another: Service::Offer to LetGo of the
// one that has served, StageDevice to Begin of the one that goes on.
#include <algorithm>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "framework/base/clock.h"
#include "framework/base/status.h"
#include "hostif/device_host/service.h"

namespace virtbay::device_host {
namespace {

// For a front-end's message that is being handled.
constexpr absl::Duration kFreezePatience = absl::Seconds(2);
// For a plugin to save its state, beyond what its requests take to end.
constexpr absl::Duration kSaving = absl::Seconds(3);

std::string Milliseconds(uint64_t ns) {
  return absl::StrCat(static_cast<double>(ns / 1000) / 1000, " ms");
}

}  // namespace

absl::Status Service::CheckChangeable() const {
  if (!frozen_) return absl::OkStatus();
  return absl::UnavailableError("the devices are being handed over to another process");
}

handover::Offer Service::Offer() {
  {
    absl::MutexLock lock(&mutex_);
    frozen_ = true;
  }
  handover::Offer offer;
  if (const auto pool = pool_.reported(); pool.has_value()) {
    offer.pool_base = pool->swiotlb_base;
    offer.pool_size = pool->swiotlb_size;
  }
  for (const DeviceReport& report : InspectAll()) {
    handover::OfferedDevice& device = offer.devices.emplace_back();
    device.name = report.info.name;
    device.aperture = report.info.aperture;
    {
      absl::MutexLock lock(&mutex_);
      const auto it = entries_.find(device.name);
      const Entry* const entry = it == entries_.end() ? nullptr : &it->second;
      if (entry != nullptr && entry->recorder != nullptr) {
        device.refusal = "it is recorded from the start on";
      } else if (entry != nullptr && entry->reloads != 0) {
        device.refusal = "it is being reloaded";
      } else if (entry != nullptr && entry->late != 0) {
        device.refusal = "its plugin has not come back from the last time";
      }
    }
    if (!device.refusal.empty()) continue;
    const absl::StatusOr<DeviceHandle> handle = Ready(device.name);
    absl::StatusOr<DeviceShape> shape = handle.ok() ? handle->Shape() : handle.status();
    if (shape.ok()) {
      device.shape = *std::move(shape);
    } else {
      device.refusal = std::string(shape.status().message());
    }
  }
  return offer;
}

absl::StatusOr<std::vector<handover::HandedDevice>> Service::Suspend(
    const std::vector<std::string>& names, absl::Duration quiesce_deadline) {
  std::vector<std::pair<std::string, vhost_user::Server*>> servers;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) {
      if (entry.ready && entry.reloads == 0) continue;
      return absl::UnavailableError(
          absl::StrCat("device ", name, ": is being added, removed or reloaded"));
    }
    for (const std::string& name : names) {
      const auto it = entries_.find(name);
      if (it == entries_.end()) {
        return absl::NotFoundError(absl::StrCat("device ", name, ": does not exist"));
      }
      if (it->second.late != 0) {
        return absl::UnavailableError(absl::StrCat("device ", name, ": its plugin hangs"));
      }
      servers.emplace_back(name, it->second.server.get());
    }
    for (const std::string& name : names) entries_.find(name)->second.frozen = true;
  }
  std::vector<handover::HandedDevice> devices;
  for (const auto& [name, server] : servers) {
    absl::StatusOr<vhost_user::ServerSnapshot> snapshot = server->Freeze(kFreezePatience);
    if (!snapshot.ok()) return Annotate(snapshot.status(), absl::StrCat("device ", name));
    handover::HandedDevice& device = devices.emplace_back();
    device.name = name;
    device.server = *std::move(snapshot);
  }
  VIRTBAY_RETURN_IF_ERROR(SuspendDevices(&devices, quiesce_deadline));
  return devices;
}

absl::Status Service::SuspendDevices(std::vector<handover::HandedDevice>* devices,
                                     absl::Duration quiesce_deadline) {
  std::erase_if(late_, [](const auto& suspension) { return suspension->over(); });
  std::vector<std::unique_ptr<DeviceSuspension>> all;
  for (const handover::HandedDevice& device : *devices) {
    const absl::StatusOr<DeviceHandle> handle = host_->Find(device.name);
    if (!handle.ok()) return Annotate(handle.status(), absl::StrCat("device ", device.name));
    const uint64_t number = ++suspensions_;
    {
      absl::MutexLock lock(&mutex_);
      entries_.find(device.name)->second.late = number;
    }
    all.push_back(std::make_unique<DeviceSuspension>(
        *handle, quiesce_deadline, [this, name = device.name, number] { ThawLate(name, number); }));
  }
  const absl::Time deadline = absl::Now() + quiesce_deadline + kSaving;
  absl::Status status;
  for (size_t i = 0; i < all.size(); ++i) {
    handover::HandedDevice& device = (*devices)[i];
    absl::StatusOr<LeftDevice> left = all[i]->Await(deadline);
    if (all[i]->given_up()) {
      late_.push_back(std::move(all[i]));
    } else {
      absl::MutexLock lock(&mutex_);
      entries_.find(device.name)->second.late = 0;
    }
    if (!left.ok()) {
      status.Update(Annotate(left.status(), absl::StrCat("device ", device.name)));
      continue;
    }
    device.left = *std::move(left);
    device.stopped_at_ns = all[i]->begun_ns();
    device.stop_ns = all[i]->took_ns();
    if (!device.server.connection.has_value()) continue;
    auto& rings = device.server.connection->session.rings;
    for (size_t r = 0; r < rings.size() && r < device.left.rings.size(); ++r) {
      if (rings[r].runs) rings[r].base = device.left.rings[r].base;
    }
  }
  return status;
}

void Service::Thaw(const std::string& name) {
  absl::MutexLock lock(&mutex_);
  const auto it = entries_.find(name);
  // One that is being removed has given its server away.
  if (it == entries_.end() || it->second.server == nullptr) return;
  if (std::exchange(it->second.frozen, false)) it->second.server->Thaw();
}

void Service::ThawLate(const std::string& name, uint64_t suspension) {
  {
    absl::MutexLock lock(&mutex_);
    const auto it = entries_.find(name);
    if (it == entries_.end() || it->second.late != suspension) return;
    it->second.late = 0;
  }
  log_.Named(name).Warn("its plugin has come back from saving its state; it serves on");
  Thaw(name);
}

void Service::Withdraw() {
  std::vector<std::string> names;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, entry] : entries_) {
      if (entry.frozen && entry.late == 0) names.push_back(name);
    }
  }
  // One that had not been reached is not suspended, nor is its server frozen.
  for (const std::string& name : names) {
    if (const auto device = host_->Find(name); device.ok()) device->Resume().IgnoreError();
    Thaw(name);
  }
  absl::MutexLock lock(&mutex_);
  frozen_ = false;
}

void Service::GiveAway() {
  absl::MutexLock lock(&mutex_);
  for (auto& [name, entry] : entries_) entry.given_away = entry.frozen && entry.late == 0;
}

void Service::LetGo() {
  struct Going {
    std::string name;
    absl::StatusOr<DeviceHandle> device;
    vhost_user::Server* server;
  };
  std::vector<Going> all;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& [name, entry] : entries_) {
      if (entry.given_away) all.push_back({name, host_->Find(name), entry.server.get()});
    }
  }
  const auto let_go = [this](const Going& going) {
    const absl::Status released =
        going.device.ok() ? going.device->Release() : going.device.status();
    if (!released.ok()) log_.Error(absl::StrCat("device ", going.name, ": ", released.message()));
    going.server->LetGo();
  };
  // Each by itself: one whose plugin hangs keeps nothing else open.
  std::vector<std::thread> threads;
  for (const Going& going : all) {
    try {
      threads.emplace_back([&] { let_go(going); });
    } catch (const std::system_error&) {
      let_go(going);
    }
  }
  for (std::thread& thread : threads) thread.join();
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
  VIRTBAY_ASSIGN_OR_RETURN(staged.group, GroupOf(staged.config));
  auto server = vhost_user::Server::Adopt(staged.device, ListenOptions(staged.config),
                                          std::move(device.server));
  if (!server.ok()) return Annotate(server.status(), what);
  entry.server = *std::move(server);
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
    // The socket was the other process's until now.
    if (!staged->config.socket_group.empty()) {
      const absl::Status set = SetGroup(staged->config, staged->group);
      if (!set.ok()) log_.Error(set.message());
    }
    log_.Named(name).Info(absl::StrCat("taken over: stage ", Milliseconds(staged->stage_ns),
                                       ", quiesce and save ", Milliseconds(staged->stop_ns),
                                       ", restore ", Milliseconds(staged->adopt_ns), ", pause ",
                                       Milliseconds(now - std::min(now, staged->stopped_at_ns))));
  }
}

}  // namespace virtbay::device_host
