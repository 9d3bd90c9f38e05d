/* The required on_requests is missing. */
#define OPS_ON_REQUESTS NULL
#include "plugin_base.h"
