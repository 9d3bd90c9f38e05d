#include "hostif/vhost_user/message_table.h"

#include <cstddef>
#include <iterator>

#include "hostif/vhost_user/session.h"

namespace virtbay::vhost_user {
namespace {

using enum Answer;
using R = Request;
using S = Session;

constexpr uint32_t kU64 = sizeof(uint64_t);
constexpr uint32_t kState = sizeof(VringState);
constexpr uint32_t kAddress = sizeof(VringAddress);
constexpr uint32_t kRegion = sizeof(SingleRegion);
constexpr uint32_t kTable = sizeof(MemTableHeader);
// Some front-ends send the whole array, whatever the count.
constexpr uint32_t kFullTable = kTable + kMaxTableRegions * sizeof(RegionDescription);
constexpr uint32_t kConfig = sizeof(ConfigHeader);
constexpr uint32_t kFullConfig = kConfig + kMaxConfigSize;
constexpr uint32_t kFullInflight = sizeof(InflightDescription);
constexpr uint32_t kAny = kMaxPayload;

// clang-format off
constexpr MessageInfo kMessages[] = {
    // request, name, payload min..max, fds min..max, bit 30, protocol features, answer, handler
    {R::kGetFeatures, "GET_FEATURES", 0, 0, 0, 0, false, 0, kOwn, &S::GetFeatures},
    {R::kSetFeatures, "SET_FEATURES", kU64, kU64, 0, 0, false, 0, kAck, &S::SetFeatures},
    {R::kSetOwner, "SET_OWNER", 0, 0, 0, 0, false, 0, kAck, &S::SetOwner},
    {R::kResetOwner, "RESET_OWNER", 0, 0, 0, 0, false, 0, kAck, &S::ResetOwner},
    {R::kSetMemTable, "SET_MEM_TABLE", kTable, kFullTable, 0, kMaxTableRegions, false, 0, kAck, &S::SetMemTable},
    {R::kSetLogBase, "SET_LOG_BASE", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kSetLogFd, "SET_LOG_FD", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kSetVringNum, "SET_VRING_NUM", kState, kState, 0, 0, false, 0, kAck, &S::SetVringNum},
    {R::kSetVringAddr, "SET_VRING_ADDR", kAddress, kAddress, 0, 0, false, 0, kAck, &S::SetVringAddr},
    {R::kSetVringBase, "SET_VRING_BASE", kState, kState, 0, 0, false, 0, kAck, &S::SetVringBase},
    {R::kGetVringBase, "GET_VRING_BASE", kState, kState, 0, 0, false, 0, kOwn, &S::GetVringBase},
    {R::kSetVringKick, "SET_VRING_KICK", kU64, kU64, 0, 1, false, 0, kAck, &S::SetVringKick},
    {R::kSetVringCall, "SET_VRING_CALL", kU64, kU64, 0, 1, false, 0, kAck, &S::SetVringCall},
    {R::kSetVringErr, "SET_VRING_ERR", kU64, kU64, 0, 1, false, 0, kAck, &S::SetVringErr},
    {R::kGetProtocolFeatures, "GET_PROTOCOL_FEATURES", 0, 0, 0, 0, false, 0, kOwn, &S::GetProtocolFeatures},
    {R::kSetProtocolFeatures, "SET_PROTOCOL_FEATURES", kU64, kU64, 0, 0, false, 0, kAck, &S::SetProtocolFeatures},
    {R::kGetQueueNum, "GET_QUEUE_NUM", 0, 0, 0, 0, false, 0, kOwn, &S::GetQueueNum},
    {R::kSetVringEnable, "SET_VRING_ENABLE", kState, kState, 0, 0, true, 0, kAck, &S::SetVringEnable},
    {R::kSendRarp, "SEND_RARP", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kNetSetMtu, "NET_SET_MTU", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kSetBackendReqFd, "SET_BACKEND_REQ_FD", 0, 0, 1, 1, false, kProtocolBackendReq, kAck, &S::SetBackendReqFd},
    {R::kIotlbMsg, "IOTLB_MSG", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kSetVringEndian, "SET_VRING_ENDIAN", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kGetConfig, "GET_CONFIG", kConfig, kFullConfig, 0, 0, false, kProtocolConfig, kOwnOrEmpty, &S::GetConfig},
    {R::kSetConfig, "SET_CONFIG", kConfig, kFullConfig, 0, 0, false, kProtocolConfig, kAck, &S::SetConfig},
    {R::kCreateCryptoSession, "CREATE_CRYPTO_SESSION", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kCloseCryptoSession, "CLOSE_CRYPTO_SESSION", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kPostcopyAdvise, "POSTCOPY_ADVISE", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kPostcopyListen, "POSTCOPY_LISTEN", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kPostcopyEnd, "POSTCOPY_END", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kGetInflightFd, "GET_INFLIGHT_FD", kInflightSize, kFullInflight, 0, 0, false, kProtocolInflightShmfd, kOwn, &S::GetInflightFd},
    {R::kSetInflightFd, "SET_INFLIGHT_FD", kInflightSize, kFullInflight, 1, 1, false, kProtocolInflightShmfd, kAck, &S::SetInflightFd},
    {R::kGpuSetSocket, "GPU_SET_SOCKET", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kResetDevice, "RESET_DEVICE", 0, 0, 0, 0, false, kProtocolResetDevice, kAck, &S::ResetDevice},
    {R::kVringKick, "VRING_KICK", 0, kAny, 0, kMaxFds, false, 0, kAck, nullptr},
    {R::kGetMaxMemSlots, "GET_MAX_MEM_SLOTS", 0, 0, 0, 0, false, kProtocolConfigureMemSlots, kOwn, &S::GetMaxMemSlots},
    {R::kAddMemReg, "ADD_MEM_REG", kRegion, kRegion, 1, 1, false, kProtocolConfigureMemSlots, kAck, &S::AddMemReg},
    {R::kRemMemReg, "REM_MEM_REG", kRegion, kRegion, 0, 1, false, kProtocolConfigureMemSlots, kAck, &S::RemMemReg},
    {R::kSetStatus, "SET_STATUS", kU64, kU64, 0, 0, false, kProtocolStatus, kAck, &S::SetStatus},
    {R::kGetStatus, "GET_STATUS", 0, 0, 0, 0, false, kProtocolStatus, kOwn, &S::GetStatus},
    {R::kGetSharedObject, "GET_SHARED_OBJECT", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kSetDeviceStateFd, "SET_DEVICE_STATE_FD", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kCheckDeviceState, "CHECK_DEVICE_STATE", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
    {R::kGetShmemConfig, "GET_SHMEM_CONFIG", 0, kAny, 0, kMaxFds, false, 0, kOwn, nullptr},
};
// clang-format on

// A message is found by its number as an index.
constexpr bool Dense() {
  for (size_t i = 0; i < std::size(kMessages); ++i) {
    if (static_cast<size_t>(kMessages[i].request) != i + 1) return false;
  }
  return true;
}
static_assert(Dense());

}  // namespace

const MessageInfo* FindMessage(uint32_t request) {
  return request == 0 || request > std::size(kMessages) ? nullptr : &kMessages[request - 1];
}

}  // namespace virtbay::vhost_user
