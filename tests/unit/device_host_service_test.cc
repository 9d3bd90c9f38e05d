// The service with real devices and front-ends: what becomes of a slice of the guest's pool, and of
// a plugin's refusals.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "hostif/device_host/service.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::device_host {
namespace {

using testing::LogCapture;
using testing::StatusIs;
using testing::TempDir;
using testing::TemporaryFilesIn;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPool = 0x1000'0000;

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK_AND_ASSIGN(service_, Service::Create({}, log_.log())); }

  DeviceConfig Config(const std::string& name, const std::string& plugin) {
    DeviceConfig config;
    config.spec.name = name;
    config.spec.plugin = std::string(VIRTBAY_BAD_PLUGIN_DIR "/") + plugin + ".so";
    config.spec.stop_deadline = absl::Seconds(1);
    config.socket_path = dir_ / (name + ".sock");
    return config;
  }
  // With a slice of the guest's pool.
  DeviceConfig Sliced(const std::string& name, const std::string& plugin, uint64_t size) {
    DeviceConfig config = Config(name, plugin);
    config.guest_pool = PoolUse::kSlice;
    config.slice_size = size;
    return config;
  }
  // With a range of the guest's memory that is given by hand.
  DeviceConfig Ranged(const std::string& name, uint64_t base, uint64_t size) {
    DeviceConfig config = Config(name, "correct");
    config.spec.dma_mode = DmaMode::kAperture;
    config.spec.aperture = {base, size};
    return config;
  }
  // A front-end whose memory is the slice.
  absl::StatusOr<std::unique_ptr<guest::Driver>> Connect(const std::string& name) {
    VIRTBAY_ASSIGN_OR_RETURN(const DeviceReport report, service_->InspectDevice(name));
    const Aperture& slice = report.info.aperture;
    VIRTBAY_ASSIGN_OR_RETURN(
        auto memory, guest::GuestMemory::Create({{.address = slice.base, .size = slice.size}}));
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::VhostUserTransport::Connect(report.socket));
    return guest::Driver::Create(std::move(transport), std::move(memory), {});
  }

  LogCapture log_;
  TempDir dir_;
  TemporaryFilesIn copies_{dir_.path()};
  std::unique_ptr<Service> service_;
};

TEST_F(ServiceTest, ASliceIsGivenBackWithItsDevice) {
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  ASSERT_OK(service_->AddDevice(Sliced("a", "correct", 16 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto driver, Connect("a"));
  EXPECT_THAT(service_->AddDevice(Sliced("b", "correct", 2 * kMiB)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  ASSERT_OK(service_->RemoveDevice("a"));
  EXPECT_OK(service_->AddDevice(Sliced("b", "correct", 16 * kMiB)));
}

TEST_F(ServiceTest, DevicesOfOneKernelMayAllHaveItsWholePool) {
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  DeviceConfig a = Config("a", "correct");
  a.guest_pool = PoolUse::kAll;
  a.spec.stop_deadline = absl::Seconds(30);
  DeviceConfig b = Config("b", "correct");
  b.guest_pool = PoolUse::kAll;
  b.spec.stop_deadline = absl::Seconds(30);
  ASSERT_OK(service_->AddDevice(a));
  ASSERT_OK(service_->AddDevice(b));
  for (const char* name : {"a", "b"}) {
    ASSERT_OK_AND_ASSIGN(const DeviceReport report, service_->InspectDevice(name));
    EXPECT_EQ(report.info.dma_mode, "aperture");
    EXPECT_EQ(report.info.aperture.base, kPool);
    EXPECT_EQ(report.info.aperture.size, 16 * kMiB);
    ASSERT_OK(Connect(name).status());
  }
  EXPECT_THAT(service_->AddDevice(Sliced("c", "correct", 2 * kMiB)),
              StatusIs(absl::StatusCode::kFailedPrecondition, "device a has all of it"));
  ASSERT_OK(service_->RemoveDevice("a"));
  ASSERT_OK(service_->RemoveDevice("b"));
  EXPECT_OK(service_->AddDevice(Sliced("c", "correct", 2 * kMiB)));
}

// Another service goes on with a device: its slice of the guest's pool is where it was, and the new
// service knows of the pool.
TEST_F(ServiceTest, ASliceGoesAlongWithItsDevice) {
  const auto config = [this](const std::string& name, uint64_t size) {
    DeviceConfig made = Sliced(name, "correct", size);
    made.spec.plugin = VIRTBAY_RELOAD_1_PLUGIN;
    return made;
  };
  const auto directory = [this] { return StateDirectory::OpenUnlocked(dir_ / "state"); };
  ASSERT_OK_AND_ASSIGN(StateDirectory own, directory());
  service_->UseStateDirectory(std::move(own));
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  ASSERT_OK(service_->AddDevice(config("a", 4 * kMiB)));
  ASSERT_OK(service_->AddDevice(config("b", 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto driver, Connect("b"));
  ASSERT_OK_AND_ASSIGN(const DeviceReport before, service_->InspectDevice("b"));
  ASSERT_EQ(before.info.aperture.base, kPool + 4 * kMiB);

  ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Service> other, Service::Create({}, log_.log()));
  ASSERT_OK_AND_ASSIGN(StateDirectory others, directory());
  other->UseStateDirectory(std::move(others));
  const handover::Offer offer = service_->Offer();
  ASSERT_EQ(offer.devices.size(), 2u);
  EXPECT_EQ(offer.devices[1].name, "b");
  ASSERT_OK(other->TakePoolReport(offer));
  ASSERT_OK(other->StageDevice(config("b", 4 * kMiB), offer.devices[1]));
  ASSERT_OK_AND_ASSIGN(auto devices, service_->Suspend({"b"}, absl::Seconds(2)));
  EXPECT_THAT(service_->AddDevice(config("d", 4 * kMiB)),
              StatusIs(absl::StatusCode::kUnavailable, "handed over"));
  EXPECT_THAT(service_->RemoveDevice("a"), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_EQ(devices.size(), 1u);
  ASSERT_OK(other->AdoptDevice(std::move(devices[0])));
  service_->GiveAway();
  service_->LetGo();
  other->Begin();
  ASSERT_OK_AND_ASSIGN(const DeviceReport after, other->InspectDevice("b"));
  EXPECT_EQ(after.info.aperture.base, before.info.aperture.base);
  EXPECT_EQ(after.info.aperture.size, before.info.aperture.size);
  EXPECT_EQ(after.info.dma_mode, "aperture");
  service_.reset();
  EXPECT_OK(other->AddDevice(config("a", 4 * kMiB)));
  EXPECT_THAT(other->AddDevice(config("c", 12 * kMiB)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  // Over the connection that was the first service's.
  ASSERT_OK(driver->Stop());
  ASSERT_OK(driver->Start());
}

TEST_F(ServiceTest, NoDeviceGetsAnothersRange) {
  ASSERT_OK(service_->AddDevice(Ranged("a", kPool, 4 * kMiB)));
  EXPECT_THAT(service_->AddDevice(Ranged("b", kPool + 2 * kMiB, 4 * kMiB)),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       "device b: cannot have 0x10200000,4194304 of the guest's memory: device a "
                       "has 0x10000000,4194304"));
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  ASSERT_OK(service_->AddDevice(Sliced("slice", "correct", 4 * kMiB)));
  EXPECT_EQ(service_->InspectDevice("slice")->info.aperture.base, kPool + 4 * kMiB);
  EXPECT_THAT(service_->AddDevice(Ranged("b", kPool + 6 * kMiB, 4 * kMiB)),
              StatusIs(absl::StatusCode::kFailedPrecondition, "device slice has"));
  ASSERT_OK(service_->RemoveDevice("a"));
  ASSERT_OK(service_->AddDevice(Ranged("b", kPool, 4 * kMiB)));
  // A device that could not be made holds nothing.
  DeviceConfig wrong = Ranged("wrong", kPool + 8 * kMiB, 4 * kMiB);
  wrong.spec.plugin = dir_ / "missing.so";
  EXPECT_FALSE(service_->AddDevice(wrong).ok());
  EXPECT_OK(service_->AddDevice(Ranged("c", kPool + 8 * kMiB, 4 * kMiB)));
}

TEST_F(ServiceTest, ARangeIsSharedByThoseThatSaySo) {
  DeviceConfig a = Ranged("a", kPool, 4 * kMiB);
  a.aperture_shared = true;
  DeviceConfig b = Ranged("b", kPool, 4 * kMiB);
  ASSERT_OK(service_->AddDevice(a));
  EXPECT_THAT(service_->AddDevice(b), StatusIs(absl::StatusCode::kFailedPrecondition, "device a"));
  b.aperture_shared = true;
  ASSERT_OK(service_->AddDevice(b));
  for (const char* name : {"a", "b"}) ASSERT_OK(Connect(name).status());
}

TEST_F(ServiceTest, ACheckFindsDevicesWithOneRange) {
  ASSERT_OK(service_->CheckDevice(Ranged("a", kPool, 4 * kMiB)));
  EXPECT_THAT(service_->CheckDevice(Ranged("b", kPool, 4 * kMiB)),
              StatusIs(absl::StatusCode::kFailedPrecondition, "device a has"));
}

TEST_F(ServiceTest, ASliceThatMayStillBeWrittenIsNobodysAnyMore) {
  const std::string fifo = dir_ / "release";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  ASSERT_EQ(::setenv("VIRTBAY_TEST_RELEASE", fifo.c_str(), 1), 0);
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  ASSERT_OK(service_->AddDevice(Sliced("a", "stuck_in_on_requests", 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto driver, Connect("a"));
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, driver->memory().Allocate(64));
  const guest::Segment segment{range.address, 64};
  ASSERT_TRUE(driver->queue(0).Add({}, std::span(&segment, 1), 1));
  driver->queue(0).Publish();
  // There is a reader: the plugin is in its callback.
  const UniqueFd release(::open(fifo.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(release);

  EXPECT_THAT(service_->RemoveDevice("a"),
              StatusIs(absl::StatusCode::kDeadlineExceeded, "a callback does not return"));
  EXPECT_THAT(service_->InspectDevice("a"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(service_->AddDevice(Sliced("a", "correct", 14 * kMiB)),
              StatusIs(absl::StatusCode::kResourceExhausted, "12582912 are left"));
  ASSERT_OK(service_->AddDevice(Sliced("a", "correct", 12 * kMiB))) << "the name is free";
  EXPECT_EQ(service_->InspectDevice("a")->info.aperture.base, kPool + 4 * kMiB);
  EXPECT_TRUE(log_.Contains("device a: 0x10000000,4194304 of the guest's memory is lost"));
}

TEST_F(ServiceTest, AGuestWithoutAPoolIsWorthAWarningWhenADeviceWantsOne) {
  constexpr char kWarning[] = "has no bounce pool";
  ASSERT_OK(service_->AddDevice(Config("plain", "correct")));
  ASSERT_OK(service_->ApplyGuest({0, 0}));
  EXPECT_FALSE(log_.Contains(kWarning));
  ASSERT_OK(service_->AddDevice(Sliced("sliced", "correct", 0)));
  EXPECT_TRUE(log_.Contains(kWarning));
}

TEST_F(ServiceTest, RingsThatMustLieInAPoolNeedOne) {
  DeviceConfig config = Sliced("a", "correct", 0);
  config.spec.rings = RingPlacement::kPool;
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(service_->AddDevice(config),
                StatusIs(absl::StatusCode::kFailedPrecondition,
                         "device a: rings = \"pool\" needs a pool, and the guest has not"));
    ASSERT_OK(service_->ApplyGuest({0, 0}));
  }
  ASSERT_OK(service_->ApplyGuest({kPool, 16 * kMiB}));
  EXPECT_OK(service_->AddDevice(config));
}

}  // namespace
}  // namespace virtbay::device_host
