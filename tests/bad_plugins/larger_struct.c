/* The entry of a newer minor, with members that this host does not know. Loads. */
#define NO_ENTRY
#include "plugin_base.h"

__attribute__((visibility("default"))) const struct {
  virtbay_plugin known;
  uint64_t later[4];
} virtbay_plugin_entry = {
    {sizeof(virtbay_plugin_entry), VIRTBAY_ABI_MAGIC, VIRTBAY_ABI_MAJOR, VIRTBAY_ABI_MINOR + 1, 0,
     "bad", "1.0", "test", "bad-device:4", NULL, NULL, BaseFactory},
    {1, 2, 3, 4}};
