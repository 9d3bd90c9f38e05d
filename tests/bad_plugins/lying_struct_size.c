/* struct_size reaches beyond the symbol. */
#define ENTRY_STRUCT_SIZE (sizeof(virtbay_plugin) + 64)
#include "plugin_base.h"
