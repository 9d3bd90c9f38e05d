// Starts a thread in load.
#include <unistd.h>

#include <thread>

#include "device_base.h"

static int32_t Load(const virtbay_host*, virtbay_error*) {
  std::thread([] {
    for (;;) pause();
  }).detach();
  return VIRTBAY_OK;
}
#define ENTRY_LOAD Load
#include "plugin_base.h"
