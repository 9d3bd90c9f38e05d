/* Believes a state to be its own: the first byte is an index. */
#include "device_base.h"

static int32_t Restore(virtbay_device* device, const virtbay_state* state, virtbay_error* error) {
  /* 'g' lies on the first page of what is read here, 0xff does not. */
  static volatile uint64_t places[256];
  (void)device;
  (void)error;
  const uint64_t place = state->size == 0 ? 0 : state->bytes[0];
  return places[place == 'g' ? 0 : place << 40] == 0 ? VIRTBAY_OK : VIRTBAY_UNKNOWN;
}
#define STATE_RESTORE Restore
#include "state_base.h"
