/* Makes nothing that this host asks for. */
#include <stddef.h>

static const void* Factory(const char* id) {
  (void)id;
  return NULL;
}
#define ENTRY_FACTORY Factory
#include "plugin_base.h"
