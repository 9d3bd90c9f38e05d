// VhostUserTransport: the front-end of a vhost-user device: any back-end behind a unix socket, this
// project's or another's (virtiofsd, qemu-storage-daemon). The peer's answers are checked.
// Owned by its Driver, or used alone by tests of a back-end; [control], one thread at a time.
#ifndef VIRTBAY_HOSTIF_GUEST_VHOST_USER_TRANSPORT_H_
#define VIRTBAY_HOSTIF_GUEST_VHOST_USER_TRANSPORT_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "hostif/guest/transport.h"
#include "hostif/guest/vhost_user_channel.h"

namespace virtbay::guest {

inline constexpr uint64_t kVhostUserAllProtocolFeatures =
    kVhostUserProtocolMq | kVhostUserProtocolReplyAck | kVhostUserProtocolBackendReq |
    kVhostUserProtocolConfig | kVhostUserProtocolResetDevice | kVhostUserProtocolMemSlots |
    kVhostUserProtocolStatus;

// The log of requests in flight that a front-end keeps while its back-end is started anew.
struct VhostUserInFlightLog {
  UniqueFd fd;
  VhostUserInflight description;
};

struct VhostUserOptions {
  // Protocol features to accept where the peer offers them.
  uint64_t protocol_features = kVhostUserAllProtocolFeatures;
  // False: bit 30 is never acknowledged, so that rings start enabled and there are no protocol
  // features.
  bool use_protocol_features = true;
  absl::Duration reply_timeout = absl::Seconds(30);
  // With kVhostUserProtocolInflight: the log of the connection before (in_flight()); none: the
  // back-end is asked for a new one when the first ring starts.
  std::shared_ptr<const VhostUserInFlightLog> in_flight = nullptr;
};

class VhostUserTransport final : public Transport {
 public:
  // Connects and does the handshake: SET_OWNER, GET_FEATURES, the protocol features, GET_QUEUE_NUM,
  // SET_BACKEND_REQ_FD, as far as the peer has them.
  static absl::StatusOr<std::unique_ptr<VhostUserTransport>> Connect(
      const std::string& path, const VhostUserOptions& options = {});
  // The same over a connected socket.
  static absl::StatusOr<std::unique_ptr<VhostUserTransport>> Adopt(
      UniqueFd socket, const VhostUserOptions& options = {});

  absl::StatusOr<uint64_t> GetFeatures() override;
  absl::Status SetFeatures(uint64_t features) override;
  uint32_t queue_count() const override { return queue_count_; }
  uint16_t max_queue_size(uint32_t /*queue*/) const override { return 0; }
  // By ADD_MEM_REG and REM_MEM_REG for what has changed where the peer has memory slots, else by
  // SET_MEM_TABLE (at most 8 regions).
  absl::Status SetMemory(const GuestMemory& memory) override;
  absl::Status StartQueue(uint32_t queue, const RingStart& ring) override;
  absl::StatusOr<uint32_t> StopQueue(uint32_t queue) override;
  absl::Status ResetQueue(uint32_t queue) override;
  absl::Status EnableQueue(uint32_t queue, bool enabled) override;
  absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) override;
  absl::Status WriteConfig(uint32_t offset, std::span<const std::byte> data) override;
  absl::StatusOr<uint8_t> GetStatus() override;
  absl::Status SetStatus(uint8_t status) override;
  absl::Status Reset() override;
  int config_fd() const override { return backend_requests_ ? backend_requests_->fd() : -1; }
  absl::StatusOr<uint32_t> TakeConfigChanges() override;
  int hangup_fd() const override { return channel_.fd(); }

  // What the next connection goes on with; null without kVhostUserProtocolInflight, or before the
  // first ring has started.
  std::shared_ptr<const VhostUserInFlightLog> in_flight() const { return options_.in_flight; }

  // Protocol features that both sides agreed on.
  uint64_t protocol_features() const { return protocol_features_; }
  bool has(uint64_t protocol_feature) const { return (protocol_features_ & protocol_feature) != 0; }

  // Single messages, for parts of the protocol that Transport does not cover and for hostile tests
  // (through channel()). Set sends a request without a reply of its own and, with REPLY_ACK, waits
  // for the peer's verdict: Internal when that is not 0. Query returns the peer's reply, checked to
  // be one to this request.
  absl::Status Set(VhostUserRequest request, std::span<const std::byte> payload,
                   std::span<const int> fds = {});
  absl::StatusOr<VhostUserMessage> Query(VhostUserRequest request,
                                         std::span<const std::byte> payload = {});
  VhostUserChannel& channel() { return channel_; }

 private:
  VhostUserTransport(VhostUserChannel channel, const VhostUserOptions& options)
      : channel_(std::move(channel)), options_(options) {}

  absl::Status Handshake();
  absl::Status OpenBackendRequests();
  absl::Status ShareInFlightLog(uint16_t queue_size);
  absl::Status SetByTable(const GuestMemory& memory);
  absl::Status SetBySlots(const GuestMemory& memory);
  absl::StatusOr<uint64_t> QueryU64(VhostUserRequest request);
  absl::Status SetU64(VhostUserRequest request, uint64_t value);
  absl::Status SetRingFd(VhostUserRequest request, uint32_t queue, int fd);
  absl::Status AnswerBackendRequest(const VhostUserMessage& message, bool known);
  absl::StatusOr<uint64_t> UserAddress(uint64_t guest_address) const;

  VhostUserChannel channel_;
  std::optional<VhostUserChannel> backend_requests_;
  VhostUserOptions options_;
  uint64_t protocol_features_ = 0;
  bool protocol_acknowledged_ = false;  // bit 30
  bool packed_ = false;
  bool log_shared_ = false;
  uint32_t queue_count_ = 0;
  uint8_t status_ = 0;                       // where the peer has no STATUS
  std::vector<VhostUserRegion> regions_;     // as the peer knows them
  std::map<uint32_t, bool> started_queues_;  // -> enabled
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_VHOST_USER_TRANSPORT_H_
