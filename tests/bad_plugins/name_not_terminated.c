/* 32 characters in an array of 32: no NUL. */
#define ENTRY_NAME                                                                                 \
  {                                                                                                \
    'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', \
        'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a', 'a'                            \
  }
#include "plugin_base.h"
