// Kick, call and error descriptors of every kind, and what a front-end does to them.
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <vector>

#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

TEST_F(DeviceTest, KicksMayComeThroughAPipe) {
  for (const int flags : {0, O_NONBLOCK}) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec(absl::StrCat("a", flags))));
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
    Pipe pipe(flags);
    ASSERT_OK(client->port().SetKick(0, std::move(pipe.reader)));
    for (int i = 0; i < 50; ++i) {
      const uint64_t token = client->Put({.op = Op::kEcho}, "x", 64, 0);
      // Shown without a kick through the old descriptor's driver; then kicked by one byte.
      client->queue().ring().Publish();
      ASSERT_EQ(write(pipe.writer.get(), "k", 1), 1);
      ASSERT_OK(client->Take(token));
    }
    EXPECT_GT(device.Inspect()->queues[0].kicks, 0u);
    // A driver that closes its end is heard no more; the rest goes on.
    pipe.writer.reset();
    EXPECT_TRUE(log_.WaitFor("kick descriptor is unusable (end of file)"));
    EXPECT_TRUE(client->port().queue_running(0));
    ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
    EXPECT_OK(client->Check());
  }
}

TEST_F(DeviceTest, AnUnreadableKickIsSaidAndHarmless) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  ASSERT_OK(client->port().SetKick(0, UniqueFd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC))));
  EXPECT_TRUE(log_.WaitFor("kick descriptor is unusable (errno "));
  ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, WithoutAKickDescriptorTheRingIsLookedAt) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.kick_fds = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->queues[0].kicks, 0u);
}

TEST_F(DeviceTest, WithoutACallDescriptorTheDriverLooks) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.call_fds = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  EXPECT_EQ(device.Inspect()->queues[0].calls, 0u);
  // A call descriptor that comes late is written for what came before it.
  const UniqueFd call(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
  uint64_t count = 0;
  EXPECT_EQ(read(call.get(), &count, sizeof(count)), 8);
}

TEST_F(DeviceTest, ACallPipeWithoutAReaderKillsNobody) {
  std::signal(SIGPIPE, SIG_DFL);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  Pipe pipe;
  ASSERT_OK(client->port().SetCall(0, std::move(pipe.writer)));
  const uint64_t token = client->Send({.op = Op::kEcho}, "x");
  pollfd look{.fd = pipe.reader.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&look, 1, 60'000), 1) << "the call comes through the pipe";
  pipe.reader.reset();
  EXPECT_TRUE(client->Has(token));
  for (int i = 0; i < 10; ++i) {
    const uint64_t next = client->Send({.op = Op::kEcho}, "x");
    ASSERT_TRUE(Eventually([&] { return client->Has(next); }));
  }
}

TEST_F(DeviceTest, AFullCallPipeHoldsNobodyUp) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.event_idx = false;  // a call for every answer
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 4096);
  ASSERT_OK(client->port().SetCall(0, std::move(pipe.writer)));
  for (int i = 0; i < 1000; ++i) {
    const uint64_t token = client->Send({.op = Op::kNothing});
    ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
  }
  EXPECT_GE(device.Inspect()->queues[0].calls, 1000u);
}

// The front-end shares the open file, so that it can undo O_NONBLOCK at any time.
void MakeBlocking(int fd) { ASSERT_EQ(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0); }

TEST_F(DeviceTest, AFullCallPipeOrSocketThatBlocksHoldsNobodyUp) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  Client::Options options;
  options.driver.event_idx = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.writer.get(), F_SETPIPE_SZ, 4096), 4096);
  int pair[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd reader(pair[0]);
  const UniqueFd writer(pair[1]);
  for (const int call : {pipe.writer.get(), writer.get()}) {
    ASSERT_OK(client->port().SetCall(0, Copy(call)));
    MakeBlocking(call);
    for (int i = 0; i < 1000; ++i) {
      const uint64_t token = client->Send({.op = Op::kNothing});
      ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
    }
    pollfd room{.fd = call, .events = POLLOUT, .revents = 0};
    EXPECT_EQ(poll(&room, 1, 0), 0) << "it is full";
  }
}

TEST_F(DeviceTest, AFullCallEventfdThatBlocksCostsTheFrontEndItsRing) {
  MakeHost(absl::Milliseconds(40));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  for (const bool packed : {false, true}) {
    Client::Options options;
    options.driver.event_idx = false;
    options.driver.packed = packed;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    const UniqueFd call(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
    const UniqueFd error(eventfd(0, EFD_CLOEXEC));
    ASSERT_OK(client->port().SetError(0, error.Duplicate()));
    uint64_t most = 0;
    if (read(call.get(), &most, sizeof most) < 0) {  // of the session before
      ASSERT_EQ(errno, EAGAIN);
    }
    most = ~uint64_t{1};
    ASSERT_EQ(write(call.get(), &most, sizeof most), 8);
    MakeBlocking(call.get());
    client->Send({.op = Op::kNothing});
    pollfd look{.fd = error.get(), .events = POLLIN, .revents = 0};
    ASSERT_EQ(poll(&look, 1, 60'000), 1) << "the ring stops, with its error descriptor";
    EXPECT_TRUE(client->NeedsReset());
    EXPECT_FALSE(client->port().queue_running(0));
    EXPECT_TRUE(log_.Contains("made its call or error descriptor block"));
    // Not the device, which serves on.
    ASSERT_OK(client->port().Reset());
    ASSERT_OK(client->driver().Restart());
    EXPECT_OK(client->Check());
  }
  ASSERT_OK_AND_ASSIGN(auto next, Client::Create(device));
  EXPECT_OK(next->Check());
}

// Processes that fill an eventfd whenever there is room.
class Fillers {
 public:
  Fillers(int fd, int count) {
    for (int i = 0; i < count; ++i) {
      // Each fits with so many notifications there.
      const uint64_t most = ~uint64_t{1} - static_cast<uint64_t>(i);
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (write(fd, &most, sizeof most) > 0) {
        }
        _exit(1);
      }
      children_.push_back(child);
    }
  }
  ~Fillers() {
    for (const pid_t child : children_) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
  }
  Fillers(const Fillers&) = delete;
  Fillers& operator=(const Fillers&) = delete;

 private:
  std::vector<pid_t> children_;
};

TEST_F(DeviceTest, ACallEventfdThatIsFilledAgainAndAgainCostsTheFrontEndItsRingOnly) {
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Seconds(2);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  Client::Options options;
  options.driver.event_idx = false;  // a call for every answer
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  const UniqueFd call(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetCall(0, call.Duplicate()));
  uint64_t most = 0;
  pollfd some{.fd = call.get(), .events = POLLIN, .revents = 0};
  if (poll(&some, 1, 0) == 1) {  // of the driver's start
    ASSERT_EQ(read(call.get(), &most, sizeof most), 8);
  }
  most = ~uint64_t{1};
  ASSERT_EQ(write(call.get(), &most, sizeof most), 8);
  {
    const Fillers fillers(call.get(), 4);
    // One burst, with a call for every few.
    const uint64_t first = client->Put({.op = Op::kNothing}, "", 64, 0);
    for (int i = 0; i < 40; ++i) client->Put({.op = Op::kNothing}, "", 64, 0);
    client->Send({.op = Op::kNothing});
    ASSERT_TRUE(Eventually([&] { return client->Has(first); }));
    ASSERT_OK(client->port().Reset()) << "its thread was free again in time";
  }
  EXPECT_FALSE(log_.Contains("does not return"));
  EXPECT_FALSE(log_.Contains("holds its thread up"));
  ASSERT_OK(client->driver().Restart());
  EXPECT_OK(client->Check());
}

// Of a kind that cannot be made to let go: no transport of ours passes a named pipe on.
TEST_F(DeviceTest, AThreadThatADescriptorHoldsUpIsNotBlamedOnThePlugin) {
  const TempDir directory;
  const std::string path = directory / "fifo";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const UniqueFd reader(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  UniqueFd writer(open(path.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_TRUE(writer);
  const std::string data(4096, 'x');
  while (write(writer.get(), data.data(), data.size()) > 0) {
  }
  MakeBlocking(writer.get());
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(200);
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(spec));
  Client::Options options;
  options.driver.event_idx = false;
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
  ASSERT_OK(client->port().SetCall(0, std::move(writer)));
  const uint64_t token = client->Send({.op = Op::kNothing});
  ASSERT_TRUE(Eventually([&] { return client->Has(token); }));
  EXPECT_THAT(client->port().StopQueue(0), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(
      device.Inspect()->failure,
      HasSubstr("queue 0: a call or error descriptor of the front-end holds its thread up"));
  client.reset();
  EXPECT_THAT(Client::Create(device).status(),
              StatusIs(absl::StatusCode::kUnavailable, "a descriptor of the front-end"));
  // The thread comes back, and so does the device.
  std::string taken(4096, 0);
  ASSERT_TRUE(Eventually([&] {
    while (read(reader.get(), taken.data(), taken.size()) > 0) {
    }
    auto next = Client::Create(device);
    if (next.ok()) client = *std::move(next);
    return next.ok();
  }));
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, AFullErrorEventfdThatBlocksHoldsNobodyUp) {
  MakeHost(absl::Milliseconds(40));
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const UniqueFd error(eventfd(0, EFD_CLOEXEC));
  ASSERT_OK(client->port().SetError(0, error.Duplicate()));
  MakeBlocking(error.get());
  const uint64_t most = ~uint64_t{1};
  ASSERT_EQ(write(error.get(), &most, sizeof most), 8);
  client->port().SignalError(0, error.Duplicate());
  ASSERT_TRUE(Eventually([&] { return !client->port().queue_running(0); }));
  ASSERT_OK(client->port().Reset());
  ASSERT_OK(client->driver().Restart());
  EXPECT_OK(client->Check());
}

TEST_F(DeviceTest, DescriptorsMayBeExchangedWhileTheRingRuns) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec("a")));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device));
  const size_t fds = CountEntries("/proc/self/fd");
  for (int i = 0; i < 200; ++i) {
    const uint64_t token = client->Send({.op = Op::kEcho}, "x");
    ASSERT_OK(client->port().SetKick(0, Copy(client->queue().kick_fd())));
    ASSERT_OK(client->port().SetCall(0, Copy(client->queue().call_fd())));
    ASSERT_OK(client->port().SetError(0, Copy(client->queue().error_fd())));
    ASSERT_OK(client->Take(token));
  }
  EXPECT_TRUE(Eventually([&] { return CountEntries("/proc/self/fd") == fds; }));
}

TEST_F(DeviceTest, ADisabledQueueTakesNothing) {
  for (const bool kick_fds : {true, false}) {
    ASSERT_OK_AND_ASSIGN(const DeviceHandle device, host_->Add(Spec(absl::StrCat("a", kick_fds))));
    Client::Options options;
    options.driver.kick_fds = kick_fds;
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device, options));
    ASSERT_OK(client->Check());
    ASSERT_OK(client->port().EnableQueue(0, false));
    const uint64_t before = device.Inspect()->queues[0].requests;
    const uint64_t token = client->Send({.op = Op::kEcho}, "x");
    client->queue().Kick();
    // The thread has looked at its mail twice since.
    ASSERT_OK(client->port().SetError(0, UniqueFd()));
    ASSERT_OK(client->port().SetError(0, UniqueFd()));
    EXPECT_EQ(device.Inspect()->queues[0].requests, before);
    EXPECT_TRUE(client->port().queue_running(0));
    ASSERT_OK(client->port().EnableQueue(0, true));
    ASSERT_OK(client->Take(token));
    EXPECT_OK(client->Check());
  }
}

}  // namespace
}  // namespace virtbay::testing
