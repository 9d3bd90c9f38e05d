// Requests that are kept for as long as it takes: half of the ring, of the arena and of the guest's
// pool stays with the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

constexpr uint64_t kMiB = 1 << 20;

class ParkTest : public DeviceTest {
 protected:
  static constexpr Command kWait = {.op = Op::kWait};

  static Client::Options Ring(uint16_t size, bool indirect) {
    Client::Options options;
    options.driver.queue_size = size;
    if (!indirect) options.driver.indirect_max = 0;
    return options;
  }
  // Sends such requests until one is refused; the tokens of those that were not.
  static std::vector<uint64_t> ParkAll(Client& client, uint32_t most = 1000,
                                       const Command& command = kWait, uint32_t room = 64) {
    std::vector<uint64_t> parked;
    while (parked.size() < most) {
      const uint64_t token = client.Send(command, "", room);
      EXPECT_NE(token, 0u) << "the ring is full";
      // Answered after it: whatever comes of it has come by then.
      if (token == 0 || !client.Check().ok()) break;
      if (client.Has(token)) {
        EXPECT_EQ(client.Take(token)->result, -1);
        break;
      }
      parked.push_back(token);
    }
    return parked;
  }
  static void Release(Client& client, const std::vector<uint64_t>& parked) {
    ASSERT_OK_AND_ASSIGN(const Reply released, client.Call({.op = Op::kRelease}));
    EXPECT_EQ(released.result, static_cast<int64_t>(parked.size()));
    for (const uint64_t token : parked) {
      ASSERT_OK_AND_ASSIGN(const Reply reply, client.Take(token));
      EXPECT_EQ(reply.result, 1);
    }
  }
  static void Restart(Client& client, uint32_t index) {
    QueueConfig config = client.ConfigOf(0, index);
    config.kick.reset(fcntl(client.queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
    config.call.reset(fcntl(client.queue().call_fd(), F_DUPFD_CLOEXEC, 3));
    ASSERT_OK(client.port().StartQueue(0, std::move(config)));
  }
};

TEST_F(ParkTest, HalfOfTheRingsDescriptorsStayFree) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  for (const bool indirect : {false, true}) {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Ring(16, indirect)));
    const auto queue = [&] { return device.Inspect()->queues[0]; };
    const uint64_t refused = queue().parks_refused;
    for (int round = 1; round <= 3; ++round) {
      const auto parked = ParkAll(*client);
      // A command and its reply are two descriptors, or one with a table of their own.
      EXPECT_EQ(parked.size(), indirect ? 8u : 4u);
      EXPECT_EQ(queue().parked, parked.size());
      EXPECT_EQ(queue().in_flight, parked.size());
      EXPECT_EQ(queue().parks_refused, refused + static_cast<uint64_t>(round));
      Release(*client, parked);
      EXPECT_EQ(queue().parked, 0u);
    }
  }
}

TEST_F(ParkTest, ARingOfTwoHasNothingToSpare) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Ring(2, false)));
  ASSERT_OK_AND_ASSIGN(const Reply reply, client->Call(kWait));
  EXPECT_EQ(reply.result, -1);
  ASSERT_OK(client->Check());
}

TEST_F(ParkTest, NothingThatIsParkedKeepsArenaSlots) {
  // Views of 256 KiB, of which the arena has eight.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                       host_->Add(Spec("a", {{"in_view", "1024"}, {"out_view", "261120"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Ring(256, true)));
  const auto parked = ParkAll(*client, 100);
  EXPECT_EQ(parked.size(), 100u);
  EXPECT_EQ(device.Inspect()->arena_slots_used, 0u);
  // One that wants slots after all is not parked while it has them, and asks again.
  const uint64_t grown = client->Send({.op = Op::kWait, .a = 4096}, "", 8192);
  ASSERT_OK(client->Check());
  EXPECT_FALSE(client->Has(grown));
  EXPECT_EQ(device.Inspect()->queues[0].parked, 101u);
  EXPECT_EQ(device.Inspect()->arena_slots_used, 0u);
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  for (const uint64_t token : parked) EXPECT_EQ(client->Take(token)->result, 1);
  EXPECT_EQ(client->Take(grown)->result, 1);
  EXPECT_EQ(device.Inspect()->arena_slots_used, 0u);
  EXPECT_FALSE(device.Inspect()->needs_reset);
}

// Handed back and presented again, they need their slots once more.
TEST_F(ParkTest, ParkedRequestsAreTakenUpWhenThereAreSlots) {
  ASSERT_OK_AND_ASSIGN(
      const DeviceHandle device,
      host_->Add(Spec("a", {{"queues", "2"}, {"in_view", "1024"}, {"out_view", "261120"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const auto queue = [&] { return device.Inspect()->queues[0]; };
  const auto parked = ParkAll(*client, 20);
  ASSERT_EQ(parked.size(), 20u);
  ASSERT_OK_AND_ASSIGN(uint32_t index, client->port().StopQueue(0));
  EXPECT_EQ(queue().parked, 0u);
  Restart(*client, index);
  ASSERT_TRUE(Eventually([&] { return queue().parked == 20; }));
  EXPECT_EQ(queue().slot_waits, 0u) << "one after the other, they fit";
  // Now there are none.
  ASSERT_OK_AND_ASSIGN(index, client->port().StopQueue(0));
  for (int i = 0; i < 8; ++i) client->Send({.op = Op::kHold}, "", 64, 1);
  ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[1].in_flight == 8; }));
  Restart(*client, index);
  ASSERT_TRUE(Eventually([&] { return queue().slot_waits == 1; }));
  EXPECT_EQ(queue().parked, 0u);
  const uint64_t after = client->Send({.op = Op::kEcho});
  ASSERT_OK(client->port().StopQueue(1));
  ASSERT_OK(client->Take(after));
  EXPECT_EQ(queue().parked, 20u) << "they come first";
  EXPECT_EQ(queue().slot_waits, 1u);
  const uint64_t waited = queue().slot_wait_ns;
  Release(*client, parked);
  EXPECT_EQ(queue().slot_wait_ns, waited) << "the wait is over";
}

// A ring that starts anew has all of its descriptors, whatever the plugin still holds of the last.
TEST_F(ParkTest, ANewRingOwesNothingToTheOld) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Ring(16, false)));
    EXPECT_EQ(ParkAll(*client).size(), 4u);
    EXPECT_EQ(device.Inspect()->queues[0].parked, 4u);
    client.reset();
    EXPECT_EQ(device.Inspect()->queues[0].parked, 0u);
  }
}

TEST_F(ParkTest, HalfOfTheGuestsPoolStaysFree) {
  constexpr uint64_t kRam = 0x1'4000'0000;
  constexpr uint64_t kPool = 0x1'8000'0000;
  ASSERT_OK_AND_ASSIGN(auto memory, guest::GuestMemory::Create({{.address = kRam, .size = 8 * kMiB},
                                                                {.address = kPool, .size = kMiB}}));
  DeviceSpec spec = Spec("a", {{"queues", "2"}});
  spec.dma_mode = DmaMode::kAperture;
  spec.aperture = {kPool, kMiB};
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, std::move(memory), {.indirect_max = 0}));
  // Each takes 34 of the 512 slots: 33 for what it may write, which begins within one, and one.
  const auto send = [&](uint32_t queue, uint32_t room) {
    auto range = client->memory().AllocateIn(kPool, 2048 + room);
    EXPECT_OK(range);
    new (range->host) Command(kWait);
    const guest::Segment in{range->address, sizeof(Command)};
    const guest::Segment out{range->address + sizeof(Command), room};
    EXPECT_TRUE(client->queue(queue).Add({&in, 1}, {&out, 1}, 4711));
    client->queue(queue).Publish();
  };
  const auto info = [&] { return *device.Inspect(); };
  for (int i = 0; i < 10; ++i) send(static_cast<uint32_t>(i % 2), 65536);
  ASSERT_TRUE(Eventually([&] {
    return info().queues[0].parked + info().queues[1].parked + info().queues[0].parks_refused +
               info().queues[1].parks_refused ==
           10;
  }));
  EXPECT_EQ(info().queues[0].parked + info().queues[1].parked, 7u);
  // A small one still has room, of any queue.
  send(1, 64);
  EXPECT_TRUE(Eventually([&] { return info().queues[0].parked + info().queues[1].parked == 8; }));
}

}  // namespace
}  // namespace virtbay::testing
