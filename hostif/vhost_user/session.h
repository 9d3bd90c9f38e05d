// Session: what one front-end has told the device, and the handler of every message.
// It knows payloads and the device's port, not the socket: framing, acknowledgements and the log of
// failures are the Connection's. Owned by a Connection; used on its server's thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_SESSION_H_
#define VIRTBAY_HOSTIF_VHOST_USER_SESSION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "framework/base/log.h"
#include "framework/base/unique_fd.h"
#include "hostif/vhost_user/backend_channel.h"
#include "hostif/vhost_user/memory_table.h"
#include "hostif/vhost_user/messages.h"
#include "hostif/vhost_user/rings.h"
#include "hostif/vhost_user/snapshot.h"
#include "hostif/vhost_user/wire.h"
#include "virtbay/device_port.h"

namespace virtbay::vhost_user {

// The payload of a reply.
class Reply {
 public:
  template <typename T>
  void Set(const T& value) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kCapacity);
    std::memcpy(bytes_.data(), &value, sizeof value);
    size_ = sizeof value;
  }
  // `size` bytes, at most kCapacity, to be filled in.
  std::span<std::byte> Resize(size_t size) {
    size_ = size;
    return {bytes_.data(), size};
  }
  std::span<const std::byte> bytes() const { return {bytes_.data(), size_}; }
  // Goes along with the payload.
  void SetFd(UniqueFd fd) { fd_ = std::move(fd); }
  UniqueFd TakeFd() { return std::move(fd_); }

 private:
  static constexpr size_t kCapacity = sizeof(ConfigHeader) + kMaxConfigSize;

  std::array<std::byte, kCapacity> bytes_{};
  size_t size_ = 0;
  UniqueFd fd_;
};

class Session {
 public:
  // `keeps_fds`: what Export needs is kept.
  Session(std::unique_ptr<DevicePort> port, bool keeps_fds, Log log);

  // All that the front-end has said. FailedPrecondition when descriptors were not kept.
  absl::StatusOr<SessionSnapshot> Export() const;
  // Takes up the session of another process, up to what can fail of it; the rings start with Start.
  // InvalidArgument for what no front-end can have said, the device's errors.
  absl::Status Import(SessionSnapshot snapshot);
  void Start() { rings_.Resume(); }

  uint64_t protocol_features() const { return protocol_features_; }
  bool HasProtocolFeatures(uint64_t bits) const { return (protocol_features_ & bits) == bits; }
  // SET_FEATURES has come since the device was new or reset.
  bool features_set() const { return features_set_; }
  // VHOST_USER_F_PROTOCOL_FEATURES was acknowledged.
  bool protocol_features_acknowledged() const { return protocol_features_acknowledged_; }
  BackendChannel& backend() { return backend_; }

  // The handlers, named after their messages. The table has checked the payload's size and the
  // number of fds; a handler takes the fds it keeps out of the message. Only those of messages
  // with a reply of their own fill in *reply.
  absl::Status GetFeatures(Message& message, Reply& reply);
  absl::Status SetFeatures(Message& message, Reply& reply);
  absl::Status SetOwner(Message& message, Reply& reply);
  absl::Status ResetOwner(Message& message, Reply& reply);
  absl::Status ResetDevice(Message& message, Reply& reply);
  absl::Status SetMemTable(Message& message, Reply& reply);
  absl::Status AddMemReg(Message& message, Reply& reply);
  absl::Status RemMemReg(Message& message, Reply& reply);
  absl::Status GetMaxMemSlots(Message& message, Reply& reply);
  absl::Status SetVringNum(Message& message, Reply& reply);
  absl::Status SetVringAddr(Message& message, Reply& reply);
  absl::Status SetVringBase(Message& message, Reply& reply);
  absl::Status GetVringBase(Message& message, Reply& reply);
  absl::Status SetVringKick(Message& message, Reply& reply);
  absl::Status SetVringCall(Message& message, Reply& reply);
  absl::Status SetVringErr(Message& message, Reply& reply);
  absl::Status SetVringEnable(Message& message, Reply& reply);
  absl::Status GetProtocolFeatures(Message& message, Reply& reply);
  absl::Status SetProtocolFeatures(Message& message, Reply& reply);
  absl::Status GetQueueNum(Message& message, Reply& reply);
  absl::Status SetBackendReqFd(Message& message, Reply& reply);
  absl::Status GetInflightFd(Message& message, Reply& reply);
  absl::Status SetInflightFd(Message& message, Reply& reply);
  absl::Status GetConfig(Message& message, Reply& reply);
  absl::Status SetConfig(Message& message, Reply& reply);
  absl::Status SetStatus(Message& message, Reply& reply);
  absl::Status GetStatus(Message& message, Reply& reply);

 private:
  absl::Status ChangeMemory(absl::StatusOr<MemoryTable::Proposal> proposal);
  absl::Status AfterReset();
  absl::Status UseInFlight(UniqueFd fd, const InflightDescription& given);
  uint64_t OfferedFeatures() const;
  // VIRTIO_F_RING_PACKED was acknowledged.
  bool packed() const;

  // The port is last to go: rings and channel hold nothing of it that its end would need.
  std::unique_ptr<DevicePort> port_;
  Log log_;
  Rings rings_;
  MemoryTable memory_;
  BackendChannel backend_;
  uint64_t features_ = 0;  // acknowledged, without bit 30
  bool features_set_ = false;
  uint64_t protocol_features_ = 0;
  const bool keeps_fds_;
  InflightDescription in_flight_{};  // the last one given, and its descriptor if they are kept
  UniqueFd in_flight_fd_;
  bool protocol_features_acknowledged_ = false;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_SESSION_H_
