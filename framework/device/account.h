// The account of a device's memory in words, for the log when it stops.
// Stateless; [any].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_ACCOUNT_H_
#define VIRTBAY_FRAMEWORK_DEVICE_ACCOUNT_H_

#include <string>

#include "virtbay/host.h"

namespace virtbay {

// One line: the arena, waits for it, bytes copied and moved without a copy, DMA violations.
std::string AccountLine(const DeviceInfo& info);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_ACCOUNT_H_
