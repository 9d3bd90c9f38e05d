/* Built for the next major. */
#define ENTRY_MAJOR (VIRTBAY_ABI_MAJOR + 1)
#include "plugin_base.h"
