// init() throws across the boundary.
#include <stdexcept>

#include "virtbay/sdk/abi.h"

static int32_t Init(virtbay_device*, virtbay_error*) { throw std::runtime_error("from init"); }
#define OPS_INIT Init
#include "plugin_base.h"
