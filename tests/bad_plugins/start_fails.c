/* start() refuses. */
#include <string.h>

#include "virtbay/sdk/abi.h"

static int32_t Start(virtbay_device* device, virtbay_error* error) {
  (void)device;
  strcpy(error->text, "not today");
  return VIRTBAY_UNAVAILABLE;
}
#define OPS_START Start
#include "plugin_base.h"
