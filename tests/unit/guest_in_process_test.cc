// The guest library in one process with a Host: the template device (virtio-rng) driven through
// InProcessTransport.
#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "hostif/guest/driver.h"
#include "hostif/guest/in_process_transport.h"
#include "tests/support/status_matchers.h"
#include "virtbay/host.h"

namespace virtbay::guest {
namespace {

using ::virtbay::testing::IsOk;
using ::virtbay::testing::StatusIs;

class InProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(HostOptions{}));
    DeviceSpec spec;
    spec.name = "rng";
    spec.plugin = VIRTBAY_RNG_PLUGIN;
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec));
  }

  absl::StatusOr<std::unique_ptr<Driver>> Connect(DriverOptions options = {}) {
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, InProcessTransport::Attach(device_));
    VIRTBAY_ASSIGN_OR_RETURN(auto memory, GuestMemory::Create(1u << 20));
    return Driver::Create(std::move(transport), std::move(memory), options);
  }

  // Has the device fill 64 bytes; whether it did.
  static void Fill(Driver& driver, WaitMode wait) {
    ASSERT_OK_AND_ASSIGN(const GuestRange range, driver.memory().Allocate(64));
    std::fill_n(range.host, 64, std::byte{0});
    const std::array segment = {Segment{range.address, 64}};
    ASSERT_TRUE(driver.queue(0).Add({}, segment, 9));
    driver.queue(0).Publish();
    ASSERT_OK(driver.queue(0).Wait(wait));
    std::array<UsedBuffer, 2> used;
    ASSERT_EQ(driver.queue(0).TakeUsed(used), 1u);
    EXPECT_EQ(used[0].token, 9u);
    EXPECT_EQ(used[0].written, 64u);
    // That 64 random bytes are all zero does not happen.
    EXPECT_FALSE(
        std::all_of(range.host, range.host + 64, [](auto b) { return b == std::byte{0}; }));
    driver.memory().Free(range);
  }

  std::unique_ptr<Host> host_;
  DeviceHandle device_;
};

TEST_F(InProcessTest, DrivesADevice) {
  ASSERT_OK_AND_ASSIGN(auto driver, Connect());
  EXPECT_EQ(driver->queue_count(), 1u);
  EXPECT_EQ(driver->queue(0).ring().size(), 256);
  EXPECT_EQ(driver->features(), kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx);
  for (int i = 0; i < 100; ++i) Fill(*driver, i % 2 == 0 ? WaitMode::kSleep : WaitMode::kPoll);
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
  EXPECT_EQ(info.queues[0].requests, 100u);
}

TEST_F(InProcessTest, WorksWithoutEventIdxAndIndirect) {
  DriverOptions options;
  options.event_idx = false;
  options.indirect_max = 0;
  ASSERT_OK_AND_ASSIGN(auto driver, Connect(options));
  EXPECT_EQ(driver->features(), kFeatureVersion1);
  for (int i = 0; i < 100; ++i) Fill(*driver, i % 2 == 0 ? WaitMode::kSleep : WaitMode::kPoll);
}

TEST_F(InProcessTest, GoesOnWhereItStoppedAndStartsAnew) {
  ASSERT_OK_AND_ASSIGN(auto driver, Connect());
  Fill(*driver, WaitMode::kSleep);
  ASSERT_OK(driver->Stop());
  ASSERT_OK(driver->Start());
  Fill(*driver, WaitMode::kSleep);
  ASSERT_OK(driver->Restart());
  EXPECT_EQ(driver->queue(0).ring().split().RawAvailIndex(), 0u);
  Fill(*driver, WaitMode::kSleep);
}

TEST_F(InProcessTest, TheNextDriverCanHaveTheDevice) {
  ASSERT_OK_AND_ASSIGN(auto driver, Connect());
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kAlreadyExists));
  driver.reset();
  ASSERT_OK_AND_ASSIGN(driver, Connect());
  Fill(*driver, WaitMode::kSleep);
}

TEST_F(InProcessTest, ABrokenRingIsSeenByTheDriver) {
  ASSERT_OK_AND_ASSIGN(auto driver, Connect());
  // An index that is further ahead than the ring is long: the device stops and says so.
  driver->queue(0).ring().split().RawSetAvailIndex(5000);
  driver->queue(0).Kick();
  pollfd change{.fd = driver->transport().config_fd(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(::poll(&change, 1, 30'000), 1);
  EXPECT_THAT(driver->transport().TakeConfigChanges(),
              ::virtbay::testing::IsOkAndHolds(::testing::Ge(1u)));
  ASSERT_OK_AND_ASSIGN(const uint8_t status, driver->transport().GetStatus());
  EXPECT_NE(status & kStatusNeedsReset, 0);
  ASSERT_OK(driver->Restart());
  Fill(*driver, WaitMode::kSleep);
}

}  // namespace
}  // namespace virtbay::guest
