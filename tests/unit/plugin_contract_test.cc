// One broken plugin per clause of the contract, in a Host with a healthy device: each gets its
// clear error, the healthy one keeps answering, and the Host ends cleanly.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "framework/base/sanitized.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string BadPlugin(const std::string& name) {
  return absl::StrCat(VIRTBAY_BAD_PLUGIN_DIR, "/", name, ".so");
}

class PluginContractTest : public DeviceTest {
 protected:
  void SetUp() override {
    MakeHost(absl::Milliseconds(100));
    ASSERT_OK_AND_ASSIGN(healthy_, host_->Add(Spec("healthy")));
    ASSERT_OK_AND_ASSIGN(neighbour_, Client::Create(healthy_));
    ASSERT_OK(neighbour_->Check());
  }
  void TearDown() override {
    // Whatever went on: the other device has not noticed, and everything ends.
    EXPECT_OK(neighbour_->Check());
    EXPECT_FALSE(healthy_.Inspect()->needs_reset);
    client_.reset();
    neighbour_.reset();
    host_.reset();
  }

  absl::StatusOr<DeviceHandle> Add(const std::string& plugin) {
    DeviceSpec spec = Spec("bad", {}, "");
    spec.plugin = BadPlugin(plugin);
    spec.stop_deadline = absl::Seconds(1);
    return host_->Add(std::move(spec));
  }
  void Connect(const std::string& plugin) {
    ASSERT_OK_AND_ASSIGN(device_, Add(plugin));
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  }
  // After a failure a reset makes the device serve again, until the next request.
  void ExpectRestarts() {
    ASSERT_OK(client_->driver().Restart());
    EXPECT_FALSE(client_->NeedsReset());
    EXPECT_EQ(device_.Inspect()->state, "running");
  }

  DeviceHandle healthy_;
  std::unique_ptr<Client> neighbour_;
  DeviceHandle device_;
  std::unique_ptr<Client> client_;
};

TEST_F(PluginContractTest, ACorrectPluginServes) {
  Connect("correct");
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Call({}));
    EXPECT_EQ(reply.written, 0u);
  }
  EXPECT_FALSE(client_->NeedsReset());
  client_.reset();
  ASSERT_OK(host_->Remove("bad"));
  for (const std::string& line : log_.lines()) EXPECT_THAT(line, Not(HasSubstr("error"))) << line;
}

// ---- plugins that cannot be added ---------------------------------------------------------------

struct AddClause {
  const char* plugin;
  absl::StatusCode code;
  const char* text;
};

std::ostream& operator<<(std::ostream& out, const AddClause& clause) {
  return out << clause.plugin;
}

class PluginAddTest : public PluginContractTest, public ::testing::WithParamInterface<AddClause> {};

TEST_P(PluginAddTest, IsRefusedByAdd) {
  for (int i = 0; i < 3; ++i) {  // the name stays free
    const auto added = Add(GetParam().plugin);
    EXPECT_THAT(added, StatusIs(GetParam().code, GetParam().text));
    EXPECT_THAT(std::string(added.status().message()), HasSubstr("device 'bad'"));
    EXPECT_EQ(host_->List(), std::vector<std::string>{"healthy"});
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, PluginAddTest,
    ::testing::Values(
        AddClause{"no_symbol", absl::StatusCode::kInvalidArgument, "virtbay_plugin_entry"},
        AddClause{"wrong_magic", absl::StatusCode::kInvalidArgument, "magic"},
        AddClause{"newer_major", absl::StatusCode::kInvalidArgument, "built for plugin ABI 2."},
        AddClause{"smaller_struct", absl::StatusCode::kInvalidArgument, "struct_size"},
        AddClause{"load_throws", absl::StatusCode::kInternal, "from load"},
        AddClause{"create_fails", absl::StatusCode::kNotFound, "create(): no such directory"},
        AddClause{"create_throws", absl::StatusCode::kInternal, "create(): threw"},
        AddClause{"create_no_device", absl::StatusCode::kInternal, "without a device"},
        AddClause{"ops_incomplete", absl::StatusCode::kInternal, "on_requests"},
        AddClause{"ops_smaller_struct", absl::StatusCode::kInternal, "struct_size"},
        AddClause{"init_fails", absl::StatusCode::kNotFound, "init: no such directory"},
        AddClause{"init_throws", absl::StatusCode::kInternal, "init: the plugin threw: from init"},
        AddClause{"no_queues", absl::StatusCode::kInvalidArgument, "0 queues"},
        AddClause{"too_many_queues", absl::StatusCode::kInvalidArgument, "4294967295 queues"},
        AddClause{"views_too_large", absl::StatusCode::kInvalidArgument,
                  "views of 4294967298 bytes"}),
    [](const auto& clause) { return std::string(clause.param.plugin); });

TEST_F(PluginContractTest, AFileThatIsNoLibraryIsRefused) {
  const TempDir dir;
  DeviceSpec spec = Spec("bad", {}, "");
  spec.plugin = dir.Write("text.so", "not ELF at all");
  EXPECT_THAT(host_->Add(spec), StatusIs(absl::StatusCode::kInvalidArgument, "ELF"));
  spec.plugin = dir / "missing.so";
  EXPECT_THAT(host_->Add(spec), StatusIs(absl::StatusCode::kNotFound, "missing.so"));
}

TEST_F(PluginContractTest, NewerMinorsServe) {
  for (const char* plugin : {"newer_minor", "larger_struct"}) {
    Connect(plugin);
    EXPECT_OK(client_->Call({}));
    client_.reset();
    EXPECT_OK(host_->Remove("bad"));
  }
}

// ---- plugins that refuse to begin ---------------------------------------------------------------

TEST_F(PluginContractTest, ARefusedNegotiationIsTheDriversAnswer) {
  ASSERT_OK_AND_ASSIGN(device_, Add("negotiate_fails"));
  EXPECT_THAT(Client::Create(device_),
              StatusIs(absl::StatusCode::kInvalidArgument, "negotiate: not with me"));
  EXPECT_EQ(device_.Inspect()->state, "ready");
  EXPECT_FALSE(device_.Inspect()->connected);
  EXPECT_OK(host_->Remove("bad"));
}

TEST_F(PluginContractTest, ARefusedStartIsTheDriversAnswer) {
  ASSERT_OK_AND_ASSIGN(device_, Add("start_fails"));
  const size_t tasks = CountEntries("/proc/self/task");
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(Client::Create(device_),
                StatusIs(absl::StatusCode::kUnavailable, "start: not today"));
    EXPECT_EQ(CountEntries("/proc/self/task"), tasks) << "its threads have gone";
  }
  EXPECT_EQ(device_.Inspect()->state, "ready");
}

// ---- plugins that fail while they serve ---------------------------------------------------------

TEST_F(PluginContractTest, AnExceptionFailsTheDevice) {
  struct {
    const char* plugin;
    const char* text;
  } const cases[] = {{"throws_in_on_requests", "on_requests: exception: from OnRequests"},
                     {"throws_raw_in_on_requests", "queue 0: on_requests threw: from on_requests"}};
  for (const auto& c : cases) {
    Connect(c.plugin);
    for (int i = 0; i < 3; ++i) {
      for (int n = 0; n < 5; ++n) client_->Put({}, "", 64, 0);
      client_->queue().Publish();
      EXPECT_TRUE(client_->WaitForConfigChange());
      EXPECT_TRUE(client_->NeedsReset());
      EXPECT_EQ(device_.Inspect()->failure, c.text);
      EXPECT_EQ(device_.Inspect()->state, "failed");
      EXPECT_TRUE(log_.Contains(absl::StrCat("bad: device needs a reset: ", c.text)));
      EXPECT_OK(neighbour_->Check());
      ExpectRestarts();
    }
    client_.reset();
    EXPECT_OK(host_->Remove("bad"));
  }
  EXPECT_FALSE(log_.Contains("requests did not end")) << "nobody waits for a failed device";
}

TEST_F(PluginContractTest, TheSecondEndOfARequestIsRefused) {
  Connect("completes_twice");
  for (int i = 0; i < 200; ++i) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Call({}));
    ASSERT_EQ(reply.written, 0u);
  }
  EXPECT_TRUE(log_.Contains("bad: queue 0: request 0 ended twice"));
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u) << "the ring never shows it";
  EXPECT_EQ(device_.Inspect()->queues[0].completions, 200u);
  EXPECT_FALSE(client_->NeedsReset());
}

TEST_F(PluginContractTest, ALateEndOfARequestIsRefused) {
  Connect("completes_late");
  for (int i = 0; i < 200; ++i) ASSERT_OK(client_->Call({}));
  // A stale pointer to an entry that serves the next request ends that one early: the guest sees
  // each of its requests ended once, whatever the plugin does.
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
  EXPECT_EQ(device_.Inspect()->queues[0].completions, 200u);
  EXPECT_TRUE(log_.Contains("bad: queue 0: request 0 ended twice"));
  // The pointer outlives the session; it still points at something.
  ASSERT_OK(client_->driver().Restart());
  for (int i = 0; i < 10; ++i) ASSERT_OK(client_->Call({}));
  client_.reset();
  Client::Options options;
  options.driver.queue_size = 16;  // another table
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, options));
  for (int i = 0; i < 10; ++i) ASSERT_OK(client_->Call({}));
}

TEST_F(PluginContractTest, LiesAboutSizesReachNobody) {
  Connect("lies_about_written");
  for (int i = 0; i < 100; ++i) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Call({}, "", 128));
    ASSERT_EQ(reply.written, 0u);
  }
  EXPECT_TRUE(log_.Contains(
      "bad: queue 0: request 0 completed with sizes that lie (4294967295 of 4294967295 bytes, room "
      "for 128)"));
  EXPECT_FALSE(client_->NeedsReset());

  // Each bound by itself, with room behind the view and guest bytes behind the room.
  constexpr uint32_t kView = 1024;
  constexpr uint32_t kRoom = 4000;
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, client_->memory().Allocate(8 + 8192));
  const auto complete = [&](uint32_t view, uint32_t written) {
    const uint32_t sizes[2] = {view, written};
    std::memcpy(range.host, sizes, 8);
    std::memset(range.host + 8, 'g', 8192);
    const guest::Segment in{range.address, 8};
    const guest::Segment out{range.address + 8, kRoom};
    EXPECT_TRUE(client_->queue().Add({&in, 1}, {&out, 1}, 4711));
    client_->queue().Publish();
    EXPECT_OK(client_->queue().Wait(guest::WaitMode::kSleep));
    std::array<guest::UsedBuffer, 1> used;
    EXPECT_EQ(client_->queue().TakeUsed(used), 1u);
    return used[0].written;
  };
  // Bytes of the plugin's that the guest sees; the last one must be followed by its own.
  const auto seen = [&] {
    const auto* bytes = reinterpret_cast<const char*>(range.host + 8);
    const auto n = static_cast<size_t>(std::find(bytes, bytes + 8192, 'g') - bytes);
    EXPECT_EQ(std::count(bytes, bytes + 8192, 'v'), static_cast<std::ptrdiff_t>(n));
    return n;
  };
  const std::pair<uint32_t, uint32_t> truths[] = {{0, 0},         {1, 1},         {0, kRoom},
                                                  {kView, kView}, {kView, kRoom}, {7, 8}};
  for (const auto& [view, written] : truths) {
    EXPECT_EQ(complete(view, written), written) << view;
    EXPECT_EQ(seen(), view);
  }
  const size_t before = log_.lines().size();
  const std::pair<uint32_t, uint32_t> lies[] = {
      {0, kRoom + 1},       // more written than the chain takes
      {0, UINT32_MAX},      //
      {kView + 1, kRoom},   // more view than there is
      {kRoom, kRoom},       //
      {UINT32_MAX, kRoom},  //
      {1, 0},               // more view than written
      {kView, kView - 1}};  //
  for (const auto& [view, written] : lies) {
    EXPECT_EQ(complete(view, written), 0u) << view << " of " << written;
    EXPECT_EQ(seen(), 0u) << view << " of " << written;
  }
  EXPECT_EQ(log_.lines().size(), before + std::size(lies));
  EXPECT_FALSE(client_->NeedsReset());
}

TEST_F(PluginContractTest, OnlyTheQueuesThreadMayEndRequests) {
  Connect("wrong_thread");
  const uint64_t token = client_->Send({});
  EXPECT_TRUE(log_.WaitFor("bad: queue 0: complete called on a thread that does not serve it"));
  EXPECT_FALSE(client_->Has(token));
  EXPECT_OK(neighbour_->Check());
  ASSERT_OK(client_->port().StopQueue(0));
  EXPECT_TRUE(log_.Contains("queue 0: requests did not end within 1s; they are dropped"));
}

TEST_F(PluginContractTest, RequestsThatNeverEndAreDroppedAtTheStop) {
  Connect("never_completes");
  for (int i = 0; i < 20; ++i) client_->Put({}, "", 64, 0);
  client_->queue().Publish();
  ASSERT_TRUE(Eventually([&] { return device_.Inspect()->queues[0].in_flight == 20; }));
  EXPECT_OK(neighbour_->Check());
  ASSERT_OK_AND_ASSIGN(const uint32_t index, client_->port().StopQueue(0));
  EXPECT_EQ(index, 20);
  EXPECT_TRUE(log_.Contains("bad: queue 0: requests did not end within 1s; they are dropped"));
  EXPECT_EQ(client_->queue().ring().in_flight(), 20u);
  ExpectRestarts();
  EXPECT_EQ(device_.Inspect()->queues[0].in_flight, 0u);
  EXPECT_EQ(device_.Inspect()->arena_slots_used, 0u);
}

// ---- options ------------------------------------------------------------------------------------

TEST_F(PluginContractTest, AnErrorAboutAnOptionNamesIt) {
  const auto add = [&](const std::map<std::string, std::string>& options,
                       const std::map<std::string, OptionKind>& kinds) {
    DeviceSpec spec;
    spec.name = "options";
    spec.plugin = BadPlugin("options_correct");
    spec.options = options;
    spec.option_kinds = kinds;
    const absl::Status status = host_->Add(spec).status();
    if (status.ok()) {
      EXPECT_OK(host_->Remove("options"));
    }
    return status;
  };
  const auto refuses = [&](const std::string& name, OptionKind kind, const std::string& why) {
    const absl::Status status = add({{name, "1"}}, {{name, kind}});
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument, why)) << name;
    EXPECT_EQ(status.GetPayload(kOptionPayload), absl::Cord(name));
  };
  using enum OptionKind;
  for (const OptionKind kind : {kBoolean, kInteger, kNumber}) {
    refuses("text", kind, "device 'options': option text: must be a string");
  }
  for (const OptionKind kind : {kInteger, kNumber}) {
    refuses("boolean", kind, "option boolean: must be true or false");
  }
  for (const OptionKind kind : {kBoolean, kNumber}) {
    refuses("integer", kind, "option integer: must be an integer");
  }
  refuses("number", kBoolean, "option number: must be a number");
  // Text is any of them, and what is not declared is the plugin's to judge.
  EXPECT_OK(add({{"boolean", "x"}, {"integer", "x"}, {"number", "x"}}, {}));
  EXPECT_OK(add({{"boolean", "true"}, {"integer", "1"}, {"number", "1"}, {"later", "1"}},
                {{"boolean", kBoolean},
                 {"integer", kInteger},
                 {"number", kInteger},
                 {"later", kBoolean},
                 {"other", kBoolean}}));
  EXPECT_OK(add({{"number", "1.5"}}, {{"number", kNumber}}));
  const absl::Status by_init = add({{"text", "bad"}}, {});
  EXPECT_THAT(by_init, StatusIs(absl::StatusCode::kInvalidArgument,
                                "device 'options': init: option text: is bad: very"));
  EXPECT_EQ(by_init.GetPayload(kOptionPayload), absl::Cord("text"));
}

// ---- a plugin that hangs ------------------------------------------------------------------------

// The hang ends when a writer opens the FIFO. A device that got stuck is kept for ever, as the
// thread in it is; the tests hold on to its port so that leak checkers see that this is meant.
class StuckPluginTest : public PluginContractTest {
 protected:
  void SetUp() override {
    PluginContractTest::SetUp();
    fifo_ = dir_ / "release";
    ASSERT_EQ(mkfifo(fifo_.c_str(), 0600), 0);
    setenv("VIRTBAY_TEST_RELEASE", fifo_.c_str(), 1);
  }
  void TearDown() override {
    PluginContractTest::TearDown();
    unsetenv("VIRTBAY_TEST_RELEASE");
  }
  // Lets the thread that hangs go on; waits for it to be there.
  void Release() {
    const UniqueFd writer(open(fifo_.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(writer);
  }

  TempDir dir_;
  TemporaryFilesIn copies_{dir_.path()};
  std::string fifo_;
};

// A new memory map is not kept waiting by it, and is in force when the callback returns.
TEST_F(StuckPluginTest, AMemoryMapIsTakenMeanwhile) {
  Connect("stuck_in_on_requests");
  const uint64_t token = client_->Send({});
  ASSERT_TRUE(log_.WaitFor("bad: queue 0: the plugin has been in on_requests for more than"));
  ASSERT_OK(client_->memory().AddRegion({.address = 0x8'0000'0000, .size = 65536}));
  EXPECT_OK(client_->transport().SetMemory(client_->memory()));
  EXPECT_FALSE(client_->Has(token));
  Release();
  EXPECT_OK(client_->Take(token));
  EXPECT_FALSE(client_->NeedsReset());
}

TEST_F(StuckPluginTest, TheWatchdogSaysSoOnce) {
  Connect("stuck_in_on_requests");
  const uint64_t token = client_->Send({});
  EXPECT_TRUE(log_.WaitFor("bad: queue 0: the plugin has been in on_requests for more than"));
  EXPECT_OK(neighbour_->Check());
  // It is said once for each hang.
  for (int i = 0; i < 3; ++i) {
    ASSERT_FALSE(client_->Has(token));
    usleep(100'000);
  }
  size_t lines = 0;
  for (const std::string& line : log_.lines()) {
    if (line.find("has been in on_requests") != std::string::npos) ++lines;
  }
  EXPECT_EQ(lines, 1u);
  Release();
  EXPECT_OK(client_->Take(token)) << "a hang that ends has done no harm";
  EXPECT_FALSE(client_->NeedsReset());
}

TEST_F(StuckPluginTest, AStopGivesUpAndTheHostEndsWithoutIt) {
  Connect("stuck_in_on_requests");
  client_->Send({});
  EXPECT_TRUE(log_.WaitFor("has been in on_requests"));
  EXPECT_THAT(client_->port().StopQueue(0), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_THAT(device_.Inspect()->failure,
              HasSubstr("queue 0: the plugin's on_requests does not return"));
  // From here on it answers at once that it cannot.
  EXPECT_THAT(client_->port().Reset(), StatusIs(absl::StatusCode::kUnavailable, "does not return"));
  EXPECT_THAT(client_->port().StopQueue(0), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client_->port().StartQueue(0, client_->ConfigOf(0, 0)),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(device_.Stop(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_OK(neighbour_->Check());
  EXPECT_THAT(host_->Remove("bad"),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       "device 'bad': the device is leaked with its plugin, because a callback"));
  EXPECT_TRUE(log_.Contains("bad: the device is leaked with its plugin"));
  EXPECT_OK(neighbour_->Check());
  // The name serves a new device while the old one still hangs.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle next, host_->Add(Spec("bad")));
  ASSERT_OK_AND_ASSIGN(auto other, Client::Create(next));
  EXPECT_OK(other->Check());
  other.reset();
  // The hang ends long after everyone has given up: nothing it touches has gone.
  Release();
  static std::vector<std::unique_ptr<Client>> kept;
  kept.push_back(std::move(client_));
}

TEST_F(StuckPluginTest, ADeviceWhoseCallbackReturnsAfterAllServesTheNextFrontEnd) {
  Connect("stuck_in_on_requests");
  client_->Send({});
  EXPECT_TRUE(log_.WaitFor("has been in on_requests"));
  EXPECT_THAT(client_->port().StopQueue(0), StatusIs(absl::StatusCode::kDeadlineExceeded));
  client_.reset();
  EXPECT_EQ(device_.Inspect()->state, "failed");
  EXPECT_THAT(Client::Create(device_).status(),
              StatusIs(absl::StatusCode::kUnavailable, "a callback does not return"));
  Release();
  ASSERT_TRUE(testing::Eventually([&] {
    auto next = Client::Create(device_);
    if (next.ok()) client_ = *std::move(next);
    return next.ok();
  }));
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_EQ(device_.Inspect()->state, "running");
  client_.reset();
  EXPECT_OK(host_->Remove("bad")) << "nothing of it is leaked";
}

// ---- what is left of a plugin -------------------------------------------------------------------

TEST_F(PluginContractTest, AThreadLocalOfALivingThreadKeepsTheImageAndIsReported) {
  if (kSanitized) GTEST_SKIP() << "images stay mapped for the sanitizer's reports";
  Connect("leaks_thread_local");
  ASSERT_OK(client_->Call({}));
  client_.reset();
  ASSERT_OK(host_->Remove("bad"));
  // Its load() ran on this thread, which lives; the queue thread has been joined.
  EXPECT_TRUE(log_.WaitFor("leaks_thread_local.so was closed but is still mapped"));
}

TEST_F(PluginContractTest, AnExceptionFromUnloadIsReported) {
  Connect("unload_throws");
  ASSERT_OK(client_->Call({}));
  client_.reset();
  ASSERT_OK(host_->Remove("bad"));
  EXPECT_TRUE(log_.WaitFor("unload(): threw an exception: from unload"));
}

TEST_F(PluginContractTest, AllAtOnce) {
  // Every plugin that serves in some way, in one Host, each with a front-end.
  const char* plugins[] = {"correct",         "throws_in_on_requests", "throws_raw_in_on_requests",
                           "completes_twice", "completes_late",        "lies_about_written",
                           "wrong_thread",    "never_completes"};
  std::vector<std::unique_ptr<Client>> clients;
  for (const char* plugin : plugins) {
    DeviceSpec spec = Spec(plugin, {}, "");
    spec.plugin = BadPlugin(plugin);
    spec.stop_deadline = absl::Milliseconds(500);
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    clients.push_back(std::move(client));
  }
  for (int i = 0; i < 20; ++i) {
    for (auto& client : clients) client->Send({});
    ASSERT_OK(neighbour_->Check());
  }
  EXPECT_OK(clients[0]->Call({}));
  host_->Inspect("correct").IgnoreError();
  // Ports and Host end in either order.
  for (size_t i = 0; i < clients.size(); i += 2) clients[i].reset();
  for (const char* plugin : plugins) EXPECT_OK(host_->Remove(plugin));
  clients.clear();
}

}  // namespace
}  // namespace virtbay::testing
