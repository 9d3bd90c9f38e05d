// Guest memory that changes, or goes, under running rings.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "framework/isolation/sigbus_guard.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using guest::GuestRange;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

TEST_F(DeviceTest, MemoryMayBeMappedAnewUnderLoad) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ParallelSpec("a", {{"queues", "2"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  std::vector<uint64_t> held;
  for (int i = 0; i < 10; ++i) held.push_back(client->Send({.op = Op::kHold}));
  std::atomic<bool> stop{false};
  std::thread mapper([&] {
    while (!stop) EXPECT_OK(client->transport().SetMemory(client->memory()));
  });
  for (int i = 0; i < 2000; ++i) {
    ASSERT_OK(client->Check(0));
    ASSERT_OK(client->Check(1));
  }
  stop = true;
  mapper.join();
  // Requests of the first map have kept it, and are answered through it.
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  for (const uint64_t token : held) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token));
    EXPECT_EQ(reply.result, 1);
  }
  EXPECT_FALSE(client->NeedsReset());
}

TEST_F(DeviceTest, RegionsComeAndGoUnderARunningRing) {
  constexpr uint64_t kExtra = uint64_t{1} << 40;
  constexpr uint64_t kOwnToken = uint64_t{1} << 60;  // not one of the client's
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  guest::DriverQueue& queue = client->queue();
  for (int round = 0; round < 20; ++round) {
    ASSERT_OK(client->memory().AddRegion({.address = kExtra, .size = kMiB}));
    const auto call = [&](uint64_t room) {
      Command* const command =
          new (client->memory().Translate(kExtra, sizeof(Command))) Command{.op = Op::kEcho};
      std::memcpy(reinterpret_cast<char*>(command + 1), "far", 3);
      const guest::Segment in{kExtra, sizeof(Command) + 3};
      const guest::Segment out{room, 32};
      EXPECT_TRUE(queue.Add({&in, 1}, {&out, 1}, kOwnToken));
      queue.Publish();
      std::array<guest::UsedBuffer, 1> used;
      EXPECT_OK(queue.Wait(guest::WaitMode::kSleep));
      EXPECT_EQ(queue.TakeUsed(used), 1u);
      return used[0].written;
    };
    EXPECT_EQ(call(kExtra + 4096), 0u) << "not known yet";
    ASSERT_OK(client->transport().SetMemory(client->memory()));
    EXPECT_EQ(call(kExtra + 4096), kResultSize + 3);
    EXPECT_STREQ(reinterpret_cast<const char*>(client->memory().Translate(kExtra + 4096 + 8, 4)),
                 "far");
    // A request in flight there keeps the region for itself.
    new (client->memory().Translate(kExtra, sizeof(Command))) Command{.op = Op::kHold};
    const guest::Segment in{kExtra, sizeof(Command)};
    const guest::Segment out{kExtra + 8192, 32};
    ASSERT_TRUE(queue.Add({&in, 1}, {&out, 1}, kOwnToken));
    queue.Publish();
    ASSERT_OK(client->Check());
    ASSERT_OK(client->memory().RemoveRegion(kExtra));
    ASSERT_OK(client->transport().SetMemory(client->memory()));
    ASSERT_OK(client->Call({.op = Op::kRelease}));
    // The two answers may be published one after the other.
    while (queue.ring().in_flight() > 0) {
      ASSERT_OK(queue.Wait(guest::WaitMode::kSleep));
      std::array<guest::UsedBuffer, 1> used;
      queue.TakeUsed(used);
    }
  }
  EXPECT_FALSE(client->NeedsReset());
}

TEST_F(DeviceTest, ARingWhoseMemoryIsRemovedStops) {
  constexpr uint64_t kExtra = uint64_t{1} << 40;
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> two{{"queues", "2"}};
    const std::string name = absl::StrCat("a", parallel);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                         host_->Add(parallel ? ParallelSpec(name, two) : Spec(name, two)));
    ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(Spec(absl::StrCat("b", parallel))));
    ASSERT_OK_AND_ASSIGN(auto neighbour, Client::Create(other));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    ASSERT_OK(client->Check(0));
    ASSERT_OK(client->Check(1));
    // The first queue moves to a ring in a region of its own, with one request that stays in
    // flight.
    ASSERT_OK(client->port().StopQueue(0));
    ASSERT_OK(client->memory().AddRegion({.address = kExtra, .size = 65536}));
    ASSERT_OK(client->transport().SetMemory(client->memory()));
    ASSERT_OK_AND_ASSIGN(const GuestRange buffer, client->memory().Allocate(64));
    new (buffer.host) Command{.op = Op::kHold};
    std::byte* const region = client->memory().Translate(kExtra, 65536);
    if (kPackedRings) {
      new (region) vring_packed_desc{
          .addr = buffer.address, .len = 64, .id = 0, .flags = guest::PackedRing::kAvail};
    } else {
      new (region) vring_desc{.addr = buffer.address, .len = 64, .flags = 0, .next = 0};
      new (region + 0x1002) uint16_t{1};
    }
    QueueConfig config;
    config.size = 16;
    config.descriptors = kExtra;
    config.avail = kExtra + 0x1000;
    config.used = kExtra + 0x2000;
    config.error = Copy(client->queue(0).error_fd());
    ASSERT_OK(client->port().StartQueue(0, std::move(config)));
    ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 1; }));

    std::vector<MemoryRegion> regions = (*client->memory().ToMemoryMap())->regions();
    ASSERT_EQ(regions.back().guest_address, kExtra);
    regions.pop_back();
    ASSERT_OK_AND_ASSIGN(MemoryMapRef less, MemoryMap::Create(std::move(regions)));
    ASSERT_OK(client->port().SetMemory(std::move(less)));
    EXPECT_TRUE(client->WaitForConfigChange());
    EXPECT_TRUE(client->NeedsReset());
    EXPECT_TRUE(Eventually([&] { return client->queue(0).TakeError(); })) << "the last of all";
    EXPECT_FALSE(client->port().queue_running(0));
    EXPECT_TRUE(client->port().queue_running(1));
    EXPECT_THAT(device.Inspect()->failure, HasSubstr("left the memory map"));
    EXPECT_OK(client->Check(1));
    EXPECT_OK(neighbour->Check());
    EXPECT_FALSE(client->queue(1).TakeError());
    if (!parallel) {
      // The plugin ends what it held without a trace.
      ASSERT_OK(client->Call({.op = Op::kRelease, .a = 0}, "", 64, 1));
      if (kPackedRings) {
        EXPECT_EQ(reinterpret_cast<vring_packed_desc*>(region)->flags, guest::PackedRing::kAvail);
      } else {
        EXPECT_EQ(*reinterpret_cast<uint16_t*>(region + 0x2002), 0);
      }
    }
    ASSERT_OK(client->driver().Restart());
    EXPECT_OK(client->Check(0));
    EXPECT_OK(client->Check(1));
  }
}

TEST_F(DeviceTest, MemoryMustBeAMap) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_THAT(client->port().SetMemory(nullptr), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(client->Check());
  ASSERT_OK_AND_ASSIGN(MemoryMapRef empty, MemoryMap::Create({}));
  EXPECT_OK(client->port().SetMemory(std::move(empty)));
  EXPECT_TRUE(client->WaitForConfigChange());
  EXPECT_TRUE(client->NeedsReset());
}

TEST_F(DeviceTest, ATruncatedMemoryFileStopsItsRingsNotTheProcess) {
  ASSERT_OK(InstallSigbusGuard());
  ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(Spec("other")));
  ASSERT_OK_AND_ASSIGN(auto neighbour, Client::Create(other));
  // The rings are at the file's beginning, the data at its end: either may go.
  for (const off_t keep : {off_t{0}, off_t{64 << 10}}) {
    const std::string name = absl::StrCat("a", keep);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec(name)));
    // A file of its own kind: one that takes no seals, as many front-ends have it.
    UniqueFd fd(memfd_create("front-end", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(fd.get(), 1 << 20), 0);
    ASSERT_OK_AND_ASSIGN(auto mapping, GuestMapping::Create(fd.get(), 0, 1 << 20));
    ASSERT_OK_AND_ASSIGN(MemoryMapRef map, MemoryMap::Create({{0, 0, 1 << 20, mapping}}));
    ASSERT_OK_AND_ASSIGN(auto port, device.Attach(nullptr));
    ASSERT_OK(port->SetFeatures(guest::kFeatureVersion1));
    ASSERT_OK(port->SetMemory(std::move(map)));
    const UniqueFd kick(eventfd(0, EFD_CLOEXEC));
    const UniqueFd error(eventfd(0, EFD_CLOEXEC));
    QueueConfig config;
    config.size = 8;
    config.descriptors = 0;
    config.avail = 0x1000;
    config.used = 0x2000;
    config.kick = kick.Duplicate();
    config.error = error.Duplicate();
    // One request, with its data behind the rings, is shown before the file shrinks.
    const auto put = [&](uint64_t at, const auto& value) {
      ASSERT_EQ(pwrite(fd.get(), &value, sizeof(value), static_cast<off_t>(at)),
                static_cast<ssize_t>(sizeof(value)));
    };
    put(0, vring_desc{.addr = 512 << 10, .len = 64, .flags = 0, .next = 0});
    ASSERT_OK(port->StartQueue(0, std::move(config)));
    put(0x1000 + 4, uint16_t{0});
    put(0x1000 + 2, uint16_t{1});
    ASSERT_EQ(ftruncate(fd.get(), keep), 0);
    const uint64_t one = 1;
    ASSERT_EQ(write(kick.get(), &one, sizeof(one)), 8);
    pollfd look{.fd = error.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&look, 1, 60'000), 1);
    EXPECT_NE(port->status() & kStatusNeedsReset, 0);
    EXPECT_FALSE(port->queue_running(0));
    EXPECT_OK(neighbour->Check());
  }
  ASSERT_OK(RemoveSigbusGuard());
}

}  // namespace
}  // namespace virtbay::testing
