/* Takes requests and never ends them; does not answer to quiesce either. */
#include "device_base.h"

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  (void)queue;
  if (n > 0) BaseOf(device)->kept = requests[n - 1];
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
