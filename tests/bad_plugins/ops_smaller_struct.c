/* The device's table ends before destroy. */
#define OPS_STRUCT_SIZE offsetof(virtbay_device_ops, destroy)
#include "plugin_base.h"
