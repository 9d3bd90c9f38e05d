// The DevicePort of a Device: forwards to it and detaches when it goes.
// Owned by the transport; holds its device alive. [control]
#ifndef VIRTBAY_FRAMEWORK_DEVICE_PORT_H_
#define VIRTBAY_FRAMEWORK_DEVICE_PORT_H_

#include <memory>

#include "virtbay/device_port.h"

namespace virtbay {

class Device;

std::unique_ptr<DevicePort> MakeDevicePort(std::shared_ptr<Device> device);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_PORT_H_
