/* struct_size leaves out the factory member. */
#define ENTRY_STRUCT_SIZE offsetof(virtbay_plugin, factory)
#include "plugin_base.h"
