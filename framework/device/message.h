// Messages: payload of requests to and from sockets and TAP interfaces, in one system call that
// never waits (service virtbay.host.message/1).
// Stateless; [queue], on the thread of the queue given and of every slice's request.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_MESSAGE_H_
#define VIRTBAY_FRAMEWORK_DEVICE_MESSAGE_H_

#include <cstdint>

#include "virtbay/sdk/abi.h"

namespace virtbay {

class Queue;

// Bytes or -errno; see virtbay_message_service. What it costs is counted on `queue`.
int64_t SendMessage(Queue* queue, const virtbay_message& message);
int64_t ReceiveMessage(Queue* queue, virtbay_message* message);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_MESSAGE_H_
