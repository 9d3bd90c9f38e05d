// on_requests throws across the boundary: no trampoline between.
#include <stdexcept>

#include "virtbay/sdk/abi.h"

static void OnRequests(virtbay_device*, uint32_t, virtbay_request* const*, uint32_t) {
  throw std::runtime_error("from on_requests");
}
#define OPS_ON_REQUESTS OnRequests
#include "plugin_base.h"
