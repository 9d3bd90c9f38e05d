/* Ends the process in init, by a signal. */
#include <stdlib.h>

#include "device_base.h"

static int32_t Init(virtbay_device* device, virtbay_error* error) {
  (void)device;
  (void)error;
  abort();
}
#define OPS_INIT Init
#include "plugin_base.h"
