/* Never comes back from init. */
#include <unistd.h>

#include "device_base.h"

static int32_t Init(virtbay_device* device, virtbay_error* error) {
  (void)device;
  (void)error;
  volatile int for_ever = 1; /* so that the compiler does not see that there is no end */
  while (for_ever) pause();
  return VIRTBAY_OK;
}
#define OPS_INIT Init
#include "plugin_base.h"
