/* Two device types with the same name. */
#define FACTORY_COUNT 2
#include "plugin_base.h"
