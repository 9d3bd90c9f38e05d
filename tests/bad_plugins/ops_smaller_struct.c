/* The device's table ends before destroy. The device is static, since nobody can free it. */
#include "virtbay/sdk/abi.h"

static int32_t Create(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                      virtbay_device** device, virtbay_error* error);
#define OPS_STRUCT_SIZE offsetof(virtbay_device_ops, destroy)
#define FACTORY_CREATE Create
#include "plugin_base.h"

static virtbay_device device_without_end = {&kOps};

static int32_t Create(uint32_t index, const virtbay_host* host, virtbay_host_device* device_host,
                      virtbay_device** device, virtbay_error* error) {
  (void)index;
  (void)host;
  (void)device_host;
  (void)error;
  *device = &device_without_end;
  return VIRTBAY_OK;
}
