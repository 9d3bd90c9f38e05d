/* Four thousand million device types. */
#define FACTORY_COUNT UINT32_MAX
#include "plugin_base.h"
