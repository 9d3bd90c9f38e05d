/* Opens a file for every device, and does not close it. */
#include <fcntl.h>

#include "device_base.h"

static int32_t Init(virtbay_device* device, virtbay_error* error) {
  (void)device;
  (void)error;
  return open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0 ? VIRTBAY_OK : VIRTBAY_RESOURCE_EXHAUSTED;
}
#define OPS_INIT Init
#include "plugin_base.h"
