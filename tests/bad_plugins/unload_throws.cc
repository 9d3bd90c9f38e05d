// unload() throws across the boundary.
#include <stdexcept>

static void Unload() { throw std::runtime_error("from unload"); }
#define ENTRY_UNLOAD Unload
#include "plugin_base.h"
