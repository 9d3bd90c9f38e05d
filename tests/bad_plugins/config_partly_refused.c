/* Reads its configuration space as a whole only. */
#include <string.h>

#include "device_base.h"

enum { kSize = 12 };

static void Properties(virtbay_device* device, virtbay_device_properties* properties) {
  (void)device;
  properties->queue_count = 1;
  properties->config_size = kSize;
}
static int32_t ReadConfig(virtbay_device* device, uint32_t offset, void* data, uint32_t len) {
  (void)device;
  if (offset != 0 || len != kSize) return VIRTBAY_OUT_OF_RANGE;
  memset(data, 0, len);
  return VIRTBAY_OK;
}
#define OPS_PROPERTIES Properties
#define OPS_CONFIG_READ ReadConfig
#include "plugin_base.h"
