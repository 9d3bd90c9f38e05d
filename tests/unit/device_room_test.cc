// Many requests and little room: full arenas, many queues.
#include <csignal>
#include <map>
#include <string>
#include <vector>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

constexpr uint64_t kMiB = 1u << 20;

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
