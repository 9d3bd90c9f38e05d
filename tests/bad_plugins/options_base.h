/* A factory that also has a table of options, OPTIONS_DESCRIBE(type, index), of
 * OPTIONS_STRUCT_SIZE; for the sources about those. Constant data. */
#ifndef VIRTBAY_TESTS_BAD_PLUGINS_OPTIONS_BASE_H_
#define VIRTBAY_TESTS_BAD_PLUGINS_OPTIONS_BASE_H_

#include <string.h>

#include "virtbay/sdk/abi.h"

#ifndef OPTIONS_STRUCT_SIZE
#define OPTIONS_STRUCT_SIZE sizeof(virtbay_device_options)
#endif

static const virtbay_device_options kOptionTable = {OPTIONS_STRUCT_SIZE, 0, OPTIONS_DESCRIBE};

static const void* BaseFactory(const char* id);
static const void* OptionsFactory(const char* id) {
  return strcmp(id, VIRTBAY_FACTORY_OPTIONS) == 0 ? &kOptionTable : BaseFactory(id);
}
#define ENTRY_FACTORY OptionsFactory

#endif /* VIRTBAY_TESTS_BAD_PLUGINS_OPTIONS_BASE_H_ */
