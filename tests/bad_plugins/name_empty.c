/* No name. */
#define ENTRY_NAME ""
#include "plugin_base.h"
