// Touches a thread_local with a destructor on the threads that call it: as long as such a thread
// lives, dlclose cannot unmap the image.
#include <string>

#include "device_base.h"

static thread_local std::string t_name;  // NOLINT: what this plugin is for

static int32_t Load(const virtbay_host*, virtbay_error*) {
  t_name = "a text that is too long for the small-string buffer";
  return VIRTBAY_OK;
}

static void OnRequests(virtbay_device* device, uint32_t, virtbay_request* const* requests,
                       uint32_t n) {
  t_name = "a text that is too long for the small-string buffer";
  for (uint32_t i = 0; i < n; ++i) QueueOf(device)->complete(requests[i], 0, 0);
}
#define ENTRY_LOAD Load
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
