// Built without the plugin flags: an inline variable becomes a UNIQUE symbol, and the image stays
// mapped after dlclose.
#include "virtbay/sdk/abi.h"

template <typename T>
struct Table {
  __attribute__((visibility("default"))) static inline T value = 0;
};

static int32_t Load(const virtbay_host*, virtbay_error*) {
  ++Table<int>::value;
  return VIRTBAY_OK;
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
