// Devices with an aperture: the guest's bounce pool is all of guest memory that they can reach.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kRam = 0x1'4000'0000;   // where the fixture's memory lies
constexpr uint64_t kPool = 0x1'8000'0000;  // a region of its own behind a gap
constexpr uint64_t kMiB = 1 << 20;

// Bytes of guest memory (memfds of the fixture's GuestMemory) that this process has mapped.
uint64_t MappedGuestBytes() {
  std::ifstream maps("/proc/self/maps");
  uint64_t total = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:virtbay-guest") == std::string::npos) continue;
    uint64_t from = 0;
    uint64_t to = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &from, &to) == 2) total += to - from;
  }
  return total;
}

class ApertureTest : public DeviceTest {
 protected:
  static DeviceSpec ApertureSpec(uint64_t base, uint64_t size,
                                 RingPlacement rings = RingPlacement::kAnywhere) {
    DeviceSpec spec = Spec("a");
    spec.dma_mode = DmaMode::kAperture;
    spec.aperture = {base, size};
    spec.rings = rings;
    return spec;
  }
  // 8 MiB of ordinary memory and a pool of 4 MiB.
  static std::unique_ptr<guest::GuestMemory> Memory() {
    auto memory = guest::GuestMemory::Create(
        {{.address = kRam, .size = 8 * kMiB}, {.address = kPool, .size = 4 * kMiB}});
    EXPECT_OK(memory);
    return *std::move(memory);
  }
  // Without indirect tables, which the driver would put outside the pool.
  static guest::DriverOptions Direct() { return {.indirect_max = 0}; }
  // Sends one echo whose buffers lie in the region that starts there.
  static Reply Echo(Client& client, uint64_t region, const std::string& text) {
    const uint32_t length = static_cast<uint32_t>(sizeof(Command) + text.size());
    auto range = client.memory().AllocateIn(region, length + 64);
    EXPECT_OK(range);
    new (range->host) Command{.op = Op::kEcho};
    std::memcpy(range->host + sizeof(Command), text.data(), text.size());
    const guest::Segment in{range->address, length};
    const guest::Segment out{range->address + length, 64};
    EXPECT_TRUE(client.queue().Add({&in, 1}, {&out, 1}, 4711));
    client.queue().Publish();
    EXPECT_OK(client.queue().Wait(guest::WaitMode::kSleep));
    std::array<guest::UsedBuffer, 1> used;
    EXPECT_EQ(client.queue().TakeUsed(used), 1u);
    Reply reply;
    reply.written = used[0].written;
    reply.data.assign(reinterpret_cast<const char*>(range->host + length), reply.written);
    client.memory().Free(*range);
    return reply;
  }
};

TEST_F(ApertureTest, ServesBuffersInThePoolAndRefusesOthers) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ApertureSpec(kPool, 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle other, host_->Add(Spec("b")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Memory(), Direct()));
  ASSERT_OK_AND_ASSIGN(auto neighbour, Client::Create(other));
  EXPECT_NE(client->port().offered_features() & (uint64_t{1} << 33), 0u);
  // The rings are in the first region: outside the pool.
  ASSERT_LT(client->queue().ring().addresses().descriptors, kPool);
  EXPECT_EQ(Echo(*client, kPool, "inside").data.substr(kResultSize), "inside");
  EXPECT_EQ(device.Inspect()->dma_violations, 0u);

  const Reply refused = Echo(*client, kRam, "outside");
  EXPECT_EQ(refused.written, 0u) << "completed with nothing written";
  EXPECT_EQ(device.Inspect()->dma_violations, 1u);
  EXPECT_FALSE(client->NeedsReset());
  EXPECT_TRUE(log_.Contains("buffer outside the device's memory"));
  EXPECT_EQ(Echo(*client, kPool, "again").data.substr(kResultSize), "again") << "goes on";
  EXPECT_OK(neighbour->Check());
  // An indirect table is a buffer like any other.
  client.reset();
  ASSERT_OK_AND_ASSIGN(client, Client::Create(device, Memory(), {}));
  EXPECT_EQ(Echo(*client, kPool, "table outside").written, 0u);
  EXPECT_EQ(device.Inspect()->dma_violations, 2u);
  const DeviceInfo info = *device.Inspect();
  EXPECT_EQ(info.dma_mode, "aperture");
  EXPECT_EQ(info.aperture.base, kPool);
  EXPECT_EQ(info.aperture.size, 4 * kMiB);
}

TEST_F(ApertureTest, MapsThePoolAndTheRingsOnly) {
  auto memory = Memory();
  const uint64_t before = MappedGuestBytes();
  ASSERT_GE(before, 12 * kMiB) << "the driver's own mapping";
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ApertureSpec(kPool, 2 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, std::move(memory), Direct()));
  const uint64_t mapped = MappedGuestBytes() - before;
  EXPECT_GE(mapped, 2 * kMiB);
  EXPECT_LE(mapped, 2 * kMiB + 256 * 1024) << "no more than the rings beside the pool";
}

TEST_F(ApertureTest, RingsCanBeHeldToThePool) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                       host_->Add(ApertureSpec(kPool, 4 * kMiB, RingPlacement::kPool)));
  const auto refused = Client::Create(device, Memory(), Direct());
  EXPECT_THAT(refused.status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("lies outside the pool at 0x180000000"));
  EXPECT_GE(device.Inspect()->dma_violations, 1u);
  // A guest whose coherent memory comes from the pool: all it allocates lies there.
  ASSERT_OK_AND_ASSIGN(auto pool_only, guest::GuestMemory::Create(4 * kMiB, kPool));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, std::move(pool_only), {}));
  EXPECT_OK(client->Check());
}

TEST_F(ApertureTest, ThePoolMayLieInSeveralRegionsButHasNoGaps) {
  // The pool is the second half of one region and the first of the next.
  ASSERT_OK_AND_ASSIGN(
      auto memory, guest::GuestMemory::Create({{.address = kRam, .size = 4 * kMiB},
                                               {.address = kRam + 4 * kMiB, .size = 4 * kMiB}}));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device,
                       host_->Add(ApertureSpec(kRam + 2 * kMiB, 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, std::move(memory), Direct()));
  EXPECT_EQ(Echo(*client, kRam + 4 * kMiB, "second").data.substr(kResultSize), "second");
  EXPECT_EQ(Echo(*client, kRam, "before it").written, 0u);
  client.reset();
  ASSERT_OK(host_->Remove("a"));

  DeviceSpec gap = ApertureSpec(kRam + 6 * kMiB, 4 * kMiB);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle holed, host_->Add(gap));
  const auto refused = Client::Create(holed, Memory(), Direct());
  EXPECT_THAT(refused.status(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no memory at 0x140800000"));
}

TEST_F(ApertureTest, ThePoolLeavesTheMapUnderARunningRing) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ApertureSpec(kPool, 4 * kMiB)));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Memory(), Direct()));
  ASSERT_OK_AND_ASSIGN(MemoryMapRef whole, client->memory().ToMemoryMap(true));
  std::vector<MemoryRegion> regions = whole->regions();
  regions.pop_back();
  ASSERT_OK_AND_ASSIGN(MemoryMapRef less, MemoryMap::Create(std::move(regions)));
  ASSERT_OK(client->port().SetMemory(std::move(less)));
  EXPECT_TRUE(client->WaitForConfigChange());
  EXPECT_TRUE(client->NeedsReset());
  EXPECT_THAT(device.Inspect()->failure, HasSubstr("no memory at 0x180000000"));
  ASSERT_OK(client->transport().SetMemory(client->memory()));
  ASSERT_OK(client->driver().Restart());
  EXPECT_EQ(Echo(*client, kPool, "back").data.substr(kResultSize), "back");
}

TEST_F(ApertureTest, FetchAndReserveAddressThePoolItself) {
  DeviceSpec spec = ApertureSpec(kRam, 8 * kMiB);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const std::string payload(100'000, '\1');
  const QueueStats before = device.Inspect()->queues[0];
  ASSERT_OK_AND_ASSIGN(
      const Reply sum,
      client->Call({.op = Op::kFetch, .a = sizeof(Command), .b = 100'000}, payload));
  EXPECT_EQ(sum.result, 100'000);
  ASSERT_OK_AND_ASSIGN(const Reply made,
                       client->Call({.op = Op::kReserve, .a = 100'000, .b = 7}, "", 100'000));
  EXPECT_EQ(made.data, std::string(100'000, '\7'));
  const QueueStats after = device.Inspect()->queues[0];
  EXPECT_LE(after.bytes_copied_in - before.bytes_copied_in, 4096u) << "heads only";
  EXPECT_LE(after.bytes_copied_out - before.bytes_copied_out, 4096u);
}

TEST_F(ApertureTest, InspectShowsWhereRunningRingsLie) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(ApertureSpec(kPool, 4 * kMiB)));
  EXPECT_EQ(device.Inspect()->queues[0].ring_size, 0u);
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, Memory(), Direct()));
  const QueueStats running = device.Inspect()->queues[0];
  const guest::RingAddresses where = client->queue().ring().addresses();
  EXPECT_EQ(running.ring_size, client->queue().ring().size());
  EXPECT_EQ(running.ring_descriptors, where.descriptors);
  EXPECT_EQ(running.ring_avail, where.avail);
  EXPECT_EQ(running.ring_used, where.used);
  client.reset();
  EXPECT_EQ(device.Inspect()->queues[0].ring_size, 0u);
}

TEST_F(ApertureTest, RequestsAreKeptWellWithinASmallPool) {
  // Linux maps all of a request before it sends it: one that does not fit is never sent.
  for (const auto& [size, mapping] : {std::pair<uint64_t, uint64_t>{kLeastAperture, 64 * 1024},
                                      {kMiB - 4096, 252 * 1024},
                                      {kMiB, 256 * 1024},
                                      {64 * kMiB, 256 * 1024}}) {
    ASSERT_OK(host_->Add(ApertureSpec(kPool, size)));
    EXPECT_EQ(Metric("a", "max_mapping"), mapping) << size;
    ASSERT_OK(host_->Remove("a"));
  }
  DeviceSpec spec = Spec("a");
  spec.offer_access_platform = true;
  ASSERT_OK(host_->Add(spec));
  EXPECT_EQ(Metric("a", "max_mapping"), 256u * 1024);
  ASSERT_OK(host_->Add(Spec("b")));
  EXPECT_EQ(Metric("b", "max_mapping"), 0u) << "its guest does not bounce";
}

TEST_F(ApertureTest, SpecsThatMakeNoSense) {
  for (const auto& [base, size] : {std::pair<uint64_t, uint64_t>{kPool, 0},
                                   {kPool + 1, kMiB},
                                   {kPool, kMiB + 5},
                                   {UINT64_MAX - kMiB + 1, kMiB},
                                   {UINT64_MAX - kMiB + 1, 2 * kMiB},
                                   {kPool, kLeastAperture - kAperturePage}}) {
    EXPECT_THAT(host_->Add(ApertureSpec(base, size)).status(),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  DeviceSpec spec = Spec("a");
  spec.aperture = {kPool, kMiB};
  EXPECT_THAT(host_->Add(spec).status(), StatusIs(absl::StatusCode::kInvalidArgument));
  spec = ApertureSpec(kPool, kMiB);
  spec.arena_policy = ArenaPolicy::kShared;
  EXPECT_THAT(host_->Add(spec).status(),
              StatusIs(absl::StatusCode::kInvalidArgument, "together with a shared arena"));
}

}  // namespace
}  // namespace virtbay::testing
