// ExampleTest: a Host with one of the example devices, and Guest: a driver in this process that
// sends it buffers and looks at all that comes back.
// Owned by the test; one thread at a time uses a Guest.
#ifndef VIRTBAY_TESTS_UNIT_EXAMPLE_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_EXAMPLE_FIXTURE_H_

#include <gtest/gtest.h>
#include <poll.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "hostif/guest/driver.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/testkit/buffers.h"
#include "tests/support/log_capture.h"
#include "tests/support/process_state.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "virtbay/host.h"

namespace virtbay::testing {

// A plain value as its bytes.
template <typename T>
std::string Raw(const T& value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

class Guest {
 public:
  struct Reply {
    uint32_t written = 0;
    std::string room;  // the writable bytes, all of them
  };

  static absl::StatusOr<std::unique_ptr<Guest>> Create(const DeviceHandle& device,
                                                       guest::DriverOptions options) {
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
    VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(uint64_t{32} << 20));
    std::unique_ptr<Guest> guest(new Guest());
    VIRTBAY_ASSIGN_OR_RETURN(
        guest->driver_, guest::Driver::Create(std::move(transport), std::move(memory), options));
    guest->buffers_.emplace(guest->driver_.get());
    return guest;
  }

  // Shows the device `readable` and `room` writable bytes, which are 0xEE; returns a token, 0 when
  // there is no room.
  uint64_t Send(const std::string& readable, uint32_t room, uint32_t queue = 0) {
    const auto in = static_cast<uint32_t>(readable.size());
    const uint64_t token =
        buffers_->Add(queue, readable, {&in, in > 0 ? 1u : 0u}, {&room, room > 0 ? 1u : 0u});
    driver_->queue(queue).Publish();
    return token;
  }
  bool Has(uint64_t token, uint32_t queue = 0) { return buffers_->Has(token, queue); }
  absl::StatusOr<Reply> Take(uint64_t token, uint32_t queue = 0) {
    if (token == 0) return absl::ResourceExhaustedError("it was not sent");
    while (!Has(token, queue)) {
      VIRTBAY_RETURN_IF_ERROR(
          driver_->queue(queue).Wait(guest::WaitMode::kSleep, absl::Seconds(60)));
    }
    testkit::Buffers::Taken taken = buffers_->Take(token);
    return Reply{taken.written, std::move(taken.bytes)};
  }
  absl::StatusOr<Reply> Call(const std::string& readable, uint32_t room, uint32_t queue = 0) {
    return Take(Send(readable, room, queue), queue);
  }
  template <typename T>
  T Config(uint32_t offset = 0) {
    T value{};
    EXPECT_OK(
        driver_->transport().ReadConfig(offset, std::as_writable_bytes(std::span(&value, 1))));
    return value;
  }
  bool NeedsReset() {
    return (driver_->transport().GetStatus().value_or(kStatusNeedsReset) & kStatusNeedsReset) != 0;
  }
  bool WaitForConfigChange() {
    pollfd look{.fd = driver_->transport().config_fd(), .events = POLLIN, .revents = 0};
    return poll(&look, 1, 60'000) == 1 && driver_->transport().TakeConfigChanges().value_or(0) > 0;
  }
  guest::Driver& driver() { return *driver_; }

 private:
  std::unique_ptr<guest::Driver> driver_;
  std::optional<testkit::Buffers> buffers_;
};

class ExampleTest : public ::testing::Test {
 protected:
  using Options = std::map<std::string, std::string>;

  explicit ExampleTest(const char* plugin) : plugin_(plugin) {}
  void SetUp() override {
    HostOptions options;
    options.log = log_.log();
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
  }
  void TearDown() override {
    guest_.reset();
    host_.reset();
    EXPECT_FALSE(log_.Contains("dropped without an answer"));
  }

  DeviceSpec Spec(Options options, const std::string& name = "example") const {
    DeviceSpec spec;
    spec.name = name;
    spec.plugin = plugin_;
    spec.options = std::move(options);
    spec.arena_size = 2u << 20;
    return spec;
  }
  void Start(Options options, uint64_t features = ~uint64_t{0} & ~guest::kFeatureRingPacked) {
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec(std::move(options))));
    Connect(features);
  }
  // As the device's driver, with those of the device type's features.
  void Connect(uint64_t features = ~uint64_t{0}) {
    guest::DriverOptions options;
    options.device_features = features & 0xffffff;
    ASSERT_OK_AND_ASSIGN(guest_, Guest::Create(device_, options));
  }
  // The device's place is taken by another one that goes on with its state; `guest_` is anew.
  void HandOver(Options options) {
    ASSERT_OK_AND_ASSIGN(DeviceState state, device_.Save());
    guest_.reset();
    ASSERT_OK(host_->Remove("example"));
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec(std::move(options)), std::move(state)));
    Connect();
  }
  uint64_t Metric(const std::string& name) {
    const auto info = device_.Inspect();
    return info.ok() && info->metrics.contains(name) ? info->metrics.at(name) : ~uint64_t{0};
  }
  absl::Status Refusal(Options options) { return host_->Add(Spec(std::move(options))).status(); }

  const char* const plugin_;
  LogCapture log_;
  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  std::unique_ptr<Guest> guest_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_EXAMPLE_FIXTURE_H_
