// What a plugin gets from its host on a queue thread: I/O on payload, fetch and reserve, timers,
// offloaded work, failing itself.
#include <poll.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

// Waits until the descriptor has something to read.
bool Readable(int fd) {
  pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&look, 1, 60'000) == 1;
}

class ServiceTest : public DeviceTest {
 protected:
  void Connect(DeviceSpec spec, Client::Options options = {}) {
    client_.reset();
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(std::move(spec)));
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, options));
  }
  UniqueFd File(const std::string& content) {
    return UniqueFd(open(dir_.Write("file", content).c_str(), O_RDWR | O_CLOEXEC));
  }
  int64_t Result(const Command& command, const std::string& payload = "", uint32_t room = 64) {
    const absl::StatusOr<Reply> reply = client_->Call(command, payload, room);
    EXPECT_OK(reply);
    return reply.ok() ? reply->result : INT64_MIN;
  }
  QueueStats Stats() { return device_.Inspect()->queues[0]; }

  TempDir dir_;
  DeviceHandle device_;
  std::unique_ptr<Client> client_;
};

std::string Numbers(size_t n) {
  std::string text(n, '\0');
  for (size_t i = 0; i < n; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

// ---- I/O on payload -----------------------------------------------------------------------------

TEST_F(ServiceTest, FilesAreReadIntoTheGuestsPages) {
  Connect(Spec("a"));
  const std::string content = Numbers(100'000);
  const UniqueFd file = File(content);
  for (const Op op : {Op::kReadNow, Op::kReadBlocking, Op::kSubmitRead}) {
    const uint64_t before = Stats().bytes_direct;
    // Beyond the out view: the plugin could not have reached these bytes.
    ASSERT_OK_AND_ASSIGN(
        const Reply reply,
        client_->Call({.op = op, .fd = file.get(), .a = 8, .b = 50'000, .offset = 777}, "",
                      60'000));
    EXPECT_EQ(reply.result, 50'000);
    EXPECT_EQ(reply.written, 50'008u);
    EXPECT_EQ(reply.data.substr(8), content.substr(777, 50'000));
    EXPECT_EQ(Stats().bytes_direct - before, 50'000u);
    // Short at the end of the file.
    ASSERT_OK_AND_ASSIGN(
        const Reply tail,
        client_->Call({.op = op, .fd = file.get(), .a = 1000, .b = 4096, .offset = 99'000}, "",
                      8192));
    EXPECT_EQ(tail.result, 1000);
    EXPECT_EQ(tail.data.substr(1000), content.substr(99'000));
  }
}

TEST_F(ServiceTest, FilesAreWrittenFromTheGuestsPages) {
  Connect(Spec("a"));
  const std::string content = Numbers(80'000);
  for (const Op op : {Op::kWriteNow, Op::kWriteBlocking, Op::kSubmitWrite}) {
    const UniqueFd file = File("");
    ASSERT_OK_AND_ASSIGN(
        const Reply reply,
        client_->Call(
            {.op = op, .fd = file.get(), .a = sizeof(Command) + 100, .b = 70'000, .offset = 50},
            content));
    if (op == Op::kWriteNow && reply.result == -EOPNOTSUPP) continue;  // this file system has none
    if (op == Op::kWriteNow && reply.result == -EAGAIN) continue;
    EXPECT_EQ(reply.result, 70'000);
    EXPECT_EQ(ReadFile(dir_ / "file").substr(50), content.substr(100, 70'000));
  }
}

TEST_F(ServiceTest, PayloadInManyPiecesIsOneRange) {
  Connect(Spec("a"));
  const std::string content = Numbers(4000);
  const UniqueFd file = File(content);
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, client_->memory().Allocate(64 << 10));
  for (const Op op : {Op::kReadNow, Op::kSubmitRead}) {
    std::memset(range.host, 0, range.size);
    new (range.host) Command{.op = op, .fd = file.get(), .a = 8, .b = 4000, .offset = 0};
    const guest::Segment in{range.address, sizeof(Command)};
    std::vector<guest::Segment> out{{range.address + 64, 8}};
    for (uint64_t i = 0; i < 40; ++i) out.push_back({range.address + 4096 + i * 300, 100});
    ASSERT_TRUE(client_->queue().Add({&in, 1}, out, 9999));
    client_->queue().Publish();
    ASSERT_OK(client_->queue().Wait(guest::WaitMode::kSleep));
    std::array<guest::UsedBuffer, 1> used;
    ASSERT_EQ(client_->queue().TakeUsed(used), 1u);
    EXPECT_EQ(used[0].written, 4008u);
    for (size_t i = 0; i < 40; ++i) {
      EXPECT_EQ(std::memcmp(range.host + 4096 + i * 300, content.data() + i * 100, 100), 0) << i;
    }
  }
}

TEST_F(ServiceTest, RangesBeyondThePayloadAreRefused) {
  Connect(Spec("a"));
  const UniqueFd file = File(Numbers(100));
  for (const auto& [a, b] : {std::pair<uint32_t, uint32_t>{0, 65},
                             {64, 1},
                             {65, 1},
                             {UINT32_MAX, 1},
                             {1, UINT32_MAX},
                             {UINT32_MAX, UINT32_MAX}}) {
    EXPECT_EQ(Result({.op = Op::kReadNow, .fd = file.get(), .a = a, .b = b}), -ERANGE) << a;
    EXPECT_EQ(Result({.op = Op::kSubmitRead, .fd = file.get(), .a = a, .b = b}),
              -VIRTBAY_OUT_OF_RANGE);
    EXPECT_EQ(Result({.op = Op::kWriteNow, .fd = file.get(), .a = a, .b = b}), -ERANGE);
  }
  EXPECT_EQ(Result({.op = Op::kReadNow, .fd = file.get(), .a = 64, .b = 0}), 0);
  EXPECT_EQ(Result({.op = Op::kSubmitBad, .fd = file.get()}), 7);
  EXPECT_EQ(Stats().in_flight, 0u);
  EXPECT_OK(client_->Check());
}

TEST_F(ServiceTest, ErrorsOfTheKernelArriveAsTheyAre) {
  Connect(Spec("a"));
  const UniqueFd directory(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  Pipe pipe(O_NONBLOCK);
  for (const Op op : {Op::kReadNow, Op::kReadBlocking, Op::kSubmitRead}) {
    EXPECT_EQ(Result({.op = op, .fd = -1, .b = 8}), -EBADF);
    // A directory cannot even be tried.
    const int expected = op == Op::kReadNow ? EOPNOTSUPP : EISDIR;
    EXPECT_EQ(Result({.op = op, .fd = directory.get(), .b = 8}), -expected);
  }
  EXPECT_EQ(
      Result({.op = Op::kReadNow, .fd = pipe.reader.get(), .b = 8, .offset = VIRTBAY_IO_STREAM}),
      -EAGAIN);
  EXPECT_EQ(Result({.op = Op::kSubmitFsync, .fd = -1}), -EBADF);
  EXPECT_EQ(Result({.op = Op::kSubmitPoll, .fd = -1, .a = POLLIN}), -EBADF);
  EXPECT_OK(client_->Check());
}

TEST_F(ServiceTest, StreamsFillRequestsAsTheyCome) {
  Connect(Spec("a"));
  Pipe pipe;
  std::vector<uint64_t> tokens;
  for (int i = 0; i < 8; ++i) {
    tokens.push_back(client_->Send({.op = Op::kSubmitRead,
                                    .fd = pipe.reader.get(),
                                    .a = 8,
                                    .b = 4,
                                    .offset = VIRTBAY_IO_STREAM}));
  }
  ASSERT_OK(client_->Check());
  for (const uint64_t token : tokens) EXPECT_FALSE(client_->Has(token));
  for (int i = 0; i < 8; ++i) ASSERT_EQ(write(pipe.writer.get(), "data", 4), 4);
  for (const uint64_t token : tokens) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token));
    EXPECT_EQ(reply.result, 4);
    EXPECT_EQ(reply.data.substr(8), "data");
  }
}

TEST_F(ServiceTest, ManyOperationsAtOnce) {
  Connect(Spec("a"), {.memory = 32u << 20, .driver = {.queue_size = 1024}});
  const std::string content = Numbers(1024 * 512);
  const UniqueFd file = File(content);
  std::vector<uint64_t> tokens;
  for (int round = 0; round < 3; ++round) {
    for (uint64_t i = 0; i < 1000; ++i) {
      tokens.push_back(client_->Put(
          {.op = Op::kSubmitRead, .fd = file.get(), .a = 8, .b = 512, .offset = i * 512}, "", 600,
          0));
      ASSERT_NE(tokens.back(), 0u);
    }
    client_->queue().Publish();
    for (uint64_t i = 0; i < 1000; ++i) {
      ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(tokens[i]));
      ASSERT_EQ(reply.result, 512);
      ASSERT_EQ(reply.data.substr(8), content.substr(i * 512, 512));
    }
    tokens.clear();
  }
}

// By two threads, where there is a helper.
TEST_F(ServiceTest, LargeReadsAreCountedHoweverTheyAreCopied) {
  constexpr uint32_t kLength = 900'000;
  const std::string content = Numbers(kLength + 500);
  const UniqueFd file = File(content);
  for (const bool helper : {true, false}) {
    DeviceSpec spec = Spec(helper ? "with" : "without");
    spec.transfer_helper = helper;
    Connect(spec);
    const auto read = [&](uint64_t offset, uint32_t result) {
      const uint64_t before = Stats().bytes_direct;
      ASSERT_OK_AND_ASSIGN(
          const Reply reply,
          client_->Call(
              {.op = Op::kReadNow, .fd = file.get(), .a = 8, .b = kLength, .offset = offset}, "",
              kLength + 100));
      EXPECT_EQ(reply.result, result);
      EXPECT_TRUE(reply.data.substr(8, result) == content.substr(offset, result));
      EXPECT_EQ(Stats().bytes_direct - before, result);
    };
    read(0, kLength);
    read(1000, kLength - 500);  // the end of the file
  }
}

TEST_F(ServiceTest, SyncPollAndCancel) {
  Connect(Spec("a"));
  const UniqueFd file = File("x");
  EXPECT_EQ(Result({.op = Op::kSubmitFsync, .fd = file.get()}), 0);
  Pipe pipe;
  const uint64_t waiting =
      client_->Send({.op = Op::kSubmitPoll, .fd = pipe.reader.get(), .a = POLLIN, .offset = 4711});
  const uint64_t other =
      client_->Send({.op = Op::kSubmitPoll, .fd = pipe.reader.get(), .a = POLLIN, .offset = 1});
  EXPECT_EQ(Result({.op = Op::kCancel, .offset = 4711}), 0);
  ASSERT_OK_AND_ASSIGN(Reply reply, client_->Take(waiting));
  EXPECT_EQ(reply.result, -ECANCELED);
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_OK_AND_ASSIGN(reply, client_->Take(other));
  EXPECT_EQ(reply.result, POLLIN);
  EXPECT_EQ(Stats().bytes_direct, 0u) << "events are no bytes";
}

TEST_F(ServiceTest, IoThatWouldNotEndIsCancelledWithTheSession) {
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(500);
  Connect(spec);
  const size_t tasks = CountEntries("/proc/self/task");
  for (int round = 0; round < 3; ++round) {
    Pipe pipe;
    for (int i = 0; i < 10; ++i) {
      client_->Send({.op = Op::kSubmitRead,
                     .fd = pipe.reader.get(),
                     .a = 8,
                     .b = 4,
                     .offset = VIRTBAY_IO_STREAM});
    }
    ASSERT_OK(client_->Check());
    ASSERT_OK(client_->port().Reset());
    EXPECT_TRUE(log_.Contains("requests did not end within 500ms"));
    EXPECT_EQ(device_.Inspect()->queues[0].in_flight, 0u);
    EXPECT_EQ(device_.Inspect()->arena_slots_used, 0u);
    EXPECT_FALSE(log_.Contains("leaked"));
    ASSERT_OK(client_->driver().Restart());
    EXPECT_OK(client_->Check());
  }
  EXPECT_EQ(CountEntries("/proc/self/task"), tasks);
}

TEST_F(ServiceTest, IoUnderWayEndsBeforeAStopReturns) {
  Connect(Spec("a"));
  Pipe pipe;
  const uint64_t token = client_->Send({.op = Op::kSubmitRead,
                                        .fd = pipe.reader.get(),
                                        .a = 8,
                                        .b = 4,
                                        .offset = VIRTBAY_IO_STREAM});
  ASSERT_OK(client_->Check());
  std::thread writer([&] {
    EXPECT_TRUE(Eventually([&] { return Metric("a", "quiesces") == 1; }));
    EXPECT_EQ(write(pipe.writer.get(), "data", 4), 4);
  });
  EXPECT_OK(client_->port().StopQueue(0));
  writer.join();
  EXPECT_TRUE(client_->Has(token));
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token));
  EXPECT_EQ(reply.data.substr(8), "data");
}

// ---- fetch and reserve --------------------------------------------------------------------------

TEST_F(ServiceTest, FetchAndReserveInBothModes) {
  const std::string payload = Numbers(300'000);
  const auto sum = [&](size_t at, size_t n) {
    int64_t total = 0;
    for (size_t i = at; i < at + n; ++i) total += static_cast<uint8_t>(payload[i]);
    return total;
  };
  for (const DmaMode mode : {DmaMode::kBounce, DmaMode::kDirect}) {
    DeviceSpec spec = Spec(mode == DmaMode::kBounce ? "bounce" : "direct");
    spec.dma_mode = mode;
    Connect(spec);
    const uint32_t head = sizeof(Command);
    const uint32_t total = head + 300'000;
    EXPECT_EQ(Result({.op = Op::kFetch, .a = head, .b = 262'144}, payload), sum(0, 262'144));
    EXPECT_EQ(Result({.op = Op::kFetch, .a = head + 299'999, .b = 1}, payload), sum(299'999, 1));
    EXPECT_EQ(Result({.op = Op::kFetch, .a = head + 50'000, .b = 100'000}, payload),
              sum(50'000, 100'000));
    for (const auto& [a, b] : {std::pair<uint32_t, uint32_t>{head, 262'145},
                               {total, 1},
                               {total - 1, 2},
                               {UINT32_MAX, 1},
                               {1, UINT32_MAX},
                               {0, 0}}) {
      EXPECT_EQ(Result({.op = Op::kFetch, .a = a, .b = b}, payload), -1) << a << " " << b;
    }
    for (const uint32_t size : {8u, 1024u, 1025u, 100'000u, 262'144u}) {
      ASSERT_OK_AND_ASSIGN(const Reply reply,
                           client_->Call({.op = Op::kReserve, .a = size, .b = 0x5a}, "", 300'000));
      EXPECT_EQ(reply.data, std::string(size, '\x5a')) << size;
    }
    EXPECT_EQ(Result({.op = Op::kReserve, .a = 262'145}, "", 300'000), -1);
    EXPECT_EQ(Result({.op = Op::kReserve, .a = 65}, "", 64), -1);
    EXPECT_EQ(device_.Inspect()->queues[0].in_flight, 0u);

    // What the modes differ in: who copies.
    const QueueStats before = Stats();
    EXPECT_EQ(Result({.op = Op::kFetch, .a = head, .b = 100'000}, payload), sum(0, 100'000));
    ASSERT_OK(client_->Call({.op = Op::kReserve, .a = 100'000, .b = 1}, "", 100'000));
    const QueueStats after = Stats();
    const uint64_t in = after.bytes_copied_in - before.bytes_copied_in;
    const uint64_t out = after.bytes_copied_out - before.bytes_copied_out;
    if (mode == DmaMode::kBounce) {
      EXPECT_GE(in, 100'000u);
      EXPECT_GE(out, 100'000u);
    } else {
      EXPECT_LE(in, 2 * 1024u) << "views only";
      EXPECT_LE(out, 1024u);
    }
    ASSERT_OK(host_->Remove(device_.Inspect()->name));
  }
}

TEST_F(ServiceTest, DirectModeGathersWhatIsInPieces) {
  DeviceSpec spec = Spec("a");
  spec.dma_mode = DmaMode::kDirect;
  Connect(spec);
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, client_->memory().Allocate(64 << 10));
  std::memset(range.host, 1, range.size);
  const auto call = [&](const Command& command) {
    new (range.host) Command(command);
    const std::array<guest::Segment, 3> in{{{range.address, sizeof(Command)},
                                            {range.address + 1000, 3000},
                                            {range.address + 8000, 3000}}};
    const std::array<guest::Segment, 2> out{
        {{range.address + 16384, 2000}, {range.address + 32768, 2000}}};
    EXPECT_TRUE(client_->queue().Add(in, out, 9999));
    client_->queue().Publish();
    EXPECT_OK(client_->queue().Wait(guest::WaitMode::kSleep));
    std::array<guest::UsedBuffer, 1> used;
    EXPECT_EQ(client_->queue().TakeUsed(used), 1u);
    int64_t result = 0;
    std::memcpy(&result, range.host + 16384, sizeof(result));
    return std::pair(used[0].written, result);
  };
  EXPECT_EQ(call({.op = Op::kFetch, .a = sizeof(Command), .b = 3000}),
            std::pair(8u, int64_t{3000}));
  EXPECT_EQ(call({.op = Op::kFetch, .a = sizeof(Command), .b = 6000}),
            std::pair(8u, int64_t{6000}));
  EXPECT_EQ(call({.op = Op::kReserve, .a = 1500, .b = 7}).first, 1500u);
  EXPECT_EQ(range.host[16384 + 1499], std::byte{7});
  EXPECT_EQ(call({.op = Op::kReserve, .a = 3500, .b = 9}).first, 3500u);
  EXPECT_EQ(range.host[16384 + 1999], std::byte{9});
  EXPECT_EQ(range.host[32768 + 1499], std::byte{9});
  EXPECT_EQ(range.host[32768 + 1500], std::byte{1});
}

TEST_F(ServiceTest, AnArenaWithoutRoomRefusesFetchesNotRequests) {
  Connect(Spec("a", {{"in_view", "64"}, {"out_view", "64"}}),
          {.memory = 64u << 20, .driver = {.queue_size = 256}});
  // 1024 slots: held views take one each, and 256 KiB fetches take 128 in a row.
  std::vector<uint64_t> held;
  for (int i = 0; i < 250; ++i) held.push_back(client_->Send({.op = Op::kHold}));
  const std::string payload(262'144, 'f');
  EXPECT_EQ(Result({.op = Op::kFetch, .a = 24, .b = 262'144}, payload), 262'144 * int64_t{'f'});
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  for (const uint64_t token : held) ASSERT_OK(client_->Take(token));
  EXPECT_FALSE(device_.Inspect()->needs_reset);
}

TEST_F(ServiceTest, ViewsLieApartInTheirSlots) {
  struct Case {
    uint32_t in, out;
    bool several;  // there is room for more than one in the slots
  };
  for (const auto& [in, out, several] :
       {Case{24, 8, true}, Case{64, 64, true}, Case{268, 8, true}, Case{1000, 16, true},
        Case{1024, 1024, false}, Case{1025, 1024, false}, Case{5000, 100, false}}) {
    SCOPED_TRACE(absl::StrCat(in, " and ", out));
    Connect(Spec(absl::StrCat("v", in, "-", out),
                 {{"in_view", absl::StrCat(in)}, {"out_view", absl::StrCat(out)}}),
            {.memory = 64u << 20, .driver = {.queue_size = 256}});
    // Twice, so that slots come again in another order.
    for (int round = 0; round < 2; ++round) {
      std::vector<uint64_t> held;
      for (uint32_t i = 0; i < 120; ++i) {
        const std::string payload(in - sizeof(Command), static_cast<char>(i));
        held.push_back(client_->Send({.op = Op::kHoldView, .a = i}, payload, out));
      }
      const int64_t places = Result({.op = Op::kCheckViews});
      EXPECT_GE(places, 1);
      EXPECT_EQ(places > 1, several);
      for (const uint64_t token : held) {
        ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token));
        EXPECT_EQ(reply.result, 1);
      }
    }
  }
}

// ---- timers -------------------------------------------------------------------------------------

TEST_F(ServiceTest, TimersEndRequests) {
  Connect(Spec("a"));
  std::vector<uint64_t> tokens;
  for (uint64_t i = 0; i < 50; ++i) {
    tokens.push_back(client_->Send({.op = Op::kTimer, .offset = i % 5 * 100'000}));
  }
  for (const uint64_t token : tokens) ASSERT_OK(client_->Take(token));
  EXPECT_EQ(Metric("a", "timers"), 50u);
}

TEST_F(ServiceTest, TimersOfAStoppedQueueStaySilent) {
  DeviceSpec spec = Spec("a", {{"queues", "2"}});
  spec.stop_deadline = absl::Milliseconds(500);
  Connect(spec);
  constexpr uint64_t kHour = 3'600'000'000'000;
  const uint64_t far = client_->Send({.op = Op::kTimer, .offset = kHour});
  const uint64_t never = client_->Send({.op = Op::kTimer, .offset = INT64_MAX});
  ASSERT_OK(client_->Check());
  ASSERT_OK(client_->port().StopQueue(0));
  EXPECT_FALSE(client_->Has(far));
  EXPECT_FALSE(client_->Has(never));
  EXPECT_EQ(Metric("a", "timers"), 0u);
  // Those of the other queue go on.
  ASSERT_OK(client_->Call({.op = Op::kTimer, .offset = 1000}, "", 64, 1));
  EXPECT_EQ(Metric("a", "timers"), 1u);
}

// ---- offloaded work -----------------------------------------------------------------------------

TEST_F(ServiceTest, OffloadedWorkBlocksNobody) {
  const Pipe pipe;  // before the device, so that its threads know the descriptor
  Connect(Spec("a"));
  std::vector<uint64_t> tokens;
  for (int i = 0; i < 16; ++i) {
    tokens.push_back(client_->Send({.op = Op::kOffload, .fd = pipe.reader.get()}));
  }
  for (int i = 0; i < 100; ++i) ASSERT_OK(client_->Check());
  for (const uint64_t token : tokens) EXPECT_FALSE(client_->Has(token));
  const std::string bytes(16, 'x');
  ASSERT_EQ(write(pipe.writer.get(), bytes.data(), 16), 16);
  for (const uint64_t token : tokens) ASSERT_OK(client_->Take(token));
  ASSERT_OK(host_->Remove("a"));  // before the pipe goes
}

TEST_F(ServiceTest, AStopWaitsForOffloadedWork) {
  const Pipe pipe;  // before the device, so that its threads know the descriptor
  Connect(Spec("a"));
  const uint64_t token = client_->Send({.op = Op::kOffload, .fd = pipe.reader.get()});
  ASSERT_OK(client_->Check());
  std::thread writer([&] {
    EXPECT_TRUE(Eventually([&] { return Metric("a", "quiesces") == 1; }));
    EXPECT_EQ(write(pipe.writer.get(), "x", 1), 1);
  });
  EXPECT_OK(client_->port().StopQueue(0));
  writer.join();
  EXPECT_TRUE(client_->Has(token));
  ASSERT_OK(host_->Remove("a"));
}

TEST_F(ServiceTest, OffloadedWorkThatComesTooLateIsForgotten) {
  const Pipe pipe;  // before the device, so that its threads know the descriptor
  DeviceSpec spec = Spec("a");
  spec.stop_deadline = absl::Milliseconds(500);
  Connect(spec);
  client_->Send({.op = Op::kOffload, .fd = pipe.reader.get()});
  ASSERT_OK(client_->Check());
  ASSERT_OK(client_->port().Reset());
  EXPECT_TRUE(log_.Contains("requests did not end"));
  ASSERT_OK(client_->driver().Restart());
  const size_t lines = log_.lines().size();
  ASSERT_OK(client_->Check());
  EXPECT_OK(client_->port().StopQueue(0)) << "has nothing to wait for";
  EXPECT_EQ(log_.lines().size(), lines);
  // The work ends in the middle of another session, or with the device.
  ASSERT_OK(client_->driver().Restart());
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_OK(client_->Check());
  client_.reset();
  ASSERT_OK(host_->Remove("a"));
}

TEST_F(ServiceTest, OffloadedWorkThatThrowsFailsItsDevice) {
  Connect(Spec("other"));
  auto neighbour = std::move(client_);
  Connect(Spec("a"));
  client_->Send({.op = Op::kOffloadThrow});
  EXPECT_TRUE(client_->WaitForConfigChange());
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_THAT(device_.Inspect()->failure, HasSubstr("offloaded work threw: from the pool"));
  EXPECT_OK(neighbour->Check());
  ASSERT_OK(client_->driver().Restart());
  EXPECT_OK(client_->Check());
}

// ---- the device as a whole ----------------------------------------------------------------------

TEST_F(ServiceTest, APluginKnowsWhereItIs) {
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> two{{"queues", "2"}};
    const std::string name = absl::StrCat("a", parallel);
    Connect(parallel ? ParallelSpec(name, two) : Spec(name, two));
    for (const uint32_t queue : {0u, 1u}) {
      ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Call({.op = Op::kWhere}, "", 64, queue));
      EXPECT_EQ(reply.result, 1);
    }
  }
}

TEST_F(ServiceTest, APluginMayFailItsDevice) {
  Connect(Spec("other"));
  auto neighbour = std::move(client_);
  for (int round = 0; round < 3; ++round) {
    if (round == 0) {
      Connect(Spec("a", {{"queues", "2"}}));
    } else {
      ASSERT_OK(client_->driver().Restart());
    }
    const uint64_t held = client_->Send({.op = Op::kHoldStill}, "", 64, 1);
    ASSERT_OK(client_->Check(1));
    EXPECT_OK(client_->Call({.op = Op::kFail})) << "this one is still answered";
    EXPECT_TRUE(client_->WaitForConfigChange());
    EXPECT_TRUE(client_->NeedsReset());
    EXPECT_EQ(device_.Inspect()->state, "failed");
    EXPECT_EQ(device_.Inspect()->failure, "a request said so");
    // No more requests are taken, on no queue.
    const uint64_t seen = Metric("a", "requests");
    client_->Send({.op = Op::kEcho}, "x", 64, 0);
    client_->Send({.op = Op::kEcho}, "x", 64, 1);
    ASSERT_OK(client_->port().SetError(0, UniqueFd()));
    ASSERT_OK(client_->port().SetError(0, UniqueFd()));
    EXPECT_EQ(Metric("a", "requests"), seen);
    EXPECT_FALSE(client_->Has(held, 1));
    EXPECT_OK(neighbour->Check());
    // A failed device ends at once: nobody waits for what it will not do.
    ASSERT_OK(client_->port().Reset());
    EXPECT_FALSE(log_.Contains("requests did not end"));
  }
  ASSERT_OK(client_->driver().Restart());
  EXPECT_OK(client_->Check());
  EXPECT_EQ(device_.Inspect()->state, "running");
}

TEST_F(ServiceTest, ACondemnedThreadServesNoMore) {
  for (const bool parallel : {false, true}) {
    const std::map<std::string, std::string> two{{"queues", "2"}};
    const std::string name = absl::StrCat("a", parallel);
    Connect(parallel ? ParallelSpec(name, two) : Spec(name, two));
    ASSERT_OK(client_->Check(0));
    ASSERT_OK(client_->Check(1));
    const UniqueFd told(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    ASSERT_OK(client_->port().SetError(0, UniqueFd(dup(told.get()))));
    EXPECT_OK(client_->Call({.op = Op::kCondemn})) << "this one is still answered";
    EXPECT_TRUE(Readable(told.get()));
    EXPECT_TRUE(log_.WaitFor("the queue thread ends: a request said so"));
    EXPECT_FALSE(client_->port().queue_running(0));
    EXPECT_TRUE(device_.Inspect()->queues[0].broken);
    EXPECT_EQ(client_->NeedsReset(), !parallel) << "only the last thread's end fails the device";
    EXPECT_EQ(device_.Inspect()->failure.empty(), parallel);
    EXPECT_THAT(client_->port().StartQueue(0, client_->ConfigOf(0, 0)),
                StatusIs(absl::StatusCode::kUnavailable, "ended"));
    if (parallel) {
      // The other queue's thread goes on, and follows a change of memory.
      EXPECT_TRUE(client_->port().queue_running(1));
      EXPECT_OK(client_->transport().SetMemory(client_->memory()));
      EXPECT_OK(client_->Check(1));
      EXPECT_OK(client_->Call({.op = Op::kCondemn}, "", 64, 1));
      EXPECT_TRUE(client_->WaitForConfigChange());
      EXPECT_TRUE(client_->NeedsReset());
    }
    EXPECT_FALSE(client_->port().queue_running(1));
    EXPECT_THAT(device_.Inspect()->failure, HasSubstr("a request said so"));
    EXPECT_OK(client_->port().StopQueue(0)) << "its index is still to be had";
    ASSERT_OK(client_->driver().Restart());
    EXPECT_FALSE(client_->NeedsReset());
    EXPECT_OK(client_->Check(0));
    EXPECT_OK(client_->Check(1));
  }
}

TEST_F(ServiceTest, WhatACondemnedThreadHasTakenIsAnswered) {
  Connect(ParallelSpec("a", {{"queues", "2"}}));
  Pipe read_from, offload_from;
  const UniqueFd told(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  ASSERT_OK(client_->port().SetError(0, UniqueFd(dup(told.get()))));
  const uint64_t held = client_->Send({.op = Op::kHold});
  const uint64_t read = client_->Send({.op = Op::kSubmitRead,
                                       .fd = read_from.reader.get(),
                                       .a = kResultSize,
                                       .b = 4,
                                       .offset = VIRTBAY_IO_STREAM});
  const uint64_t offloaded = client_->Send({.op = Op::kOffload, .fd = offload_from.reader.get()});
  EXPECT_OK(client_->Call({.op = Op::kCondemn}));
  // Told to end what it holds; what the kernel and a pool thread still have is waited for.
  EXPECT_OK(client_->Take(held));
  EXPECT_FALSE(client_->Has(read));
  EXPECT_TRUE(client_->port().queue_running(0));
  const uint64_t late = client_->Send({.op = Op::kEcho});
  ASSERT_EQ(write(offload_from.writer.get(), "x", 1), 1);
  EXPECT_OK(client_->Take(offloaded));
  ASSERT_EQ(write(read_from.writer.get(), "data", 4), 4);
  ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(read));
  EXPECT_EQ(reply.data.substr(kResultSize), "data");
  EXPECT_TRUE(Readable(told.get()));
  EXPECT_FALSE(client_->port().queue_running(0));
  EXPECT_FALSE(client_->Has(late)) << "no more are taken";
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_OK(client_->Check(1));
}

TEST_F(ServiceTest, AnAuxiliaryQueueAloneIsNotEnough) {
  Connect(ParallelSpec("a", {{"queues", "3"}, {"auxiliary", "1"}}));
  EXPECT_OK(client_->Call({.op = Op::kCondemn}, "", 64, 1));
  EXPECT_TRUE(log_.WaitFor("the queue thread ends"));
  EXPECT_OK(client_->Check(2));
  EXPECT_FALSE(client_->NeedsReset());
  EXPECT_OK(client_->Call({.op = Op::kCondemn}, "", 64, 2));
  EXPECT_TRUE(client_->WaitForConfigChange());
  EXPECT_TRUE(client_->NeedsReset());
  EXPECT_OK(client_->Check(0)) << "it serves on nevertheless";
}

TEST_F(ServiceTest, ConfigurationChangesAreAnnounced) {
  Connect(Spec("a"));
  for (int i = 0; i < 20; ++i) {
    ASSERT_OK(client_->Call({.op = Op::kConfigChanged}));
    EXPECT_TRUE(client_->WaitForConfigChange());
  }
  EXPECT_FALSE(client_->NeedsReset());
}

}  // namespace
}  // namespace virtbay::testing
