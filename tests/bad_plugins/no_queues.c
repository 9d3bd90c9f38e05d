/* Asks for no queues and a configuration space of 4 GiB. */
#include "virtbay/sdk/abi.h"

static void Properties(virtbay_device* device, virtbay_device_properties* properties) {
  (void)device;
  properties->queue_count = 0;
  properties->config_size = UINT32_MAX;
}
#define OPS_PROPERTIES Properties
#include "plugin_base.h"
