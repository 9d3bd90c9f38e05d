// OnRequests throws; the SDK's trampoline fails the device.
#include <stdexcept>

#include "virtbay/sdk/plugin.h"

namespace {

class Throws : public virtbay::sdk::Device {
 public:
  virtbay::sdk::Status Init() override { return {}; }
  virtbay::sdk::Properties GetProperties() const override { return {}; }
  void OnRequests(uint32_t, std::span<virtbay::sdk::Request>) override {
    throw std::runtime_error("from OnRequests");
  }
};

}  // namespace

VIRTBAY_PLUGIN(Throws, "bad-device", 4, 0);
