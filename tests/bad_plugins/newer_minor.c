/* A newer minor is compatible: tables only grow. Loads. */
#define ENTRY_MINOR (VIRTBAY_ABI_MINOR + 7)
#include "plugin_base.h"
