/* Does not take the state that it has saved itself. */
#include "device_base.h"

static int32_t Restore(virtbay_device* device, const virtbay_state* state, virtbay_error* error) {
  (void)device;
  (void)state;
  (void)error;
  return VIRTBAY_INVALID_ARGUMENT;
}
#define STATE_RESTORE Restore
#include "state_base.h"
