/* in_view + out_view is beyond one mapping (and wraps), and max_size is no power of two. */
#include "virtbay/sdk/abi.h"

static void QueueProperties(virtbay_device* device, uint32_t queue,
                            virtbay_queue_properties* properties) {
  (void)device;
  (void)queue;
  properties->max_size = 1000;
  properties->in_view = UINT32_MAX;
  properties->out_view = 2;
}
#define OPS_QUEUE_PROPERTIES QueueProperties
#include "plugin_base.h"
