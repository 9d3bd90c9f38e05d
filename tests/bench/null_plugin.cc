// The null device: completes every request at once with up to 16 bytes of zeroes. It does no work
// of its own, so that what virtq_bench measures is the framework's.
#include <algorithm>

#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;

constexpr uint32_t kView = 64;
constexpr size_t kAnswer = 16;
constexpr uint32_t kVirtioIdNull = 32768;  // assigned to no device type

class Null : public Device {
 public:
  Status Init() override { return {}; }
  Properties GetProperties() const override { return {.queue_count = 1}; }
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = 0, .in_view = kView, .out_view = kView};
  }
  void OnRequests(uint32_t /*queue*/, std::span<Request> requests) override {
    for (Request& request : requests) {
      const auto out = request.out();
      const size_t n = std::min(out.size(), kAnswer);
      std::fill_n(out.begin(), n, std::byte{0});
      request.Complete(static_cast<uint32_t>(n));
    }
  }
};

}  // namespace

VIRTBAY_PLUGIN(Null, "null", kVirtioIdNull, 0);
