#include "hostif/guest/vhost_user_transport.h"

#include <linux/virtio_config.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

bool Same(const VhostUserRegion& a, const VhostUserRegion& b) {
  return a.guest_address == b.guest_address && a.size == b.size &&
         a.user_address == b.user_address && a.mmap_offset == b.mmap_offset;
}

VhostUserRegion Describe(const GuestMemory::Region& region) {
  return VhostUserRegion{.guest_address = region.address,
                         .size = region.size,
                         .user_address = region.user_address(),
                         .mmap_offset = region.file_offset};
}

}  // namespace

absl::StatusOr<std::unique_ptr<VhostUserTransport>> VhostUserTransport::Connect(
    const std::string& path, const VhostUserOptions& options) {
  VIRTBAY_ASSIGN_OR_RETURN(VhostUserChannel channel, VhostUserChannel::Connect(path));
  std::unique_ptr<VhostUserTransport> transport(
      new VhostUserTransport(std::move(channel), options));
  const absl::Status status = transport->Handshake();
  if (!status.ok()) return Annotate(status, path);
  return transport;
}

absl::StatusOr<std::unique_ptr<VhostUserTransport>> VhostUserTransport::Adopt(
    UniqueFd socket, const VhostUserOptions& options) {
  std::unique_ptr<VhostUserTransport> transport(
      new VhostUserTransport(VhostUserChannel(std::move(socket)), options));
  VIRTBAY_RETURN_IF_ERROR(transport->Handshake());
  return transport;
}

absl::Status VhostUserTransport::Handshake() {
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetOwner, {}));
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t features, QueryU64(VhostUserRequest::kGetFeatures));
  if ((features & kVhostUserFProtocolFeatures) == 0 || !options_.use_protocol_features) {
    return absl::OkStatus();
  }
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t offered,
                           QueryU64(VhostUserRequest::kGetProtocolFeatures));
  const uint64_t accepted = offered & options_.protocol_features;
  VIRTBAY_RETURN_IF_ERROR(SetU64(VhostUserRequest::kSetProtocolFeatures, accepted));
  protocol_features_ = accepted;
  if (has(kVhostUserProtocolMq)) {
    VIRTBAY_ASSIGN_OR_RETURN(const uint64_t count, QueryU64(VhostUserRequest::kGetQueueNum));
    if (count > 65535) {
      return absl::InvalidArgumentError(absl::StrCat("the peer claims ", count, " queues"));
    }
    queue_count_ = static_cast<uint32_t>(count);
  }
  if (has(kVhostUserProtocolBackendReq)) return OpenBackendRequests();
  return absl::OkStatus();
}

absl::Status VhostUserTransport::OpenBackendRequests() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return ErrnoStatus(errno, "socketpair");
  }
  UniqueFd ours(pair[0]);
  const UniqueFd theirs(pair[1]);
  const int fds[] = {theirs.get()};
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetBackendReqFd, {}, fds));
  backend_requests_.emplace(std::move(ours));
  return absl::OkStatus();
}

absl::Status VhostUserTransport::ShareInFlightLog(uint16_t queue_size) {
  if (log_shared_ || !has(kVhostUserProtocolInflight)) return absl::OkStatus();
  if (options_.in_flight == nullptr) {
    auto log = std::make_shared<VhostUserInFlightLog>();
    log->description.num_queues = static_cast<uint16_t>(std::max(queue_count_, 1u));
    log->description.queue_size = queue_size;
    VIRTBAY_ASSIGN_OR_RETURN(VhostUserMessage reply,
                             Query(VhostUserRequest::kGetInflightFd,
                                   BytesOf(log->description).first(kVhostUserInflightSize)));
    if (reply.payload.size() < kVhostUserInflightSize || reply.fds.size() != 1) {
      return absl::InternalError("GET_INFLIGHT_FD: the peer gave no descriptor");
    }
    std::memcpy(static_cast<void*>(&log->description), reply.payload.data(),
                kVhostUserInflightSize);
    log->fd = std::move(reply.fds[0]);
    options_.in_flight = std::move(log);
  }
  const int fds[] = {options_.in_flight->fd.get()};
  log_shared_ = true;
  return Set(VhostUserRequest::kSetInflightFd,
             BytesOf(options_.in_flight->description).first(kVhostUserInflightSize), fds);
}

absl::Status VhostUserTransport::Set(VhostUserRequest request, std::span<const std::byte> payload,
                                     std::span<const int> fds) {
  const uint32_t number = static_cast<uint32_t>(request);
  const bool ack = has(kVhostUserProtocolReplyAck);
  const uint32_t flags = kVhostUserVersion | (ack ? kVhostUserNeedReply : 0);
  VIRTBAY_RETURN_IF_ERROR(channel_.SendMessage(number, flags, payload, fds));
  if (!ack) return absl::OkStatus();
  VIRTBAY_ASSIGN_OR_RETURN(const VhostUserMessage reply, channel_.Receive(options_.reply_timeout));
  if (reply.header.request != number ||
      reply.header.flags != (kVhostUserVersion | kVhostUserReply) ||
      reply.header.size != sizeof(uint64_t)) {
    return absl::InternalError(
        absl::StrFormat("vhost-user request %d: the peer acknowledged request %d, flags 0x%x, %d "
                        "bytes",
                        number, reply.header.request, reply.header.flags, reply.header.size));
  }
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t verdict, reply.As<uint64_t>());
  if (verdict == 0) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("vhost-user request %d: the peer refused it (%d)", number, verdict));
}

absl::StatusOr<VhostUserMessage> VhostUserTransport::Query(VhostUserRequest request,
                                                           std::span<const std::byte> payload) {
  const uint32_t number = static_cast<uint32_t>(request);
  VIRTBAY_RETURN_IF_ERROR(channel_.SendMessage(number, kVhostUserVersion, payload));
  VIRTBAY_ASSIGN_OR_RETURN(VhostUserMessage reply, channel_.Receive(options_.reply_timeout));
  if (reply.header.request != number ||
      reply.header.flags != (kVhostUserVersion | kVhostUserReply)) {
    return absl::InternalError(
        absl::StrFormat("vhost-user request %d: the peer replied to request %d with flags 0x%x",
                        number, reply.header.request, reply.header.flags));
  }
  return reply;
}

absl::StatusOr<uint64_t> VhostUserTransport::QueryU64(VhostUserRequest request) {
  VIRTBAY_ASSIGN_OR_RETURN(const VhostUserMessage reply, Query(request));
  return reply.As<uint64_t>();
}

absl::Status VhostUserTransport::SetU64(VhostUserRequest request, uint64_t value) {
  return Set(request, BytesOf(value));
}

absl::StatusOr<uint64_t> VhostUserTransport::GetFeatures() {
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t features, QueryU64(VhostUserRequest::kGetFeatures));
  protocol_acknowledged_ =
      (features & kVhostUserFProtocolFeatures) != 0 && options_.use_protocol_features;
  return features & ~kVhostUserFProtocolFeatures;
}

absl::Status VhostUserTransport::SetFeatures(uint64_t features) {
  packed_ = (features & uint64_t{1} << VIRTIO_F_RING_PACKED) != 0;
  return SetU64(VhostUserRequest::kSetFeatures,
                features | (protocol_acknowledged_ ? kVhostUserFProtocolFeatures : 0));
}

absl::Status VhostUserTransport::SetMemory(const GuestMemory& memory) {
  return has(kVhostUserProtocolMemSlots) ? SetBySlots(memory) : SetByTable(memory);
}

absl::Status VhostUserTransport::SetByTable(const GuestMemory& memory) {
  if (memory.regions().size() > kVhostUserMaxTableRegions) {
    return absl::InvalidArgumentError(
        absl::StrCat(memory.regions().size(), " memory regions are too many for SET_MEM_TABLE"));
  }
  VhostUserMemTable table;
  std::vector<int> fds;
  regions_.clear();
  for (const GuestMemory::Region& region : memory.regions()) {
    table.regions[table.count++] = Describe(region);
    regions_.push_back(Describe(region));
    fds.push_back(region.fd.get());
  }
  const size_t size = offsetof(VhostUserMemTable, regions) + table.count * sizeof(VhostUserRegion);
  return Set(VhostUserRequest::kSetMemTable, BytesOf(table).first(size), fds);
}

absl::Status VhostUserTransport::SetBySlots(const GuestMemory& memory) {
  const auto wanted = [&memory](const VhostUserRegion& known) {
    return std::any_of(memory.regions().begin(), memory.regions().end(),
                       [&known](const auto& region) { return Same(Describe(region), known); });
  };
  for (size_t i = 0; i < regions_.size();) {
    if (wanted(regions_[i])) {
      ++i;
      continue;
    }
    const VhostUserMemReg message{.padding = 0, .region = regions_[i]};
    VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kRemMemReg, BytesOf(message)));
    regions_.erase(regions_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  for (const GuestMemory::Region& region : memory.regions()) {
    const VhostUserMemReg message{.padding = 0, .region = Describe(region)};
    if (std::any_of(regions_.begin(), regions_.end(),
                    [&](const auto& known) { return Same(known, message.region); })) {
      continue;
    }
    const int fds[] = {region.fd.get()};
    VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kAddMemReg, BytesOf(message), fds));
    regions_.push_back(message.region);
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> VhostUserTransport::UserAddress(uint64_t guest_address) const {
  for (const VhostUserRegion& region : regions_) {
    const uint64_t offset = guest_address - region.guest_address;
    if (guest_address >= region.guest_address && offset < region.size) {
      return region.user_address + offset;
    }
  }
  return absl::NotFoundError(
      absl::StrFormat("guest address 0x%x is in no region that the peer knows", guest_address));
}

absl::Status VhostUserTransport::SetRingFd(VhostUserRequest request, uint32_t queue, int fd) {
  if (queue > 0xff) return absl::InvalidArgumentError("vhost-user rings are numbered to 255");
  if (fd < 0) return SetU64(request, queue | kVhostUserVringNoFd);
  const uint64_t value = queue;
  const int fds[] = {fd};
  return Set(request, BytesOf(value), fds);
}

absl::Status VhostUserTransport::StartQueue(uint32_t queue, const RingStart& ring) {
  VIRTBAY_RETURN_IF_ERROR(ShareInFlightLog(ring.size));
  VhostUserVringAddr address;
  address.index = queue;
  VIRTBAY_ASSIGN_OR_RETURN(address.descriptors, UserAddress(ring.addresses.descriptors));
  VIRTBAY_ASSIGN_OR_RETURN(address.avail, UserAddress(ring.addresses.avail));
  VIRTBAY_ASSIGN_OR_RETURN(address.used, UserAddress(ring.addresses.used));
  const VhostUserVringState size{.index = queue, .num = ring.size};
  const VhostUserVringState base{.index = queue, .num = ring.base};
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetVringNum, BytesOf(size)));
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetVringBase, BytesOf(base)));
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetVringAddr, BytesOf(address)));
  if (ring.error_fd >= 0) {
    VIRTBAY_RETURN_IF_ERROR(SetRingFd(VhostUserRequest::kSetVringErr, queue, ring.error_fd));
  }
  VIRTBAY_RETURN_IF_ERROR(SetRingFd(VhostUserRequest::kSetVringCall, queue, ring.call_fd));
  VIRTBAY_RETURN_IF_ERROR(SetRingFd(VhostUserRequest::kSetVringKick, queue, ring.kick_fd));
  started_queues_[queue] = !protocol_acknowledged_;
  return protocol_acknowledged_ ? EnableQueue(queue, true) : absl::OkStatus();
}

absl::StatusOr<uint32_t> VhostUserTransport::StopQueue(uint32_t queue) {
  const VhostUserVringState ask{.index = queue, .num = 0};
  VIRTBAY_ASSIGN_OR_RETURN(const VhostUserMessage reply,
                           Query(VhostUserRequest::kGetVringBase, BytesOf(ask)));
  VIRTBAY_ASSIGN_OR_RETURN(const VhostUserVringState state, reply.As<VhostUserVringState>());
  started_queues_.erase(queue);
  if (state.index != queue || (!packed_ && state.num > 0xffff)) {
    return absl::InternalError(absl::StrFormat("GET_VRING_BASE of ring %d: the peer said %d of %d",
                                               queue, state.num, state.index));
  }
  return state.num;
}

absl::Status VhostUserTransport::ResetQueue(uint32_t /*queue*/) {
  return absl::UnimplementedError("vhost-user has no message to reset one queue");
}

absl::Status VhostUserTransport::EnableQueue(uint32_t queue, bool enabled) {
  if (!protocol_acknowledged_) {
    return absl::FailedPreconditionError("SET_VRING_ENABLE needs the peer's protocol features");
  }
  const VhostUserVringState state{.index = queue, .num = enabled ? 1u : 0u};
  VIRTBAY_RETURN_IF_ERROR(Set(VhostUserRequest::kSetVringEnable, BytesOf(state)));
  if (started_queues_.contains(queue)) started_queues_[queue] = enabled;
  return absl::OkStatus();
}

absl::Status VhostUserTransport::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  if (!has(kVhostUserProtocolConfig)) {
    return absl::UnimplementedError("the vhost-user peer has no configuration space");
  }
  while (!data.empty()) {
    const uint32_t part = static_cast<uint32_t>(std::min<size_t>(data.size(), kVhostUserMaxConfig));
    const VhostUserConfigHeader header{.offset = offset, .size = part, .flags = 0};
    std::vector<std::byte> ask(sizeof(header) + part);
    std::memcpy(ask.data(), &header, sizeof(header));
    VIRTBAY_ASSIGN_OR_RETURN(const VhostUserMessage reply,
                             Query(VhostUserRequest::kGetConfig, ask));
    if (reply.payload.size() != ask.size()) {
      return absl::OutOfRangeError(
          absl::StrFormat("the peer gave no %d bytes of configuration space at %d", part, offset));
    }
    std::memcpy(data.data(), reply.payload.data() + sizeof(header), part);
    data = data.subspan(part);
    offset += part;
  }
  return absl::OkStatus();
}

absl::Status VhostUserTransport::WriteConfig(uint32_t offset, std::span<const std::byte> data) {
  if (!has(kVhostUserProtocolConfig)) {
    return absl::UnimplementedError("the vhost-user peer has no configuration space");
  }
  if (data.size() > kVhostUserMaxConfig) {
    return absl::InvalidArgumentError("SET_CONFIG writes at most 256 bytes");
  }
  const VhostUserConfigHeader header{
      .offset = offset, .size = static_cast<uint32_t>(data.size()), .flags = 0};
  std::vector<std::byte> message(sizeof(header) + data.size());
  std::memcpy(message.data(), &header, sizeof(header));
  if (!data.empty()) std::memcpy(message.data() + sizeof(header), data.data(), data.size());
  return Set(VhostUserRequest::kSetConfig, message);
}

absl::StatusOr<uint8_t> VhostUserTransport::GetStatus() {
  if (!has(kVhostUserProtocolStatus)) return status_;
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t status, QueryU64(VhostUserRequest::kGetStatus));
  return static_cast<uint8_t>(status & 0xff);
}

absl::Status VhostUserTransport::SetStatus(uint8_t status) {
  status_ = status;
  if (!has(kVhostUserProtocolStatus)) return absl::OkStatus();
  return SetU64(VhostUserRequest::kSetStatus, status);
}

absl::Status VhostUserTransport::Reset() {
  status_ = 0;
  if (has(kVhostUserProtocolResetDevice)) {
    started_queues_.clear();
    return Set(VhostUserRequest::kResetDevice, {});
  }
  if (has(kVhostUserProtocolStatus)) {
    started_queues_.clear();
    return SetStatus(0);
  }
  // Without a message for it, every ring is stopped, which is all that a peer can be asked.
  while (!started_queues_.empty()) {
    VIRTBAY_RETURN_IF_ERROR(StopQueue(started_queues_.begin()->first).status());
  }
  return absl::OkStatus();
}

absl::Status VhostUserTransport::AnswerBackendRequest(const VhostUserMessage& message, bool known) {
  if ((message.header.flags & kVhostUserNeedReply) == 0) return absl::OkStatus();
  const uint64_t verdict = known ? 0 : 1;
  return backend_requests_->SendMessage(message.header.request, kVhostUserVersion | kVhostUserReply,
                                        BytesOf(verdict));
}

absl::StatusOr<uint32_t> VhostUserTransport::TakeConfigChanges() {
  uint32_t changes = 0;
  while (backend_requests_) {
    pollfd one{.fd = backend_requests_->fd(), .events = POLLIN, .revents = 0};
    if (::poll(&one, 1, 0) <= 0) break;
    VIRTBAY_ASSIGN_OR_RETURN(const VhostUserMessage message,
                             backend_requests_->Receive(options_.reply_timeout));
    const bool config = message.header.request == kVhostUserBackendConfigChange;
    if (config) ++changes;
    VIRTBAY_RETURN_IF_ERROR(AnswerBackendRequest(message, config));
  }
  return changes;
}

}  // namespace virtbay::guest
