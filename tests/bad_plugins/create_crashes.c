/* Writes to no address in create. */
#include "device_base.h"

static int32_t Create(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                      virtbay_device** device, virtbay_error* error) {
  volatile int* volatile nowhere = NULL;
  (void)index;
  (void)host;
  (void)device_host;
  (void)device;
  (void)error;
  *nowhere = 1;
  return VIRTBAY_OK;
}
#define FACTORY_CREATE Create
#include "plugin_base.h"
