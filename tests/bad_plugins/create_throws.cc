// create() throws across the boundary, and not even a std::exception.
#include "virtbay/sdk/abi.h"

static int32_t Create(uint32_t, const virtbay_host*, virtbay_host_device*, virtbay_device**,
                      virtbay_error*) {
  throw 42;
}
#define FACTORY_CREATE Create
#include "plugin_base.h"
