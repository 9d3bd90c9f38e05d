// Fuzz target: the vhost-user back-end's control plane alone, in front of a device that only
// records what it is told. The input is that of vhost_user_steps.h.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "tests/fuzz/vhost_user_steps.h"
#include "tests/support/fake_device_port.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int before = virtbay::testing::CountFds();
  virtbay::testing::FakeDevice device;
  virtbay::fuzz::Play(
      {data, size}, [&](virtbay::DevicePortEvents* events) { return device.Attach(events); },
      [&] { device.ChangeConfig(); });
  // A descriptor that stays behind is a finding as good as a crash.
  if (virtbay::testing::CountFds() != before) abort();
  return 0;
}
