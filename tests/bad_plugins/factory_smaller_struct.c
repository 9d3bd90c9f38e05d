/* The factory's table ends before create. */
#define FACTORY_STRUCT_SIZE offsetof(virtbay_device_factory, create)
#include "plugin_base.h"
