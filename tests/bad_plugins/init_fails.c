/* init() refuses with an errno behind it. */
#include <errno.h>
#include <string.h>

#include "virtbay/sdk/abi.h"

static int32_t Init(virtbay_device* device, virtbay_error* error) {
  (void)device;
  error->sys_errno = ENOENT;
  strcpy(error->text, "no such directory");
  return VIRTBAY_NOT_FOUND;
}
#define OPS_INIT Init
#include "plugin_base.h"
