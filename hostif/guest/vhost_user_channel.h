// VhostUserChannel: a front-end's end of a vhost-user socket: sends and receives single messages
// with their descriptors, well-formed or not. The wire format is QEMU's docs/interop/vhost-user.
// Owned by a VhostUserTransport or a test; one thread at a time, [control].
#ifndef VIRTBAY_HOSTIF_GUEST_VHOST_USER_CHANNEL_H_
#define VIRTBAY_HOSTIF_GUEST_VHOST_USER_CHANNEL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"

namespace virtbay::guest {

// Requests of a front-end.
enum class VhostUserRequest : uint32_t {
  kGetFeatures = 1,
  kSetFeatures = 2,
  kSetOwner = 3,
  kResetOwner = 4,
  kSetMemTable = 5,
  kSetLogBase = 6,
  kSetLogFd = 7,
  kSetVringNum = 8,
  kSetVringAddr = 9,
  kSetVringBase = 10,
  kGetVringBase = 11,
  kSetVringKick = 12,
  kSetVringCall = 13,
  kSetVringErr = 14,
  kGetProtocolFeatures = 15,
  kSetProtocolFeatures = 16,
  kGetQueueNum = 17,
  kSetVringEnable = 18,
  kSetBackendReqFd = 21,
  kGetConfig = 24,
  kSetConfig = 25,
  kGetInflightFd = 31,
  kSetInflightFd = 32,
  kResetDevice = 34,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
  kSetStatus = 39,
  kGetStatus = 40,
};

// Requests of a back-end, on the channel of SET_BACKEND_REQ_FD.
inline constexpr uint32_t kVhostUserBackendConfigChange = 2;

// Header flags.
inline constexpr uint32_t kVhostUserVersion = 1;
inline constexpr uint32_t kVhostUserReply = 4;
inline constexpr uint32_t kVhostUserNeedReply = 8;

// Feature bit that says the back-end has protocol features, and the bits of those.
inline constexpr uint64_t kVhostUserFProtocolFeatures = uint64_t{1} << 30;
inline constexpr uint64_t kVhostUserProtocolMq = 1u << 0;
inline constexpr uint64_t kVhostUserProtocolReplyAck = 1u << 3;
inline constexpr uint64_t kVhostUserProtocolBackendReq = 1u << 5;
inline constexpr uint64_t kVhostUserProtocolConfig = 1u << 9;
inline constexpr uint64_t kVhostUserProtocolInflight = 1u << 12;
inline constexpr uint64_t kVhostUserProtocolResetDevice = 1u << 13;
inline constexpr uint64_t kVhostUserProtocolMemSlots = 1u << 15;
inline constexpr uint64_t kVhostUserProtocolStatus = 1u << 16;

// Low byte of a SET_VRING_KICK/CALL/ERR payload is the ring; this bit says there is no descriptor.
inline constexpr uint64_t kVhostUserVringNoFd = 0x100;

struct VhostUserHeader {
  uint32_t request = 0;
  uint32_t flags = 0;
  uint32_t size = 0;  // of the payload
};

struct VhostUserVringState {
  uint32_t index = 0;
  uint32_t num = 0;
};

struct VhostUserVringAddr {
  uint32_t index = 0;
  uint32_t flags = 0;
  uint64_t descriptors = 0;  // addresses of the front-end's own address space
  uint64_t used = 0;
  uint64_t avail = 0;
  uint64_t log = 0;
};

struct VhostUserRegion {
  uint64_t guest_address = 0;
  uint64_t size = 0;
  uint64_t user_address = 0;
  uint64_t mmap_offset = 0;
};

struct VhostUserMemReg {
  uint64_t padding = 0;
  VhostUserRegion region;
};

inline constexpr size_t kVhostUserMaxTableRegions = 8;

struct VhostUserMemTable {
  uint32_t count = 0;
  uint32_t padding = 0;
  VhostUserRegion regions[kVhostUserMaxTableRegions];
};

// Sent without the padding at its end.
struct VhostUserInflight {
  uint64_t mmap_size = 0;
  uint64_t mmap_offset = 0;
  uint16_t num_queues = 0;
  uint16_t queue_size = 0;
};
inline constexpr size_t kVhostUserInflightSize = 20;

struct VhostUserConfigHeader {
  uint32_t offset = 0;
  uint32_t size = 0;
  uint32_t flags = 0;
};

inline constexpr uint32_t kVhostUserMaxConfig = 256;  // bytes of one GET_CONFIG or SET_CONFIG

struct VhostUserMessage {
  VhostUserHeader header;
  std::vector<std::byte> payload;
  std::vector<UniqueFd> fds;

  // The payload's first bytes as a T; InvalidArgument when it is shorter.
  template <typename T>
  absl::StatusOr<T> As() const {
    static_assert(std::is_trivially_copyable_v<T>);
    if (payload.size() < sizeof(T)) {
      return absl::InvalidArgumentError("the vhost-user message is too short");
    }
    T value;
    std::memcpy(&value, payload.data(), sizeof(T));
    return value;
  }
};

// The bytes of a trivially copyable value.
template <typename T>
std::span<const std::byte> BytesOf(const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

class VhostUserChannel {
 public:
  explicit VhostUserChannel(UniqueFd socket) : socket_(std::move(socket)) {}

  // Connects to a listening unix socket; the errno of connect, InvalidArgument for a path that is
  // too long.
  static absl::StatusOr<VhostUserChannel> Connect(const std::string& path);

  // Sends one message; header.size is the payload's. `flags` are sent as they are (version 1 is
  // kVhostUserVersion). Unavailable when the peer has gone.
  absl::Status SendMessage(uint32_t request, uint32_t flags, std::span<const std::byte> payload,
                           std::span<const int> fds = {});
  // Sends bytes that need not be a message, with descriptors on the first of them.
  absl::Status SendBytes(std::span<const std::byte> bytes, std::span<const int> fds = {});

  // Receives one message with at most 4 KiB of payload and 8 descriptors. Unavailable when the
  // peer has gone, DeadlineExceeded when it is silent for `timeout`.
  absl::StatusOr<VhostUserMessage> Receive(absl::Duration timeout = absl::Seconds(10));
  // OK once the peer has closed the connection, what it sent before being dropped;
  // DeadlineExceeded when it has not within `timeout`.
  absl::Status AwaitClose(absl::Duration timeout = absl::Seconds(10));

  int fd() const { return socket_.get(); }

 private:
  absl::Status ReadAll(std::byte* data, size_t size, std::vector<UniqueFd>* fds,
                       absl::Time deadline);

  UniqueFd socket_;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_VHOST_USER_CHANNEL_H_
