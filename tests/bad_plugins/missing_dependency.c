/* Needs a function that nobody has. */
#include "virtbay/sdk/abi.h"

int32_t nobody_has_this_function(void);

static int32_t Load(const virtbay_host* host, virtbay_error* error) {
  (void)host;
  (void)error;
  return nobody_has_this_function();
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
