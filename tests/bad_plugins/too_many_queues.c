/* Asks for four thousand million queues. */
#include "virtbay/sdk/abi.h"

static void Properties(virtbay_device* device, virtbay_device_properties* properties) {
  (void)device;
  properties->queue_count = UINT32_MAX;
}
#define OPS_PROPERTIES Properties
#include "plugin_base.h"
