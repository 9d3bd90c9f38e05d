// Crashes of plugins: contained, they fail their device and nothing else, and the next reload goes
// on; not contained, they end the process as ever, with a report.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/fuse.h>
#include <linux/virtio_ids.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>

#include "framework/base/contained_call.h"
#include "framework/base/sanitized.h"
#include "framework/device/failed_answer.h"
#include "framework/isolation/crash_guard.h"
#include "framework/isolation/sigbus_guard.h"
#include "tests/support/crash_here.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::KilledBySignal;

constexpr char kFirst[] = VIRTBAY_RELOAD_1_PLUGIN;
constexpr char kSecond[] = VIRTBAY_RELOAD_2_PLUGIN;

struct Answer {
  int64_t count = 0;
  int64_t version = 0;
  bool operator==(const Answer&) const = default;
};
Answer Read(const Reply& reply) { return {reply.result / 10, reply.result % 10}; }

// A device that is about to crash, and a neighbour that has nothing to do with it.
class DeviceCrashTest : public DeviceTest {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer has the faults";
    HostOptions options;
    options.log = log_.log();
    options.contain_crashes = true;
    options.stuck_callback_warning = absl::Milliseconds(100);
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(std::move(options)));
    ASSERT_OK_AND_ASSIGN(const DeviceHandle neighbour, host_->Add(Spec("neighbour")));
    ASSERT_OK_AND_ASSIGN(neighbour_, Client::Create(neighbour));
  }
  void TearDown() override {
    if (neighbour_ == nullptr) return;
    EXPECT_OK(neighbour_->Check());
    EXPECT_FALSE(neighbour_->NeedsReset());
  }
  void Make(std::map<std::string, std::string> options = {}, const char* plugin = kFirst) {
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("a", std::move(options), plugin)));
    Client::Options driver;
    driver.driver.device_features = 1;
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, driver));
  }
  absl::StatusOr<ReloadReport> Reload(const char* from) {
    ReloadOptions options;
    options.from = from;
    return host_->Reload("a", options);
  }
  Answer Ask(uint32_t queue = 0) {
    const absl::StatusOr<Reply> reply = client_->Call({.op = Op::kEcho}, "", 64, queue);
    return reply.ok() ? Read(*reply) : Answer{-1, -1};
  }
  uint64_t Crash(Crashing how, CrashPlace place = kInRequests, uint32_t queue = 0) {
    return client_->Send({.op = Op::kCrash, .a = static_cast<uint32_t>(how), .b = place}, "", 64,
                         queue);
  }
  // Changes may have been announced before that one.
  void WaitUntilFailed() {
    do {
      ASSERT_TRUE(client_->WaitForConfigChange());
    } while (!client_->NeedsReset());
  }
  // The device has told its driver, and says why.
  void ExpectFailed(const char* why) {
    WaitUntilFailed();
    const DeviceInfo info = *device_.Inspect();
    EXPECT_EQ(info.state, "failed");
    EXPECT_THAT(info.failure, HasSubstr(why));
    EXPECT_TRUE(log_.Contains("the process is tainted"));
  }
  // The lines of the report.
  std::string Report() {
    for (const std::string& line : log_.lines()) {
      if (line.find(" crashed: ") != line.npos && line.find("#0 ") != line.npos) return line;
    }
    return "";
  }

  DeviceHandle device_;
  std::unique_ptr<Client> client_, neighbour_;
};

struct Kind {
  Crashing how;
  const char* name;
  const char* text;
  int signal;
};

class DeviceCrashKindTest : public DeviceCrashTest, public ::testing::WithParamInterface<Kind> {};

TEST_P(DeviceCrashKindTest, FailsTheDeviceUntilItIsReloaded) {
  const uint64_t before = CrashesContained();
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  const uint64_t token = Crash(GetParam().how);
  ExpectFailed("queue 0: on_requests crashed: SIG");
  EXPECT_EQ(CrashesContained(), before + 1);
  EXPECT_EQ(device_.Inspect()->crashes, 1u);
  EXPECT_THAT(Report(), AllOf(HasSubstr(absl::StrCat("plugin ", kFirst, " (counting 1.0, build ")),
                              HasSubstr(absl::StrCat("crashed: ", GetParam().text)),
                              HasSubstr(" in on_requests of queue 0 of device a, generation 1"),
                              HasSubstr("request "), HasSubstr(": 24 bytes to read ("),
                              HasSubstr("64 to write"), HasSubstr("CrashHere("),
                              HasSubstr(absl::StrCat(" in ", kFirst, "+0x"))));
  EXPECT_OK(neighbour_->Check());
  const uint64_t waiting = client_->Send({.op = Op::kEcho}, "", 64, 1);
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_EQ(report.generation, 2u);
  EXPECT_FALSE(report.image_unloaded);
  EXPECT_FALSE(report.state_restored);
  EXPECT_EQ(report.requests_failed, 1u);
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_EQ(device_.Inspect()->state, "running");
  ASSERT_OK_AND_ASSIGN(const Reply failed, client_->Take(token));
  EXPECT_EQ(failed.written, 0u) << "half done, perhaps: not done again";
  ASSERT_OK_AND_ASSIGN(const Reply late, client_->Take(waiting, 1));
  EXPECT_EQ(Read(late), (Answer{1, 2}));
  EXPECT_EQ(Ask(), (Answer{2, 2}));
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, DeviceCrashKindTest,
    ::testing::Values(Kind{Crashing::kSegv, "Segv", "SIGSEGV at 0x0 (no memory there)", SIGSEGV},
                      Kind{Crashing::kBus, "Bus", "SIGBUS at 0x", SIGBUS},
                      Kind{Crashing::kFpe, "Fpe", "SIGFPE at 0x", SIGFPE},
                      Kind{Crashing::kIll, "Ill", "SIGILL at 0x", SIGILL},
                      Kind{Crashing::kAbort, "Abort", "SIGABRT", SIGABRT},
                      Kind{Crashing::kTerminate, "Terminate", "SIGABRT", SIGABRT},
                      Kind{Crashing::kJump, "Jump", "SIGSEGV at 0x0 (no memory there)", SIGSEGV}),
    [](const auto& kind) { return std::string(kind.param.name); });

TEST_F(DeviceCrashTest, AnOverflowOfTheStack) {
  Make();
  Crash(Crashing::kOverflow);
  ExpectFailed("on_requests crashed: SIGSEGV");
  EXPECT_THAT(Report(), HasSubstr("FillStack"));
  ASSERT_OK(Reload(kSecond).status());
  EXPECT_EQ(Ask(), (Answer{1, 2}));
}

class DeviceCrashPlaceTest
    : public DeviceCrashTest,
      public ::testing::WithParamInterface<std::pair<CrashPlace, const char*>> {};
TEST_P(DeviceCrashPlaceTest, IsContainedThere) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  const uint64_t token = Crash(Crashing::kSegv, GetParam().first, 1);
  ExpectFailed(absl::StrCat(GetParam().second, " crashed: SIGSEGV").c_str());
  EXPECT_THAT(Report(), AllOf(HasSubstr(GetParam().second), HasSubstr("CrashHere(")));
  ASSERT_OK(Reload(kSecond).status());
  ASSERT_OK_AND_ASSIGN(const Reply failed, client_->Take(token, 1));
  EXPECT_EQ(failed.written, 0u);
  EXPECT_EQ(Ask(1), (Answer{1, 2}));
}
INSTANTIATE_TEST_SUITE_P(Places, DeviceCrashPlaceTest,
                         ::testing::Values(std::pair{kInTimer, "on_timer"},
                                           std::pair{kInOffload, "offloaded work"},
                                           std::pair{kInIo, "on_io"}));

// What was only to be filled is not lost: a network device keeps its receive buffers.
TEST_F(DeviceCrashTest, BuffersToBeFilledAreHandedOver) {
  Make();
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, client_->memory().Allocate(64));
  const guest::Segment out{range.address, 64};
  constexpr uint64_t kToken = 1'000'000;
  ASSERT_TRUE(client_->queue().Add({}, {&out, 1}, kToken));
  client_->queue().Publish();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  Crash(Crashing::kSegv);
  ExpectFailed("crashed");
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_EQ(report.requests_handed_over, 1u);
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  int64_t answer = 0;
  std::memcpy(&answer, range.host, sizeof(answer));
  EXPECT_EQ(answer % 10, 2) << "filled by the second build";
}

// What a plugin says may be done again is: with the mend, the driver gets what it asked for.
TEST_F(DeviceCrashTest, RequestsThatMayBeRepeatedAreAnsweredByTheMendedBuild) {
  Make();
  const uint64_t waits = client_->Send({.op = Op::kHoldStill});
  const uint64_t token = client_->Send({.op = Op::kCrash, .offset = kCrashMended});
  ExpectFailed("crashed");
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_EQ(report.requests_failed, 1u);
  EXPECT_EQ(report.requests_handed_over, 1u);
  ASSERT_OK_AND_ASSIGN(const Reply failed, client_->Take(waits));
  EXPECT_EQ(failed.written, 0u) << "it is not said to be repeatable";
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token));
  EXPECT_EQ(Read(reply), (Answer{1, 2}));
  EXPECT_FALSE(client_->NeedsReset());
}

// One that crashes the plugin again is not given to a third one; and the count is the request's,
// not the descriptor's.
TEST_F(DeviceCrashTest, ARequestIsRepeatedOnce) {
  Make();
  for (int round = 0; round < 2; ++round) {
    const uint64_t token = client_->Send({.op = Op::kCrash, .offset = kCrashAgain});
    ExpectFailed("crashed");
    // It crashes in the trial; the one before serves on, which has crashed.
    EXPECT_FALSE(Reload(kSecond).ok()) << round;
    EXPECT_FALSE(client_->Has(token));
    ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kFirst));
    EXPECT_EQ(report.requests_failed, 1u) << round;
    ASSERT_OK_AND_ASSIGN(const Reply failed, client_->Take(token));
    EXPECT_EQ(failed.written, 0u);
    EXPECT_EQ(Ask(), (Answer{1, 1}));
  }
}

TEST_F(DeviceCrashTest, ACrashOfTheOneThatIsAskedUndoesTheReload) {
  Make();
  // On another queue, before it and behind it.
  std::vector<std::pair<uint64_t, uint32_t>> held;
  for (const uint32_t queue : {1u, 0u}) {
    held.emplace_back(client_->Send({.op = Op::kHoldStill}, "", 64, queue), queue);
    Ask(queue);
  }
  held.emplace_back(client_->Send({.op = Op::kCrash, .offset = kCrashInMayRepeat}), 0);
  ExpectFailed("on_requests crashed");
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kInternal, "may_repeat crashed"));
    EXPECT_EQ(device_.Inspect()->state, "failed");
    EXPECT_TRUE(client_->NeedsReset());
    for (const auto& [token, queue] : held) EXPECT_FALSE(client_->Has(token, queue));
  }
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kFirst));
  EXPECT_EQ(report.requests_failed, 3u);
  for (const auto& [token, queue] : held) EXPECT_OK(client_->Take(token, queue));
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

// The state of the last reload is what the next generation goes on with.
TEST_F(DeviceCrashTest, TheLastSavedStateGoesOn) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_EQ(Ask(), (Answer{2, 1}));
  ASSERT_OK(Reload(kSecond).status());
  ASSERT_EQ(Ask(), (Answer{3, 2}));
  for (int i = 0; i < 2; ++i) {
    client_->Send({.op = Op::kCrash});
    ExpectFailed("crashed");
    ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
    EXPECT_TRUE(report.state_restored);
    EXPECT_EQ(report.state_fds, 1u);
    EXPECT_EQ(Ask(), (Answer{3, 2})) << "as it was when it was saved";
  }
  // With a reset it is over: the state was that session's.
  client_->Send({.op = Op::kCrash});
  ExpectFailed("crashed");
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_FALSE(report.state_restored);
  EXPECT_EQ(Ask(), (Answer{1, 2}));
}

// A driver that obeys DEVICE_NEEDS_RESET is made to wait, not turned away.
TEST_F(DeviceCrashTest, AfterAResetTheDriverWaitsForTheReload) {
  Make();
  std::array<std::byte, 8> seen{};
  ASSERT_OK(client_->port().ReadConfig(0, seen));
  Crash(Crashing::kSegv);
  ExpectFailed("crashed");
  ASSERT_OK(client_->driver().Restart());
  EXPECT_FALSE(client_->NeedsReset()) << "its reset ends";
  EXPECT_EQ(device_.Inspect()->state, "failed");
  std::array<std::byte, 8> config{};
  EXPECT_OK(client_->port().ReadConfig(0, config));
  EXPECT_EQ(config, seen);
  const uint64_t waiting = client_->Send({.op = Op::kEcho});
  EXPECT_OK(neighbour_->Check());
  EXPECT_FALSE(client_->Has(waiting));
  ASSERT_OK(Reload(kSecond).status());
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(waiting));
  EXPECT_EQ(Read(reply), (Answer{1, 2}));
  // Also without a driver.
  Crash(Crashing::kSegv);
  WaitUntilFailed();
}

TEST_F(DeviceCrashTest, ADriverThatGoesAndOneThatComes) {
  Make();
  Crash(Crashing::kSegv);
  ExpectFailed("crashed");
  client_.reset();
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  const uint64_t waiting = client_->Send({.op = Op::kEcho});
  client_.reset();
  ASSERT_OK(Reload(kSecond).status());
  EXPECT_NE(waiting, 0u);
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  EXPECT_EQ(Ask(), (Answer{1, 2}));
  client_.reset();
  EXPECT_OK(host_->Remove("a"));
}

TEST_F(DeviceCrashTest, ACrashedDeviceCanBeStoppedAndRemoved) {
  Make();
  Crash(Crashing::kSegv);
  ExpectFailed("crashed");
  EXPECT_THAT(device_.Save().status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "has crashed; reload it"));
  EXPECT_THAT(device_.Control("echo", "").status(),
              StatusIs(absl::StatusCode::kFailedPrecondition, "has crashed; reload it"));
  EXPECT_OK(device_.Stop());
  EXPECT_OK(device_.Start());
  EXPECT_OK(host_->Remove("a"));
}

// Two devices of one image: what has crashed is not loaded again, and the other one keeps it.
TEST_F(DeviceCrashTest, AnotherDeviceOfTheSameImageGoesOn) {
  Make();
  ASSERT_OK_AND_ASSIGN(const DeviceHandle sibling, host_->Add(Spec("sibling", {}, kFirst)));
  ASSERT_OK_AND_ASSIGN(auto other, Client::Create(sibling));
  Crash(Crashing::kSegv);
  ExpectFailed("crashed");
  ASSERT_OK(other->Call({.op = Op::kEcho}).status());
  ASSERT_OK(Reload(kFirst).status());
  EXPECT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_OK_AND_ASSIGN(const Reply reply, other->Call({.op = Op::kEcho}));
  EXPECT_EQ(Read(reply), (Answer{2, 1}));
  EXPECT_FALSE(other->NeedsReset());
  EXPECT_EQ(sibling.Inspect()->generation, 1u);
}

// Twenty times in one process, beside a device that is busy.
TEST_F(DeviceCrashTest, OverAndOver) {
  Make();
  std::atomic<bool> stop{false};
  std::atomic<uint64_t> served{0};
  std::string wrong;
  std::thread load([&] {
    while (!stop && wrong.empty()) {
      if (const absl::Status status = neighbour_->Check(); !status.ok()) {
        wrong = std::string(status.message());
      }
      ++served;
    }
  });
  constexpr Crashing kHows[] = {Crashing::kSegv, Crashing::kBus, Crashing::kFpe, Crashing::kIll,
                                Crashing::kAbort};
  const size_t threads = CountEntries("/proc/self/task");
  for (uint32_t i = 0; i < 20; ++i) {
    const char* const next = i % 2 == 0 ? kSecond : kFirst;
    const uint64_t token = Crash(kHows[i % std::size(kHows)], kInRequests, i % 2);
    WaitUntilFailed();
    const absl::StatusOr<ReloadReport> report = Reload(next);
    ASSERT_OK(report.status()) << i;
    ASSERT_OK(client_->Take(token, i % 2).status());
    EXPECT_EQ(Ask(i % 2), (Answer{1, i % 2 == 0 ? 2 : 1})) << i;
  }
  EXPECT_EQ(device_.Inspect()->crashes, 20u);
  EXPECT_EQ(device_.Inspect()->generation, 21u);
  // Two of each generation stay, parked.
  EXPECT_LE(CountEntries("/proc/self/task"), threads + 40);
  stop = true;
  load.join();
  EXPECT_EQ(wrong, "");
  EXPECT_GT(served, 20u);
}

// ---- on the control thread ----------------------------------------------------------------------

TEST_F(DeviceCrashTest, AtTheBeginningOfASession) {
  for (const char* place : {"negotiate", "activate", "start"}) {
    ASSERT_OK_AND_ASSIGN(
        device_, host_->Add(Spec("a", {{"first", absl::StrCat("crash_in_", place)}}, kFirst)));
    EXPECT_THAT(Client::Create(device_).status(),
                StatusIs(absl::StatusCode::kInternal,
                         absl::StrCat(place, ": the plugin crashed: SIGSEGV at 0x0")));
    ASSERT_OK(Reload(kSecond).status()) << place;
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
    EXPECT_EQ(Ask(), (Answer{1, 2}));
    client_.reset();
    ASSERT_OK(host_->Remove("a"));
  }
}

TEST_F(DeviceCrashTest, InAReadOfTheConfiguration) {
  Make({{"first", "crash_in_config_read"}});
  std::array<std::byte, 8> config{};
  EXPECT_THAT(client_->port().ReadConfig(0, config),
              StatusIs(absl::StatusCode::kInternal, "config_read: the plugin crashed"));
  ExpectFailed("config_read crashed: SIGSEGV");
  EXPECT_THAT(Report(), HasSubstr("config_read of device a, generation 1"));
  ASSERT_OK(Reload(kSecond).status());
  EXPECT_EQ(Ask(), (Answer{1, 2}));
}

TEST_F(DeviceCrashTest, WhenItIsAdded) {
  EXPECT_THAT(host_->Add(Spec("a", {{"first", "crash_in_init"}}, kFirst)).status(),
              StatusIs(absl::StatusCode::kInternal,
                       "device 'a': init: the plugin crashed: SIGSEGV at 0x0"));
  EXPECT_THAT(host_->Add(Spec("a", {}, VIRTBAY_BAD_PLUGIN_DIR "/load_crashes.so")).status(),
              StatusIs(absl::StatusCode::kInternal, "load(): the plugin crashed: SIGFPE"));
  EXPECT_THAT(host_->Add(Spec("a", {}, VIRTBAY_BAD_PLUGIN_DIR "/create_crashes.so")).status(),
              StatusIs(absl::StatusCode::kInternal, "create(): the plugin crashed: SIGSEGV"));
  // Not by the image that has crashed.
  Make();
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

TEST_F(DeviceCrashTest, WhenItStops) {
  Make({{"first", "crash_in_stop"}});
  EXPECT_EQ(Ask(), (Answer{1, 1}));
  client_.reset();
  EXPECT_TRUE(log_.Contains("stop of device a, generation 1"));
  EXPECT_OK(host_->Remove("a"));
}

// ---- reloads that meet a crash ------------------------------------------------------------------

class DeviceCrashReloadTest : public DeviceCrashTest,
                              public ::testing::WithParamInterface<const char*> {};

// A new build that crashes before it is committed to, or in its trial: the guest sees nothing.
TEST_P(DeviceCrashReloadTest, TheOldBuildServesOn) {
  Make({{"next", absl::StrCat("crash_in_", GetParam())}});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  const uint64_t parked = client_->Send({.op = Op::kPark});
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kInternal, "crashed: SIGSEGV at 0x0"));
  EXPECT_EQ(Ask(), (Answer{3, 1}));
  EXPECT_EQ(Ask(1), (Answer{4, 1}));
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_EQ(device_.Inspect()->generation, 1u);
  EXPECT_EQ(device_.Inspect()->state, "running");
  EXPECT_THAT(Report(), HasSubstr("generation 2"));
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  ASSERT_OK_AND_ASSIGN(const Reply back, client_->Take(parked));
  EXPECT_EQ(Read(back).version, 1);
}
INSTANTIATE_TEST_SUITE_P(Next, DeviceCrashReloadTest,
                         ::testing::Values("init", "restore", "negotiate", "activate", "start",
                                           "requests"));

TEST_F(DeviceCrashTest, ANewImageThatCrashesInLoadOrCreate) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  EXPECT_THAT(Reload(VIRTBAY_BAD_PLUGIN_DIR "/load_crashes.so"),
              StatusIs(absl::StatusCode::kInternal, "load(): the plugin crashed: SIGFPE"));
  EXPECT_THAT(Reload(VIRTBAY_BAD_PLUGIN_DIR "/create_crashes.so"),
              StatusIs(absl::StatusCode::kInternal, "create(): the plugin crashed: SIGSEGV"));
  EXPECT_EQ(Ask(), (Answer{2, 1}));
  EXPECT_EQ(device_.Inspect()->generation, 1u);
}

TEST_F(DeviceCrashTest, AnOldBuildThatCrashesWhenItIsReplaced) {
  for (const char* place : {"quiesce", "save"}) {
    Make({{"first", absl::StrCat("crash_in_", place)}});
    ASSERT_EQ(Ask(), (Answer{1, 1}));
    EXPECT_FALSE(Reload(kSecond).ok()) << place;
    ExpectFailed(absl::StrCat(place, " crashed: SIGSEGV").c_str());
    const uint64_t waiting = client_->Send({.op = Op::kEcho});
    ASSERT_OK(Reload(kSecond).status()) << place;
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(waiting));
    EXPECT_EQ(Read(reply), (Answer{1, 2}));
    client_.reset();
    ASSERT_OK(host_->Remove("a"));
  }
}

// A build that is no better: the device waits on for one that is.
TEST_F(DeviceCrashTest, AReloadAfterACrashThatCrashesToo) {
  Make({{"next", "crash_in_requests"}});
  Crash(Crashing::kAbort);
  ExpectFailed("crashed: SIGABRT");
  const uint64_t waiting = client_->Send({.op = Op::kEcho});
  EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kInternal, "crashed: SIGSEGV"));
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_EQ(device_.Inspect()->state, "failed");
  EXPECT_FALSE(client_->Has(waiting));
  ASSERT_OK(Reload(kFirst).status());
  EXPECT_FALSE(client_->NeedsReset());
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(waiting));
  EXPECT_EQ(Read(reply), (Answer{1, 1}));
}

// The same with a driver that has reset it meanwhile: nobody calls what has crashed.
TEST_F(DeviceCrashTest, AReloadThatFailsWhileAResetDriverWaits) {
  Make({{"next", "start_fails"}});
  Crash(Crashing::kSegv);
  ExpectFailed("crashed: SIGSEGV");
  ASSERT_OK(client_->driver().Restart());
  const uint64_t waiting = client_->Send({.op = Op::kEcho});
  EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kUnavailable, "no start"));
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_EQ(device_.Inspect()->state, "failed");
  EXPECT_THAT(device_.Inspect()->failure, HasSubstr("crashed: SIGSEGV"));
  EXPECT_FALSE(client_->Has(waiting));
  ASSERT_OK(Reload(kFirst).status());
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(waiting));
  EXPECT_EQ(Read(reply), (Answer{1, 1}));
}

// ---- exceptions and hangs -----------------------------------------------------------------------

TEST_F(DeviceCrashTest, AnExceptionThatEscapes) {
  const uint64_t before = CrashesContained();
  Make({}, VIRTBAY_BAD_PLUGIN_DIR "/throws_raw_in_on_requests.so");
  client_->Send({});
  ASSERT_TRUE(client_->WaitForConfigChange());
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_THAT(device_.Inspect()->failure, HasSubstr("queue 0: on_requests threw"));
  EXPECT_EQ(CrashesContained(), before + 1);
  EXPECT_EQ(device_.Inspect()->crashes, 1u);
}

TEST_F(DeviceCrashTest, AHangIsReportedOnceWithItsStack) {
  const TempDir dir;
  const std::string fifo = dir / "release";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  setenv("VIRTBAY_TEST_RELEASE", fifo.c_str(), 1);
  Make({}, VIRTBAY_BAD_PLUGIN_DIR "/stuck_in_on_requests.so");
  const uint64_t token = client_->Send({});
  ASSERT_TRUE(log_.WaitFor("a: queue 0: the plugin has been in on_requests for more than"));
  EXPECT_OK(neighbour_->Check());
  std::string report;
  int reports = 0;
  for (const std::string& line : log_.lines()) {
    if (line.find("has been in on_requests") == line.npos) continue;
    report = line;
    ++reports;
  }
  EXPECT_EQ(reports, 1);
  EXPECT_THAT(report, AllOf(HasSubstr("#0 "), HasSubstr("OnRequests+0x"),
                            HasSubstr("/stuck_in_on_requests.so+0x")));
  UniqueFd(open(fifo.c_str(), O_WRONLY | O_CLOEXEC)).reset();
  EXPECT_OK(client_->Take(token)) << "being looked at has done no harm";
  EXPECT_FALSE(client_->NeedsReset());
  unsetenv("VIRTBAY_TEST_RELEASE");
}

TEST_F(DeviceCrashTest, AHangOfTheControlPlaneToo) {
  Pipe gate;
  Make({{"first", "hangs_in_config_read"}, {"gate", absl::StrCat(gate.reader.get())}});
  std::thread reader([this] {
    std::array<std::byte, 8> config{};
    EXPECT_OK(client_->port().ReadConfig(0, config));
  });
  const char* const kSaid =
      "a: the plugin has been in config_read, a call of the control plane, for more than";
  EXPECT_TRUE(log_.WaitFor(kSaid));
  gate.writer.reset();
  reader.join();
  for (const std::string& line : log_.lines()) {
    if (line.find(kSaid) == line.npos) continue;
    EXPECT_THAT(line, HasSubstr("::ReadConfig("));
  }
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

TEST_F(DeviceCrashTest, AHangOfADeviceThatIsBeingMadeToo) {
  Pipe gate;
  std::thread adds([&] {
    Make({{"first", "hangs_in_init"}, {"gate", absl::StrCat(gate.reader.get())}});
  });
  const char* const kSaid = "a: the plugin has been in init, a call of the control plane, for more";
  EXPECT_TRUE(log_.WaitFor(kSaid));
  EXPECT_EQ(host_->Add(Spec("a")).status().code(), absl::StatusCode::kAlreadyExists);
  gate.writer.reset();
  adds.join();
  for (const std::string& line : log_.lines()) {
    if (line.find(kSaid) == line.npos) continue;
    EXPECT_THAT(line, AllOf(HasSubstr("generation 1"), HasSubstr("::Init(")));
  }
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

// Where a reload hangs in the new build: nothing but the watchdog would say so.
class DeviceHangReloadTest
    : public DeviceCrashTest,
      public ::testing::WithParamInterface<std::pair<const char*, const char*>> {};
TEST_P(DeviceHangReloadTest, IsReportedOnceWithItsStack) {
  const auto& [call, function] = GetParam();
  Pipe gate;
  Make({{"next", absl::StrCat("hangs_in_", call)}, {"gate", absl::StrCat(gate.reader.get())}});
  if (absl::string_view(call) == "may_repeat") {
    Crash(Crashing::kSegv);
    ExpectFailed("crashed");
  }
  std::thread reload([this] { EXPECT_OK(Reload(kSecond).status()); });
  const std::string said =
      absl::StrCat("a: the plugin has been in ", call, ", a call of the control plane, for more");
  EXPECT_TRUE(log_.WaitFor(said));
  gate.writer.reset();
  reload.join();
  int reports = 0;
  for (const std::string& line : log_.lines()) {
    if (line.find(said) == line.npos) continue;
    ++reports;
    EXPECT_THAT(line, AllOf(HasSubstr("generation 2"), HasSubstr("#0 "), HasSubstr(function)));
  }
  EXPECT_EQ(reports, 1);
  EXPECT_EQ(Ask(), (Answer{1, 2}));
}
INSTANTIATE_TEST_SUITE_P(Calls, DeviceHangReloadTest,
                         ::testing::Values(std::pair("init", "::Init("),
                                           std::pair("restore", "::Restore("),
                                           std::pair("may_repeat", "MayRepeat(")));

// ---- not contained ------------------------------------------------------------------------------

class CrashDeathTest : public DeviceTest {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer has the faults";
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
  // In a child: with a guard, but not contained.
  void CrashAlone(Crashing how, CrashPlace place, bool guarded = true, bool contain = false) {
    if (guarded) InstallCrashGuard().IgnoreError();
    HostOptions options;
    options.contain_crashes = contain;
    host_ = *Host::Create(std::move(options));
    const DeviceHandle device = *host_->Add(Spec("a", {}, kFirst));
    auto client = *Client::Create(device);
    client->Send({.op = Op::kCrash, .a = static_cast<uint32_t>(how), .b = place});
    alarm(30);
    for (;;) pause();
  }
};

class CrashKindDeathTest : public CrashDeathTest, public ::testing::WithParamInterface<Kind> {};
TEST_P(CrashKindDeathTest, EndsTheProcessAsEver) {
  EXPECT_EXIT(CrashAlone(GetParam().how, kInRequests), KilledBySignal(GetParam().signal),
              AllOf(HasSubstr(absl::StrCat("crashed: ", GetParam().text)),
                    HasSubstr(" in on_requests of queue 0 of device a, generation 1"),
                    HasSubstr("request "), HasSubstr("CrashHere("), HasSubstr(kFirst)));
}
INSTANTIATE_TEST_SUITE_P(Kinds, CrashKindDeathTest,
                         ::testing::Values(Kind{Crashing::kSegv, "Segv", "SIGSEGV at 0x0", SIGSEGV},
                                           Kind{Crashing::kBus, "Bus", "SIGBUS at 0x", SIGBUS},
                                           Kind{Crashing::kFpe, "Fpe", "SIGFPE", SIGFPE},
                                           Kind{Crashing::kIll, "Ill", "SIGILL", SIGILL},
                                           Kind{Crashing::kAbort, "Abort", "SIGABRT", SIGABRT},
                                           Kind{Crashing::kTerminate, "Terminate", "SIGABRT",
                                                SIGABRT}),
                         [](const auto& kind) { return std::string(kind.param.name); });

TEST_F(CrashDeathTest, ByNameInOffloadedWork) {
  EXPECT_EXIT(
      CrashAlone(Crashing::kSegv, kInOffload), KilledBySignal(SIGSEGV),
      AllOf(HasSubstr("in offloaded work of device a, generation 1"), HasSubstr("CrashHere(")));
}
TEST_F(CrashDeathTest, WithoutAGuardThereIsNoReport) {
  EXPECT_EXIT(CrashAlone(Crashing::kSegv, kInRequests, /*guarded=*/false), KilledBySignal(SIGSEGV),
              ::testing::Not(HasSubstr("crashed")));
}
// What is broken then is everybody's.
TEST_F(CrashDeathTest, ADamagedHeapIsNotContained) {
  EXPECT_EXIT(CrashAlone(Crashing::kHeap, kInRequests, true, /*contain=*/true),
              KilledBySignal(SIGABRT),
              AllOf(HasSubstr("SIGABRT"), HasSubstr("the heap, which all devices share"),
                    HasSubstr("CrashHere(")));
}

TEST_F(CrashDeathTest, AFaultElsewhereIsNoneOfItsBusiness) {
  EXPECT_EXIT(
      {
        InstallCrashGuard().IgnoreError();
        CrashHere(Crashing::kSegv);
      },
      KilledBySignal(SIGSEGV), ::testing::Not(HasSubstr("crashed")));
  EXPECT_EXIT(
      {
        InstallCrashGuard().IgnoreError();
        raise(SIGABRT);
      },
      KilledBySignal(SIGABRT), "");
}
TEST_F(CrashDeathTest, TheEmbeddersHandlerGetsWhatItHadBefore) {
  const auto install = [] {
    struct sigaction action {};
    action.sa_handler = [](int) { _exit(7); };
    sigaction(SIGSEGV, &action, nullptr);
    InstallCrashGuard().IgnoreError();
  };
  EXPECT_EXIT(
      {
        install();
        CrashHere(Crashing::kSegv);
      },
      ::testing::ExitedWithCode(7), "");
  EXPECT_EXIT(
      {
        install();
        CrashAlone(Crashing::kSegv, kInRequests);
      },
      ::testing::ExitedWithCode(7), "CrashHere");
}

// Guest memory that a front-end has truncated is still no crash, whichever guard came first, and
// also when a plugin's callback meets it.
TEST_F(CrashDeathTest, TruncatedGuestMemoryIsTheSigbusGuards) {
  struct Inside final : CrashScene {
    bool InPlugin() const override { return true; }
    std::string Describe(const Crash&) const override { return "not this"; }
  };
  const auto touch = [](bool crash_guard_first) {
    if (crash_guard_first) InstallCrashGuard().IgnoreError();
    InstallSigbusGuard().IgnoreError();
    InstallCrashGuard().IgnoreError();
    const UniqueFd fd(memfd_create("guest", MFD_CLOEXEC));
    if (ftruncate(fd.get(), 8192) != 0) _exit(1);
    const auto mapping = GuestMapping::Create(fd.get(), 0, 8192);
    if (!mapping.ok() || ftruncate(fd.get(), 0) != 0) _exit(1);
    const Inside scene;
    const CrashScope scope(&scene);
    const auto value = *reinterpret_cast<const volatile char*>((*mapping)->data());
    _exit(value == 0 && (*mapping)->poisoned() && SigbusPagesReplaced() == 1 ? 5 : 2);
  };
  EXPECT_EXIT(touch(true), ::testing::ExitedWithCode(5), ::testing::Not(HasSubstr("not this")));
  EXPECT_EXIT(touch(false), ::testing::ExitedWithCode(5), ::testing::Not(HasSubstr("not this")));
}

// ---- answers of the framework's own -------------------------------------------------------------

struct Buffers {
  Buffers(std::string to_read, size_t room) : in(std::move(to_read)), out(room, '\xee') {
    chain.Begin(0);
    if (!in.empty()) chain.AddReadable(reinterpret_cast<std::byte*>(in.data()), in.size());
    if (!out.empty()) chain.AddWritable(reinterpret_cast<std::byte*>(out.data()), out.size());
  }
  std::string in, out;
  Chain chain;
};

TEST(FailedAnswer, IsTheDeviceClasss) {
  fuse_in_header fuse{};
  fuse.len = sizeof(fuse);
  fuse.unique = 77;
  const std::string bytes(reinterpret_cast<const char*>(&fuse), sizeof(fuse));
  Buffers file(bytes, 100);
  ASSERT_EQ(WriteFailedAnswer(VIRTIO_ID_FS, file.chain), sizeof(fuse_out_header));
  fuse_out_header answer{};
  std::memcpy(&answer, file.out.data(), sizeof(answer));
  EXPECT_EQ(answer.len, sizeof(answer));
  EXPECT_EQ(answer.error, -EIO);
  EXPECT_EQ(answer.unique, 77u);
  EXPECT_EQ(file.out[sizeof(answer)], '\xee');
  Buffers forget(bytes, 0);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_FS, forget.chain), 0u);
  Buffers cut(bytes.substr(0, 10), 100);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_FS, cut.chain), 0u);

  Buffers block(std::string(16, 'h'), 513);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_BLOCK, block.chain), 513u);
  EXPECT_EQ(block.out[512], 1);
  EXPECT_EQ(block.out[511], '\xee');

  Buffers nine(std::string("\x0b\0\0\0\x74\x34\x12more", 11), 64);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_9P, nine.chain), 11u);
  EXPECT_EQ(nine.out.substr(0, 11), std::string("\x0b\0\0\0\x07\x34\x12\x05\0\0\0", 11));

  Buffers control(std::string(3, 'c'), 1);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_NET, control.chain), 1u);
  EXPECT_EQ(control.out[0], 1);
  Buffers frame(std::string(64, 'f'), 0);
  EXPECT_EQ(WriteFailedAnswer(VIRTIO_ID_NET, frame.chain), 0u);
  Buffers other(std::string(8, 'x'), 8);
  EXPECT_EQ(WriteFailedAnswer(32769, other.chain), 0u);
  EXPECT_EQ(other.out, std::string(8, '\xee'));
}

}  // namespace
}  // namespace virtbay::testing
