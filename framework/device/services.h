// The host's service tables, as plugins see them.
// Constant; the functions carry the thread tags of abi.h.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_SERVICES_H_
#define VIRTBAY_FRAMEWORK_DEVICE_SERVICES_H_

#include "virtbay/sdk/abi.h"

namespace virtbay {

// The table that a plugin's load and create get. [any]
const virtbay_host& HostTable();

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_SERVICES_H_
