/* create() says OK and gives nothing. */
#include "virtbay/sdk/abi.h"

static int32_t Create(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                      virtbay_device** device, virtbay_error* error) {
  (void)index;
  (void)host;
  (void)device_host;
  (void)device;
  (void)error;
  return VIRTBAY_OK;
}
#define FACTORY_CREATE Create
#include "plugin_base.h"
