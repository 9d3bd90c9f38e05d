/* abi.h alone, as every plugin author's compiler sees it: as C11. */
#include <stddef.h>

#include "virtbay/sdk/abi.h"
/* Twice: it has a guard. */
#include "virtbay/sdk/abi.h"

_Static_assert(offsetof(virtbay_plugin, magic) == 4, "two versions can always tell each other");
_Static_assert(offsetof(virtbay_plugin, abi_major) == 8, "the same");
_Static_assert(VIRTBAY_MAPPING_MAX == 262144, "IO_TLB_SEGSIZE x IO_TLB_SIZE");

/* A declaration, so that the translation unit is not empty. */
int32_t virtbay_abi_user(const virtbay_plugin* plugin);
int32_t virtbay_abi_user(const virtbay_plugin* plugin) {
  return plugin->magic == VIRTBAY_ABI_MAGIC;
}
