/* Would rewrite a terminal's title. */
#define ENTRY_NAME "\033]0;owned\007"
#include "plugin_base.h"
