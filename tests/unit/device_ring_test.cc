// Running rings: drivers that break them, and chains of every shape.
#include <csignal>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using guest::GuestRange;
using ::testing::HasSubstr;

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

}  // namespace
}  // namespace virtbay::testing
