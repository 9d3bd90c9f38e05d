/* A complete, correct plugin in C11 (or C++), every part of which a source may replace before it
 * includes this file: by a macro of its own for a value, a function or a whole member. Each file in
 * this folder breaks one clause of the contract that way, or as its own comment says.
 * Compiled into one plugin each; callbacks carry the thread tags of abi.h.
 */
#ifndef VIRTBAY_TESTS_BAD_PLUGINS_PLUGIN_BASE_H_
#define VIRTBAY_TESTS_BAD_PLUGINS_PLUGIN_BASE_H_

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "virtbay/sdk/abi.h"

#ifndef ENTRY_STRUCT_SIZE
#define ENTRY_STRUCT_SIZE sizeof(virtbay_plugin)
#endif
#ifndef ENTRY_MAGIC
#define ENTRY_MAGIC VIRTBAY_ABI_MAGIC
#endif
#ifndef ENTRY_MAJOR
#define ENTRY_MAJOR VIRTBAY_ABI_MAJOR
#endif
#ifndef ENTRY_MINOR
#define ENTRY_MINOR VIRTBAY_ABI_MINOR
#endif
#ifndef ENTRY_NAME
#define ENTRY_NAME "bad"
#endif
#ifndef ENTRY_LOAD
#define ENTRY_LOAD NULL
#endif
#ifndef ENTRY_UNLOAD
#define ENTRY_UNLOAD NULL
#endif
#ifndef ENTRY_FACTORY
#define ENTRY_FACTORY BaseFactory
#endif
#ifndef FACTORY_STRUCT_SIZE
#define FACTORY_STRUCT_SIZE sizeof(virtbay_device_factory)
#endif
#ifndef FACTORY_COUNT
#define FACTORY_COUNT 1
#endif
#ifndef FACTORY_DESCRIBE
#define FACTORY_DESCRIBE BaseDescribe
#endif
#ifndef FACTORY_CREATE
#define FACTORY_CREATE BaseCreate
#endif
#ifndef TYPE_STRUCT_SIZE
#define TYPE_STRUCT_SIZE sizeof(virtbay_device_type)
#endif
#ifndef TYPE_VIRTIO_ID
#define TYPE_VIRTIO_ID 4 /* entropy: no configuration space, one queue */
#endif
#ifndef TYPE_NAME
#define TYPE_NAME "bad-device"
#endif
#ifndef OPS_STRUCT_SIZE
#define OPS_STRUCT_SIZE sizeof(virtbay_device_ops)
#endif
#ifndef OPS_INIT
#define OPS_INIT BaseInit
#endif
#ifndef OPS_PROPERTIES
#define OPS_PROPERTIES BaseProperties
#endif
#ifndef OPS_QUEUE_PROPERTIES
#define OPS_QUEUE_PROPERTIES NULL
#endif
#ifndef OPS_NEGOTIATE
#define OPS_NEGOTIATE NULL
#endif
#ifndef OPS_START
#define OPS_START NULL
#endif
#ifndef OPS_ON_REQUESTS
#define OPS_ON_REQUESTS BaseOnRequests
#endif
#ifndef OPS_QUIESCE
#define OPS_QUIESCE NULL
#endif
#ifndef OPS_CONFIG_READ
#define OPS_CONFIG_READ NULL
#endif
#ifndef OPS_EXTENSION
#define OPS_EXTENSION NULL
#endif
#ifndef OPS_DESTROY
#define OPS_DESTROY BaseDestroy
#endif

/* The device: sources that replace a callback find the services here. */
#include "device_base.h"

#ifdef __cplusplus
extern "C" {
#define VIRTBAY_TEST_MAYBE_UNUSED [[maybe_unused]]
#else
#define VIRTBAY_TEST_MAYBE_UNUSED __attribute__((unused))
#endif

VIRTBAY_TEST_MAYBE_UNUSED static int32_t BaseInit(virtbay_device* device, virtbay_error* error) {
  (void)device;
  (void)error;
  return VIRTBAY_OK;
}

VIRTBAY_TEST_MAYBE_UNUSED static void BaseProperties(virtbay_device* device,
                                                     virtbay_device_properties* properties) {
  (void)device;
  properties->queue_count = 1;
}

VIRTBAY_TEST_MAYBE_UNUSED static void BaseOnRequests(virtbay_device* device, uint32_t queue,
                                                     virtbay_request* const* requests, uint32_t n) {
  (void)queue;
  for (uint32_t i = 0; i < n; ++i) QueueOf(device)->complete(requests[i], 0, 0);
}

VIRTBAY_TEST_MAYBE_UNUSED static void BaseDestroy(virtbay_device* device) { free(device); }

static const virtbay_device_ops kOps = {OPS_STRUCT_SIZE,
                                        0,
                                        OPS_INIT,
                                        OPS_PROPERTIES,
                                        OPS_QUEUE_PROPERTIES,
                                        OPS_NEGOTIATE,
                                        NULL, /* activate */
                                        OPS_START,
                                        OPS_ON_REQUESTS,
                                        NULL,
                                        NULL, /* on_io, on_timer */
                                        NULL, /* on_offload */
                                        OPS_QUIESCE,
                                        NULL,
                                        NULL, /* resume, stop */
                                        NULL, /* deactivate */
                                        OPS_CONFIG_READ,
                                        NULL, /* config_write */
                                        OPS_EXTENSION,
                                        OPS_DESTROY,
#if VIRTBAY_ABI_MINOR >= 3
                                        NULL /* farewell */
#endif
};

VIRTBAY_TEST_MAYBE_UNUSED static int32_t BaseCreate(uint32_t index, const virtbay_host* host,
                                                    virtbay_host_device* device_host,
                                                    virtbay_device** device, virtbay_error* error) {
  BaseDevice* self = FROM_VOID(BaseDevice*, calloc(1, sizeof(BaseDevice)));
  (void)error;
  if (index != 0 || self == NULL) {
    free(self);
    return VIRTBAY_NOT_FOUND;
  }
  self->base.ops = &kOps;
  self->host = device_host;
  self->queue = FROM_VOID(const virtbay_queue_service*, host->service(host, VIRTBAY_SERVICE_QUEUE));
  *device = &self->base;
  return VIRTBAY_OK;
}

static const virtbay_device_type kType = {TYPE_STRUCT_SIZE, TYPE_VIRTIO_ID, 0, 0, TYPE_NAME};

VIRTBAY_TEST_MAYBE_UNUSED static const virtbay_device_type* BaseDescribe(uint32_t index) {
  (void)index;
  return &kType;
}

static const virtbay_device_factory kFactory = {FACTORY_STRUCT_SIZE, FACTORY_COUNT,
                                                FACTORY_DESCRIBE, FACTORY_CREATE};

VIRTBAY_TEST_MAYBE_UNUSED static const void* BaseFactory(const char* id) {
  return strcmp(id, VIRTBAY_FACTORY_DEVICE) == 0 ? &kFactory : NULL;
}

#ifndef NO_ENTRY
#ifdef __cplusplus
extern
#endif
    __attribute__((visibility("default"))) const virtbay_plugin virtbay_plugin_entry = {
        ENTRY_STRUCT_SIZE, ENTRY_MAGIC, ENTRY_MAJOR,  ENTRY_MINOR,  0, ENTRY_NAME, "1.0", "test",
        "bad-device:4",    ENTRY_LOAD,  ENTRY_UNLOAD, ENTRY_FACTORY};
#endif

#ifdef __cplusplus
}
#endif

#endif /* VIRTBAY_TESTS_BAD_PLUGINS_PLUGIN_BASE_H_ */
