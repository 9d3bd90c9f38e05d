/* Ends a request of the batch before, which ended then already: a stale pointer. */
#include "device_base.h"

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  BaseDevice* self = BaseOf(device);
  (void)queue;
  if (self->kept != NULL) self->queue->complete(self->kept, 0, 0);
  for (uint32_t i = 0; i < n; ++i) {
    self->queue->complete(requests[i], 0, 0);
    self->kept = requests[i];
  }
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
