/* The state extension for sources that break it: a state is the word kWord, which is what restore
 * takes; a source may replace that. Included last, instead of plugin_base.h.
 */
#ifndef VIRTBAY_TESTS_BAD_PLUGINS_STATE_BASE_H_
#define VIRTBAY_TESTS_BAD_PLUGINS_STATE_BASE_H_

#include <string.h>

#include "device_base.h"

static const uint8_t kWord[4] = {'g', 'o', 'o', 'd'};

#ifndef STATE_RESTORE
static int32_t BaseRestore(virtbay_device* device, const virtbay_state* state,
                           virtbay_error* error) {
  (void)device;
  (void)error;
  const int good = state->size == sizeof(kWord) && memcmp(state->bytes, kWord, sizeof(kWord)) == 0;
  return good ? VIRTBAY_OK : VIRTBAY_INVALID_ARGUMENT;
}
#define STATE_RESTORE BaseRestore
#endif

static int32_t BaseSave(virtbay_device* device, virtbay_state* state, virtbay_error* error) {
  (void)device;
  (void)error;
  state->version = 1;
  state->bytes = kWord;
  state->size = sizeof(kWord);
  return VIRTBAY_OK;
}

static void BaseRelease(virtbay_device* device) { (void)device; }

static const virtbay_device_state kState = {
    sizeof(virtbay_device_state), 1, 1, 0, BaseSave, STATE_RESTORE, BaseRelease};

static const void* StateExtension(virtbay_device* device, const char* id) {
  (void)device;
  return strcmp(id, VIRTBAY_EXTENSION_STATE) == 0 ? &kState : NULL;
}
#define OPS_EXTENSION StateExtension
/* Now that it knows what to have. */
#include "plugin_base.h"

#endif /* VIRTBAY_TESTS_BAD_PLUGINS_STATE_BASE_H_ */
