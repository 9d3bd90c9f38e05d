/* No device types. */
#define FACTORY_COUNT 0
#include "plugin_base.h"
