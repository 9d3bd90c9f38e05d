#include "hostif/vhost_user/rings.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/virtq/in_flight_log.h"
#include "hostif/vhost_user/front_end_fd.h"

namespace virtbay::vhost_user {
namespace {

bool IsPowerOfTwo(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

}  // namespace

Rings::Rings(DevicePort* port, Log log)
    : port_(port), log_(std::move(log)), rings_(port->queue_count()) {}

absl::StatusOr<Rings::Ring*> Rings::Find(uint32_t index) {
  if (index >= rings_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring ", index, " does not exist; the device has ", rings_.size()));
  }
  return &rings_[index];
}

void Rings::SetPacked(bool packed) {
  if (packed == packed_) return;
  packed_ = packed;
  for (Ring& ring : rings_) {
    // A place in one layout means nothing in the other.
    if (ring.started || ring.waiting) {
      ring.waiting = ring.started = ring.base_given = false;
      ring.base = 0;
    }
  }
}

absl::Status Rings::SetSize(uint32_t index, uint32_t size) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  // virtio 1.3 2.8.10.1: a packed ring may have any size.
  if (size == 0 || (!packed_ && !IsPowerOfTwo(size)) || size > port_->max_queue_size(index)) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring ", index, ": size ", size,
                     packed_ ? " is not one from 1 to " : " is not a power of two up to ",
                     port_->max_queue_size(index)));
  }
  if (ring->size == size) return absl::OkStatus();
  VIRTBAY_RETURN_IF_ERROR(HaltIfDisabled(index, "size"));
  ring->size = static_cast<uint16_t>(size);
  return StartIfReady(index);
}

absl::Status Rings::SetBase(uint32_t index, uint32_t base) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  if (!packed_ && base > UINT16_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("ring ", index, ": index ", base, " does not fit into 16 bits"));
  }
  if (Running(index) && !ring->base_given) {
    // It started without an index, at 0, and is given one late.
    ring->base_given = true;
    if (ring->base == base) return absl::OkStatus();
    VIRTBAY_RETURN_IF_ERROR(Halt(index));
    ring->waiting = true;
  } else {
    VIRTBAY_RETURN_IF_ERROR(HaltIfDisabled(index, "index"));
  }
  if (std::exchange(ring->told, false) && ring->base != base) {
    // Not where it stopped, so that it is another ring: what the log says is not about that.
    VIRTBAY_ASSIGN_OR_RETURN(const SharedArea log, LogOf(index));
    ForgetInFlight(log);
  }
  ring->base_given = true;
  ring->base = base;
  ring->started = false;
  return StartIfReady(index);
}

absl::Status Rings::SetAddresses(uint32_t index, const VringAddress& addresses) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  if (addresses.flags != 0) {
    return absl::InvalidArgumentError(absl::StrCat("ring ", index, ": flags 0x",
                                                   absl::Hex(addresses.flags),
                                                   ", but dirty logging was not offered"));
  }
  if (addresses.descriptors % 16 != 0 || addresses.avail % 2 != 0 || addresses.used % 4 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("ring ", index, ": misaligned addresses"));
  }
  if (ring->addressed && ring->descriptors == addresses.descriptors &&
      ring->avail == addresses.avail && ring->used == addresses.used) {
    return StartIfReady(index);
  }
  if (Running(index)) {
    VIRTBAY_RETURN_IF_ERROR(Halt(index));
    ring->waiting = true;
  }
  ring->descriptors = addresses.descriptors;
  ring->avail = addresses.avail;
  ring->used = addresses.used;
  ring->addressed = true;
  return StartIfReady(index);
}

absl::Status Rings::SetKick(uint32_t index, SharedFd fd) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  const bool running = Running(index);
  if (ring->started && !running) {
    return absl::FailedPreconditionError(
        absl::StrCat("ring ", index, " was stopped by the device and needs a new index first"));
  }
  VIRTBAY_RETURN_IF_ERROR(ReplaceFd(index, &Ring::kick, std::move(fd), &DevicePort::SetKick));
  if (running) return absl::OkStatus();
  ring->waiting = true;
  return StartIfReady(index);
}

absl::Status Rings::SetCall(uint32_t index, SharedFd fd) {
  return ReplaceFd(index, &Ring::call, std::move(fd), &DevicePort::SetCall);
}

absl::Status Rings::SetError(uint32_t index, SharedFd fd) {
  return ReplaceFd(index, &Ring::error, std::move(fd), &DevicePort::SetError);
}

absl::Status Rings::ReplaceFd(uint32_t index, SharedFd Ring::*member, SharedFd fd,
                              absl::Status (DevicePort::*set)(uint32_t, SharedFd)) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  if (Running(index)) VIRTBAY_RETURN_IF_ERROR((port_->*set)(index, fd));
  ring->*member = std::move(fd);
  return absl::OkStatus();
}

absl::Status Rings::SetEnabled(uint32_t index, bool enabled) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  if (Running(index)) VIRTBAY_RETURN_IF_ERROR(port_->EnableQueue(index, enabled));
  ring->enabled = enabled;
  return absl::OkStatus();
}

absl::Status Rings::EnableAll() {
  for (uint32_t i = 0; i < count(); ++i) {
    if (!rings_[i].enabled) VIRTBAY_RETURN_IF_ERROR(SetEnabled(i, true));
  }
  return absl::OkStatus();
}

absl::Status Rings::DisableAll() {
  for (uint32_t i = 0; i < count(); ++i) VIRTBAY_RETURN_IF_ERROR(SetEnabled(i, false));
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Rings::Stop(uint32_t index) {
  VIRTBAY_ASSIGN_OR_RETURN(Ring* const ring, Find(index));
  if (ring->started) {
    const absl::Status halted = Halt(index);
    // FailedPrecondition: the device stopped it before. Where it was then is not known; the index
    // it started from is the one that loses no request.
    if (!halted.ok() && !absl::IsFailedPrecondition(halted)) return halted;
  }
  ring->started = false;
  ring->waiting = false;
  ring->addressed = false;
  ring->base_given = true;
  ring->told = true;
  ring->kick.reset();
  ring->call.reset();
  return ring->base;
}

absl::Status Rings::Halt(uint32_t index) {
  auto base = port_->StopQueue(index);
  if (!base.ok()) return Annotate(base.status(), absl::StrCat("stopping ring ", index));
  rings_[index].base = *base;
  rings_[index].started = false;
  return absl::OkStatus();
}

absl::Status Rings::HaltIfDisabled(uint32_t index, absl::string_view what) {
  if (!Running(index)) return absl::OkStatus();
  if (rings_[index].enabled) {
    return absl::FailedPreconditionError(
        absl::StrCat("ring ", index, ": a new ", what, " while it runs"));
  }
  return Halt(index);
}

absl::Status Rings::SuspendDisabled() {
  for (uint32_t i = 0; i < count(); ++i) {
    if (Running(i) && rings_[i].enabled) {
      return absl::FailedPreconditionError(absl::StrCat("ring ", i, " runs"));
    }
  }
  for (uint32_t i = 0; i < count(); ++i) {
    if (!Running(i)) continue;
    if (absl::Status status = Halt(i); !status.ok()) {
      Resume();
      return status;
    }
    rings_[i].waiting = true;
  }
  return absl::OkStatus();
}

void Rings::Resume() {
  for (uint32_t i = 0; i < count(); ++i) {
    if (absl::Status status = StartIfReady(i); !status.ok()) {
      log_.Warn(absl::StrCat("ring ", i, " waits: ", status.message()));
    }
  }
}

absl::Status Rings::SetInFlight(int fd, const InflightDescription& description) {
  for (uint32_t i = 0; i < count(); ++i) {
    if (Running(i)) {
      return absl::FailedPreconditionError(absl::StrCat("ring ", i, " runs with another log"));
    }
  }
  VIRTBAY_ASSIGN_OR_RETURN(in_flight_, InFlightArea::Map(fd, description));
  return absl::OkStatus();
}

std::vector<RingSnapshot> Rings::Export() const {
  std::vector<RingSnapshot> snapshots;
  for (uint32_t i = 0; i < count(); ++i) {
    const Ring& ring = rings_[i];
    const bool runs = ring.started && Running(i);
    snapshots.push_back({.size = ring.size,
                         .base = ring.base,
                         .base_given = ring.base_given,
                         .addressed = ring.addressed,
                         .enabled = ring.enabled,
                         .runs = runs,
                         .waiting = ring.waiting,
                         .started = ring.started && !runs,
                         .told = ring.told,
                         .descriptors = ring.descriptors,
                         .avail = ring.avail,
                         .used = ring.used,
                         .kick = ring.kick,
                         .call = ring.call,
                         .error = ring.error});
  }
  return snapshots;
}

absl::Status Rings::Import(std::vector<RingSnapshot> rings) {
  if (rings.size() != rings_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(rings.size(), " rings; the device has ", rings_.size()));
  }
  for (uint32_t i = 0; i < count(); ++i) {
    const RingSnapshot& from = rings[i];
    const std::string what = absl::StrCat("ring ", i);
    if (from.size != 0) VIRTBAY_RETURN_IF_ERROR(SetSize(i, from.size));
    VIRTBAY_RETURN_IF_ERROR(SetBase(i, from.base));
    if (from.addressed) {
      VIRTBAY_RETURN_IF_ERROR(SetAddresses(i, {i, 0, from.descriptors, from.used, from.avail, 0}));
    }
    if (from.kick) VIRTBAY_RETURN_IF_ERROR(Annotate(CheckKickFd(from.kick.get()), what));
    for (const SharedFd& fd : {from.call, from.error}) {
      if (fd) VIRTBAY_RETURN_IF_ERROR(Annotate(CheckCallFd(fd.get()), what));
    }
    if (from.runs) {
      if (from.size == 0 || !from.addressed || map_ == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(what, " cannot have run"));
      }
      VIRTBAY_RETURN_IF_ERROR(Annotate(Locate(rings_[i], *map_).status(), what));
      VIRTBAY_RETURN_IF_ERROR(LogOf(i).status());
    }
    Ring& ring = rings_[i];
    ring.base_given = from.base_given;
    ring.enabled = from.enabled;
    ring.waiting = from.waiting || from.runs;
    ring.started = from.started;
    ring.told = from.told;
    ring.kick = from.kick;
    ring.call = from.call;
    ring.error = from.error;
  }
  return absl::OkStatus();
}

absl::StatusOr<SharedArea> Rings::LogOf(uint32_t index) const {
  return in_flight_.Of(index, packed_);
}

void Rings::Forget() {
  in_flight_.Forget(count(), packed_);
  for (Ring& ring : rings_) ring = Ring();
}

absl::StatusOr<Rings::Place> Rings::Locate(const Ring& ring, const MemoryMap& map) const {
  const uint64_t size = ring.size;
  Place place;
  // virtio 1.3 2.7 and 2.8.10: the sizes of the three parts, with the two event fields.
  VIRTBAY_ASSIGN_OR_RETURN(place.descriptors, map.UserToGuest(ring.descriptors, 16 * size));
  VIRTBAY_ASSIGN_OR_RETURN(place.avail, map.UserToGuest(ring.avail, packed_ ? 4 : 6 + 2 * size));
  VIRTBAY_ASSIGN_OR_RETURN(place.used, map.UserToGuest(ring.used, packed_ ? 4 : 6 + 8 * size));
  return place;
}

absl::Status Rings::StartIfReady(uint32_t index) {
  Ring& ring = rings_[index];
  if (!ring.waiting || ring.size == 0 || !ring.addressed) return absl::OkStatus();
  if (map_ == nullptr || map_->regions().empty()) return absl::OkStatus();
  auto place = Locate(ring, *map_);
  if (!place.ok()) return Annotate(place.status(), absl::StrCat("ring ", index));

  QueueConfig config;
  config.size = ring.size;
  config.base = ring.base;
  config.descriptors = place->descriptors;
  config.avail = place->avail;
  config.used = place->used;
  config.enabled = ring.enabled;
  config.kick = ring.kick;
  config.call = ring.call;
  config.error = ring.error;
  VIRTBAY_ASSIGN_OR_RETURN(config.in_flight, LogOf(index));
  if (absl::Status status = port_->StartQueue(index, std::move(config)); !status.ok()) {
    return Annotate(status, absl::StrCat("starting ring ", index));
  }
  ring.waiting = false;
  ring.started = true;
  ring.guest_descriptors = place->descriptors;
  ring.guest_avail = place->avail;
  ring.guest_used = place->used;
  log_.Debug(absl::StrCat("ring ", index, " started: size ", ring.size,
                          packed_ ? ", packed, base " : ", index ", ring.base,
                          ring.enabled ? ", enabled" : ", disabled"));
  return absl::OkStatus();
}

absl::Status Rings::ChangeMemory(MemoryMapRef map) {
  std::vector<bool> halted(rings_.size());
  absl::Status status;
  for (uint32_t i = 0; i < count() && status.ok(); ++i) {
    Ring& ring = rings_[i];
    if (!Running(i)) continue;
    auto place = Locate(ring, *map);
    if (place.ok() && place->descriptors == ring.guest_descriptors &&
        place->avail == ring.guest_avail && place->used == ring.guest_used) {
      continue;
    }
    // Before the map changes, so that the ring stops in order and its index is known.
    status = Halt(i);
    if (status.ok()) halted[i] = ring.waiting = true;
  }
  if (status.ok()) status = port_->SetMemory(map);
  if (status.ok()) map_ = std::move(map);
  for (uint32_t i = 0; i < count(); ++i) {
    if (!rings_[i].waiting) continue;
    const absl::Status start = StartIfReady(i);
    if (rings_[i].waiting && halted[i] && rings_[i].error) {
      port_->SignalError(i, rings_[i].error);
    }
    if (!start.ok()) log_.Warn(absl::StrCat("ring ", i, " waits: ", start.message()));
  }
  return status;
}

}  // namespace virtbay::vhost_user
