/* A device type named by a control character. */
#define TYPE_NAME "\t"
#include "plugin_base.h"
