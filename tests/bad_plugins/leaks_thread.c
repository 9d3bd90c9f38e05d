/* Starts a thread for every device that does not end with it; nothing of it is the plugin's own
 * code, so that it outlives the image. */
#include <pthread.h>
#include <unistd.h>

#include "device_base.h"

static int32_t Init(virtbay_device* device, virtbay_error* error) {
  pthread_t thread;
  void (*const wait)(void) = (void (*)(void))pause;
  (void)device;
  (void)error;
  return pthread_create(&thread, NULL, (void* (*)(void*))wait, NULL) == 0
             ? VIRTBAY_OK
             : VIRTBAY_RESOURCE_EXHAUSTED;
}
#define OPS_INIT Init
#include "plugin_base.h"
