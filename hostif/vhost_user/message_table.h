// The table of messages: for each request its name, what it may carry, what it needs, and what
// answers it. The one place where a message is described. Constant data; [any].
#ifndef VIRTBAY_HOSTIF_VHOST_USER_MESSAGE_TABLE_H_
#define VIRTBAY_HOSTIF_VHOST_USER_MESSAGE_TABLE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "hostif/vhost_user/messages.h"

namespace virtbay::vhost_user {

class Reply;
class Session;
struct Message;

enum class Answer {
  kAck,         // a u64 when REPLY_ACK is negotiated and the message has NEED_REPLY
  kOwn,         // always a reply of its own; an error has no form, so it ends the connection
  kOwnOrEmpty,  // as kOwn, but an error is a reply without payload
};

struct MessageInfo {
  Request request{};
  absl::string_view name;
  uint32_t min_size = 0;
  uint32_t max_size = 0;
  uint32_t min_fds = 0;
  uint32_t max_fds = 0;
  bool needs_bit_30 = false;             // VHOST_USER_F_PROTOCOL_FEATURES acknowledged
  uint64_t needs_protocol_features = 0;  // all of these negotiated
  Answer answer = Answer::kAck;
  // Null for a message that belongs to a feature this server never offers.
  absl::Status (Session::*handler)(Message&, Reply&) = nullptr;
};

// Null for a request that no known version of the protocol has.
const MessageInfo* FindMessage(uint32_t request);

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_MESSAGE_TABLE_H_
