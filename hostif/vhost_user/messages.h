// Messages of the vhost-user protocol: requests, feature bits and payloads as they lie on the wire.
// The protocol is in no UAPI header; all fields are in the byte order of the host.
// Constants and plain structs; every field that a front-end fills in is hostile.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_MESSAGES_H_
#define VIRTBAY_HOSTIF_VHOST_USER_MESSAGES_H_

#include <cstddef>
#include <cstdint>

namespace virtbay::vhost_user {

// What a front-end asks for.
enum class Request : uint32_t {
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
  kSendRarp = 19,
  kNetSetMtu = 20,
  kSetBackendReqFd = 21,
  kIotlbMsg = 22,
  kSetVringEndian = 23,
  kGetConfig = 24,
  kSetConfig = 25,
  kCreateCryptoSession = 26,
  kCloseCryptoSession = 27,
  kPostcopyAdvise = 28,
  kPostcopyListen = 29,
  kPostcopyEnd = 30,
  kGetInflightFd = 31,
  kSetInflightFd = 32,
  kGpuSetSocket = 33,
  kResetDevice = 34,
  kVringKick = 35,
  kGetMaxMemSlots = 36,
  kAddMemReg = 37,
  kRemMemReg = 38,
  kSetStatus = 39,
  kGetStatus = 40,
  kGetSharedObject = 41,
  kSetDeviceStateFd = 42,
  kCheckDeviceState = 43,
  kGetShmemConfig = 44,
};

// What a back-end asks for, on its own channel.
enum class BackendRequest : uint32_t { kConfigChange = 2 };

// The bit of the virtio feature word that says "there are protocol features".
inline constexpr uint64_t kProtocolFeaturesBit = uint64_t{1} << 30;

// Protocol feature bits that this server offers.
inline constexpr uint64_t kProtocolMq = uint64_t{1} << 0;
inline constexpr uint64_t kProtocolReplyAck = uint64_t{1} << 3;
inline constexpr uint64_t kProtocolBackendReq = uint64_t{1} << 5;
inline constexpr uint64_t kProtocolConfig = uint64_t{1} << 9;
inline constexpr uint64_t kProtocolInflightShmfd = uint64_t{1} << 12;
inline constexpr uint64_t kProtocolResetDevice = uint64_t{1} << 13;
inline constexpr uint64_t kProtocolConfigureMemSlots = uint64_t{1} << 15;
inline constexpr uint64_t kProtocolStatus = uint64_t{1} << 16;
inline constexpr uint64_t kOfferedProtocolFeatures =
    kProtocolMq | kProtocolReplyAck | kProtocolBackendReq | kProtocolConfig |
    kProtocolInflightShmfd | kProtocolResetDevice | kProtocolConfigureMemSlots | kProtocolStatus;

struct Header {
  uint32_t request;
  uint32_t flags;
  uint32_t size;  // of the payload, in bytes
};
static_assert(sizeof(Header) == 12);

inline constexpr uint32_t kVersionMask = 0x3;
inline constexpr uint32_t kVersion = 0x1;
inline constexpr uint32_t kFlagReply = 0x4;
inline constexpr uint32_t kFlagNeedReply = 0x8;
// Exactly these in a reply: front-ends compare for equality, so NEED_REPLY must not be echoed.
inline constexpr uint32_t kReplyFlags = kVersion | kFlagReply;

// The largest payload that is read at all. It is above everything that is served (268 bytes), so
// that a message of a newer protocol is read past and refused instead of ending the connection.
inline constexpr uint32_t kMaxPayload = 4096;
// Fds of one message: the most that any message of the protocol carries.
inline constexpr uint32_t kMaxFds = 8;

struct VringState {
  uint32_t index;
  uint32_t num;
};
static_assert(sizeof(VringState) == 8);

// Addresses are those of the front-end's own process.
struct VringAddress {
  uint32_t index;
  uint32_t flags;
  uint64_t descriptors;
  uint64_t used;
  uint64_t avail;
  uint64_t log;
};
static_assert(sizeof(VringAddress) == 40);
inline constexpr uint32_t kVringAddressLog = 0x1;

// SET_VRING_KICK, _CALL and _ERR: a u64 of a ring's index and a flag.
inline constexpr uint64_t kVringFdIndexMask = 0xff;
inline constexpr uint64_t kVringFdNone = 0x100;

struct RegionDescription {
  uint64_t guest_address;
  uint64_t size;
  uint64_t user_address;
  uint64_t mmap_offset;

  friend bool operator==(const RegionDescription&, const RegionDescription&) = default;
};
static_assert(sizeof(RegionDescription) == 32);

// SET_MEM_TABLE: this, then `count` regions.
struct MemTableHeader {
  uint32_t count;
  uint32_t padding;
};
static_assert(sizeof(MemTableHeader) == 8);
inline constexpr uint32_t kMaxTableRegions = 8;

// ADD_MEM_REG and REM_MEM_REG.
struct SingleRegion {
  uint64_t padding;
  RegionDescription region;
};
static_assert(sizeof(SingleRegion) == 40);
inline constexpr uint32_t kMaxMemSlots = 509;

// GET_INFLIGHT_FD and SET_INFLIGHT_FD; some front-ends send it with the 4 bytes of padding behind
// it that its C struct has.
struct InflightDescription {
  uint64_t mmap_size;
  uint64_t mmap_offset;
  uint16_t num_queues;
  uint16_t queue_size;
};
inline constexpr uint32_t kInflightSize = 20;
static_assert(sizeof(InflightDescription) == kInflightSize + 4);

// GET_CONFIG and SET_CONFIG: this, then `size` bytes.
struct ConfigHeader {
  uint32_t offset;
  uint32_t size;
  uint32_t flags;
};
static_assert(sizeof(ConfigHeader) == 12);
inline constexpr uint32_t kMaxConfigSize = 256;
// flags of SET_CONFIG: 0 is the driver's write, 1 that of a live migration.
inline constexpr uint32_t kMaxConfigFlags = 1;

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_MESSAGES_H_
