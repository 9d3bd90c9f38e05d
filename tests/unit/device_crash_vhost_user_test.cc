// A crash as a front-end on a socket sees it: it is told, its rings wait, and after a reload they
// go on, with a reset in between or without.
#include <poll.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "framework/base/sanitized.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/vhost_user_transport.h"
#include "hostif/vhost_user/server.h"
#include "tests/support/crash_here.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

class CrashOnASocketTest : public DeviceTest {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer has the faults";
    HostOptions options;
    options.log = log_.log();
    options.contain_crashes = true;
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("a", {}, VIRTBAY_RELOAD_1_PLUGIN)));
    vhost_user::ServerOptions where;
    where.socket_path = dir_ / "s";
    where.log = log_.log();
    ASSERT_OK_AND_ASSIGN(server_, vhost_user::Server::Create(device_, std::move(where)));
    ASSERT_OK_AND_ASSIGN(auto memory, guest::GuestMemory::Create(uint64_t{2} << 20));
    ASSERT_OK_AND_ASSIGN(auto transport, guest::VhostUserTransport::Connect(dir_ / "s"));
    guest::DriverOptions driver;
    driver.queue_size = 64;
    driver.device_features = 1;
    driver.packed = kPackedRings;
    ASSERT_OK_AND_ASSIGN(driver_,
                         guest::Driver::Create(std::move(transport), std::move(memory), driver));
  }
  struct Sent {
    guest::GuestRange range;
  };
  static constexpr uint32_t kRoom = 64;
  Sent Send(const Command& command) {
    const auto range = driver_->memory().Allocate(sizeof(command) + kRoom);
    EXPECT_OK(range.status());
    std::memcpy(range->host, &command, sizeof(command));
    const guest::Segment in{range->address, sizeof(command)};
    const guest::Segment out{range->address + sizeof(command), kRoom};
    EXPECT_TRUE(driver_->queue(0).Add({&in, 1}, {&out, 1}, range->address));
    driver_->queue(0).Publish();
    return {*range};
  }
  // The answer's length, or -1.
  int64_t Take(const Sent& sent) {
    for (;;) {
      std::array<guest::UsedBuffer, 1> used;
      if (driver_->queue(0).TakeUsed(used) == 1) {
        if (used[0].token == sent.range.address) return used[0].written;
        continue;
      }
      if (!driver_->queue(0).Wait(guest::WaitMode::kSleep, absl::Seconds(30)).ok()) return -1;
    }
  }
  int64_t VersionOf(const Sent& sent) {
    int64_t answer = 0;
    if (Take(sent) != sizeof(answer)) return -1;
    std::memcpy(&answer, sent.range.host + sizeof(Command), sizeof(answer));
    return answer % 10;
  }
  bool NeedsReset() {
    return (driver_->transport().GetStatus().value_or(0) & kStatusNeedsReset) != 0;
  }
  // By a message of the back-end's.
  void WaitUntilTold() {
    do {
      pollfd look{.fd = driver_->transport().config_fd(), .events = POLLIN, .revents = 0};
      ASSERT_EQ(poll(&look, 1, 60'000), 1);
      ASSERT_OK(driver_->transport().TakeConfigChanges().status());
    } while (!NeedsReset());
  }
  absl::Status Reload() {
    ReloadOptions options;
    options.from = VIRTBAY_RELOAD_2_PLUGIN;
    return host_->Reload("a", options).status();
  }

  const TempDir dir_;
  DeviceHandle device_;
  std::unique_ptr<vhost_user::Server> server_;
  std::unique_ptr<guest::Driver> driver_;
};

TEST_F(CrashOnASocketTest, TheRingsGoOnWithoutAReset) {
  EXPECT_EQ(VersionOf(Send({})), 1);
  const Sent crashing = Send({.op = Op::kCrash});
  WaitUntilTold();
  const Sent waiting = Send({});
  ASSERT_OK(Reload());
  EXPECT_FALSE(NeedsReset());
  EXPECT_EQ(Take(crashing), 0);
  EXPECT_EQ(VersionOf(waiting), 2);
  EXPECT_EQ(VersionOf(Send({})), 2);
}

TEST_F(CrashOnASocketTest, AResetIsTakenBeforeTheReload) {
  EXPECT_EQ(VersionOf(Send({})), 1);
  Send({.op = Op::kCrash});
  WaitUntilTold();
  ASSERT_OK(driver_->Restart());
  EXPECT_FALSE(NeedsReset());
  const Sent waiting = Send({});
  ASSERT_OK(Reload());
  EXPECT_EQ(VersionOf(waiting), 2);
}

TEST_F(CrashOnASocketTest, AndAfterIt) {
  Send({.op = Op::kCrash});
  WaitUntilTold();
  ASSERT_OK(Reload());
  ASSERT_OK(driver_->Restart());
  EXPECT_EQ(VersionOf(Send({})), 2);
}

}  // namespace
}  // namespace virtbay::testing
