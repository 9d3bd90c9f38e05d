#include "hostif/vhost_user/session.h"

#include <fcntl.h>
#include <linux/virtio_config.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/vhost_user/front_end_fd.h"
#include "hostif/vhost_user/in_flight_memory.h"

namespace virtbay::vhost_user {
namespace {

constexpr uint64_t kRingPackedBit = uint64_t{1} << VIRTIO_F_RING_PACKED;

absl::Status Unoffered(absl::string_view what, uint64_t bits) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, " 0x", absl::Hex(bits), " were not offered"));
}

// The ring and the fd of SET_VRING_KICK, _CALL and _ERR.
struct VringFd {
  uint32_t index = 0;
  UniqueFd fd;
};

absl::StatusOr<VringFd> TakeVringFd(Message& message, absl::Status (*check)(int)) {
  const uint64_t value = message.Get<uint64_t>();
  if ((value & ~(kVringFdIndexMask | kVringFdNone)) != 0) {
    // Not cut down to its low bits: a ring number of 256 is an error, not ring 0.
    return absl::InvalidArgumentError(absl::StrCat("ring 0x", absl::Hex(value), " is unknown"));
  }
  const bool expected = (value & kVringFdNone) == 0;
  if (expected != (message.fds.size() == 1)) {
    return absl::InvalidArgumentError(expected ? "the file descriptor is missing"
                                               : "a file descriptor in spite of the no-fd flag");
  }
  VringFd result;
  result.index = static_cast<uint32_t>(value & kVringFdIndexMask);
  if (expected) {
    VIRTBAY_RETURN_IF_ERROR(
        Annotate(check(message.fds[0].get()), absl::StrCat("ring ", result.index)));
    result.fd = std::move(message.fds[0]);
  }
  return result;
}

}  // namespace

Session::Session(std::unique_ptr<DevicePort> port, bool keeps_fds, Log log)
    : port_(std::move(port)),
      log_(std::move(log)),
      rings_(port_.get(), log_),
      memory_(port_->wants_files(), keeps_fds),
      keeps_fds_(keeps_fds) {}

absl::StatusOr<SessionSnapshot> Session::Export() const {
  SessionSnapshot snapshot;
  snapshot.features = features_;
  snapshot.features_set = features_set_;
  snapshot.protocol_features_acknowledged = protocol_features_acknowledged_;
  snapshot.protocol_features = protocol_features_;
  snapshot.status = port_->status();
  snapshot.rings = rings_.Export();
  snapshot.has_memory = memory_.map() != nullptr;
  VIRTBAY_RETURN_IF_ERROR(memory_.Export(&snapshot.regions, &snapshot.region_fds));
  if (backend_.valid()) {
    snapshot.backend.reset(fcntl(backend_.poll_fd(), F_DUPFD_CLOEXEC, 3));
    if (!snapshot.backend) return ErrnoStatus(errno, "the back-end channel");
  }
  if (in_flight_.num_queues != 0) {
    snapshot.in_flight = in_flight_;
    snapshot.in_flight_fd = in_flight_fd_.Duplicate();
    if (!snapshot.in_flight_fd) return ErrnoStatus(errno, "the in-flight log");
  }
  return snapshot;
}

absl::Status Session::Import(SessionSnapshot snapshot) {
  if (const uint64_t extra = snapshot.features & ~OfferedFeatures(); extra != 0) {
    return Unoffered("features", extra);
  }
  if (const uint64_t extra = snapshot.protocol_features & ~kOfferedProtocolFeatures; extra != 0) {
    return Unoffered("protocol features", extra);
  }
  if (snapshot.features_set) {
    VIRTBAY_RETURN_IF_ERROR(port_->SetFeatures(snapshot.features));
    rings_.SetPacked((snapshot.features & kRingPackedBit) != 0);
  }
  features_ = snapshot.features;
  features_set_ = snapshot.features_set;
  protocol_features_acknowledged_ = snapshot.protocol_features_acknowledged;
  protocol_features_ = snapshot.protocol_features;
  if (const int status = snapshot.status & ~kStatusNeedsReset; status != 0) {
    VIRTBAY_RETURN_IF_ERROR(port_->SetStatus(static_cast<uint8_t>(status)));
  }
  if (snapshot.has_memory) {
    if (snapshot.regions.size() > kMaxMemSlots ||
        snapshot.regions.size() != snapshot.region_fds.size()) {
      return absl::InvalidArgumentError(absl::StrCat(snapshot.regions.size(), " regions with ",
                                                     snapshot.region_fds.size(),
                                                     " file descriptors"));
    }
    VIRTBAY_RETURN_IF_ERROR(ChangeMemory(memory_.Replace(snapshot.regions, snapshot.region_fds)));
  }
  if (snapshot.in_flight_fd) {
    VIRTBAY_RETURN_IF_ERROR(UseInFlight(std::move(snapshot.in_flight_fd), snapshot.in_flight));
  }
  if (snapshot.backend) VIRTBAY_RETURN_IF_ERROR(backend_.Set(std::move(snapshot.backend)));
  VIRTBAY_RETURN_IF_ERROR(rings_.Import(std::move(snapshot.rings)));
  return features_set_ ? port_->Prepare() : absl::OkStatus();
}

uint64_t Session::OfferedFeatures() const {
  // The protocol has no message to reset one queue.
  return port_->offered_features() & ~kFeatureRingReset;
}

bool Session::packed() const { return (features_ & kRingPackedBit) != 0; }

absl::Status Session::GetFeatures(Message&, Reply& reply) {
  reply.Set<uint64_t>(OfferedFeatures() | kProtocolFeaturesBit);
  return absl::OkStatus();
}

absl::Status Session::SetFeatures(Message& message, Reply&) {
  const uint64_t value = message.Get<uint64_t>();
  const uint64_t features = value & ~kProtocolFeaturesBit;
  if (const uint64_t extra = features & ~OfferedFeatures(); extra != 0) {
    return Unoffered("features", extra);
  }
  if (!features_set_ || features != features_) {
    // A driver that is bound again may come without GET_VRING_BASE (user-mode Linux only disables
    // its rings), so rings that run disabled do not forbid new features.
    VIRTBAY_RETURN_IF_ERROR(rings_.SuspendDisabled());
    const absl::Status status = port_->SetFeatures(features);
    if (status.ok()) rings_.SetPacked((features & kRingPackedBit) != 0);
    rings_.Resume();
    VIRTBAY_RETURN_IF_ERROR(status);
    features_ = features;
    features_set_ = true;
  }
  protocol_features_acknowledged_ = (value & kProtocolFeaturesBit) != 0;
  return protocol_features_acknowledged_ ? absl::OkStatus() : rings_.EnableAll();
}

absl::Status Session::SetOwner(Message&, Reply&) {
  // One connection is one owner; there is nothing to remember.
  return absl::OkStatus();
}

absl::Status Session::ResetOwner(Message&, Reply&) {
  // Deprecated. Forgetting the session here would break front-ends that send it in passing.
  // Without protocol features a disabled ring could not be enabled again.
  return protocol_features_acknowledged_ ? rings_.DisableAll() : absl::OkStatus();
}

absl::Status Session::ResetDevice(Message&, Reply&) {
  VIRTBAY_RETURN_IF_ERROR(port_->Reset());
  return AfterReset();
}

absl::Status Session::AfterReset() {
  rings_.Forget();
  rings_.SetPacked(false);
  features_ = 0;
  features_set_ = false;
  // The memory table is the connection's and outlives a reset: a front-end with CONFIGURE_MEM_SLOTS
  // sends only what changes from then on.
  return memory_.map() == nullptr ? absl::OkStatus() : rings_.ChangeMemory(memory_.map());
}

absl::Status Session::SetMemTable(Message& message, Reply&) {
  const auto header = message.Get<MemTableHeader>();
  if (header.count > kMaxTableRegions || header.count != message.fds.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(header.count, " regions with ", message.fds.size(),
                     " file descriptors; at most ", kMaxTableRegions));
  }
  if (message.header.size < sizeof header + header.count * sizeof(RegionDescription)) {
    return absl::InvalidArgumentError(absl::StrCat("a payload of ", message.header.size,
                                                   " bytes is too short for ", header.count,
                                                   " regions"));
  }
  std::array<RegionDescription, kMaxTableRegions> regions{};
  for (uint32_t i = 0; i < header.count; ++i) {
    regions[i] = message.Get<RegionDescription>(sizeof header + i * sizeof(RegionDescription));
  }
  return ChangeMemory(memory_.Replace(std::span(regions).first(header.count), message.fds));
}

absl::Status Session::AddMemReg(Message& message, Reply&) {
  return ChangeMemory(memory_.Add(message.Get<SingleRegion>().region, message.fds[0]));
}

absl::Status Session::RemMemReg(Message& message, Reply&) {
  return ChangeMemory(memory_.Remove(message.Get<SingleRegion>().region));
}

absl::Status Session::ChangeMemory(absl::StatusOr<MemoryTable::Proposal> proposal) {
  VIRTBAY_RETURN_IF_ERROR(proposal.status());
  if (proposal->unchanged) return absl::OkStatus();
  VIRTBAY_RETURN_IF_ERROR(rings_.ChangeMemory(proposal->map));
  memory_.Commit(*std::move(proposal));
  return absl::OkStatus();
}

absl::Status Session::GetMaxMemSlots(Message&, Reply& reply) {
  reply.Set<uint64_t>(kMaxMemSlots);
  return absl::OkStatus();
}

absl::Status Session::SetVringNum(Message& message, Reply&) {
  const auto state = message.Get<VringState>();
  return rings_.SetSize(state.index, state.num);
}

absl::Status Session::SetVringAddr(Message& message, Reply&) {
  const auto address = message.Get<VringAddress>();
  return rings_.SetAddresses(address.index, address);
}

absl::Status Session::SetVringBase(Message& message, Reply&) {
  const auto state = message.Get<VringState>();
  return rings_.SetBase(state.index, state.num);
}

absl::Status Session::GetVringBase(Message& message, Reply& reply) {
  const uint32_t index = message.Get<VringState>().index;
  VIRTBAY_ASSIGN_OR_RETURN(const uint32_t base, rings_.Stop(index));
  reply.Set(VringState{index, base});
  return absl::OkStatus();
}

absl::Status Session::SetVringKick(Message& message, Reply&) {
  VIRTBAY_ASSIGN_OR_RETURN(VringFd vring, TakeVringFd(message, &CheckKickFd));
  return rings_.SetKick(vring.index, std::move(vring.fd));
}

absl::Status Session::SetVringCall(Message& message, Reply&) {
  VIRTBAY_ASSIGN_OR_RETURN(VringFd vring, TakeVringFd(message, &CheckCallFd));
  return rings_.SetCall(vring.index, std::move(vring.fd));
}

absl::Status Session::SetVringErr(Message& message, Reply&) {
  VIRTBAY_ASSIGN_OR_RETURN(VringFd vring, TakeVringFd(message, &CheckCallFd));
  return rings_.SetError(vring.index, std::move(vring.fd));
}

absl::Status Session::SetVringEnable(Message& message, Reply&) {
  const auto state = message.Get<VringState>();
  if (state.num > 1) {
    return absl::InvalidArgumentError(absl::StrCat("state ", state.num, " is neither 0 nor 1"));
  }
  return rings_.SetEnabled(state.index, state.num == 1);
}

absl::Status Session::GetProtocolFeatures(Message&, Reply& reply) {
  reply.Set<uint64_t>(kOfferedProtocolFeatures);
  return absl::OkStatus();
}

absl::Status Session::SetProtocolFeatures(Message& message, Reply&) {
  const uint64_t value = message.Get<uint64_t>();
  if (const uint64_t extra = value & ~kOfferedProtocolFeatures; extra != 0) {
    return Unoffered("protocol features", extra);
  }
  protocol_features_ = value;
  return absl::OkStatus();
}

absl::Status Session::GetQueueNum(Message&, Reply& reply) {
  reply.Set<uint64_t>(rings_.count());
  return absl::OkStatus();
}

absl::Status Session::SetBackendReqFd(Message& message, Reply&) {
  return backend_.Set(std::move(message.fds[0]));
}

absl::Status Session::GetInflightFd(Message& message, Reply& reply) {
  InflightDescription asked{};
  std::memcpy(&asked, message.bytes().data(), kInflightSize);
  VIRTBAY_ASSIGN_OR_RETURN(InFlightMemory memory,
                           InFlightMemory::Make(packed(), asked.num_queues, asked.queue_size));
  const std::span<std::byte> payload = reply.Resize(message.header.size);
  std::fill(payload.begin(), payload.end(), std::byte{0});
  const InflightDescription made{memory.size, 0, asked.num_queues, asked.queue_size};
  std::memcpy(payload.data(), &made, std::min(payload.size(), sizeof made));
  reply.SetFd(std::move(memory.fd));
  return absl::OkStatus();
}

absl::Status Session::SetInflightFd(Message& message, Reply&) {
  InflightDescription given{};
  std::memcpy(&given, message.bytes().data(), kInflightSize);
  return UseInFlight(std::move(message.fds[0]), given);
}

absl::Status Session::UseInFlight(UniqueFd fd, const InflightDescription& given) {
  VIRTBAY_RETURN_IF_ERROR(CheckMemoryFd(fd.get()));
  VIRTBAY_RETURN_IF_ERROR(rings_.SetInFlight(fd.get(), given));
  if (!keeps_fds_) return absl::OkStatus();
  in_flight_ = given;
  in_flight_fd_ = std::move(fd);
  return absl::OkStatus();
}

absl::Status Session::GetConfig(Message& message, Reply& reply) {
  auto header = message.Get<ConfigHeader>();
  const uint32_t available = port_->config_size();
  if (header.size > kMaxConfigSize || header.offset > kMaxConfigSize - header.size ||
      header.offset >= available) {
    return absl::OutOfRangeError(absl::StrCat("bytes from ", header.offset, ", ", header.size,
                                              " long, of a configuration space of ", available));
  }
  // A front-end built for a newer device asks for fields that this one does not have yet. They read
  // as zero, and it does not use them without their feature bits.
  const std::span<std::byte> all = reply.Resize(sizeof header + header.size);
  std::fill(all.begin(), all.end(), std::byte{0});
  std::memcpy(all.data(), &header, sizeof header);
  return port_->ReadConfig(
      header.offset, all.subspan(sizeof header, std::min(header.size, available - header.offset)));
}

absl::Status Session::SetConfig(Message& message, Reply&) {
  const auto header = message.Get<ConfigHeader>();
  if (header.size > message.header.size - sizeof header) {
    return absl::InvalidArgumentError(absl::StrCat("a payload of ", message.header.size,
                                                   " bytes is too short for ", header.size,
                                                   " of configuration"));
  }
  const uint32_t available = port_->config_size();
  if (header.offset > available || header.size > available - header.offset) {
    return absl::OutOfRangeError(absl::StrCat("bytes from ", header.offset, ", ", header.size,
                                              " long, of a configuration space of ", available));
  }
  if (header.flags > kMaxConfigFlags) {
    return absl::InvalidArgumentError(absl::StrCat("flags ", header.flags, " are unknown"));
  }
  return port_->WriteConfig(header.offset, message.bytes().subspan(sizeof header, header.size));
}

absl::Status Session::SetStatus(Message& message, Reply&) {
  const uint64_t value = message.Get<uint64_t>();
  if (value > UINT8_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("status ", value, " does not fit into 8 bits"));
  }
  VIRTBAY_RETURN_IF_ERROR(port_->SetStatus(static_cast<uint8_t>(value)));
  return value == 0 ? AfterReset() : absl::OkStatus();
}

absl::Status Session::GetStatus(Message&, Reply& reply) {
  reply.Set<uint64_t>(port_->status());
  return absl::OkStatus();
}

}  // namespace virtbay::vhost_user
