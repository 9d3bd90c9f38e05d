/* The table of options has no room for its function. */
#include <stddef.h>

#include "virtbay/sdk/abi.h"
#define OPTIONS_DESCRIBE NULL
#define OPTIONS_STRUCT_SIZE offsetof(virtbay_device_options, describe)
#include "options_base.h"
#include "plugin_base.h"
