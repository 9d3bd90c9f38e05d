/* load() fails with an unknown code, and fills the text without a NUL. */
#include <string.h>

#include "virtbay/sdk/abi.h"

static int32_t Load(const virtbay_host* host, virtbay_error* error) {
  (void)host;
  memset(error->text, 'x', sizeof(error->text));
  return 4711;
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
