// Fuzz target: the same front-end in front of a real device of a Host (the template plugin,
// entropy), whose queue threads read the rings and the memory that it writes. The input is that of
// vhost_user_steps.h.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <utility>

#include "framework/isolation/sigbus_guard.h"
#include "tests/fuzz/vhost_user_steps.h"
#include "virtbay/host.h"

namespace {

using virtbay::DeviceHandle;
using virtbay::Host;

[[noreturn]] void Finding(const char* what) {
  std::fprintf(stderr, "vhost_user_device_fuzz: %s\n", what);
  abort();
}

// One device for all inputs, so that what one leaves behind is met by the next.
class Subject {
 public:
  Subject() {
    // A front-end may claim more memory than its file has.
    if (!virtbay::InstallSigbusGuard().ok()) Finding("no SIGBUS guard");
    auto host = Host::Create({});
    if (!host.ok()) Finding("no host");
    host_ = *std::move(host);
    virtbay::DeviceSpec spec;
    spec.name = "fuzzed";
    spec.plugin = VIRTBAY_RNG_PLUGIN;
    spec.arena_size = 2u << 20;
    auto device = host_->Add(std::move(spec));
    if (!device.ok()) Finding("no device");
    device_ = *std::move(device);
  }

  void Run(std::span<const uint8_t> input) {
    virtbay::fuzz::Play(
        input, [&](virtbay::DevicePortEvents* events) { return device_.Attach(events); }, [] {});
    const auto info = device_.Inspect();
    if (!info.ok() || info->state != "ready" || info->connected || info->needs_reset ||
        info->arena_slots_used != 0) {
      Finding("the device is not as new after its front-end has gone");
    }
  }

  // Requests that the device has answered so far.
  uint64_t answered() const { return device_.Inspect()->queues[0].completions; }

 private:
  std::unique_ptr<Host> host_;
  DeviceHandle device_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Subject subject;
  static const int before = virtbay::testing::CountFds();
  static uint64_t inputs = 0;
  subject.Run({data, size});
  if (virtbay::testing::CountFds() != before) Finding("a descriptor stayed behind");
  // Sessions that do not get as far as a request try nothing of the device.
  if (++inputs == 1000 && subject.answered() == 0) Finding("no request was ever answered");
  return 0;
}
