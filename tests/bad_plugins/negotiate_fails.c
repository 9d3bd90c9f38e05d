/* Refuses whatever the driver acknowledged. */
#include <string.h>

#include "virtbay/sdk/abi.h"

static int32_t Negotiate(virtbay_device* device, const uint64_t features[2], virtbay_error* error) {
  (void)device;
  (void)features;
  strcpy(error->text, "not with me");
  return VIRTBAY_INVALID_ARGUMENT;
}
#define OPS_NEGOTIATE Negotiate
#include "plugin_base.h"
