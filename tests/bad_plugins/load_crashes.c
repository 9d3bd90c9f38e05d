/* Divides by zero in load. */
#include "device_base.h"

static int32_t Load(const virtbay_host* host, virtbay_error* error) {
  volatile int zero = 0;
  (void)host;
  (void)error;
  return 100 / zero;
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
