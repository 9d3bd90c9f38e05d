/* Another project's magic. */
#define ENTRY_MAGIC 0x21212121u
#include "plugin_base.h"
