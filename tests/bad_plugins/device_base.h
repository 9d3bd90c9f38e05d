/* The state of plugin_base.h's device and how a callback gets at it; included first by sources that
 * replace a callback. Owned by the plugin between create and destroy.
 */
#ifndef VIRTBAY_TESTS_BAD_PLUGINS_DEVICE_BASE_H_
#define VIRTBAY_TESTS_BAD_PLUGINS_DEVICE_BASE_H_

#include <stddef.h>

#include "virtbay/sdk/abi.h"

/* A void pointer as another: implicit in C, not in C++. */
#ifdef __cplusplus
#define FROM_VOID(type, pointer) static_cast<type>(pointer)
#else
#define FROM_VOID(type, pointer) (pointer)
#endif

typedef struct BaseDevice {
  virtbay_device base; /* first: the host's pointer is a pointer to this */
  virtbay_host_device* host;
  const virtbay_queue_service* queue;
  virtbay_request* kept; /* for the sources that hold on to one */
} BaseDevice;

static inline BaseDevice* BaseOf(virtbay_device* device) {
#ifdef __cplusplus
  return reinterpret_cast<BaseDevice*>(device);
#else
  return (BaseDevice*)device;
#endif
}

static inline const virtbay_queue_service* QueueOf(virtbay_device* device) {
  return BaseOf(device)->queue;
}

#endif /* VIRTBAY_TESTS_BAD_PLUGINS_DEVICE_BASE_H_ */
