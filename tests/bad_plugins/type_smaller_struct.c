/* The device type has no room for its name. */
#define TYPE_STRUCT_SIZE offsetof(virtbay_device_type, name)
#include "plugin_base.h"
