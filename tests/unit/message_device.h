// What the tests of the message service ask of their plugin (message_device.cc): one message, made
// of bytes behind the command and of payload of requests that the plugin holds.
// Plain data, shared by the tests and the plugin.
#ifndef VIRTBAY_TESTS_UNIT_MESSAGE_DEVICE_H_
#define VIRTBAY_TESTS_UNIT_MESSAGE_DEVICE_H_

#include <cstdint>

namespace virtbay::testing {

enum class MessageOp : uint32_t {
  kHold,        // kept, as the next of the slices' requests, until kRelease
  kRelease,     // ends what is held; its own result is how many those were
  kGroup,       // the same as one group; the result is its code
  kGroupTwice,  // a group in which each is twice, all but the first with sizes that lie
  kSend,
  kReceive,
};

// A slice of the request that was held `held`-th; kSelf: of the command's own.
struct MessageSlice {
  static constexpr uint32_t kSelf = UINT32_MAX;
  static constexpr uint32_t kNull = UINT32_MAX - 1;
  uint32_t held = kSelf;
  uint32_t offset = 0;
  uint32_t len = 0;
};

// The request's readable bytes: this, the slices, the prefix, the name, the control bytes; then
// what slices may address.
struct MessageCommand {
  MessageOp op = MessageOp::kHold;
  int32_t fd = -1;
  uint32_t queue = 0;
  uint32_t kind = 0;
  uint32_t flags = 0;
  uint32_t slice_count = 0;   // in the request
  uint32_t slices_claim = 0;  // what the message says, if not 0
  uint32_t prefix_len = 0;    // receive: of a buffer that is there anyway
  uint32_t name_len = 0;
  uint32_t control_len = 0;
  uint32_t struct_size = 0;  // what the message says, if not 0
  uint32_t no_pointers = 0;  // the message's pointers are null
};

// The head of the writable bytes; the received prefix, name and control bytes follow it.
struct MessageReply {
  int64_t result = 0;
  uint32_t name_len = 0;
  uint32_t control_len = 0;
  uint32_t result_flags = 0;
  uint32_t reserved = 0;
};

// Bytes of the writable part before what slices may address.
inline constexpr uint32_t kMessageReplyRoom = 1024;

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_MESSAGE_DEVICE_H_
