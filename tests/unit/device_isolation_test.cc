// What one device can do to another: nothing with private arenas; with a shared one (the thing that
// they are compared with) it can keep the others waiting.
#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kSlots = 1024;  // of an arena of 2 MiB
constexpr uint32_t kWhole = 256 * 1024;

class DeviceIsolationTest : public DeviceTest {
 protected:
  void MakeHosts(ArenaPolicy policy) {
    HostOptions options;
    options.log = log_.log();
    options.shared_arena_size = 2u << 20;
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
    for (const char* name : {"a", "b"}) {
      DeviceSpec spec = Spec(name);
      spec.arena_policy = policy;
      ASSERT_OK(host_->Add(spec));
    }
    Client::Options deep;
    deep.driver.queue_size = 1024;
    ASSERT_OK_AND_ASSIGN(a_, Client::Create(*host_->Find("a"), deep));
    ASSERT_OK_AND_ASSIGN(b_, Client::Create(*host_->Find("b")));
    EXPECT_EQ(host_->Inspect("a")->arena_policy,
              policy == ArenaPolicy::kShared ? "shared" : "private");
  }

  // Requests of device a that never finish, until it has every slot that it can get. First whole
  // runs (not all of the seven where views came to lie between them), then views of one slot each.
  void TakeEverything() {
    const auto info = [&] { return *host_->Inspect("a"); };
    for (int i = 0; i < 7; ++i) {
      held_.push_back(a_->Send({.op = Op::kReserveHold, .a = kWhole}, "", kWhole));
      ASSERT_NE(held_.back(), 0u);
    }
    ASSERT_TRUE(Eventually([&] { return info().queues[0].in_flight == 7; }));
    const uint64_t waits = info().queues[0].slot_waits;
    while (info().queues[0].slot_waits == waits) {
      held_.push_back(a_->Send({.op = Op::kHold}));
      ASSERT_NE(held_.back(), 0u);
      ASSERT_TRUE(Eventually([&] {
        return info().queues[0].in_flight == held_.size() || info().queues[0].slot_waits > waits;
      }));
    }
    ASSERT_EQ(info().arena_slots, kSlots);
    ASSERT_EQ(info().arena_slots_used, kSlots);
  }

  std::unique_ptr<Client> a_, b_;
  std::vector<uint64_t> held_;
};

TEST_F(DeviceIsolationTest, ADeviceThatHoldsAllItsSlotsHoldsUpNobodyElse) {
  MakeHosts(ArenaPolicy::kPrivate);
  if (HasFatalFailure()) return;
  TakeEverything();
  if (HasFatalFailure()) return;
  for (int i = 0; i < 100; ++i) ASSERT_OK(b_->Check());
  ASSERT_OK_AND_ASSIGN(const Reply whole,
                       b_->Call({.op = Op::kReserve, .a = kWhole, .b = 'x'}, "", kWhole));
  EXPECT_EQ(whole.data, std::string(kWhole, 'x'));
  const DeviceInfo b = *host_->Inspect("b");
  EXPECT_EQ(b.queues[0].slot_waits, 0u);
  EXPECT_LT(b.arena_slots_high_water, kSlots);
}

TEST_F(DeviceIsolationTest, WithASharedArenaItHoldsUpTheOthers) {
  MakeHosts(ArenaPolicy::kShared);
  if (HasFatalFailure()) return;
  ASSERT_OK(b_->Check());
  TakeEverything();
  if (HasFatalFailure()) return;
  EXPECT_EQ(host_->Inspect("b")->arena_slots_used, 0u) << "each counts what it has itself";
  const uint64_t waits = b_->Send({.op = Op::kEcho}, "ping");
  ASSERT_TRUE(Eventually([&] { return host_->Inspect("b")->queues[0].slot_waits > 0; }));
  // It looks again every millisecond. However often it does, there is nothing.
  const uint64_t looks = host_->Inspect("b")->queues[0].slot_wait_ns;
  ASSERT_TRUE(
      Eventually([&] { return host_->Inspect("b")->queues[0].slot_wait_ns > looks + 20'000'000; }));
  EXPECT_FALSE(b_->Has(waits));
  EXPECT_EQ(host_->Inspect("b")->queues[0].in_flight, 0u);
  EXPECT_FALSE(host_->Inspect("b")->needs_reset);
  // It goes on as soon as the other lets go: a stop ends what the plugin held.
  ASSERT_OK(a_->port().StopQueue(0));
  ASSERT_OK_AND_ASSIGN(const Reply reply, b_->Take(waits));
  EXPECT_EQ(reply.data.substr(kResultSize), "ping");
  for (int i = 0; i < 100; ++i) ASSERT_OK(b_->Check());
  EXPECT_EQ(host_->Inspect("b")->queues[0].slot_waits, 1u);
  a_.reset();
  b_.reset();
  EXPECT_EQ(host_->Inspect("a")->arena_slots_used, 0u);
  EXPECT_EQ(host_->Inspect("b")->arena_slots_used, 0u);
  EXPECT_EQ(host_->Inspect("a")->arena_slots_high_water, kSlots);
  EXPECT_LT(host_->Inspect("b")->arena_slots_high_water, 16u);
}

TEST_F(DeviceIsolationTest, ASharedArenaOutlivesItsFirstDevice) {
  MakeHosts(ArenaPolicy::kShared);
  if (HasFatalFailure()) return;
  TakeEverything();
  if (HasFatalFailure()) return;
  a_.reset();
  ASSERT_OK(host_->Remove("a"));
  ASSERT_OK(b_->Check());
  DeviceSpec spec = Spec("c");
  spec.arena_policy = ArenaPolicy::kShared;
  ASSERT_OK_AND_ASSIGN(const DeviceHandle c, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(c));
  ASSERT_OK(client->Check());
  // Devices with arenas of their own are not among those that share.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle d, host_->Add(Spec("d")));
  EXPECT_EQ(d.Inspect()->arena_policy, "private");
}

// ---- the guard page ---------------------------------------------------------------------------

// A mapping of this process by the name in /proc/self/maps.
struct Mapping {
  const volatile uint8_t* begin = nullptr;
  const volatile uint8_t* end = nullptr;
};
Mapping FindMapping(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (!absl::StrContains(line, name)) continue;
    char* rest = nullptr;
    const uintptr_t begin = std::strtoull(line.c_str(), &rest, 16);
    const uintptr_t end = std::strtoull(rest + 1, nullptr, 16);
    return {reinterpret_cast<const volatile uint8_t*>(begin),
            reinterpret_cast<const volatile uint8_t*>(end)};
  }
  return {};
}

uint64_t SumOf(const Mapping& mapping) {
  uint64_t sum = 0;
  for (const volatile uint8_t* at = mapping.begin; at < mapping.end; ++at) sum = sum * 31 + *at;
  return sum;
}

// For the handler, which runs on the queue's thread in the middle of the overrun.
Mapping overrun, bystander, guest;
uint64_t bystander_sum, guest_sum;

void Say(const char* text) {
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, text, strlen(text));
}

void OnFault(int /*signal*/, siginfo_t* info, void* /*context*/) {
  const bool at_the_end = info->si_addr == const_cast<uint8_t*>(overrun.end);
  Say(at_the_end ? "stopped at the arena's end, " : "NOT at the arena's end, ");
  Say(overrun.end[-1] == 0xee ? "written up to it, " : "NOT written up to it, ");
  Say(SumOf(bystander) == bystander_sum ? "bystander untouched, " : "bystander CHANGED, ");
  Say(SumOf(guest) == guest_sum ? "guest untouched\n" : "guest CHANGED\n");
  // The same fault again, and now it is the process's end.
  signal(SIGSEGV, SIG_DFL);
}

void OverrunAnArena() {
  auto host = Host::Create({});
  std::vector<std::unique_ptr<Client>> clients;
  for (const char* name : {"overruns", "stands-by"}) {
    DeviceSpec spec;
    spec.name = name;
    spec.plugin = VIRTBAY_OP_PLUGIN;
    spec.arena_size = 2u << 20;
    clients.push_back(*Client::Create(*(*host)->Add(spec)));
  }
  clients[1]->Send({.op = Op::kHoldStill}, "what another device works on");
  const auto holds = [&] { return (*host)->Inspect("stands-by")->queues[0].in_flight == 1; };
  if (!Eventually(holds)) _exit(1);
  overrun = FindMapping("virtbay-arena:overruns");
  bystander = FindMapping("virtbay-arena:stands-by");
  bystander_sum = SumOf(bystander);
  const guest::GuestRange range = *clients[1]->memory().Allocate(1 << 16);
  std::memset(range.host, 0x5a, 1 << 16);
  guest = {reinterpret_cast<const volatile uint8_t*>(range.host),
           reinterpret_cast<const volatile uint8_t*>(range.host) + (1 << 16)};
  guest_sum = SumOf(guest);
  struct sigaction action {};
  action.sa_sigaction = &OnFault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  clients[0]->Call({.op = Op::kOverrun, .offset = 64u << 20}).IgnoreError();
  _exit(0);
}

TEST_F(DeviceIsolationTest, AnOverrunEndsItsProcessAtTheGuardPageAndNoOther) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the sanitizer reports what the handler of the fault looks at";
#endif
  // A device in this process, which is another one than that of the overrun.
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("elsewhere")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  EXPECT_EXIT(OverrunAnArena(), ::testing::KilledBySignal(SIGSEGV),
              "stopped at the arena's end, written up to it, bystander untouched, guest untouched");
  EXPECT_OK(client->Check());
}

}  // namespace
}  // namespace virtbay::testing
