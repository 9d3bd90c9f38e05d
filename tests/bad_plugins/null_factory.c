/* The required factory function is missing. */
#define ENTRY_FACTORY NULL
#include "plugin_base.h"
