/* Reports more than the chain can hold, and more view than there is. */
#include "device_base.h"

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  (void)queue;
  for (uint32_t i = 0; i < n; ++i) {
    QueueOf(device)->complete(requests[i], UINT32_MAX, UINT32_MAX);
  }
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
