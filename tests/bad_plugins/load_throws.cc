// load() throws across the boundary.
#include <stdexcept>

#include "virtbay/sdk/abi.h"

static int32_t Load(const virtbay_host*, virtbay_error*) { throw std::runtime_error("from load"); }
#define ENTRY_LOAD Load
#include "plugin_base.h"
