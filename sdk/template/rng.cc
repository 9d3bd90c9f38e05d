// The smallest complete device: virtio-rng (virtio 1.3 5.4). Start your own device from this file.
#include <sys/random.h>

#include <algorithm>

#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;

constexpr uint32_t kVirtioIdRng = 4;
constexpr uint32_t kLargestAnswer = 4096;

class Rng : public Device {
 public:
  static constexpr bool kHotReloadable = true;  // it remembers nothing

  Status Init() override {
    bytes_ = host().Counter("random_bytes", "random bytes given to the guest");
    return {};
  }

  Properties GetProperties() const override { return {.queue_count = 1}; }

  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = 256, .in_view = 0, .out_view = kLargestAnswer};
  }

  // The driver offers writable buffers; a buffer may be filled in part (virtio 1.3 5.4.6).
  void OnRequests(uint32_t /*queue*/, std::span<Request> requests) override {
    for (Request& request : requests) {
      const auto out = request.out();
      const ssize_t n = getrandom(out.data(), out.size(), 0);
      const uint32_t filled = static_cast<uint32_t>(std::max<ssize_t>(n, 0));
      virtbay::sdk::Host::Add(bytes_, filled);
      request.Complete(filled);
    }
  }

 private:
  uint64_t* bytes_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(Rng, "virtio-rng", kVirtioIdRng, 0);
