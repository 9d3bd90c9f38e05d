/* Ends its requests on a thread of its own; that thread has ended when on_requests returns. */
#include <pthread.h>

#include "device_base.h"

typedef struct Work {
  virtbay_device* device;
  virtbay_request* const* requests;
  uint32_t n;
} Work;

static void* Run(void* argument) {
  const Work* work = (const Work*)argument;
  for (uint32_t i = 0; i < work->n; ++i) {
    QueueOf(work->device)->complete(work->requests[i], 0, 0);
  }
  return NULL;
}

static void OnRequests(virtbay_device* device, uint32_t queue, virtbay_request* const* requests,
                       uint32_t n) {
  Work work = {device, requests, n};
  pthread_t thread;
  (void)queue;
  if (pthread_create(&thread, NULL, Run, &work) == 0) pthread_join(thread, NULL);
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
