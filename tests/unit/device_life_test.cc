// Host, Device and DevicePort: what may be called when, and what is left afterwards.
#include <linux/virtio_config.h>

#include <atomic>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "framework/base/sanitized.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kCycles = kSanitized ? 150 : 2000;

// ---- the Host -----------------------------------------------------------------------------------

TEST_F(DeviceTest, ADeviceServesFromAddToRemove) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "2"}})));
  {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    EXPECT_OK(client->Check(0));
    EXPECT_OK(client->Check(1));
  }
  EXPECT_THAT(host_->List(), ElementsAre("a"));
  EXPECT_OK(host_->Remove("a"));
  EXPECT_THAT(host_->List(), ElementsAre());
  EXPECT_THAT(host_->Remove("a"), StatusIs(absl::StatusCode::kNotFound, "'a'"));
  EXPECT_THAT(host_->Find("a"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(host_->Inspect("a"), StatusIs(absl::StatusCode::kNotFound));
  // What is left of the device harms nobody.
  EXPECT_THAT(device.Attach(nullptr), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(device.Inspect(), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(device.Stop(), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(device.Start(), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(DeviceHandle().Inspect(), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(DeviceTest, NamesAreUniqueAndPlain) {
  ASSERT_OK(host_->Add(Spec("same")));
  EXPECT_THAT(host_->Add(Spec("same")), StatusIs(absl::StatusCode::kAlreadyExists, "'same'"));
  for (const std::string& bad :
       {std::string(), std::string("a b"), std::string("a/b"), std::string("a\nb"),
        std::string("\xc3\xa4"), std::string(65, 'a'), std::string("a\0b", 3)}) {
    EXPECT_THAT(host_->Add(Spec(bad)), StatusIs(absl::StatusCode::kInvalidArgument)) << bad;
  }
  EXPECT_OK(host_->Add(Spec(std::string(64, 'A'))));
  EXPECT_OK(host_->Add(Spec("0-9_.")));
}

TEST_F(DeviceTest, BadSpecsAreRefusedAndLeaveTheNameFree) {
  const auto refused = [&](DeviceSpec spec, absl::StatusCode code, const char* part) {
    const auto device = host_->Add(std::move(spec));
    EXPECT_THAT(device, StatusIs(code, part));
    EXPECT_THAT(std::string(device.status().message()), HasSubstr("device 'bad'"));
  };
  DeviceSpec spec = Spec("bad");
  spec.plugin = "no-such-plugin";
  refused(spec, absl::StatusCode::kNotFound, "no-such-plugin");
  spec = Spec("bad");
  spec.type = "other";
  refused(spec, absl::StatusCode::kNotFound, "other");
  for (const uint16_t size : {uint16_t{0}, uint16_t{3}, uint16_t{1000}, uint16_t{65535}}) {
    spec = Spec("bad");
    spec.queue_size_max = size;
    refused(spec, absl::StatusCode::kInvalidArgument, "power of two");
  }
  spec = Spec("bad");
  spec.arena_size = 0;
  refused(spec, absl::StatusCode::kInvalidArgument, "");
  for (const uint64_t size : {UINT64_MAX, UINT64_MAX - (2u << 20), uint64_t{5} << 30}) {
    spec.arena_size = size;
    refused(spec, absl::StatusCode::kInvalidArgument, "");
  }
  refused(Spec("bad", {{"queues", "0"}}), absl::StatusCode::kInvalidArgument, "queues");
  refused(Spec("bad", {{"queues", "257"}}), absl::StatusCode::kInvalidArgument, "257");
  refused(Spec("bad", {{"config_size", "4097"}}), absl::StatusCode::kInvalidArgument, "4097");
  refused(Spec("bad", {{"in_view", "262144"}, {"out_view", "1"}}),
          absl::StatusCode::kInvalidArgument, "views");
  EXPECT_OK(host_->Add(Spec("bad", {{"queues", "256"}, {"config_size", "4096"}})));
  EXPECT_OK(host_->Add(Spec("views", {{"in_view", "131072"}, {"out_view", "131072"}})));
}

TEST_F(DeviceTest, AHostRefusesAWatchdogThatNeverRests) {
  HostOptions options;
  options.stuck_callback_warning = absl::ZeroDuration();
  EXPECT_THAT(Host::Create(std::move(options)), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(DeviceTest, ArenaSizesAreRoundedUp) {
  DeviceSpec spec = Spec("a");
  spec.arena_size = 1;
  ASSERT_OK(host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(const DeviceInfo info, host_->Inspect("a"));
  EXPECT_EQ(info.arena_size, 2u << 20);
  EXPECT_EQ(info.arena_slots, 1024u);
}

TEST_F(DeviceTest, InspectTellsWhatIsThere) {
  DeviceSpec spec = Spec("a", {{"queues", "2"}, {"out_view", "4096"}});
  spec.dma_mode = DmaMode::kDirect;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(DeviceInfo info, device.Inspect());
  EXPECT_EQ(info.name, "a");
  EXPECT_EQ(info.plugin, "op");
  EXPECT_EQ(info.plugin_path, VIRTBAY_OP_PLUGIN);
  EXPECT_EQ(info.type, "op");
  EXPECT_EQ(info.virtio_id, 4u);
  EXPECT_EQ(info.state, "ready");
  EXPECT_EQ(info.dma_mode, "direct");
  EXPECT_FALSE(info.connected);
  EXPECT_FALSE(info.needs_reset);
  EXPECT_EQ(info.options, spec.options);
  EXPECT_EQ(info.arena_slots_used, 0u);
  ASSERT_EQ(info.queues.size(), 2u);
  EXPECT_FALSE(info.queues[0].running);
  EXPECT_EQ(info.metric_help.at("timers"), "reports");

  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  constexpr uint64_t kCalls = 50;
  for (uint64_t i = 0; i < kCalls; ++i) ASSERT_OK(client->Call({.op = Op::kEcho}, "12345678"));
  ASSERT_OK_AND_ASSIGN(info, device.Inspect());
  EXPECT_TRUE(info.connected);
  EXPECT_EQ(info.state, "running");
  EXPECT_EQ(info.features, client->driver().features());
  EXPECT_EQ(info.metrics.at("requests"), kCalls);
  EXPECT_GT(info.cpu_ns, 0u);
  EXPECT_GT(info.arena_slots_high_water, 0u);
  const QueueStats& queue = info.queues[0];
  EXPECT_TRUE(queue.running);
  EXPECT_FALSE(queue.broken);
  EXPECT_EQ(queue.requests, kCalls);
  EXPECT_EQ(queue.completions, kCalls);
  EXPECT_EQ(queue.in_flight, 0u);
  EXPECT_EQ(queue.batches, kCalls);
  EXPECT_EQ(queue.calls + queue.calls_suppressed, kCalls);
  EXPECT_EQ(queue.bytes_copied_in, kCalls * (sizeof(Command) + 8));
  EXPECT_EQ(queue.bytes_copied_out, kCalls * (kResultSize + 8));
  EXPECT_LE(queue.kicks, kCalls + 1);
  EXPECT_GT(queue.syscalls, 0u);
  EXPECT_EQ(info.queues[1].requests, 0u);

  // In flight is what the plugin holds; what it took from the arena is used.
  const uint64_t held = client->Send({.op = Op::kHold});
  ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 1; }));
  EXPECT_EQ(device.Inspect()->arena_slots_used, 3u) << "views of 1 KiB and 4 KiB";
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  ASSERT_OK(client->Take(held));
  client.reset();
  ASSERT_OK_AND_ASSIGN(info, device.Inspect());
  EXPECT_EQ(info.state, "ready");
  EXPECT_FALSE(info.connected);
  EXPECT_EQ(info.features, 0u);
  EXPECT_EQ(info.arena_slots_used, 0u) << "an idle queue holds nothing back";
  EXPECT_EQ(info.queues[0].completions, kCalls + 2) << "figures stay";
}

// ---- attaching ----------------------------------------------------------------------------------

TEST_F(DeviceTest, OneFrontEndAtATime) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto first, Client::Create(device));
  EXPECT_THAT(Client::Create(device), StatusIs(absl::StatusCode::kAlreadyExists, "a"));
  EXPECT_OK(first->Check());
  first.reset();
  ASSERT_OK_AND_ASSIGN(auto second, Client::Create(device));
  EXPECT_OK(second->Check());
}

TEST_F(DeviceTest, ThePortSaysWhatTheDeviceIs) {
  DeviceSpec spec = Spec("a", {{"queues", "3"}, {"config_size", "20"}});
  spec.queue_size_max = 128;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(auto port, device.Attach(nullptr));
  EXPECT_EQ(port->virtio_id(), 4u);
  EXPECT_EQ(port->queue_count(), 3u);
  EXPECT_EQ(port->max_queue_size(2), 128);
  EXPECT_EQ(port->max_queue_size(3), 0);
  EXPECT_EQ(port->config_size(), 20u);
  EXPECT_EQ(port->offered_features(), uint64_t{5} | guest::kFeatureVersion1 |
                                          guest::kFeatureIndirectDesc | guest::kFeatureEventIdx |
                                          guest::kFeatureRingPacked | guest::kFeatureRingReset);
  EXPECT_FALSE(port->queue_running(0));
  EXPECT_FALSE(port->queue_running(77));

  spec = Spec("b");
  spec.offer_access_platform = true;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(port, other.Attach(nullptr));
  EXPECT_NE(port->offered_features() & guest::kFeatureAccessPlatform, 0u);
}

TEST_F(DeviceTest, FeaturesFollowTheRules) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.start = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  DevicePort& port = client->port();
  const uint64_t good = guest::kFeatureVersion1 | guest::kFeatureEventIdx;
  for (const uint64_t wrong : {uint64_t{2}, uint64_t{1} << 63, uint64_t{1} << 30,
                               guest::kFeatureAccessPlatform, guest::kFeatureInOrder, UINT64_MAX}) {
    EXPECT_THAT(port.SetFeatures(good | wrong), StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_EQ(device.Inspect()->features, client->driver().features()) << "the old ones stay";
  EXPECT_OK(port.SetFeatures(good | 1));
  // The driver made its rings for what it had agreed on.
  EXPECT_OK(port.SetFeatures(client->driver().features()));
  ASSERT_OK(client->driver().Start());
  EXPECT_OK(client->Check());
  EXPECT_EQ(Metric("a", "features"), client->driver().features()) << "what the plugin is told";
  EXPECT_THAT(port.SetFeatures(good | 5), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_OK(port.SetFeatures(client->driver().features())) << "no change";
  // With its rings stopped the driver may think again; the plugin starts over.
  ASSERT_OK(client->driver().Stop());
  EXPECT_OK(port.SetFeatures(client->driver().features() | 5));
  ASSERT_OK(client->driver().Start());
  EXPECT_OK(client->Check());
  EXPECT_EQ(Metric("a", "features"), client->driver().features() | 5);
  EXPECT_EQ(Metric("a", "starts"), 2u);
  EXPECT_EQ(Metric("a", "stops"), 1u);
}

TEST_F(DeviceTest, ConfigurationAccessStaysInside) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));  // 16 bytes: 1 to 16
  ASSERT_OK_AND_ASSIGN(auto port, device.Attach(nullptr));
  std::array<std::byte, 32> bytes{};
  const auto read = [&](uint32_t offset, size_t len) {
    return port->ReadConfig(offset, std::span(bytes.data(), len));
  };
  EXPECT_OK(read(0, 16));
  EXPECT_EQ(bytes[15], std::byte{16});
  EXPECT_OK(read(15, 1));
  EXPECT_EQ(bytes[0], std::byte{16});
  EXPECT_OK(read(16, 0));
  for (const auto& [offset, len] : {std::pair<uint32_t, size_t>{0, 17},
                                    {16, 1},
                                    {15, 2},
                                    {17, 0},
                                    {UINT32_MAX, 1},
                                    {UINT32_MAX - 7, 16},
                                    {UINT32_MAX, 0}}) {
    EXPECT_THAT(read(offset, len), StatusIs(absl::StatusCode::kOutOfRange)) << offset;
    EXPECT_THAT(port->WriteConfig(offset, std::span(bytes.data(), len)),
                StatusIs(absl::StatusCode::kOutOfRange))
        << offset;
  }
  bytes[0] = std::byte{99};
  EXPECT_OK(port->WriteConfig(7, std::span(bytes.data(), 1)));
  EXPECT_OK(port->WriteConfig(16, std::span(bytes.data(), 0)));
  EXPECT_OK(read(6, 3));
  EXPECT_EQ(bytes[1], std::byte{99});
  EXPECT_EQ(bytes[2], std::byte{9});

  // A device without configuration space.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle rng, host_->Add(Spec("rng", {}, VIRTBAY_RNG_PLUGIN)));
  ASSERT_OK_AND_ASSIGN(port, rng.Attach(nullptr));
  EXPECT_EQ(port->config_size(), 0u);
  EXPECT_OK(read(0, 0));
  EXPECT_OK(port->WriteConfig(0, std::span(bytes.data(), 0)));
  EXPECT_THAT(read(0, 1), StatusIs(absl::StatusCode::kOutOfRange));
}

TEST_F(DeviceTest, StatusBitsAreTheDrivers) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto port, device.Attach(nullptr));
  EXPECT_EQ(port->status(), 0);
  EXPECT_OK(port->SetStatus(kStatusAcknowledge | kStatusDriver));
  EXPECT_EQ(port->status(), kStatusAcknowledge | kStatusDriver);
  EXPECT_OK(port->SetStatus(kStatusAcknowledge | kStatusNeedsReset));
  EXPECT_EQ(port->status(), kStatusAcknowledge) << "NEEDS_RESET is the device's";
  EXPECT_OK(port->SetStatus(0));
  EXPECT_EQ(port->status(), 0);
}

// ---- queues -------------------------------------------------------------------------------------

TEST_F(DeviceTest, QueuesStartOnlyWhereThatMakesSense) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "2"}})));
  {
    ASSERT_OK_AND_ASSIGN(auto port, device.Attach(nullptr));
    QueueConfig config;
    config.size = 8;
    EXPECT_THAT(port->StartQueue(0, std::move(config)),
                StatusIs(absl::StatusCode::kFailedPrecondition, "memory"));
    EXPECT_THAT(port->StopQueue(0), StatusIs(absl::StatusCode::kFailedPrecondition));
  }
  Client::Options options;
  options.driver.start = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  DevicePort& port = client->port();
  EXPECT_THAT(port.StartQueue(2, client->ConfigOf(0, 0)), StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(port.StartQueue(UINT32_MAX, client->ConfigOf(0, 0)),
              StatusIs(absl::StatusCode::kOutOfRange));
  QueueConfig config = client->ConfigOf(0, 0);
  config.size = 2048;
  EXPECT_THAT(port.StartQueue(0, std::move(config)), StatusIs(absl::StatusCode::kInvalidArgument));
  config = client->ConfigOf(0, 0);
  config.size = 0;
  EXPECT_THAT(port.StartQueue(0, std::move(config)), StatusIs(absl::StatusCode::kInvalidArgument));
  config = client->ConfigOf(0, 0);
  config.used += 2;
  EXPECT_THAT(port.StartQueue(0, std::move(config)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       kPackedRings ? "queue 0: device event suppression" : "queue 0: used ring"));
  config = client->ConfigOf(0, 0);
  config.avail = UINT64_MAX - 1;
  EXPECT_THAT(port.StartQueue(0, std::move(config)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(port.queue_running(0));
  for (const uint32_t index : {0u, 2u, UINT32_MAX}) {
    EXPECT_FALSE(port.StopQueue(index).ok());
    EXPECT_FALSE(port.EnableQueue(index, true).ok());
    EXPECT_FALSE(port.SetKick(index, UniqueFd()).ok());
    EXPECT_FALSE(port.SetCall(index, UniqueFd()).ok());
    EXPECT_FALSE(port.SetError(index, UniqueFd()).ok());
  }
  ASSERT_OK(client->driver().Start());
  EXPECT_TRUE(port.queue_running(0));
  EXPECT_THAT(port.StartQueue(0, client->ConfigOf(0, 0)),
              StatusIs(absl::StatusCode::kFailedPrecondition, "runs already"));
  EXPECT_OK(client->Check(0));
  EXPECT_OK(client->Check(1));
}

TEST_F(DeviceTest, AStoppedQueueSaysWhereItIsAndGoesOnThere) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "2"}})));
  Client::Options options;
  options.driver.queue_size = 4;  // indexes go round often
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  uint16_t expected = 0;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < round; ++i, ++expected) ASSERT_OK(client->Check());
    ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
    EXPECT_EQ(index, BaseAfter(expected, expected, 4));
    EXPECT_FALSE(client->port().queue_running(0));
    EXPECT_THAT(client->port().StopQueue(0), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_OK(client->Check(1)) << "the other queue goes on";
    // What the driver adds meanwhile is found at the start, without a kick.
    const uint64_t waiting = client->Send({.op = Op::kNothing});
    ++expected;
    ASSERT_NE(waiting, 0u);
    QueueConfig config = client->ConfigOf(0, index);
    config.call.reset(fcntl(client->queue().call_fd(), F_DUPFD_CLOEXEC, 3));
    config.kick.reset(fcntl(client->queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
    uint64_t kicks = 0;
    [[maybe_unused]] const ssize_t n = read(config.kick.get(), &kicks, sizeof(kicks));
    ASSERT_OK(client->port().StartQueue(0, std::move(config)));
    ASSERT_OK(client->Take(waiting));
  }
  EXPECT_EQ(Metric("a", "quiesces"), 20u);
  EXPECT_EQ(Metric("a", "resumes"), 20u) << "QUIESCED -> RUNNING";
  EXPECT_EQ(Metric("a", "starts"), 1u);
}

TEST_F(DeviceTest, StopEndsWhatIsHeld) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  std::vector<uint64_t> held;
  for (int i = 0; i < 20; ++i) held.push_back(client->Send({.op = Op::kHold}));
  ASSERT_OK(client->Check());  // all of them have been taken
  ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
  EXPECT_EQ(index, BaseAfter(21, 21, 256));
  for (const uint64_t token : held) {
    EXPECT_TRUE(client->Has(token)) << "ended before StopQueue returned";
  }
}

TEST_F(DeviceTest, ParkedRequestsComeAgainFirstAndInOrder) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  std::vector<uint64_t> parked;
  for (int i = 0; i < 5; ++i) parked.push_back(client->Send({.op = Op::kPark}));
  ASSERT_OK(client->Check());
  for (int round = 0; round < 3; ++round) {
    ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
    EXPECT_EQ(index, BaseAfter(6, 1, 256));
    for (const uint64_t token : parked) EXPECT_FALSE(client->Has(token));
    QueueConfig config = client->ConfigOf(0, index);
    config.kick.reset(fcntl(client->queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
    config.call.reset(fcntl(client->queue().call_fd(), F_DUPFD_CLOEXEC, 3));
    ASSERT_OK(client->port().StartQueue(0, std::move(config)));
  }
  EXPECT_TRUE(Eventually([&] { return Metric("a", "requests") == 6 + 3 * 5; }));
  EXPECT_EQ(device.Inspect()->queues[0].in_flight, 5u);
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  for (const uint64_t token : parked) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token));
    EXPECT_EQ(reply.result, 1);
  }
  EXPECT_EQ(client->queue().ring().device_errors(), 0u);
}

// Memory that is plugged in while the rings stand still: what was handed back is not lost.
TEST_F(DeviceTest, ParkedRequestsComeAgainInAnotherMemoryMap) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  std::vector<uint64_t> parked;
  for (int i = 0; i < 5; ++i) parked.push_back(client->Send({.op = Op::kPark}));
  ASSERT_OK(client->Check());
  ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
  ASSERT_OK(client->memory().AddRegion({.address = 0x8'0000'0000, .size = 65536}));
  ASSERT_OK(client->transport().SetMemory(client->memory()));
  QueueConfig config = client->ConfigOf(0, index);
  config.kick.reset(fcntl(client->queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
  config.call.reset(fcntl(client->queue().call_fd(), F_DUPFD_CLOEXEC, 3));
  ASSERT_OK(client->port().StartQueue(0, std::move(config)));
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  for (const uint64_t token : parked) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(token));
    EXPECT_EQ(reply.result, 1);
  }
}

// Work that takes longer than the stop deadline ends after all: with the ring still stopped, or
// when it goes on, and reaches the guest if it is the same ring.
TEST_F(DeviceTest, RequestsThatEndAfterTheStopReachTheRingThatGoesOn) {
  for (const bool while_stopped : {true, false}) {
    const Pipe pipe;  // before the device's threads, which read it
    DeviceSpec spec = Spec(while_stopped ? "stopped" : "running");
    spec.stop_deadline = absl::Milliseconds(100);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    const uint64_t slow = client->Send({.op = Op::kOffload, .fd = pipe.reader.get()});
    ASSERT_OK(client->Check());
    ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
    EXPECT_TRUE(log_.Contains("did not end within 100ms"));
    const auto finish = [&] { ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1); };
    if (while_stopped) {
      finish();
      // The plugin has it back; the guest must not see anything of a ring that is stopped.
      ASSERT_TRUE(Eventually([&] { return Metric(spec.name, "offloaded") == 1; }));
      EXPECT_FALSE(client->Has(slow));
    }
    QueueConfig config = client->ConfigOf(0, index);
    config.kick.reset(fcntl(client->queue().kick_fd(), F_DUPFD_CLOEXEC, 3));
    config.call.reset(fcntl(client->queue().call_fd(), F_DUPFD_CLOEXEC, 3));
    ASSERT_OK(client->port().StartQueue(0, std::move(config)));
    ASSERT_OK(client->Check());
    if (!while_stopped) finish();
    ASSERT_OK_AND_ASSIGN(const Reply reply, client->Take(slow));
    EXPECT_GE(reply.written, kResultSize);
    ASSERT_OK(client->Check());
    EXPECT_EQ(client->queue().ring().device_errors(), 0u);
    EXPECT_EQ(device.Inspect()->queues[0].in_flight, 0u);
  }
}

// A driver that makes its ring anew in the same place gets nothing of the old one.
TEST_F(DeviceTest, ARingMadeAnewGetsNothingOfTheOldOne) {
  const Pipe pipe;  // before the device's threads, which read it
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(100);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->Check());
  client->Send({.op = Op::kOffload, .fd = pipe.reader.get()});
  ASSERT_TRUE(Eventually([&] { return device.Inspect()->queues[0].in_flight == 1; }));
  ASSERT_OK_AND_ASSIGN(const uint32_t index, client->port().StopQueue(0));
  guest::LayoutRing& ring = client->queue().ring();
  if (ring.is_packed()) {
    for (uint16_t i = 0; i < ring.size(); ++i) ring.packed().raw_descriptor(i) = {};
  } else {
    ring.split().RawSetUsedIndex(0);
    ring.split().RawSetAvailIndex(static_cast<uint16_t>(index));
  }
  QueueConfig config = client->ConfigOf(0, index);
  ASSERT_OK(client->port().StartQueue(0, std::move(config)));
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_TRUE(Eventually([&] { return Metric("a", "offloaded") == 1; }));
  if (ring.is_packed()) {
    for (uint16_t i = 0; i < ring.size(); ++i) EXPECT_EQ(ring.packed().raw_descriptor(i).flags, 0);
  } else {
    EXPECT_EQ(ring.split().RawUsedIndex(), 0);
  }
  ASSERT_OK(client->port().StopQueue(0));
  EXPECT_EQ(device.Inspect()->arena_slots_used, 0u);
}

TEST_F(DeviceTest, ParkedRequestsOfAnEndedSessionAreForgotten) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  std::weak_ptr<const MemoryMap> map;
  {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    ASSERT_OK_AND_ASSIGN(MemoryMapRef own, client->memory().ToMemoryMap());
    map = own;
    ASSERT_OK(client->port().SetMemory(std::move(own)));
    client->Send({.op = Op::kPark});
    client->Send({.op = Op::kHoldStill});
    ASSERT_OK(client->Check());
    ASSERT_OK(client->Call({.op = Op::kRelease}));
    client->Send({.op = Op::kPark});
    ASSERT_OK(client->Check());
    ASSERT_OK(client->port().StopQueue(0));
    EXPECT_FALSE(map.expired());
  }
  EXPECT_TRUE(map.expired()) << "guest memory is let go with its front-end";
  EXPECT_EQ(device.Inspect()->queues[0].in_flight, 0u);
  EXPECT_EQ(device.Inspect()->arena_slots_used, 0u);
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, RequestsThatNeverEndLetTheSessionGo) {
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(50);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  for (int session = 0; session < 5; ++session) {
    std::weak_ptr<const MemoryMap> map;
    {
      ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
      ASSERT_OK_AND_ASSIGN(MemoryMapRef own, client->memory().ToMemoryMap());
      map = own;
      ASSERT_OK(client->port().SetMemory(std::move(own)));
      for (int i = 0; i < 50; ++i) client->Send({.op = Op::kHoldStill});
      ASSERT_OK(client->Check());
      EXPECT_OK(client->port().StopQueue(0));
      EXPECT_TRUE(log_.Contains("requests did not end within 50ms"));
    }
    EXPECT_TRUE(map.expired()) << session;
    EXPECT_EQ(device.Inspect()->arena_slots_used, 0u) << session;
    EXPECT_EQ(device.Inspect()->state, "ready");
  }
}

// ---- reset, stop, remove ------------------------------------------------------------------------

TEST_F(DeviceTest, ResetForgetsTheSession) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a", {{"queues", "2"}})));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  for (int round = 1; round <= 20; ++round) {
    client->Send({.op = Op::kHold});
    ASSERT_OK(client->Check());
    ASSERT_OK(client->Check(1));
    ASSERT_OK(client->port().Reset());
    EXPECT_EQ(client->port().status(), 0);
    EXPECT_FALSE(client->port().queue_running(0));
    EXPECT_FALSE(client->port().queue_running(1));
    EXPECT_EQ(device.Inspect()->features, 0u);
    EXPECT_EQ(device.Inspect()->state, "ready");
    EXPECT_OK(client->port().Reset()) << "twice is once";
    ASSERT_OK(client->driver().Restart());
  }
  EXPECT_OK(client->Check());
  EXPECT_EQ(Metric("a", "activates"), 21u);
  EXPECT_EQ(Metric("a", "starts"), 21u);
  EXPECT_EQ(Metric("a", "stops"), 20u);
  EXPECT_EQ(Metric("a", "deactivates"), 20u);
  EXPECT_EQ(Metric("a", "quiesces"), 40u);
  EXPECT_EQ(Metric("a", "resumes"), 0u) << "a new session starts, it does not resume";
}

TEST_F(DeviceTest, AHostMayStopADeviceUnderItsFrontEnd) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->Check());
  ASSERT_OK(device.Stop());
  ASSERT_OK(device.Stop()) << "twice is once";
  EXPECT_TRUE(client->WaitForConfigChange());
  EXPECT_TRUE(client->NeedsReset());
  EXPECT_FALSE(client->port().queue_running(0));
  EXPECT_EQ(device.Inspect()->state, "stopped");
  EXPECT_THAT(device.Inspect()->failure, HasSubstr("stopped by its host"));
  EXPECT_THAT(client->port().StartQueue(0, client->ConfigOf(0, 0)),
              StatusIs(absl::StatusCode::kUnavailable, "stopped"));
  EXPECT_FALSE(client->driver().Restart().ok());
  EXPECT_TRUE(client->NeedsReset()) << "a reset does not start it";
  ASSERT_OK(device.Start());
  ASSERT_OK(device.Start());
  ASSERT_OK(client->driver().Restart());
  EXPECT_FALSE(client->NeedsReset());
  EXPECT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->state, "running");
}

TEST_F(DeviceTest, ADeviceAccountsForItsMemoryWhenItStops) {
  const auto lines = [&](const std::string& start) {
    std::vector<std::string> found;
    for (const std::string& line : log_.lines()) {
      if (absl::StrContains(line, start)) found.push_back(line);
    }
    return found;
  };
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->Check());
  EXPECT_TRUE(lines("arena of").empty());
  ASSERT_OK(device.Stop());
  ASSERT_EQ(lines("stopped; private arena of").size(), 1u);
  EXPECT_THAT(
      lines("stopped; private arena of")[0],
      HasSubstr("private arena of 2097152 bytes: 0 of 1024 slots in use, 16 at most, 0 waits for "
                "slots (0.000 ms); bytes copied in 28, copied out 12, moved without a copy "
                "0; DMA violations 0"));
  ASSERT_OK(host_->Remove("a"));
  EXPECT_EQ(lines("arena of").size(), 1u) << "it was stopped already";
  ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(Spec("b")));
  ASSERT_OK_AND_ASSIGN(client, Client::Create(other));
  ASSERT_OK(client->Check());
  ASSERT_OK(host_->Remove("b"));
  EXPECT_EQ(lines("removed; private arena of").size(), 1u);
  ASSERT_OK(host_->Add(Spec("c")));
  ASSERT_OK(host_->Remove("c"));
  EXPECT_EQ(lines("arena of").size(), 2u) << "it served nobody";
}

TEST_F(DeviceTest, AStoppedDeviceStaysStoppedForTheNextFrontEnd) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK(device.Stop());
  EXPECT_EQ(device.Inspect()->state, "stopped");
  EXPECT_FALSE(device.Inspect()->needs_reset) << "nobody to tell";
  EXPECT_THAT(Client::Create(device), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_OK(device.Start());
  EXPECT_EQ(device.Inspect()->state, "ready");
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, ARemovedDevicesPortAnswersUnavailable) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->Check());
  client->Send({.op = Op::kHold});
  ASSERT_OK(host_->Remove("a"));
  DevicePort& port = client->port();
  std::array<std::byte, 4> bytes{};
  EXPECT_THAT(port.SetFeatures(0), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.SetMemory(nullptr), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.StartQueue(0, client->ConfigOf(0, 0)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.StopQueue(0), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.EnableQueue(0, true), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.SetKick(0, UniqueFd()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.ReadConfig(0, bytes), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.WriteConfig(0, bytes), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.SetStatus(1), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(port.Reset(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(port.queue_running(0));
  port.status();
  EXPECT_TRUE(client->WaitForConfigChange()) << "the front-end is told";
  // The name is free at once.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle next, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto other, Client::Create(next));
  EXPECT_OK(other->Check());
}

TEST_F(DeviceTest, APortMayOutliveTheHost) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  client->Send({.op = Op::kHoldStill});
  client->Send({.op = Op::kPark});
  ASSERT_OK(client->Check());
  ASSERT_OK(client->Call({.op = Op::kRelease}));
  host_.reset();
  EXPECT_THAT(client->port().Reset(), StatusIs(absl::StatusCode::kUnavailable));
  client.reset();
  EXPECT_THAT(device.Inspect(), StatusIs(absl::StatusCode::kNotFound));
}

// ---- many threads -------------------------------------------------------------------------------

TEST_F(DeviceTest, ManyThreadsAddUseAndRemoveTheirDevices) {
  constexpr int kThreads = 4;
  std::atomic<int> failures{0};
  std::atomic<bool> stop{false};
  std::thread observer([&] {
    while (!stop) {
      for (const std::string& name : host_->List()) host_->Inspect(name).IgnoreError();
    }
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const std::string name = absl::StrCat("device-", t);
      for (int i = 0; i < 25; ++i) {
        const auto device = host_->Add(i % 2 == 0 ? Spec(name, {{"queues", "2"}})
                                                  : ParallelSpec(name, {{"queues", "2"}}));
        if (!device.ok()) {
          ++failures;
          continue;
        }
        {
          Client::Options options;
          options.memory = 2u << 20;
          auto client = Client::Create(*device, options);
          if (!client.ok() || !(*client)->Check(0).ok() || !(*client)->Check(1).ok()) ++failures;
          if (i % 3 == 0 && client.ok() && !(*client)->driver().Restart().ok()) ++failures;
          if (i % 5 == 0 && !host_->Remove(name).ok()) ++failures;
        }
        if (i % 5 != 0 && !host_->Remove(name).ok()) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  stop = true;
  observer.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(host_->List().empty());
}

TEST_F(DeviceTest, ManyThreadsPullAtOneDevice) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ParallelSpec("a", {{"queues", "2"}})));
  std::atomic<bool> stop{false};
  std::atomic<int> attached{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stop) {
        Client::Options options;
        options.memory = 2u << 20;
        const auto client = Client::Create(device, options);
        if (!client.ok()) {
          const auto code = client.status().code();
          if (code != absl::StatusCode::kAlreadyExists && code != absl::StatusCode::kUnavailable &&
              code != absl::StatusCode::kFailedPrecondition) {
            ADD_FAILURE() << client.status();
            ++wrong;
          }
          std::this_thread::yield();
          continue;
        }
        ++attached;
        (*client)->driver().Stop().IgnoreError();
      }
    });
  }
  std::thread switcher([&] {
    while (!stop) {
      device.Stop().IgnoreError();
      device.Inspect().IgnoreError();
      device.Start().IgnoreError();
    }
  });
  EXPECT_TRUE(Eventually([&] { return attached >= 30 || wrong > 0; }));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  switcher.join();
  ASSERT_OK(device.Start());
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, ADeviceMayGoWhileItsFrontEndWorks) {
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ParallelSpec("a")));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    std::atomic<bool> going{false};
    std::thread remover([&] {
      while (!going) std::this_thread::yield();
      EXPECT_OK(host_->Remove("a"));
    });
    bool alive = true;
    while (alive) {
      const uint64_t token = client->Send({.op = Op::kEcho}, "x");
      going = true;
      if (token == 0) break;
      while (alive && !client->Has(token)) alive = client->port().queue_running(0);
    }
    remover.join();
  }
}

// ---- nothing grows ------------------------------------------------------------------------------

size_t ResidentPages() {
  std::ifstream statm("/proc/self/statm");
  size_t total = 0, resident = 0;
  statm >> total >> resident;
  return resident;
}

TEST_F(DeviceTest, ThousandsOfDevicesComeAndGoWithoutATrace) {
  const auto cycle = [&](int i) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                         host_->Add(ParallelSpec("a", {{"queues", i % 2 == 0 ? "1" : "4"}})));
    if (i % 4 == 0) {
      Client::Options options;
      options.memory = 1u << 20;
      options.driver.queue_size = 16;
      ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
      ASSERT_OK(client->Check());
      client->Send({.op = i % 8 == 0 ? Op::kHold : Op::kPark});
    }
    ASSERT_OK(host_->Remove("a"));
  };
  for (int i = 0; i < kCycles / 10; ++i) ASSERT_NO_FATAL_FAILURE(cycle(i));
  const size_t fds = CountEntries("/proc/self/fd");
  const size_t tasks = CountEntries("/proc/self/task");
  const size_t pages = ResidentPages();
  for (int i = 0; i < kCycles; ++i) ASSERT_NO_FATAL_FAILURE(cycle(i));
  EXPECT_EQ(CountEntries("/proc/self/fd"), fds);
  EXPECT_EQ(CountEntries("/proc/self/task"), tasks);
  if (!kSanitized) {
    EXPECT_LT(ResidentPages(), pages + 2048) << "8 MiB over thousands: less than 4 KiB each";
  }
}

TEST_F(DeviceTest, SessionsComeAndGoWithoutATrace) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ParallelSpec("a", {{"queues", "2"}})));
  const auto cycle = [&] {
    Client::Options options;
    options.memory = 1u << 20;
    options.driver.queue_size = 16;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    ASSERT_OK(client->Check(1));
    client->Send({.op = Op::kPark});
  };
  for (int i = 0; i < kCycles / 10; ++i) ASSERT_NO_FATAL_FAILURE(cycle());
  const size_t fds = CountEntries("/proc/self/fd");
  const size_t tasks = CountEntries("/proc/self/task");
  for (int i = 0; i < kCycles / 2; ++i) ASSERT_NO_FATAL_FAILURE(cycle());
  EXPECT_EQ(CountEntries("/proc/self/fd"), fds);
  EXPECT_EQ(CountEntries("/proc/self/task"), tasks);
}

// An idle device's thread sleeps: while another device works through thousands of requests, it does
// not run at all.
TEST_F(DeviceTest, AnIdleDeviceCostsNoCpu) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle idle, host_->Add(Spec("idle", {{"queues", "4"}})));
  ASSERT_OK_AND_ASSIGN(auto quiet, Client::Create(idle));
  ASSERT_OK(quiet->Check());
  ASSERT_OK_AND_ASSIGN(const DeviceHandle busy, host_->Add(Spec("busy")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(busy));
  // Its poll window closes and it goes to sleep.
  uint64_t before = 0;
  ASSERT_TRUE(Eventually([&] {
    const uint64_t last = before;
    before = idle.Inspect()->cpu_ns;
    usleep(20'000);
    return before == last;
  }));
  for (int i = 0; i < 3000; ++i) ASSERT_OK(client->Check());
  EXPECT_EQ(idle.Inspect()->cpu_ns, before);
  EXPECT_GT(busy.Inspect()->cpu_ns, 0u);
  EXPECT_OK(quiet->Check());
}

}  // namespace
}  // namespace virtbay::testing
