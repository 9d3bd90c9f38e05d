/* The factory cannot make anything. */
#define FACTORY_CREATE NULL
#include "plugin_base.h"
