/* load() refuses with a text that has a line feed in it. */
#include <string.h>

#include "virtbay/sdk/abi.h"

static int32_t Load(const virtbay_host* host, virtbay_error* error) {
  (void)host;
  error->code = VIRTBAY_UNAVAILABLE;
  strcpy(error->text, "the moon is\nin the wrong house");
  return VIRTBAY_UNAVAILABLE;
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
