// What a queue can be asked for beside serving: answers in order, a reset of its own, the company
// of other queues on a thread, and a layout.
#include <poll.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/hand_over.h"
#include "tests/unit/device_fixture.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kInOrder = guest::kFeatureInOrder;

// ---- features -----------------------------------------------------------------------------------

TEST_F(DeviceTest, RingFeaturesAreOfferedAsAsked) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle plain, host_->Add(Spec("plain")));
  ASSERT_OK_AND_ASSIGN(auto port, plain.Attach(nullptr));
  EXPECT_NE(port->offered_features() & guest::kFeatureRingPacked, 0u);
  EXPECT_NE(port->offered_features() & guest::kFeatureRingReset, 0u);
  EXPECT_EQ(port->offered_features() & kInOrder, 0u) << "for the device to offer";
  DeviceSpec spec = Spec("other", {{"in_order", "1"}});
  spec.offer_packed_ring = false;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(port, other.Attach(nullptr));
  EXPECT_EQ(port->offered_features() & guest::kFeatureRingPacked, 0u);
  EXPECT_NE(port->offered_features() & kInOrder, 0u);
  EXPECT_THAT(port->SetFeatures(guest::kFeatureVersion1 | guest::kFeatureRingPacked),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(DeviceTest, ADriverThatNeedsWhatIsNotOfferedSaysSo) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.in_order = true;
  EXPECT_THAT(Client::Create(device, options),
              StatusIs(absl::StatusCode::kFailedPrecondition, "0x800000000"));
}

TEST_F(DeviceTest, TheLayoutIsShown) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->queues[0].ring_packed, kPackedRings);
}

// ---- a packed ring's base -----------------------------------------------------------------------

TEST_F(DeviceTest, APackedRingGoesOnFromItsBase) {
  if (!kPackedRings) GTEST_SKIP() << "split rings have their own test";
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.queue_size = 8;
  options.driver.indirect_max = 0;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  uint32_t places = 0;
  for (int i = 0; i < 40; ++i) {
    ASSERT_OK(client->Check());  // two descriptors
    places += 2;
    ASSERT_OK_AND_ASSIGN(const uint32_t base, client->port().StopQueue(0));
    const uint32_t cursor = places % 8 | (places / 8 % 2 == 0 ? 0x8000u : 0u);
    ASSERT_EQ(base, cursor | cursor << 16);
    // Front-ends give back all of it, or only the low half.
    QueueConfig config = client->ConfigOf(0, i % 2 == 0 ? base : cursor);
    config.kick.reset(fcntl(client->queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
    config.call.reset(fcntl(client->queue().call_fd(), F_DUPFD_CLOEXEC, 3));
    ASSERT_OK(client->port().StartQueue(0, std::move(config)));
  }
  ASSERT_OK(client->port().StopQueue(0));
  EXPECT_THAT(client->port().StartQueue(0, client->ConfigOf(0, 0x8008)),
              StatusIs(absl::StatusCode::kInvalidArgument, "no place in a packed ring of 8"));
}

// A request that is handed back while its ring stops is begun anew, although the places of its
// descriptors were used for others' answers meanwhile.
TEST_F(DeviceTest, ParkedRequestsSurviveAnswersOutOfOrder) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  std::vector<uint64_t> parked;
  for (int i = 0; i < 20; ++i) {
    parked.push_back(client->Send({.op = Op::kPark}, std::string(10, 'p')));
    ASSERT_OK(client->Check());
  }
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(client->driver().Stop());
    // Elsewhere in this process's memory, so that each chain has to be found anew.
    ASSERT_OK(client->transport().SetMemory(client->memory()));
    ASSERT_OK(client->driver().Start());
    ASSERT_OK(client->Check());
  }
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  for (const uint64_t token : parked) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token));
    EXPECT_EQ(reply.result, 1);
  }
  EXPECT_EQ(client->queue().ring().device_errors(), 0u);
  EXPECT_EQ(device.Inspect()->queues[0].in_flight, 0u);
}

// A whole lap is held, and the first place of it is made available again: what it says now is not
// what it said when the device took it.
TEST_F(DeviceTest, PlacesThatAreHeldAreNotTakenTwice) {
  if (!kPackedRings) GTEST_SKIP() << "of packed rings";
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.queue_size = 8;
  options.driver.indirect_max = 0;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  for (int i = 0; i < 8; ++i) ASSERT_NE(client->Send({.op = Op::kHold}, "", 0), 0u);
  ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 8; }));
  guest::PackedRing& ring = client->queue().ring().packed();
  ring.RawSetFlags(ring.RawNext(), ring.RawAvailable());
  client->queue().Kick();
  EXPECT_TRUE(client->WaitForConfigChange());
  EXPECT_THAT(device.Inspect()->failure, HasSubstr("avail index"));
  ASSERT_OK(client->driver().Restart());
  ASSERT_OK(client->Check());
}

// ---- VIRTIO_F_IN_ORDER --------------------------------------------------------------------------

class InOrderTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    DeviceSpec spec = Spec("a", {{"queues", "2"}, {"in_order", "1"}});
    spec.stop_deadline = absl::Seconds(1);
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec));
    options_.driver.in_order = true;
    options_.driver.queue_size = 16;
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, options_));
  }

  // Everything is back, in the order in which it was sent.
  void ExpectOrder(const std::vector<uint64_t>& tokens) {
    for (const uint64_t token : tokens) ASSERT_OK(client_->Take(token));
    EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
    EXPECT_EQ(device_.Inspect()->queues[0].in_flight, 0u);
    for (int i = 0; i < 40; ++i) ASSERT_OK(client_->Check());
  }

  Client::Options options_;
  DeviceHandle device_;
  std::unique_ptr<Client> client_;
};

TEST_F(InOrderTest, AnswersWaitForTheirTurn) {
  for (int round = 0; round < 5; ++round) {
    const uint64_t sent = device_.Inspect()->queues[0].requests;
    std::vector<uint64_t> tokens{client_->Send({.op = Op::kHold})};
    for (int i = 0; i < 3; ++i) {
      tokens.push_back(client_->Send({.op = Op::kEcho}, "x"));
      tokens.push_back(client_->Send({.op = Op::kNothing}, "", 0));
    }
    // All of them are with the plugin.
    ASSERT_TRUE(Eventually([&] { return device_.Inspect()->queues[0].requests == sent + 7; }));
    for (const uint64_t token : tokens) EXPECT_FALSE(client_->Has(token));
    ASSERT_OK(client_->Call({.op = Op::kRelease, .a = 0}, "", 64, 1));
    ExpectOrder(tokens);
  }
}

TEST_F(InOrderTest, RefusedChainsWaitForTheirTurnToo) {
  const uint64_t held = client_->Send({.op = Op::kHold});
  const guest::Segment nowhere{0x1000, 64};
  ASSERT_TRUE(client_->queue().Add({&nowhere, 1}, {}, uint64_t{1} << 60));
  client_->queue().Publish();
  ASSERT_TRUE(Eventually([&] { return device_.Inspect()->dma_violations == 1; }));
  const uint64_t after = client_->Send({.op = Op::kEcho}, "x");
  ASSERT_TRUE(Eventually([&] { return device_.Inspect()->queues[0].requests == 3; }));
  EXPECT_FALSE(client_->Has(after));
  ASSERT_OK(client_->Call({.op = Op::kRelease, .a = 0}, "", 64, 1));
  ExpectOrder({held, after});
}

// An id whose answer waits for its turn is not the driver's yet.
TEST_F(InOrderTest, AHeadThatWaitsForItsTurnIsInFlight) {
  const uint64_t held = client_->Send({.op = Op::kHold});
  ASSERT_NE(held, 0u);
  client_->Send({.op = Op::kEcho}, "x");
  ASSERT_TRUE(Eventually([&] { return Metric("a", "requests") == 2; }));
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange buffer, client_->memory().Allocate(64));
  guest::LayoutRing& layout = client_->queue().ring();
  if (layout.is_packed()) {
    guest::PackedRing& ring = layout.packed();
    vring_packed_desc& at = ring.raw_descriptor(ring.RawNext());
    at.addr = buffer.address;
    at.len = 32;
    at.id = 1;  // of the echo
    ring.RawSetFlags(ring.RawNext(), ring.RawAvailable());
  } else {
    // The echo's head again: with indirect tables each chain takes one descriptor.
    guest::SplitRing& ring = layout.split();
    ring.RawSetAvail(ring.RawAvailIndex(), 1);
    ring.RawSetAvailIndex(static_cast<uint16_t>(ring.RawAvailIndex() + 1));
  }
  client_->queue().Kick();
  EXPECT_TRUE(client_->WaitForConfigChange());
  EXPECT_THAT(device_.Inspect()->failure, HasSubstr("already in flight"));
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK(client_->Check());
}

TEST_F(InOrderTest, TheOrderSurvivesAStop) {
  // One is handed back, one ends too late for the stop, and answers wait behind both.
  const Pipe pipe;
  HandOver();
  std::vector<uint64_t> tokens;
  tokens.push_back(client_->Send({.op = Op::kPark}));
  tokens.push_back(client_->Send({.op = Op::kEcho}, "x"));
  tokens.push_back(client_->Send({.op = Op::kOffload, .fd = pipe.reader.get()}));
  tokens.push_back(client_->Send({.op = Op::kEcho}, "y"));
  ASSERT_TRUE(Eventually([&] { return Metric("a", "requests") == 4; }));
  for (int round = 0; round < 2; ++round) {
    ASSERT_OK(client_->driver().Stop());
    if (round == 0) {
      ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
      ASSERT_TRUE(Eventually([&] { return Metric("a", "offloaded") == 1; }));
    }
    ASSERT_OK(client_->transport().SetMemory(client_->memory()));
    ASSERT_OK(client_->driver().Start());
  }
  // The one that was handed back is with the plugin again.
  ASSERT_TRUE(Eventually([&] { return Metric("a", "requests") == 6; }));
  for (const uint64_t token : tokens) EXPECT_FALSE(client_->Has(token));
  ASSERT_OK(client_->Call({.op = Op::kRelease, .a = 0}, "", 64, 1));
  ExpectOrder(tokens);
}

TEST_F(InOrderTest, AResetForgetsTheOrder) {
  client_->Send({.op = Op::kHold});
  client_->Send({.op = Op::kEcho}, "x");
  ASSERT_TRUE(Eventually([&] { return Metric("a", "requests") == 2; }));
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK(client_->driver().Restart());
    for (int i = 0; i < 40; ++i) ASSERT_OK(client_->Check());
    client_->Send({.op = Op::kPark});
    client_->Send({.op = Op::kEcho}, "x");
  }
}

// ---- VIRTIO_F_RING_RESET ------------------------------------------------------------------------

TEST_F(DeviceTest, OneQueueIsResetWhileTheOthersRun) {
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> three{{"queues", "3"}};
    const std::string name = absl::StrCat("a", parallel);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                         host_->Add(parallel ? ParallelSpec(name, three) : Spec(name, three)));
    Client::Options options;
    options.driver.ring_reset = true;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    const uint64_t held = client->Send({.op = Op::kHold}, "", 64, 1);
    ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[1].in_flight == 1; }));
    for (int round = 0; round < 50; ++round) {
      for (int i = 0; i <= round % 5; ++i) ASSERT_OK(client->Check(0));
      ASSERT_OK(client->Check(2));
      // In flight when it is reset: nothing of them is heard again.
      const uint64_t parked = client->Send({.op = Op::kPark});
      const uint64_t kept = client->Send({.op = Op::kHold});
      const uint64_t going = client->Send({.op = Op::kEcho}, "2", 64, 2);
      ASSERT_OK(client->driver().ResetQueue(0));
      EXPECT_TRUE(client->port().queue_running(0));
      ASSERT_OK(client->Check(0));
      EXPECT_FALSE(client->Has(parked));
      EXPECT_FALSE(client->Has(kept));
      ASSERT_OK(client->Take(going, 2));
    }
    EXPECT_EQ(client->queue().ring().device_errors(), 0u);
    EXPECT_EQ(device.Inspect()->queues[0].in_flight, 0u);
    EXPECT_EQ(device.Inspect()->queues[1].in_flight, 1u) << "the others' requests stay";
    ASSERT_OK(client->Call({.op = Op::kRelease, .a = 1}, "", 64, 1));
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(held, 1));
    EXPECT_EQ(reply.result, 1);
    EXPECT_FALSE(client->NeedsReset());
  }
}

TEST_F(DeviceTest, AQueueIsResetInEveryState) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "2"}})));
  Client::Options options;
  options.driver.ring_reset = true;
  options.driver.start = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  EXPECT_OK(client->port().ResetQueue(0)) << "before anything has started";
  EXPECT_THAT(client->port().ResetQueue(2), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_OK(client->driver().Start());
  // Stopped, with a request that would go on with the ring: not after a reset.
  const uint64_t parked = client->Send({.op = Op::kPark});
  ASSERT_OK(client->Check());
  ASSERT_OK(client->driver().Stop());
  ASSERT_OK(client->driver().ResetQueue(0));
  ASSERT_OK(client->driver().Start());
  ASSERT_OK_AND_ASSIGN(const Reply released, client->Call({.op = Op::kRelease}));
  EXPECT_EQ(released.result, 0);
  EXPECT_FALSE(client->Has(parked));
  ASSERT_OK(client->Check(1));
  EXPECT_EQ(device.Inspect()->queues[0].in_flight, 0u);
}

TEST_F(DeviceTest, WithoutRingResetNoQueueIsReset) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_THAT(client->driver().ResetQueue(0),
              StatusIs(absl::StatusCode::kFailedPrecondition, "VIRTIO_F_RING_RESET"));
  EXPECT_OK(client->Check());
}

// ---- threads ------------------------------------------------------------------------------------

TEST_F(DeviceTest, QueuesOfAGroupShareAThread) {
  for (const bool parallel : {false, true}) {
    for (const uint32_t group : {0u, 2u}) {
      const std::map<std::string, std::string> options{{"queues", "5"},
                                                       {"group_size", absl::StrCat(group)}};
      const std::string name = absl::StrCat("a", parallel, group);
      ASSERT_OK_AND_ASSIGN(
          const DeviceHandle device,
          host_->Add(parallel ? ParallelSpec(name, options) : Spec(name, options)));
      ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
      for (uint32_t a = 0; a < 5; ++a) {
        for (uint32_t b = 0; b < 5; ++b) {
          ASSERT_OK_AND_ASSIGN(const Reply reply,
                               client->Call({.op = Op::kSharesThread, .a = b}, "", 64, a));
          const bool together = !parallel || a == b || (group != 0 && a / group == b / group);
          EXPECT_EQ(reply.result, together ? 1 : 0) << a << " " << b;
        }
      }
    }
  }
}

// What one group does does not keep another waiting.
TEST_F(DeviceTest, GroupsOfQueuesRunBesideEachOther) {
  const Pipe pipe;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                       host_->Add(ParallelSpec("a", {{"queues", "4"}, {"group_size", "2"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  // A read that blocks the first group's thread until the test writes.
  const uint64_t blocked = client->Send({.op = Op::kReadBlocking,
                                         .fd = pipe.reader.get(),
                                         .a = kResultSize,
                                         .b = 1,
                                         .offset = VIRTBAY_IO_STREAM},
                                        "", 64, 0);
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK(client->Check(2));
    ASSERT_OK(client->Check(3));
  }
  const uint64_t waits = client->Send({.op = Op::kEcho}, "x", 64, 1);
  EXPECT_FALSE(client->Has(blocked, 0));
  EXPECT_FALSE(client->Has(waits, 1)) << "its thread is in the other's call";
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_OK(client->Take(blocked, 0));
  ASSERT_OK(client->Take(waits, 1));
}

}  // namespace
}  // namespace virtbay::testing
