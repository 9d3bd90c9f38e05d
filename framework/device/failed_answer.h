// The answer that tells a driver that one of its requests has failed, in the words of the device's
// class, for requests whose plugin can give none any more.
// Stateless; [queue].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_FAILED_ANSWER_H_
#define VIRTBAY_FRAMEWORK_DEVICE_FAILED_ANSWER_H_

#include <cstdint>

#include "framework/virtq/chain.h"

namespace virtbay {

// Writes it to the chain's buffers and returns how many bytes are written from their beginning: an
// error of input and output for file systems (virtio 1.3 5.11, FUSE; 9P) and block devices (5.2.6),
// a refusal of a network device's control queue (5.1.6.5). 0, an answer of no bytes, for others.
uint32_t WriteFailedAnswer(uint32_t virtio_id, const Chain& chain);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_FAILED_ANSWER_H_
