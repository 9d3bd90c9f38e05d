/* Keeps the last request that has no readable bytes, and does not give it back at quiesce. */
#include "device_base.h"

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  (void)queue;
  for (uint32_t i = 0; i < n; ++i) {
    if (requests[i]->in_total == 0 && requests[i]->out_total == 64) {
      BaseOf(device)->kept = requests[i];
    } else {
      QueueOf(device)->complete(requests[i], 0, 0);
    }
  }
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
