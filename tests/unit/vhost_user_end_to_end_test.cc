// A device of a Host behind a vhost-user Server, driven by the user-space guest over its socket.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "framework/isolation/sigbus_guard.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/vhost_user_transport.h"
#include "hostif/vhost_user/server.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/support/vhost_user_front_end.h"
#include "virtbay/host.h"

namespace virtbay::vhost_user {
namespace {

using guest::BytesOf;
using guest::Driver;
using guest::GuestMemory;
using guest::UsedBuffer;
using guest::VhostUserRequest;
using guest::VhostUserTransport;
using guest::WaitMode;
using testing::ConnectTo;
using testing::CountFds;
using testing::FrontEnd;
using testing::IsOk;
using testing::MakeEventFd;

constexpr uint64_t kMiB = 1u << 20;

// Mappings of memory files: guest memory and arenas.
size_t CountMappings() {
  std::ifstream maps("/proc/self/maps");
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("memfd:") != line.npos;
  return count;
}

class VhostUserEndToEndTest : public ::testing::Test {
 protected:
  void SetUp() override { Serve(VIRTBAY_RNG_PLUGIN); }

  void Serve(const char* plugin) {
    server_.reset();
    host_.reset();
    HostOptions host_options;
    host_options.log = log_.log();
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(host_options)));
    DeviceSpec spec;
    spec.name = "device";
    spec.plugin = plugin;
    spec.stop_deadline = absl::Seconds(1);
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(std::move(spec)));
    ServerOptions options;
    options.socket_path = path_;
    options.log = log_.log();
    ASSERT_OK_AND_ASSIGN(server_, Server::Create(device_, std::move(options)));
  }

  // A driver of its own memory, its queues running.
  absl::StatusOr<std::unique_ptr<Driver>> Connect(bool packed = false) {
    VIRTBAY_ASSIGN_OR_RETURN(auto memory, GuestMemory::Create(2 * kMiB));
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, VhostUserTransport::Connect(path_));
    guest::DriverOptions options;
    options.queue_size = 64;
    options.packed = packed;
    return Driver::Create(std::move(transport), std::move(memory), options);
  }

  // Offers `count` buffers of `size` bytes; their addresses.
  static std::vector<guest::GuestRange> Offer(Driver* driver, size_t count, uint32_t size) {
    std::vector<guest::GuestRange> buffers;
    for (size_t i = 0; i < count; ++i) {
      auto range = driver->memory().Allocate(size);
      if (!range.ok()) break;
      std::memset(range->host, 0, size);
      const guest::Segment segment{range->address, size};
      EXPECT_TRUE(driver->queue(0).Add({}, std::span(&segment, 1), i));
      buffers.push_back(*range);
    }
    driver->queue(0).Publish();
    return buffers;
  }
  // Waits for so many used buffers, each completely written.
  static absl::Status Collect(Driver* driver, size_t count, uint32_t size) {
    while (count != 0) {
      VIRTBAY_RETURN_IF_ERROR(driver->queue(0).Wait(WaitMode::kSleep, absl::Seconds(30),
                                                    driver->transport().hangup_fd()));
      std::array<UsedBuffer, 64> used;
      const size_t got = driver->queue(0).TakeUsed(used);
      for (size_t i = 0; i < got; ++i) {
        if (used[i].written != size) return absl::DataLossError("a buffer is not full");
      }
      count -= got;
    }
    return absl::OkStatus();
  }
  // As if the front-end's process had been killed: nothing is said first.
  static void Kill(std::unique_ptr<Driver> driver) {
    shutdown(driver->transport().hangup_fd(), SHUT_RDWR);
  }
  void WaitUntilFree() {
    // The server lets go of the device before it takes the next connection, so that a driver that
    // has been served is the proof.
    ASSERT_OK_AND_ASSIGN(auto driver, Connect());
    Offer(driver.get(), 1, 64);
    ASSERT_OK(Collect(driver.get(), 1, 64));
  }

  const testing::TempDir directory_;
  const std::string path_ = directory_ / "s";
  testing::LogCapture log_{LogLevel::kInfo};
  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  std::unique_ptr<Server> server_;
};

class VhostUserLayoutTest : public VhostUserEndToEndTest,
                            public ::testing::WithParamInterface<bool> {};
INSTANTIATE_TEST_SUITE_P(Layouts, VhostUserLayoutTest, ::testing::Bool(), [](const auto& layout) {
  return std::string(layout.param ? "Packed" : "Split");
});

// A ring is stopped and started over and over, with buffers that the device has not used.
TEST_P(VhostUserLayoutTest, AStoppedRingGoesOn) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect(GetParam()));
  for (int round = 0; round < 50; ++round) {
    const auto buffers = Offer(driver.get(), 1 + static_cast<size_t>(round % 7), 64);
    ASSERT_OK(Collect(driver.get(), buffers.size(), 64));
    for (const guest::GuestRange& buffer : buffers) driver->memory().Free(buffer);
    ASSERT_OK(driver->Stop());
    if (round % 5 == 0) {
      // What was offered to the stopped ring is found at the start.
      const auto waiting = Offer(driver.get(), 3, 64);
      ASSERT_OK(driver->Start());
      ASSERT_OK(Collect(driver.get(), waiting.size(), 64));
      for (const guest::GuestRange& buffer : waiting) driver->memory().Free(buffer);
    } else {
      ASSERT_OK(driver->Start());
    }
  }
  EXPECT_EQ(driver->queue(0).ring().device_errors(), 0u);
}

TEST_P(VhostUserLayoutTest, OneQueueCannotBeReset) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect(GetParam()));
  EXPECT_EQ(driver->features() & guest::kFeatureRingReset, 0u);
  EXPECT_THAT(driver->ResetQueue(0), testing::StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_P(VhostUserLayoutTest, AGuestGetsItsRequestsServed) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect(GetParam()));
  EXPECT_EQ(driver->features() & guest::kFeatureVersion1, guest::kFeatureVersion1);
  for (int round = 0; round < 20; ++round) {
    const auto buffers = Offer(driver.get(), 60, 512);
    ASSERT_OK(Collect(driver.get(), buffers.size(), 512));
    for (const guest::GuestRange& buffer : buffers) {
      EXPECT_GT(std::count_if(buffer.host, buffer.host + 512,
                              [](std::byte b) { return b != std::byte{0}; }),
                400);
      driver->memory().Free(buffer);
    }
  }
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
  EXPECT_EQ(info.queues[0].requests, 1200u);
  EXPECT_EQ(info.queues[0].completions, 1200u);
  EXPECT_TRUE(info.connected);
}

TEST_F(VhostUserEndToEndTest, StoppedQueuesGoOnWhereTheyWere) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect());
  for (int round = 0; round < 50; ++round) {
    Offer(driver.get(), 7, 64);
    ASSERT_OK(Collect(driver.get(), 7, 64));
    ASSERT_OK(driver->Stop());
    ASSERT_OK(driver->Start());
    if (round % 10 == 9) {
      ASSERT_OK(driver->Restart());
    }
  }
}

TEST_F(VhostUserEndToEndTest, FrontEndsComeAndGoAHundredTimes) {
  WaitUntilFree();
  WaitUntilFree();
  const int fds = CountFds();
  const size_t mappings = CountMappings();
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(const auto driver, Connect());
    Offer(driver.get(), 8, 256);
    ASSERT_OK(Collect(driver.get(), 8, 256));
  }
  server_.reset();  // the last one has certainly gone
  EXPECT_LE(CountFds(), fds);
  EXPECT_LE(CountMappings(), mappings);
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
  EXPECT_EQ(info.arena_slots_used, 0u);
  EXPECT_FALSE(log_.Contains("error"));
}

TEST_F(VhostUserEndToEndTest, AFrontEndIsKilledAHundredTimesInTheMiddleOfItsRequests) {
  WaitUntilFree();
  int fds = 0;
  size_t mappings = 0;
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(auto driver, Connect());
    if (i % 2 == 0) {
      Offer(driver.get(), 3, 64);
      ASSERT_OK(Collect(driver.get(), 3, 64));
    }
    Offer(driver.get(), 60, 4096);
    Kill(std::move(driver));
    if (i == 0) {
      WaitUntilFree();
      fds = CountFds();
      mappings = CountMappings();
    }
  }
  WaitUntilFree();
  // One connection may still be on its way out at either count.
  EXPECT_LE(CountFds(), fds + 8);
  EXPECT_LE(CountMappings(), mappings + 8);
  server_.reset();
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
  EXPECT_EQ(info.arena_slots_used, 0u);
  EXPECT_FALSE(info.needs_reset);
}

// A plugin that holds requests for good: the front-end's end still ends, at the deadline, and the
// next one is served.
TEST_F(VhostUserEndToEndTest, RequestsThatNeverEndDoNotKeepTheDevice) {
  Serve(VIRTBAY_BAD_PLUGIN_DIR "/never_completes.so");
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK_AND_ASSIGN(auto driver, Connect());
    Offer(driver.get(), 10, 64);
    for (uint64_t taken = 0; taken < 10u * static_cast<uint64_t>(i + 1);) {
      ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
      taken = info.queues[0].requests;
      std::this_thread::yield();
    }
    if (i == 1) {
      // GET_VRING_BASE meets the same deadline and is answered.
      EXPECT_OK(driver->Stop());
    }
    Kill(std::move(driver));
  }
  server_.reset();
  EXPECT_TRUE(log_.Contains("did not end within"));
}

TEST_F(VhostUserEndToEndTest, MemoryIsTakenFromALiveRingAndGivenBack) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect());
  auto& transport = static_cast<VhostUserTransport&>(driver->transport());
  const auto& region = driver->memory().regions()[0];
  const SingleRegion wire{0,
                          {region.address, region.size, region.user_address(), region.file_offset}};
  const std::array<int, 1> fd{region.fd.get()};
  for (int i = 0; i < 10; ++i) {
    Offer(driver.get(), 5, 128);
    ASSERT_OK(Collect(driver.get(), 5, 128));
    ASSERT_OK(transport.Set(VhostUserRequest::kRemMemReg, BytesOf(wire)));
    EXPECT_TRUE(driver->queue(0).TakeError());
    // Nobody looks at the ring now.
    Offer(driver.get(), 5, 128);
    ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
    EXPECT_FALSE(info.queues[0].running);
    EXPECT_FALSE(info.needs_reset);
    ASSERT_OK(transport.Set(VhostUserRequest::kAddMemReg, BytesOf(wire), fd));
    ASSERT_OK(Collect(driver.get(), 5, 128));
  }
}

TEST_F(VhostUserEndToEndTest, OtherMemoryComesAndGoesUnderALiveRing) {
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect());
  constexpr uint64_t kOther = 0x9'0000'0000;
  // Freed at once, so that the next round takes the same ones.
  const auto offer = [&] {
    for (const guest::GuestRange& buffer : Offer(driver.get(), 30, 4096)) {
      driver->memory().Free(buffer);
    }
  };
  for (int i = 0; i < 20; ++i) {
    offer();
    ASSERT_OK(driver->memory().AddRegion({kOther, kMiB, 0}));
    ASSERT_OK(driver->transport().SetMemory(driver->memory()));
    ASSERT_OK(Collect(driver.get(), 30, 4096));
    offer();
    ASSERT_OK(driver->memory().RemoveRegion(kOther));
    ASSERT_OK(driver->transport().SetMemory(driver->memory()));
    ASSERT_OK(Collect(driver.get(), 30, 4096));
    if (i % 2 == 1) {
      ASSERT_OK(driver->Restart());
    }
  }
}

// A ring written by hand, in a file that is cut off under it. The test does not touch the memory
// afterwards: it would be its own SIGBUS.
TEST_F(VhostUserEndToEndTest, ATruncatedMemoryFileStopsTheRingNotTheProcess) {
  ASSERT_OK(InstallSigbusGuard());
  for (int i = 0; i < 5; ++i) {
    const UniqueFd memory = testing::MakeMemory(kMiB);
    auto* const base = static_cast<std::byte*>(
        mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, memory.get(), 0));
    ASSERT_NE(base, MAP_FAILED);
    struct {
      uint64_t address = 0x8000;
      uint32_t length = 64;
      uint16_t flags = 2;  // written by the device
      uint16_t next = 0;
    } descriptor;
    const std::array<uint16_t, 3> avail{0, 1, 0};  // flags, idx, ring[0]
    std::memcpy(base, &descriptor, sizeof descriptor);
    munmap(base, kMiB);

    const FrontEnd front(ConnectTo(path_));
    const UniqueFd kick = MakeEventFd();
    const UniqueFd error = MakeEventFd();
    ASSERT_EQ(front.Ack(Request::kSetProtocolFeatures, kOfferedProtocolFeatures), 0);
    ASSERT_EQ(front.Ack(Request::kSetFeatures, (uint64_t{1} << 32) | kProtocolFeaturesBit), 0);
    ASSERT_EQ(front.Ack(Request::kAddMemReg, SingleRegion{0, {0, kMiB, 0, 0}}, {memory.get()}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringErr, uint64_t{0}, {error.get()}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringNum, VringState{0, 16}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringBase, VringState{0, 0}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringAddr, VringAddress{0, 0, 0, 0x2000, 0x1000, 0}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringEnable, VringState{0, 1}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringKick, uint64_t{0}, {kick.get()}), 0);
    // The buffer becomes available together with the end of the file's first part or of all of it.
    ASSERT_EQ(pwrite(memory.get(), avail.data(), sizeof avail, 0x1000), ssize_t{sizeof avail});
    ASSERT_EQ(ftruncate(memory.get(), i % 2 == 0 ? 0 : 0x1000), 0);
    const uint64_t one = 1;
    ASSERT_EQ(write(kick.get(), &one, sizeof one), 8);
    pollfd entry{error.get(), POLLIN, 0};
    ASSERT_EQ(poll(&entry, 1, 30'000), 1);
    ASSERT_OK_AND_ASSIGN(const DeviceInfo info, device_.Inspect());
    EXPECT_TRUE(info.needs_reset);
    EXPECT_EQ(front.Get(Request::kGetStatus).value_or(0) & kStatusNeedsReset, kStatusNeedsReset);
    EXPECT_TRUE(front.Alive());
    // The same front-end may begin anew with good memory; even in turns it just goes away.
    if (i % 2 == 1) {
      EXPECT_EQ(front.Ack(Request::kResetDevice), 0);
      EXPECT_EQ(front.Get(Request::kGetStatus), 0u);
    }
  }
  WaitUntilFree();
}

// What a plugin's device does not like costs its front-end an answer, not the connection.
TEST_F(VhostUserEndToEndTest, AStoppedDeviceRefusesRingsUntilItIsStarted) {
  ASSERT_OK(device_.Stop());
  EXPECT_FALSE(Connect().ok());
  ASSERT_OK(device_.Start());
  WaitUntilFree();
  ASSERT_OK_AND_ASSIGN(const auto driver, Connect());
  ASSERT_OK(host_->Remove("device"));
  EXPECT_FALSE(driver->Restart().ok());
}

}  // namespace
}  // namespace virtbay::vhost_user
