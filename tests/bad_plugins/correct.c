/* Nothing is wrong with this one: what the others are measured against. */
#include "plugin_base.h"
