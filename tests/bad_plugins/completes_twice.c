/* Ends every request three times. */
#include "device_base.h"

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  (void)queue;
  for (uint32_t i = 0; i < n; ++i) {
    QueueOf(device)->complete(requests[i], 0, 0);
    QueueOf(device)->complete(requests[i], 0, 0);
    QueueOf(device)->fail(requests[i]);
  }
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
