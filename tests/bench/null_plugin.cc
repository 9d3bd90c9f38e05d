// The null device: completes every request at once with up to 16 bytes of zeroes. It does no work
// of its own, so that what virtq_bench measures is the framework's.
#include "tests/bench/null_answer.h"
#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;

constexpr uint32_t kView = 64;
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
      request.Complete(static_cast<uint32_t>(virtbay::bench::NullAnswer(request.out())));
    }
  }
};

}  // namespace

VIRTBAY_PLUGIN(Null, "null", kVirtioIdNull, 0);
