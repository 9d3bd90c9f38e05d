// Hot reload: one build of a plugin takes the place of another under a running driver, and whatever
// is wrong with the new one, the old one serves on.
#include <atomic>
#include <fstream>
#include <string>
#include <thread>

#include "framework/base/sanitized.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr char kFirst[] = VIRTBAY_RELOAD_1_PLUGIN;
constexpr char kSecond[] = VIRTBAY_RELOAD_2_PLUGIN;

class DeviceReloadTest : public DeviceTest {
 protected:
  void Make(std::map<std::string, std::string> options = {}, const char* plugin = kFirst) {
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("a", std::move(options), plugin)));
    Client::Options driver;
    driver.driver.device_features = 1;
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, driver));
  }
  absl::StatusOr<ReloadReport> Reload(const char* from) {
    ReloadOptions options;
    options.from = from;
    options.quiesce_deadline = absl::Milliseconds(500);
    return host_->Reload("a", options);
  }
  // What the device counts, and which build says so.
  struct Answer {
    int64_t count = 0;
    int64_t version = 0;
    bool operator==(const Answer&) const = default;
  };
  static Answer Read(const Reply& reply) { return {reply.result / 10, reply.result % 10}; }
  Answer Ask(uint32_t queue = 0) {
    const absl::StatusOr<Reply> reply = client_->Call({.op = Op::kEcho}, "", 64, queue);
    return reply.ok() ? Read(*reply) : Answer{-1, -1};
  }
  // The driver notices nothing: the next answers come from the first build, with its count.
  void ExpectUntouched(int64_t count) {
    EXPECT_EQ(Ask(), (Answer{count + 1, 1}));
    EXPECT_EQ(Ask(1), (Answer{count + 2, 1}));
    EXPECT_FALSE(client_->NeedsReset());
    EXPECT_EQ(device_.Inspect()->generation, 1u);
    EXPECT_EQ(device_.Inspect()->state, "running");
    EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
  }

  DeviceHandle device_;
  std::unique_ptr<Client> client_;
};

TEST_F(DeviceReloadTest, TheNewBuildGoesOnWhereTheOldOneWas) {
  Make();
  EXPECT_EQ(Ask(), (Answer{1, 1}));
  EXPECT_EQ(Ask(1), (Answer{2, 1}));
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_EQ(report.generation, 2u);
  EXPECT_EQ(report.version_before, "1.0");
  EXPECT_EQ(report.version_after, "2.0");
  EXPECT_TRUE(report.state_restored);
  EXPECT_EQ(report.state_fds, 1u);
  EXPECT_TRUE(report.image_unloaded);
  EXPECT_GT(report.pause, absl::ZeroDuration());
  EXPECT_EQ(Ask(), (Answer{3, 2}));
  EXPECT_EQ(Ask(1), (Answer{4, 2}));
  const DeviceInfo info = *device_.Inspect();
  EXPECT_EQ(info.generation, 2u);
  EXPECT_EQ(info.plugin_version, "2.0");
  EXPECT_EQ(info.plugin_path, kSecond);
  EXPECT_EQ(info.metrics.at("released"), 1u);
  EXPECT_EQ(info.metrics.at("served"), 4u) << "counters go on";
  EXPECT_EQ(info.queues[0].requests, 2u);
  EXPECT_FALSE(client_->NeedsReset());
}

TEST_F(DeviceReloadTest, WithoutADriverToo) {
  ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("a", {}, kFirst)));
  ASSERT_OK(Reload(kSecond).status());
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  EXPECT_EQ(Ask(), (Answer{1, 2}));
}

TEST_F(DeviceReloadTest, ADriverThatComesAnewFindsTheNewBuild) {
  Make();
  ASSERT_OK(Reload(kSecond).status());
  ASSERT_OK(client_->driver().Restart());
  EXPECT_EQ(Ask().version, 2);
  client_.reset();
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  EXPECT_EQ(Ask(1).version, 2);
}

// The second build asks for views of other sizes than those that were handed back had.
TEST_F(DeviceReloadTest, RequestsThatAreHandedBackComeFirst) {
  Make();
  std::vector<uint64_t> kept;
  for (int i = 0; i < 10; ++i) kept.push_back(client_->Send({.op = Op::kPark}, "", 4096));
  kept.push_back(client_->Send({.op = Op::kPark}, "", 4096, 1));
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_EQ(report.requests_handed_over, 11u);
  ASSERT_OK_AND_ASSIGN(const Reply release, client_->Call({.op = Op::kRelease}));
  EXPECT_EQ(Read(release).version, 2);
  ASSERT_OK(client_->Call({.op = Op::kRelease}, "", 64, 1));
  for (size_t i = 0; i < kept.size(); ++i) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(kept[i], i == 10 ? 1 : 0));
    EXPECT_EQ(Read(reply).version, 2) << i;
  }
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
}

TEST_F(DeviceReloadTest, RequestsThatDoNotEndKeepTheOldBuild) {
  Make();
  const uint64_t kept = client_->Send({.op = Op::kHoldStill});
  const uint64_t parked = client_->Send({.op = Op::kPark}, "", 64, 1);
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kDeadlineExceeded, "did not end"));
  EXPECT_GE(device_.Inspect()->metrics.at("resumed"), 1u);
  ExpectUntouched(2);
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  ASSERT_OK_AND_ASSIGN(const Reply late, client_->Take(kept));
  EXPECT_EQ(Read(late).version, 1);
  ASSERT_OK(client_->Call({.op = Op::kRelease}, "", 64, 1));
  ASSERT_OK_AND_ASSIGN(const Reply back, client_->Take(parked, 1));
  EXPECT_EQ(Read(back).version, 1);
  ASSERT_OK(Reload(kSecond).status()) << "nothing is held any more";
}

TEST_F(DeviceReloadTest, AHangingQuiesceKeepsTheOldBuild) {
  Pipe gate;
  Make({{"first", "hangs_in_quiesce"}, {"gate", absl::StrCat(gate.reader.get())}});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  EXPECT_THAT(Reload(kSecond), StatusIs(absl::StatusCode::kDeadlineExceeded));
  gate.writer.reset();
  ExpectUntouched(1);
}

struct Refusal {
  const char* next;
  absl::StatusCode code;
  const char* text;
};

class DeviceReloadRefusalTest : public DeviceReloadTest,
                                public ::testing::WithParamInterface<Refusal> {};

TEST_P(DeviceReloadRefusalTest, TheOldBuildServesOn) {
  Make({{"next", GetParam().next}});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  const uint64_t parked = client_->Send({.op = Op::kPark});
  const size_t threads = CountEntries("/proc/self/task");
  const size_t fds = CountEntries("/proc/self/fd");
  EXPECT_THAT(Reload(kSecond), StatusIs(GetParam().code, GetParam().text));
  ExpectUntouched(1);
  EXPECT_EQ(CountEntries("/proc/self/task"), threads);
  EXPECT_EQ(CountEntries("/proc/self/fd"), fds);
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  ASSERT_OK_AND_ASSIGN(const Reply back, client_->Take(parked));
  EXPECT_EQ(Read(back).version, 1);
}

constexpr auto kUnavailable = absl::StatusCode::kUnavailable;
constexpr auto kInternal = absl::StatusCode::kInternal;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kPrecondition = absl::StatusCode::kFailedPrecondition;

INSTANTIATE_TEST_SUITE_P(
    Next, DeviceReloadRefusalTest,
    ::testing::Values(Refusal{"init_fails", kUnavailable, "not today"},
                      Refusal{"init_throws", kInternal, "out of init"},
                      Refusal{"fails_early", kInternal, "too early"},
                      Refusal{"queues", kPrecondition, "it has 3 queues; the driver knows 2"},
                      Refusal{"config", kPrecondition, "configuration space has 16 bytes"},
                      Refusal{"features", kPrecondition, "does not offer the features 0x1"},
                      Refusal{"small_ring", kPrecondition, "the new device takes no more than 16"},
                      Refusal{"restore_fails", kInvalid, "restore: unreadable"},
                      Refusal{"restore_throws", kInternal, "out of restore"},
                      Refusal{"negotiate_fails", kInvalid, "no such bits"},
                      Refusal{"activate_fails", kUnavailable, "not active"},
                      Refusal{"start_fails", kUnavailable, "no start"},
                      Refusal{"start_throws", kInternal, "out of start"},
                      Refusal{"throws_first", kInternal, "failed at once: on_requests"}),
    [](const auto& refusal) { return std::string(refusal.param.next); });

TEST_F(DeviceReloadTest, AStateThatCannotBeSavedKeepsTheOldBuild) {
  for (const char* wrong : {"save_fails", "save_throws"}) {
    Make({{"first", wrong}});
    ASSERT_EQ(Ask(), (Answer{1, 1}));
    EXPECT_THAT(Reload(kSecond).status().message(), HasSubstr("save: "));
    ExpectUntouched(1);
    client_.reset();
    ASSERT_OK(host_->Remove("a"));
  }
}

TEST_F(DeviceReloadTest, ANewerStateIsNotTakenByAnOlderBuild) {
  Make({}, kSecond);
  ASSERT_EQ(Ask(), (Answer{1, 2}));
  EXPECT_THAT(Reload(kFirst),
              StatusIs(absl::StatusCode::kFailedPrecondition, "a state of version 2"));
  EXPECT_EQ(Ask(), (Answer{2, 2}));
}

TEST_F(DeviceReloadTest, FilesThatAreNoneOfIt) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  EXPECT_THAT(Reload("/nonexistent/a.so"), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Reload(VIRTBAY_OP_PLUGIN),
              StatusIs(absl::StatusCode::kFailedPrecondition, "makes a device of type"));
  // One that the linker is still writing.
  const TempDir dir;
  std::ifstream whole(kSecond, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(whole)), {});
  for (const size_t part : {size_t{0}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    const std::string path = (dir.path() / "half.so").native();
    std::ofstream(path, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(part));
    EXPECT_FALSE(Reload(path.c_str()).ok()) << part;
  }
  EXPECT_THAT(host_->Reload("b", {}), StatusIs(absl::StatusCode::kNotFound, "no device 'b'"));
  ExpectUntouched(1);
}

TEST_F(DeviceReloadTest, APluginThatSavesNothingHasToSaySo) {
  ASSERT_OK(host_->Add(Spec("a")).status());
  EXPECT_THAT(Reload(VIRTBAY_OP_PLUGIN),
              StatusIs(absl::StatusCode::kFailedPrecondition, "does not save its state"));
  ASSERT_OK(host_->Add(Spec("r", {}, VIRTBAY_RNG_PLUGIN)).status());
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, host_->Reload("r", {}));
  EXPECT_FALSE(report.state_restored);
}

TEST_F(DeviceReloadTest, AnotherConfigurationIsAnnounced) {
  Make({{"next", "other_config"}});
  ASSERT_OK(Reload(kSecond).status());
  EXPECT_TRUE(client_->WaitForConfigChange());
  EXPECT_FALSE(client_->NeedsReset());
}

// A plugin that fails while it is worked on: its next build takes over what it had not answered.
TEST_F(DeviceReloadTest, AFailedDeviceIsMendedByItsNextBuild) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  const uint64_t parked = client_->Send({.op = Op::kPark}, "", 64, 1);
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  const uint64_t failed = client_->Send({.op = Op::kFail});
  ASSERT_TRUE(client_->WaitForConfigChange());
  ASSERT_TRUE(client_->NeedsReset());
  const uint64_t waiting = client_->Send({.op = Op::kEcho}, "", 64, 1);
  ASSERT_OK_AND_ASSIGN(const ReloadReport report, Reload(kSecond));
  EXPECT_TRUE(report.state_restored);
  EXPECT_FALSE(client_->NeedsReset());
  for (const auto& [token, queue] : {std::pair{failed, 0u}, std::pair{waiting, 1u}}) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token, queue));
    EXPECT_EQ(Read(reply).version, 2);
  }
  ASSERT_OK(client_->Call({.op = Op::kRelease}, "", 64, 1));
  ASSERT_OK(client_->Take(parked, 1).status());
}

TEST_F(DeviceReloadTest, UnderLoadNothingIsLostAndNothingGrows) {
  Make();
  ASSERT_OK(Reload(kFirst).status());
  const TempDir dir;
  std::atomic<bool> stop{false};
  std::string wrong;
  // One thread for both queues: the client is not shared.
  std::thread load([&] {
    int64_t last = 0;
    for (uint32_t i = 0; !stop && wrong.empty(); ++i) {
      const Answer answer = Ask(i % 2);
      if (answer.count != last + 1) {
        wrong = absl::StrCat("after ", last, " came ", answer.count, " of ", answer.version);
      }
      last = answer.count;
    }
  });
  const auto measure = [] {
    std::ifstream maps("/proc/self/maps");
    size_t images = 0;  // mapped from private copies
    for (std::string line; std::getline(maps, line);) {
      if (line.find("-plugin-") != std::string::npos) ++images;
    }
    // Under a sanitizer images stay on purpose.
    if (kSanitized) images = 0;
    return std::array{images, CountEntries("/proc/self/task"), CountEntries("/proc/self/fd")};
  };
  const auto before = measure();
  const int rounds = kSanitized ? 20 : 200;
  for (int i = 0; i < rounds && wrong.empty(); ++i) {
    // A rebuilt file is another image.
    const std::filesystem::path build = dir / absl::StrCat("build", i % 2, ".so");
    std::filesystem::copy_file(kFirst, build, std::filesystem::copy_options::overwrite_existing);
    const absl::StatusOr<ReloadReport> report = Reload(build.c_str());
    if (!report.ok()) wrong = std::string(report.status().message());
  }
  const auto after = measure();
  stop = true;
  load.join();
  EXPECT_EQ(wrong, "");
  EXPECT_EQ(before, after);
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
}

}  // namespace
}  // namespace virtbay::testing
