// Running rings: hostile drivers, memory that changes, descriptors of every kind, back-pressure.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "framework/isolation/sigbus_guard.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using guest::GuestMemory;
using guest::GuestRange;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1u << 20;

UniqueFd Copy(int fd) { return UniqueFd(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

// ---- hostile drivers ----------------------------------------------------------------------------

// What a driver does to its ring of eight to break it, with the reason that is given.
struct Attack {
  const char* name;
  const char* reason;
  void (*act)(guest::LayoutRing& ring, uint64_t buffer);
};

void Show(guest::SplitRing& ring, uint16_t head) {
  const uint16_t index = ring.RawAvailIndex();
  ring.RawSetAvail(index, head);
  ring.RawSetAvailIndex(static_cast<uint16_t>(index + 1));
}

const Attack kSplitAttacks[] = {
    {"AvailIndexJumps", "avail index",
     [](guest::LayoutRing& layout, uint64_t) {
       guest::SplitRing& ring = layout.split();
       ring.RawSetAvailIndex(static_cast<uint16_t>(ring.RawAvailIndex() + ring.size() + 1));
     }},
    {"AvailIndexGoesBack", "avail index",
     [](guest::LayoutRing& layout, uint64_t) {
       guest::SplitRing& ring = layout.split();
       ring.RawSetAvailIndex(static_cast<uint16_t>(ring.RawAvailIndex() - 1));
     }},
    {"HeadOutOfRange", "head index out of range",
     [](guest::LayoutRing& layout, uint64_t) {
       guest::SplitRing& ring = layout.split();
       Show(ring, ring.size());
     }},
    {"NextOutOfRange", "next index out of range",
     [](guest::LayoutRing& layout, uint64_t buffer) {
       guest::SplitRing& ring = layout.split();
       ring.raw_descriptor(7) = {.addr = buffer, .len = 32, .flags = VRING_DESC_F_NEXT, .next = 8};
       Show(ring, 7);
     }},
    {"Loop", "loop",
     [](guest::LayoutRing& layout, uint64_t buffer) {
       guest::SplitRing& ring = layout.split();
       ring.raw_descriptor(6) = {.addr = buffer, .len = 32, .flags = VRING_DESC_F_NEXT, .next = 7};
       ring.raw_descriptor(7) = {.addr = buffer, .len = 32, .flags = VRING_DESC_F_NEXT, .next = 6};
       Show(ring, 6);
     }},
    {"HeadInFlight", "already in flight",
     [](guest::LayoutRing& layout, uint64_t buffer) {
       guest::SplitRing& ring = layout.split();
       // Held by the plugin when it comes the second time.
       ring.raw_descriptor(7) = {.addr = buffer, .len = 32, .flags = 0, .next = 0};
       const uint16_t index = ring.RawAvailIndex();
       ring.RawSetAvail(index, 7);
       ring.RawSetAvail(static_cast<uint16_t>(index + 1), 7);
       ring.RawSetAvailIndex(static_cast<uint16_t>(index + 2));
     }},
};

// Makes descriptors of these ids and flags available, the last one first, so that the device sees
// all of them or none.
void ShowPacked(guest::LayoutRing& layout, uint64_t buffer,
                const std::vector<std::pair<uint16_t, uint16_t>>& descriptors) {
  guest::PackedRing& ring = layout.packed();
  std::vector<std::pair<uint16_t, uint16_t>> places;
  for (const auto& [id, flags] : descriptors) {
    places.emplace_back(ring.RawNext(), static_cast<uint16_t>(flags | ring.RawAvailable()));
    ring.RawSkip();
  }
  for (size_t i = places.size(); i-- > 0;) {
    vring_packed_desc& at = ring.raw_descriptor(places[i].first);
    at.addr = buffer;
    at.len = 32;
    at.id = descriptors[i].first;
    ring.RawSetFlags(places[i].first, places[i].second);
  }
}

constexpr uint16_t kNext = VRING_DESC_F_NEXT;
const Attack kPackedAttacks[] = {
    {"IdOutOfRange", "buffer id out of range",
     [](guest::LayoutRing& ring, uint64_t buffer) {
       ShowPacked(ring, buffer, {{ring.size(), uint16_t{0}}});
     }},
    {"LargestId", "buffer id out of range",
     [](guest::LayoutRing& ring, uint64_t buffer) {
       ShowPacked(ring, buffer, {{uint16_t{0}, kNext}, {uint16_t{0xffff}, uint16_t{0}}});
     }},
    {"ChainWithoutEnd", "not available",
     [](guest::LayoutRing& ring, uint64_t buffer) {
       ShowPacked(ring, buffer, {{uint16_t{0}, kNext}});
     }},
    {"ChainOfTheWholeRing", "loop",
     [](guest::LayoutRing& ring, uint64_t buffer) {
       ShowPacked(ring, buffer, std::vector(ring.size(), std::pair(uint16_t{0}, kNext)));
     }},
    {"IdInFlight", "already in flight",
     [](guest::LayoutRing& ring, uint64_t buffer) {
       // Held by the plugin when it comes the second time.
       ShowPacked(ring, buffer, {{uint16_t{7}, uint16_t{0}}, {uint16_t{7}, uint16_t{0}}});
     }},
};

std::vector<Attack> Attacks() {
  if (kPackedRings) return {std::begin(kPackedAttacks), std::end(kPackedAttacks)};
  return {std::begin(kSplitAttacks), std::end(kSplitAttacks)};
}

class HostileDriverTest : public DeviceTest, public ::testing::WithParamInterface<Attack> {};

TEST_P(HostileDriverTest, BreaksItsOwnRingOnly) {
  for (const bool parallel : {false, true}) {
    for (const bool event_idx : {false, true}) {
      const std::string name = absl::StrCat("victim-", parallel, event_idx);
      const std::map<std::string, std::string> two{{"queues", "2"}};
      ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                           host_->Add(parallel ? ParallelSpec(name, two) : Spec(name, two)));
      ASSERT_OK_AND_ASSIGN(const DeviceHandle other,
                           host_->Add(Spec(absl::StrCat("other-", parallel, event_idx))));
      ASSERT_OK_AND_ASSIGN(auto neighbour, Client::Create(other));
      Client::Options options;
      options.driver.queue_size = 8;
      options.driver.indirect_max = 0;
      options.driver.event_idx = event_idx;
      ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
      ASSERT_OK(client->Check(0));
      ASSERT_OK(client->Check(1));
      const uint64_t held = client->Send({.op = Op::kHold}, "", 64, 1);
      ASSERT_NE(held, 0u);
      // Of the ring that will break: nobody answers it, and the plugin must not keep it beyond
      // that.
      // One attack needs the whole ring.
      if (GetParam().name != absl::string_view("ChainOfTheWholeRing")) {
        ASSERT_NE(client->Send({.op = Op::kPark}, "", 64, 0), 0u);
        ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 1; }));
      }

      ASSERT_OK_AND_ASSIGN(const GuestRange buffer, client->memory().Allocate(4096));
      new (buffer.host) Command{.op = Op::kHold};
      GetParam().act(client->queue(0).ring(), buffer.address);
      client->queue(0).Kick();

      // virtio 1.3 2.1.2: DEVICE_NEEDS_RESET and a configuration change notification.
      pollfd error{.fd = client->queue(0).error_fd(), .events = POLLIN, .revents = 0};
      ASSERT_EQ(poll(&error, 1, 60'000), 1);
      EXPECT_TRUE(client->WaitForConfigChange());
      EXPECT_TRUE(client->NeedsReset());
      EXPECT_FALSE(client->port().queue_running(0));
      const DeviceInfo info = *device.Inspect();
      EXPECT_TRUE(info.needs_reset);
      EXPECT_THAT(info.failure, HasSubstr(absl::StrCat("queue 0: ")));
      EXPECT_THAT(info.failure, HasSubstr(GetParam().reason));
      EXPECT_TRUE(info.queues[0].broken);
      EXPECT_FALSE(info.queues[0].running);
      EXPECT_FALSE(info.queues[1].broken);
      EXPECT_TRUE(log_.Contains(GetParam().reason));

      // The other queue and the other device have noticed nothing.
      EXPECT_OK(client->Check(1));
      EXPECT_OK(neighbour->Check());
      ASSERT_OK(client->Call({.op = Op::kRelease, .a = 1}, "", 64, 1));
      ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(held, 1));
      EXPECT_EQ(reply.result, 1);
      EXPECT_FALSE(other.Inspect()->needs_reset);

      // A reset makes it as new.
      client->memory().Free(buffer);
      ASSERT_OK(client->driver().Restart());
      EXPECT_FALSE(client->NeedsReset());
      EXPECT_FALSE(device.Inspect()->queues[0].broken);
      EXPECT_OK(client->Check(0));
      EXPECT_OK(client->Check(1));
      // The plugin ends what it holds: nothing of a request that is another's by now.
      const uint64_t mine = client->Send({.op = Op::kHold}, "", 64, 0);
      ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 1; }));
      ASSERT_OK(client->driver().Stop());
      ASSERT_OK(client->driver().Restart());
      EXPECT_NE(mine, 0u);
      EXPECT_OK(client->Check(0));
      EXPECT_FALSE(log_.Contains("after its end"));
      EXPECT_FALSE(log_.Contains("ended twice"));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Attacks, HostileDriverTest, ::testing::ValuesIn(Attacks()),
                         [](const auto& attack) { return std::string(attack.param.name); });

// Refused like one with a buffer elsewhere, but what it reaches is the device's.
TEST_F(DeviceTest, AChainInTheWrongOrderIsNoDmaViolation) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.queue_size = 8;
  options.driver.indirect_max = 0;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  ASSERT_OK_AND_ASSIGN(const GuestRange buffer, client->memory().Allocate(4096));
  guest::LayoutRing& layout = client->queue().ring();
  constexpr uint16_t kWrite = VRING_DESC_F_WRITE | VRING_DESC_F_NEXT;
  if (layout.is_packed()) {
    ShowPacked(layout, buffer.address, {{uint16_t{6}, kWrite}, {uint16_t{6}, uint16_t{0}}});
  } else {
    guest::SplitRing& ring = layout.split();
    ring.raw_descriptor(6) = {.addr = buffer.address, .len = 32, .flags = kWrite, .next = 7};
    ring.raw_descriptor(7) = {.addr = buffer.address, .len = 32, .flags = 0, .next = 0};
    Show(ring, 6);
  }
  client->queue().Kick();
  ASSERT_TRUE(log_.WaitFor("chain 6 refused: "));
  ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 0; }));
  EXPECT_EQ(device.Inspect()->dma_violations, 0u);
  EXPECT_FALSE(client->NeedsReset());
}

TEST_F(DeviceTest, BadChainsAreCompletedEmptyAndTheRingGoesOn) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.indirect_max = 4;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  ASSERT_OK_AND_ASSIGN(const GuestRange buffer, client->memory().Allocate(4096));
  const guest::Segment good{buffer.address, 64};
  const guest::Segment nowhere{0x1000, 64};
  const guest::Segment beyond{client->memory().regions()[0].address + options.memory - 8, 64};
  uint64_t token = 1000;
  guest::DriverQueue& queue = client->queue();
  constexpr int kRounds = 100;
  for (int i = 0; i < kRounds; ++i) {
    const std::array<guest::Segment, 2> first{nowhere, good};
    const std::array<guest::Segment, 2> second{good, beyond};
    ASSERT_TRUE(queue.Add({&nowhere, 1}, {}, ++token));
    ASSERT_TRUE(queue.Add({}, {&beyond, 1}, ++token));
    ASSERT_TRUE(queue.Add(first, {&good, 1}, ++token));
    ASSERT_TRUE(queue.Add({&good, 1}, second, ++token));
    queue.Publish();
    for (int n = 0; n < 4;) {
      std::array<guest::UsedBuffer, 4> used;
      ASSERT_OK(queue.Wait(guest::WaitMode::kSleep));
      const size_t count = queue.TakeUsed(used);
      for (size_t u = 0; u < count; ++u) EXPECT_EQ(used[u].written, 0u);
      n += static_cast<int>(count);
    }
    ASSERT_OK(client->Check());
  }
  EXPECT_FALSE(client->NeedsReset());
  const DeviceInfo info = *device.Inspect();
  EXPECT_EQ(info.dma_violations, 4u * kRounds);
  EXPECT_EQ(info.metrics.at("requests"), uint64_t{kRounds}) << "the plugin saw none of them";
  EXPECT_EQ(info.queues[0].in_flight, 0u);
  // The log is not the driver's to fill.
  size_t lines = 0;
  for (const std::string& line : log_.lines()) {
    if (line.find("refused") != std::string::npos) ++lines;
  }
  EXPECT_EQ(lines, 50u);
}

TEST_F(DeviceTest, ChainsOfEveryShapeReachThePlugin) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.indirect_max = 64;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  ASSERT_OK_AND_ASSIGN(const GuestRange buffer, client->memory().Allocate(4096));
  guest::DriverQueue& queue = client->queue();
  const auto call = [&](std::span<const guest::Segment> in, std::span<const guest::Segment> out) {
    EXPECT_TRUE(queue.Add(in, out, 7777));
    queue.Publish();
    std::array<guest::UsedBuffer, 1> used;
    EXPECT_OK(queue.Wait(guest::WaitMode::kSleep));
    EXPECT_EQ(queue.TakeUsed(used), 1u);
    return used[0].written;
  };
  // No bytes at all, none readable, none writable, only zero-length descriptors, half a command.
  const guest::Segment empty{buffer.address, 0};
  const guest::Segment half{buffer.address, sizeof(Command) / 2};
  const guest::Segment whole{buffer.address, sizeof(Command)};
  new (buffer.host) Command{.op = Op::kEcho};
  EXPECT_EQ(call({&empty, 1}, {}), 0u);
  EXPECT_EQ(call({}, {&whole, 1}), 0u);
  EXPECT_EQ(call({&whole, 1}, {}), 0u);
  const std::array<guest::Segment, 3> zeros{empty, empty, empty};
  EXPECT_EQ(call(zeros, zeros), 0u);
  EXPECT_EQ(call({&half, 1}, {&whole, 1}), 0u);
  // A command in 24 pieces of one byte, a reply in eight.
  std::vector<guest::Segment> pieces, places;
  for (uint64_t i = 0; i < sizeof(Command); ++i) pieces.push_back({buffer.address + i, 1});
  for (uint64_t i = 0; i < 8; ++i) places.push_back({buffer.address + 1024 + 16 * i, 1});
  EXPECT_EQ(call(pieces, places), 8u);
  EXPECT_FALSE(client->NeedsReset());
}

// ---- memory that changes ------------------------------------------------------------------------

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

// ---- kick, call, error --------------------------------------------------------------------------

TEST_F(DeviceTest, KicksMayComeThroughAPipe) {
  for (const int flags : {0, O_NONBLOCK}) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec(absl::StrCat("a", flags))));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    Pipe pipe(flags);
    ASSERT_OK(client->port().SetKick(0, std::move(pipe.reader)));
    for (int i = 0; i < 50; ++i) {
      const uint64_t token = client->Put({.op = Op::kEcho}, "x", 64, 0);
      // Shown without a kick through the old descriptor's driver; then kicked by one byte.
      client->queue().ring().Publish();
      ASSERT_EQ(write(pipe.writer.get(), "k", 1), 1);
      ASSERT_OK(client->Take(token));
    }
    EXPECT_GT(device.Inspect()->queues[0].kicks, 0u);
    // A driver that closes its end is heard no more; the rest goes on.
    pipe.writer.reset();
    EXPECT_TRUE(log_.WaitFor("kick descriptor is unusable (end of file)"));
    EXPECT_TRUE(client->port().queue_running(0));
    ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
    EXPECT_OK(client->Check());
  }
}

TEST_F(DeviceTest, AnUnreadableKickIsSaidAndHarmless) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->port().SetKick(0, UniqueFd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC))));
  EXPECT_TRUE(log_.WaitFor("kick descriptor is unusable (errno "));
  ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, WithoutAKickDescriptorTheRingIsLookedAt) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.kick_fds = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->queues[0].kicks, 0u);
}

TEST_F(DeviceTest, WithoutACallDescriptorTheDriverLooks) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.call_fds = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->queues[0].calls, 0u);
  // A call descriptor that comes late is written for what came before it.
  const UniqueFd call(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
  uint64_t count = 0;
  EXPECT_EQ(read(call.get(), &count, sizeof(count)), 8);
}

TEST_F(DeviceTest, ACallPipeWithoutAReaderKillsNobody) {
  std::signal(SIGPIPE, SIG_DFL);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  Pipe pipe;
  ASSERT_OK(client->port().SetCall(0, std::move(pipe.writer)));
  const uint64_t token = client->Send({.op = Op::kEcho}, "x");
  pollfd look{.fd = pipe.reader.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&look, 1, 60'000), 1) << "the call comes through the pipe";
  pipe.reader.reset();
  EXPECT_TRUE(client->Has(token));
  for (int i = 0; i < 10; ++i) {
    const uint64_t next = client->Send({.op = Op::kEcho}, "x");
    ASSERT_TRUE(Eventually([&] { return client->Has(next); }));
  }
}

TEST_F(DeviceTest, AFullCallPipeHoldsNobodyUp) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.event_idx = false;  // a call for every answer
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 4096);
  ASSERT_OK(client->port().SetCall(0, std::move(pipe.writer)));
  for (int i = 0; i < 1000; ++i) {
    const uint64_t token = client->Send({.op = Op::kNothing});
    ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
  }
  EXPECT_GE(device.Inspect()->queues[0].calls, 1000u);
}

// The front-end shares the open file, so that it can undo O_NONBLOCK at any time.
void MakeBlocking(int fd) { ASSERT_EQ(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0); }

TEST_F(DeviceTest, AFullCallPipeOrSocketThatBlocksHoldsNobodyUp) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.event_idx = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 4096);
  int pair[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd reader(pair[0]);
  const UniqueFd writer(pair[1]);
  for (const int call : {pipe.writer.get(), writer.get()}) {
    ASSERT_OK(client->port().SetCall(0, Copy(call)));
    MakeBlocking(call);
    for (int i = 0; i < 1000; ++i) {
      const uint64_t token = client->Send({.op = Op::kNothing});
      ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
    }
    pollfd room{.fd = call, .events = POLLOUT, .revents = 0};
    EXPECT_EQ(poll(&room, 1, 0), 0) << "it is full";
  }
}

TEST_F(DeviceTest, AFullCallEventfdThatBlocksCostsTheFrontEndItsRing) {
  MakeHost(absl::Milliseconds(40));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  for (const bool packed : {false, true}) {
    Client::Options options;
    options.driver.event_idx = false;
    options.driver.packed = packed;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    const UniqueFd call(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
    const UniqueFd error(eventfd(0, EFD_CLOEXEC));
    ASSERT_OK(client->port().SetError(0, error.Duplicate()));
    uint64_t most = 0;
    if (read(call.get(), &most, sizeof most) < 0) {  // of the session before
      ASSERT_EQ(errno, EAGAIN);
    }
    most = ~uint64_t{1};
    ASSERT_EQ(write(call.get(), &most, sizeof most), 8);
    MakeBlocking(call.get());
    client->Send({.op = Op::kNothing});
    pollfd look{.fd = error.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&look, 1, 60'000), 1) << "the ring stops, with its error descriptor";
    EXPECT_TRUE(client->NeedsReset());
    EXPECT_FALSE(client->port().queue_running(0));
    EXPECT_TRUE(log_.Contains("made its call or error descriptor block"));
    // Not the device, which serves on.
    ASSERT_OK(client->port().Reset());
    ASSERT_OK(client->driver().Restart());
    EXPECT_OK(client->Check());
  }
  ASSERT_OK_AND_ASSIGN(auto next, Client::Create(device));
  EXPECT_OK(next->Check());
}

// Processes that fill an eventfd whenever there is room.
class Fillers {
 public:
  Fillers(int fd, int count) {
    for (int i = 0; i < count; ++i) {
      // Each fits with so many notifications there.
      const uint64_t most = ~uint64_t{1} - static_cast<uint64_t>(i);
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (write(fd, &most, sizeof most) > 0) {
        }
        _exit(1);
      }
      children_.push_back(child);
    }
  }
  ~Fillers() {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
  }
  Fillers(const Fillers&) = delete;
  Fillers& operator=(const Fillers&) = delete;

 private:
  std::vector<pid_t> children_;
};

TEST_F(DeviceTest, ACallEventfdThatIsFilledAgainAndAgainCostsTheFrontEndItsRingOnly) {
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Seconds(2);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  Client::Options options;
  options.driver.event_idx = false;  // a call for every answer
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  const UniqueFd call(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
  uint64_t most = 0;
  pollfd some{.fd = call.get(), .events = POLLIN, .revents = 0};
  if (poll(&some, 1, 0) == 1) {  // of the driver's start
    ASSERT_EQ(read(call.get(), &most, sizeof most), 8);
  }
  most = ~uint64_t{1};
  ASSERT_EQ(write(call.get(), &most, sizeof most), 8);
  {
    const Fillers fillers(call.get(), 4);
    // One burst, with a call for every few.
    const uint64_t first = client->Put({.op = Op::kNothing}, "", 64, 0);
    for (int i = 0; i < 40; ++i) client->Put({.op = Op::kNothing}, "", 64, 0);
    client->Send({.op = Op::kNothing});
    ASSERT_TRUE(Eventually([&] { return client->Has(first); }));
    ASSERT_OK(client->port().Reset()) << "its thread was free again in time";
  }
  EXPECT_FALSE(log_.Contains("does not return"));
  EXPECT_FALSE(log_.Contains("holds its thread up"));
  ASSERT_OK(client->driver().Restart());
  EXPECT_OK(client->Check());
}

// Of a kind that cannot be made to let go: no transport of ours passes a named pipe on.
TEST_F(DeviceTest, AThreadThatADescriptorHoldsUpIsNotBlamedOnThePlugin) {
  const TempDir directory;
  const std::string path = directory / "fifo";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const UniqueFd reader(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  UniqueFd writer(open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_TRUE(writer);
  const std::string data(4096, 'x');
  while (write(writer.get(), data.data(), data.size()) > 0) {
  }
  MakeBlocking(writer.get());
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(200);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  Client::Options options;
  options.driver.event_idx = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  ASSERT_OK(client->port().SetCall(0, std::move(writer)));
  const uint64_t token = client->Send({.op = Op::kNothing});
  ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
  EXPECT_THAT(client->port().StopQueue(0), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(
      device.Inspect()->failure,
      HasSubstr("queue 0: a call or error descriptor of the front-end holds its thread up"));
  client.reset();
  EXPECT_THAT(Client::Create(device).status(),
              StatusIs(absl::StatusCode::kUnavailable, "a descriptor of the front-end"));
  // The thread comes back, and so does the device.
  std::string taken(4096, 0);
  ASSERT_TRUE(Eventually([&] {
    while (read(reader.get(), taken.data(), taken.size()) > 0) {
    }
    auto next = Client::Create(device);
    if (next.ok()) client = *std::move(next);
    return next.ok();
  }));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, AFullErrorEventfdThatBlocksHoldsNobodyUp) {
  MakeHost(absl::Milliseconds(40));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const UniqueFd error(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetError(0, error.Duplicate()));
  MakeBlocking(error.get());
  const uint64_t most = ~uint64_t{1};
  ASSERT_EQ(write(error.get(), &most, sizeof most), 8);
  client->port().SignalError(0, error.Duplicate());
  ASSERT_TRUE(Eventually([&] { return !client->port().queue_running(0); }));
  ASSERT_OK(client->port().Reset());
  ASSERT_OK(client->driver().Restart());
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, DescriptorsMayBeExchangedWhileTheRingRuns) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const size_t fds = CountEntries("/proc/self/fd");
  for (int i = 0; i < 200; ++i) {
    const uint64_t token = client->Send({.op = Op::kEcho}, "x");
    ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
    ASSERT_OK(client->port().SetCall(0, Copy(client->queue().call_fd())));
    ASSERT_OK(client->port().SetError(0, Copy(client->queue().error_fd())));
    ASSERT_OK(client->Take(token));
  }
  EXPECT_TRUE(Eventually([&] { return CountEntries("/proc/self/fd") == fds; }));
}

TEST_F(DeviceTest, ADisabledQueueTakesNothing) {
  for (const bool kick_fds : {true, false}) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec(absl::StrCat("a", kick_fds))));
    Client::Options options;
    options.driver.kick_fds = kick_fds;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    ASSERT_OK(client->Check());
    ASSERT_OK(client->port().EnableQueue(0, false));
    const uint64_t before = device.Inspect()->queues[0].requests;
    const uint64_t token = client->Send({.op = Op::kEcho}, "x");
    client->queue().Kick();
    // The thread has looked at its mail twice since.
    ASSERT_OK(client->port().SetError(0, UniqueFd()));
    ASSERT_OK(client->port().SetError(0, UniqueFd()));
    EXPECT_EQ(device.Inspect()->queues[0].requests, before);
    EXPECT_TRUE(client->port().queue_running(0));
    ASSERT_OK(client->port().EnableQueue(0, true));
    ASSERT_OK(client->Take(token));
    EXPECT_OK(client->Check());
  }
}

// ---- many requests, little room -----------------------------------------------------------------

TEST_F(DeviceTest, ASmallArenaSlowsDownButFailsNothing) {
  // 2 MiB hold 15 views of 132 KiB at most; the ring has room for 256 requests.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                       host_->Add(Spec("a", {{"in_view", "4096"}, {"out_view", "131072"}})));
  Client::Options options;
  options.memory = 64 * kMiB;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  const std::string payload(1000, 'p');
  std::vector<uint64_t> tokens;
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 200; ++i) {
      const uint64_t token = client->Put({.op = Op::kEcho}, payload, 131072, 0);
      ASSERT_NE(token, 0u);
      tokens.push_back(token);
    }
    client->queue().Publish();
    for (const uint64_t token : tokens) {
      ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token));
      ASSERT_EQ(reply.data.substr(kResultSize), payload);
    }
    tokens.clear();
  }
  const DeviceInfo info = *device.Inspect();
  EXPECT_GT(info.queues[0].slot_waits, 0u);
  EXPECT_LE(info.arena_slots_high_water, info.arena_slots);
  EXPECT_FALSE(info.needs_reset);
}

TEST_F(DeviceTest, AFullArenaWaitsForTheRequestsThatHoldIt) {
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> options_of_device{
        {"queues", "2"}, {"in_view", "1024"}, {"out_view", "261120"}};
    const std::string name = absl::StrCat("a", parallel);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                         host_->Add(parallel ? ParallelSpec(name, options_of_device)
                                             : Spec(name, options_of_device)));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    // Eight mappings of 256 KiB are all there are.
    std::vector<uint64_t> held;
    for (int i = 0; i < 8; ++i) held.push_back(client->Send({.op = Op::kHold}, "", 64, 0));
    ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 8; }));
    EXPECT_EQ(device.Inspect()->arena_slots_used, 1024u);
    const uint64_t waits = client->Send({.op = Op::kEcho}, "x", 64, 1);
    ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[1].slot_waits > 0; }));
    EXPECT_FALSE(client->Has(waits, 1));
    // A wait is one wait however often the ring looks again, and is shown while it goes on.
    const uint64_t so_far = device.Inspect()->queues[1].slot_wait_ns;
    ASSERT_TRUE(
        Eventually([&] { return device.Inspect()->queues[1].slot_wait_ns > so_far + 3'000'000; }));
    EXPECT_EQ(device.Inspect()->queues[1].slot_waits, 1u);
    // Room comes from the other queue's end: StopQueue fails what it holds.
    ASSERT_OK(client->port().StopQueue(0));
    ASSERT_OK(client->Take(waits, 1));
    for (const uint64_t token : held) EXPECT_TRUE(client->Has(token, 0));
    const QueueStats after = device.Inspect()->queues[1];
    EXPECT_EQ(device.Inspect()->arena_slots_high_water, 1024u);
    EXPECT_EQ(after.slot_waits, 1u);
    EXPECT_GT(after.slot_wait_ns, so_far + 3'000'000);
    ASSERT_OK(client->Check(1));
    EXPECT_EQ(device.Inspect()->queues[1].slot_wait_ns, after.slot_wait_ns) << "it is over";
  }
}

TEST_F(DeviceTest, ARequestThatWaitsForSlotsIsCounted) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  constexpr uint32_t kWhole = 256 * 1024;
  const auto queue = [&] { return device.Inspect()->queues[0]; };
  ASSERT_OK(client->Call({.op = Op::kReserve, .a = kWhole}, "", kWhole));
  EXPECT_EQ(queue().slot_waits, 0u);
  EXPECT_EQ(queue().slot_wait_ns, 0u);
  // Whatever a request holds of seven runs leaves no eighth: this one's view lies in the last.
  std::vector<uint64_t> held;
  for (int i = 0; i < 7; ++i) {
    held.push_back(client->Send({.op = Op::kReserveHold, .a = kWhole}, "", kWhole));
  }
  const uint64_t waits = client->Send({.op = Op::kReserveHold, .a = kWhole}, "", kWhole);
  ASSERT_TRUE(Eventually([&] { return queue().slot_waits == 1; }));
  const uint64_t so_far = queue().slot_wait_ns;
  ASSERT_TRUE(Eventually([&] { return queue().slot_wait_ns > so_far; }));
  // It is the same wait when it asks again, and ends with the request that gives up.
  ASSERT_OK_AND_ASSIGN(const Reply released, client->Call({.op = Op::kRelease}));
  EXPECT_EQ(released.result, 8);
  for (const uint64_t token : held) ASSERT_OK(client->Take(token));
  ASSERT_OK(client->Take(waits));
  const uint64_t in_all = queue().slot_wait_ns;
  EXPECT_GT(in_all, so_far);
  ASSERT_OK(client->Call({.op = Op::kReserve, .a = kWhole}, "", kWhole));
  EXPECT_EQ(queue().slot_wait_ns, in_all);
  EXPECT_EQ(queue().slot_waits, 1u);
}

TEST_F(DeviceTest, ManyRequestsAtOnceOnManyQueues) {
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> four{{"queues", "4"}};
    const std::string name = absl::StrCat("a", parallel);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                         host_->Add(parallel ? ParallelSpec(name, four) : Spec(name, four)));
    Client::Options options;
    options.driver.queue_size = 64;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    std::vector<std::pair<uint32_t, uint64_t>> tokens;
    for (int round = 0; round < 50; ++round) {
      for (uint32_t queue = 0; queue < 4; ++queue) {
        for (int i = 0; i < 60; ++i) {
          tokens.emplace_back(
              queue, client->Put({.op = Op::kEcho}, absl::StrCat(queue, ".", i), 64, queue));
          ASSERT_NE(tokens.back().second, 0u);
        }
        client->queue(queue).Publish();
      }
      for (size_t i = 0; i < tokens.size(); ++i) {
        const auto& [queue, token] = tokens[i];
        ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token, queue));
        ASSERT_EQ(reply.data.substr(kResultSize), absl::StrCat(queue, ".", i % 60));
      }
      tokens.clear();
    }
    const DeviceInfo info = *device.Inspect();
    for (const QueueStats& queue : info.queues) {
      EXPECT_EQ(queue.requests, 3000u);
      EXPECT_EQ(queue.completions, 3000u);
      EXPECT_LT(queue.batches, 3000u) << "taken in bursts";
    }
  }
}

// A callback of one queue may end requests of another that the same thread serves; their driver
// hears of it although nothing else happens there.
TEST_F(DeviceTest, AnswersToAnotherQueueArePublished) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "3"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  for (int i = 0; i < 200; ++i) {
    const uint64_t held = client->Send({.op = Op::kHold}, "", 64, 2);
    ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[2].in_flight == 1; }));
    ASSERT_OK(client->Call({.op = Op::kRelease, .a = 2}, "", 64, 0));
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(held, 2));
    EXPECT_EQ(reply.result, 1);
  }
}

}  // namespace
}  // namespace virtbay::testing
