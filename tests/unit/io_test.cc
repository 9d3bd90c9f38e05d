// The loop of a queue thread: watches, timers, wake-ups, and operations on files and pipes.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "framework/base/clock.h"
#include "framework/io/loop.h"
#include "tests/support/process_state.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;
using ::virtbay::testing::TempDir;

constexpr uint64_t kMs = 1'000'000;
constexpr uint64_t kNone = UINT64_MAX;

struct IoReport {
  uint16_t queue;
  uint64_t cookie;
  int32_t result;
  bool operator==(const IoReport&) const = default;
};

// Keeps what the loop reports, and does what the test wants done at each report.
class Recorder final : public LoopEvents {
 public:
  void OnIo(const IoOp& op, int32_t result) override {
    io.push_back({op.queue, op.cookie, result});
    if (on_io) on_io(op, result);
  }
  void OnWatch(uint32_t tag) override {
    ++watches[tag];
    if (on_watch) on_watch(tag);
  }
  void OnWatchLost(uint32_t tag, int32_t error) override {
    lost[tag] = error;
    if (on_lost) on_lost(tag);
  }
  void OnTimer(uint16_t queue, uint64_t cookie) override {
    timers.emplace_back(queue, cookie);
    if (on_timer) on_timer(queue, cookie);
  }

  std::vector<IoReport> io;
  std::map<uint32_t, int> watches;
  std::map<uint32_t, int32_t> lost;
  std::vector<std::pair<uint16_t, uint64_t>> timers;
  std::function<void(const IoOp&, int32_t)> on_io;
  std::function<void(uint32_t)> on_watch;
  std::function<void(uint32_t)> on_lost;
  std::function<void(uint16_t, uint64_t)> on_timer;
};

// Has a system call fail from now on, in this process.
bool Forbid(uint32_t number, uint32_t error) {
  std::array<sock_filter, 4> program = {
      {{BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(seccomp_data, nr)},
       {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number},
       {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | error},
       {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}}};
  const sock_fprog filter = {static_cast<uint16_t>(program.size()), program.data()};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST(LoopCheckTest, SaysWhenThereIsNoIoUringForThisProcess) {
  EXPECT_OK(Loop::Check());
  EXPECT_EXIT(
      {
        if (!Forbid(SYS_io_uring_setup, EPERM)) _exit(2);
        std::cerr << Loop::Check();
        _exit(Loop::Check().ok() ? 1 : 0);
      },
      ::testing::ExitedWithCode(0), "io_uring_disabled.*Operation not permitted");
  // What may pass is no reason.
  EXPECT_EXIT(
      {
        if (!Forbid(SYS_io_uring_setup, EMFILE)) _exit(2);
        _exit(Loop::Check().ok() ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

class LoopTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::signal(SIGPIPE, SIG_IGN);
    Make(64);
  }
  void Make(uint32_t entries, Loop::Kernel kernel = Loop::Kernel::kThis) {
    loop_.reset();
    ASSERT_OK_AND_ASSIGN(loop_, Loop::Create(entries, &events_, kernel));
    ASSERT_OK(loop_->Enable());
  }

  // Runs the loop until the condition holds; false when that takes absurdly long.
  bool RunUntil(const std::function<bool()>& condition) {
    const uint64_t limit = MonotonicNs() + 30'000 * kMs;
    for (;;) {
      loop_->Poll();
      if (condition()) return true;
      if (MonotonicNs() > limit) return false;
      loop_->Wait(limit);
    }
  }
  bool RunUntilIo(size_t count) {
    return RunUntil([&] { return events_.io.size() >= count; });
  }

  struct Pipe {
    UniqueFd reader, writer;
  };
  static Pipe MakePipe(int flags = 0) {
    int fds[2] = {-1, -1};
    EXPECT_EQ(pipe2(fds, O_CLOEXEC | flags), 0);
    return {UniqueFd(fds[0]), UniqueFd(fds[1])};
  }
  static UniqueFd MakeEvent() { return UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }
  static void Signal(const UniqueFd& fd) {
    const uint64_t one = 1;
    EXPECT_EQ(write(fd.get(), &one, sizeof(one)), ssize_t{sizeof(one)});
  }
  UniqueFd OpenFile(const std::string& name, int flags = O_RDWR | O_CREAT) {
    return UniqueFd(open((dir_ / name).c_str(), flags | O_CLOEXEC, 0600));
  }

  IoOp* Op(IoKind kind, int fd, uint64_t cookie, std::vector<iovec> segments = {},
           uint64_t offset = kNone) {
    IoOp* op = loop_->NewOp();
    op->kind = kind;
    op->queue = 3;
    op->fd = fd;
    op->cookie = cookie;
    op->file_offset = offset;
    op->segments = std::move(segments);
    return op;
  }

  TempDir dir_;
  Recorder events_;
  std::unique_ptr<Loop> loop_;
};

iovec Piece(std::string& text) { return {text.data(), text.size()}; }

// ---- watches ------------------------------------------------------------------------------------

TEST_F(LoopTest, AWatchReportsAndStays) {
  UniqueFd event = MakeEvent();
  loop_->Watch(event.Duplicate(), 5);
  for (int i = 1; i <= 1000; ++i) {
    Signal(event);
    ASSERT_TRUE(RunUntil([&] { return events_.watches[5] == i; })) << i;
  }
  EXPECT_TRUE(events_.lost.empty());
}

TEST_F(LoopTest, SignalsFromBeforeTheWatchAreSeen) {
  UniqueFd event = MakeEvent();
  Signal(event);
  loop_->Watch(event.Duplicate(), 1);
  EXPECT_TRUE(RunUntil([&] { return events_.watches[1] == 1; }));
}

TEST_F(LoopTest, APipeIsWatchedUntilItsWriterCloses) {
  for (const int flags : {0, O_NONBLOCK}) {
    events_ = {};
    Pipe pipe = MakePipe(flags);
    const WatchHandle watch = loop_->Watch(std::move(pipe.reader), 2);
    // Fewer bytes than an eventfd's, and more.
    ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
    ASSERT_TRUE(RunUntil([&] { return events_.watches[2] == 1; }));
    ASSERT_EQ(write(pipe.writer.get(), "0123456789", 10), 10);
    ASSERT_TRUE(RunUntil([&] { return events_.watches[2] == 3; }));
    // What was written before the end counts.
    ASSERT_EQ(write(pipe.writer.get(), "y", 1), 1);
    pipe.writer.reset();
    ASSERT_TRUE(RunUntil([&] { return events_.lost.contains(2); }));
    EXPECT_EQ(events_.watches[2], 4);
    EXPECT_EQ(events_.lost[2], 0);
    loop_->Unwatch(watch);
  }
}

TEST_F(LoopTest, AWatchThatCannotBeReadIsLost) {
  struct {
    UniqueFd fd;
    int32_t error;
  } cases[] = {{UniqueFd(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)), -EISDIR},
               {OpenFile("write-only", O_WRONLY | O_CREAT), -EBADF},
               {MakePipe().reader, 0}};  // its writer is gone
  uint32_t tag = 0;
  for (auto& c : cases) {
    ASSERT_TRUE(c.fd);
    const WatchHandle watch = loop_->Watch(std::move(c.fd), ++tag);
    ASSERT_TRUE(RunUntil([&] { return events_.lost.contains(tag); }));
    EXPECT_EQ(events_.lost[tag], c.error);
    EXPECT_EQ(events_.watches.count(tag), 0u);
    loop_->Unwatch(watch);
  }
}

// A non-blocking file whose driver knows no "no wait" reads: io_uring answers EAGAIN at once.
TEST_F(LoopTest, AFileThatOnlyPollsIsWatchedWithoutSpinning) {
  UniqueFd master(posix_openpt(O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC));
  if (!master || grantpt(master.get()) != 0 || unlockpt(master.get()) != 0) {
    GTEST_SKIP() << "no pseudo-terminals here";
  }
  std::array<char, 64> name{};
  ASSERT_EQ(ptsname_r(master.get(), name.data(), name.size()), 0);
  UniqueFd slave(open(name.data(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(slave);
  termios raw{};
  ASSERT_EQ(tcgetattr(slave.get(), &raw), 0);
  cfmakeraw(&raw);
  ASSERT_EQ(tcsetattr(slave.get(), TCSANOW, &raw), 0);

  loop_->Watch(master.Duplicate(), 1);
  UniqueFd other = MakeEvent();
  loop_->Watch(other.Duplicate(), 2);
  const uint64_t before = loop_->enters();
  for (int i = 1; i <= 10; ++i) {
    Signal(other);
    ASSERT_TRUE(RunUntil([&] { return events_.watches[2] == i; }));
  }
  EXPECT_LT(loop_->enters() - before, 60u) << "a handful for each signal";
  for (int i = 1; i <= 3; ++i) {
    ASSERT_EQ(write(slave.get(), "k", 1), 1);
    ASSERT_TRUE(RunUntil([&] { return events_.watches[1] == i; })) << i;
  }
  // A sleep that nothing ends sleeps: some rounds at most, not as many as fit.
  const uint64_t deadline = MonotonicNs() + 50 * kMs;
  const uint64_t enters = loop_->enters();
  while (MonotonicNs() < deadline) {
    loop_->Wait(deadline);
    loop_->Poll();
  }
  EXPECT_LT(loop_->enters() - enters, 10u);
}

TEST_F(LoopTest, UnwatchClosesTheFile) {
  Pipe pipe = MakePipe();
  const WatchHandle watch = loop_->Watch(std::move(pipe.reader), 1);
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_TRUE(RunUntil([&] { return events_.watches[1] == 1; }));
  loop_->Unwatch(watch);
  // The reader's end closes when the kernel has given the read back.
  pollfd look{.fd = pipe.writer.get(), .events = 0, .revents = 0};
  EXPECT_TRUE(RunUntil([&] { return poll(&look, 1, 0) == 1 && (look.revents & POLLERR) != 0; }));
  EXPECT_EQ(events_.watches[1], 1);
  EXPECT_TRUE(events_.lost.empty());
}

TEST_F(LoopTest, AWatchMayEndInItsOwnReport) {
  UniqueFd event = MakeEvent();
  UniqueFd later = MakeEvent();
  WatchHandle watch = loop_->Watch(event.Duplicate(), 1);
  loop_->Watch(later.Duplicate(), 2);
  events_.on_watch = [&](uint32_t tag) {
    if (tag == 1) loop_->Unwatch(watch);
  };
  Signal(event);
  ASSERT_TRUE(RunUntil([&] { return events_.watches[1] == 1; }));
  Signal(event);
  Signal(later);
  ASSERT_TRUE(RunUntil([&] { return events_.watches[2] == 1; }));
  EXPECT_EQ(events_.watches[1], 1);

  // And in the report of its end.
  Pipe pipe = MakePipe();
  watch = loop_->Watch(std::move(pipe.reader), 3);
  events_.on_lost = [&](uint32_t) { loop_->Unwatch(watch); };
  pipe.writer.reset();
  ASSERT_TRUE(RunUntil([&] { return events_.lost.contains(3); }));
}

TEST_F(LoopTest, WatchesComeAndGoByTheThousand) {
  for (uint32_t i = 0; i < 2000; ++i) {
    UniqueFd event = MakeEvent();
    ASSERT_TRUE(event);
    if (i % 2 == 0) Signal(event);
    loop_->Unwatch(loop_->Watch(event.Duplicate(), i));
    loop_->Poll();
    loop_->Flush();
  }
  UniqueFd event = MakeEvent();
  loop_->Watch(event.Duplicate(), 9999);
  Signal(event);
  ASSERT_TRUE(RunUntil([&] { return events_.watches.contains(9999); }));
  EXPECT_LT(event.get(), 1000) << "the descriptors of the others have been closed";
}

// ---- timers -------------------------------------------------------------------------------------

TEST_F(LoopTest, TimersReportInTheOrderOfTheirDeadlines) {
  const uint64_t now = MonotonicNs();
  loop_->SetTimer(0, 3, now + 3 * kMs);
  loop_->SetTimer(0, 1, now + 1 * kMs);
  loop_->SetTimer(1, 2, now + 2 * kMs);
  // All are due when the loop looks.
  while (MonotonicNs() < now + 4 * kMs) CpuRelax();
  EXPECT_EQ(loop_->Poll(), 3u);
  EXPECT_THAT(events_.timers, ElementsAre(std::pair(0, 1u), std::pair(1, 2u), std::pair(0, 3u)));
}

TEST_F(LoopTest, ATimerEndsAWaitAndNeverComesEarly) {
  for (int i = 0; i < 20; ++i) {
    const uint64_t deadline = MonotonicNs() + kMs / 2;
    uint64_t reported = 0;
    events_.on_timer = [&](uint16_t, uint64_t) { reported = MonotonicNs(); };
    loop_->SetTimer(0, 1, deadline);
    ASSERT_TRUE(RunUntil([&] { return reported != 0; }));
    EXPECT_GE(reported, deadline);
  }
  EXPECT_EQ(events_.timers.size(), 20u) << "one-shot";
}

TEST_F(LoopTest, TheSameCookieMovesATimer) {
  const uint64_t now = MonotonicNs();
  loop_->SetTimer(0, 1, now);
  loop_->SetTimer(1, 1, now);  // of another queue: another timer
  loop_->SetTimer(0, 1, now + 3'600'000 * kMs);
  ASSERT_TRUE(RunUntil([&] { return !events_.timers.empty(); }));
  EXPECT_THAT(events_.timers, ElementsAre(std::pair(1, 1u)));
  loop_->SetTimer(0, 1, MonotonicNs());
  ASSERT_TRUE(RunUntil([&] { return events_.timers.size() == 2; }));
}

TEST_F(LoopTest, CancelledTimersStaySilent) {
  const uint64_t now = MonotonicNs();
  for (uint16_t queue = 0; queue < 2; ++queue) {
    for (uint64_t cookie = 0; cookie < 3; ++cookie) loop_->SetTimer(queue, cookie, now);
  }
  loop_->CancelTimer(1, 2);
  loop_->CancelTimer(1, 77);
  loop_->CancelTimers(0);
  ASSERT_TRUE(RunUntil([&] { return events_.timers.size() >= 2; }));
  loop_->Poll();
  EXPECT_THAT(events_.timers, UnorderedElementsAre(std::pair(1, 0u), std::pair(1, 1u)));
}

TEST_F(LoopTest, TimersMayBeSetAndCancelledInAReport) {
  int left = 1000;
  events_.on_timer = [&](uint16_t queue, uint64_t cookie) {
    if (cookie == 0 && --left > 0) loop_->SetTimer(queue, 0, MonotonicNs());
    if (cookie == 1) loop_->CancelTimer(queue, 2);
  };
  loop_->SetTimer(4, 0, MonotonicNs());
  ASSERT_TRUE(RunUntil([&] { return left == 0; }));
  // Both are due; the first takes the second away.
  events_.timers.clear();
  const uint64_t now = MonotonicNs();
  loop_->SetTimer(4, 1, now - 1);
  loop_->SetTimer(4, 2, now);
  loop_->Poll();
  EXPECT_THAT(events_.timers, ElementsAre(std::pair(4, 1u)));
}

TEST_F(LoopTest, FarAwayDeadlinesAreHarmless) {
  loop_->SetTimer(0, 1, UINT64_MAX - 1);
  loop_->SetTimer(0, 2, UINT64_MAX);
  loop_->SetTimer(0, 3, MonotonicNs() + kMs);
  ASSERT_TRUE(RunUntil([&] { return !events_.timers.empty(); }));
  EXPECT_THAT(events_.timers, ElementsAre(std::pair(0, 3u)));
}

// ---- waiting ------------------------------------------------------------------------------------

TEST_F(LoopTest, WaitEndsAtItsDeadline) {
  const uint64_t deadline = MonotonicNs() + 2 * kMs;
  while (MonotonicNs() < deadline) {
    loop_->Wait(deadline);
    loop_->Poll();
  }
  loop_->Wait(1);  // long past
  SUCCEED();
}

TEST_F(LoopTest, AWakeBeforeTheWaitEndsIt) {
  for (const auto kernel : {Loop::Kernel::kThis, Loop::Kernel::kOldKernel}) {
    Make(64, kernel);
    for (int i = 0; i < 1000; ++i) {
      loop_->Wake();
      if (i % 3 == 0) loop_->Wake();
      loop_->Wait(0);
      if (i % 2 == 0) loop_->Poll();
    }
  }
}

// A thread may have sixteen rings registered: more, one after the other, work as the first did only
// if each gives its place back.
TEST_F(LoopTest, LoopsOnOneThreadLeaveNothingBehind) {
  loop_.reset();
  for (const auto kernel : {Loop::Kernel::kThis, Loop::Kernel::kOldKernel}) {
    const size_t before = testing::CountEntries("/proc/self/fd");
    size_t first = 0;
    for (int i = 0; i < 40; ++i) {
      events_ = {};
      Make(8, kernel);
      const size_t now = testing::CountEntries("/proc/self/fd");
      if (i == 0) first = now;
      EXPECT_EQ(now, first) << i;
      UniqueFd event = MakeEvent();
      loop_->Watch(event.Duplicate(), 1);
      std::thread other([&] {
        Signal(event);
        loop_->Wake();
      });
      EXPECT_TRUE(RunUntil([&] { return events_.watches[1] == 1; }));
      other.join();
      loop_.reset();
      event.reset();
      EXPECT_EQ(testing::CountEntries("/proc/self/fd"), before) << i;
    }
  }
}

// As the control plane does it: made and ended elsewhere than on its thread.
TEST_F(LoopTest, ALoopOutlivesItsThread) {
  const size_t before = testing::CountEntries("/proc/self/fd");
  for (const auto kernel : {Loop::Kernel::kThis, Loop::Kernel::kOldKernel}) {
    for (int i = 0; i < 40; ++i) {
      ASSERT_OK_AND_ASSIGN(std::unique_ptr<Loop> other, Loop::Create(8, &events_, kernel));
      const UniqueFd event = MakeEvent();
      std::atomic<bool> stop{false};
      std::thread thread([&] {
        ASSERT_OK(other->Enable());
        other->Watch(event.Duplicate(), 1);
        while (!stop.load()) {
          other->Poll();
          other->Wait(0);
        }
      });
      stop = true;
      other->Wake();
      thread.join();
      other.reset();
      // The ring of this thread is not the one that was taken away.
      Signal(event);
      loop_->Wake();
      loop_->Wait(0);
    }
  }
  EXPECT_EQ(testing::CountEntries("/proc/self/fd"), before);
}

// Each thread counts up and wakes; the loop sleeps whenever it has seen every count. A wake that
// gets lost leaves it asleep for ever.
TEST_F(LoopTest, NoWakeIsLostAmongManyThreads) {
  for (const auto kernel : {Loop::Kernel::kThis, Loop::Kernel::kOldKernel}) {
    Make(64, kernel);
    constexpr int kThreads = 8;
    constexpr uint64_t kRounds = 4000;
    std::array<std::atomic<uint64_t>, kThreads> asked{};
    std::array<std::atomic<uint64_t>, kThreads> answered{};
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        for (uint64_t round = 1; round <= kRounds; ++round) {
          asked[t].store(round);
          loop_->Wake();
          // Half of the threads wait for the answer: the loop then really sleeps in between.
          while (t % 2 == 0 && answered[t].load() < round) std::this_thread::yield();
        }
      });
    }
    const auto done = [&] {
      for (size_t t = 0; t < kThreads; ++t) {
        if (asked[t].load() < kRounds) return false;
      }
      return true;
    };
    while (!done()) {
      for (size_t t = 0; t < kThreads; ++t) answered[t].store(asked[t].load());
      loop_->Poll();
      if (done()) break;
      loop_->Wait(0);
    }
    for (size_t t = 0; t < kThreads; ++t) answered[t].store(kRounds);
    for (std::thread& thread : threads) thread.join();
  }
}

// ---- operations ---------------------------------------------------------------------------------

TEST_F(LoopTest, ReadsAndWritesSegments) {
  UniqueFd file = OpenFile("data");
  std::string a = "hello ";
  std::string b = "wide ";
  std::string c = "world";
  loop_->Submit(Op(IoKind::kWrite, file.get(), 1, {Piece(a), Piece(b), Piece(c)}, 4096));
  EXPECT_EQ(loop_->pending(), 1u);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(loop_->pending(), 0u);
  EXPECT_EQ(events_.io[0], (IoReport{3, 1, 16}));

  std::string head(3, '\0');
  std::string tail(32, '\0');
  loop_->Submit(Op(IoKind::kRead, file.get(), 2, {Piece(head), Piece(tail)}, 4096));
  ASSERT_TRUE(RunUntilIo(2));
  EXPECT_EQ(events_.io[1].result, 16) << "short at the end of the file";
  EXPECT_EQ(head + tail.substr(0, 13), "hello wide world");
  loop_->Submit(Op(IoKind::kRead, file.get(), 3, {Piece(head)}, 100'000));
  ASSERT_TRUE(RunUntilIo(3));
  EXPECT_EQ(events_.io[2].result, 0) << "beyond the end";
}

// A blocking pipe would hold the thread in a read that is tried here first.
TEST_F(LoopTest, AReadOnAWorkerHoldsNobodyUp) {
  auto [reader, writer] = MakePipe();
  std::string data(4, '\0');
  IoOp* op = Op(IoKind::kRead, reader.get(), 1, {Piece(data)}, UINT64_MAX);
  op->on_worker = true;
  loop_->Submit(op);
  loop_->Flush();
  EXPECT_EQ(loop_->Poll(), 0u);
  ASSERT_EQ(write(writer.get(), "data", 4), 4);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0].result, 4);
  EXPECT_EQ(data, "data");
  // The object is used again without the flag.
  EXPECT_FALSE(loop_->NewOp()->on_worker);
}

TEST_F(LoopTest, StreamsHaveNoOffset) {
  Pipe pipe = MakePipe();
  std::string text = "through a pipe";
  std::string got(64, '\0');
  loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(got)}));
  loop_->Flush();
  loop_->Poll();
  EXPECT_TRUE(events_.io.empty()) << "nothing to read yet";
  loop_->Submit(Op(IoKind::kWrite, pipe.writer.get(), 2, {Piece(text)}));
  ASSERT_TRUE(RunUntilIo(2));
  EXPECT_THAT(events_.io, UnorderedElementsAre(IoReport{3, 1, 14}, IoReport{3, 2, 14}));
  EXPECT_EQ(got.substr(0, 14), text);
}

TEST_F(LoopTest, RwFlagsReachTheKernel) {
  UniqueFd file = OpenFile("append");
  std::string text = "abc";
  IoOp* op = Op(IoKind::kWrite, file.get(), 1, {Piece(text)}, 0);
  op->flags = RWF_APPEND;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(1));
  op = Op(IoKind::kWrite, file.get(), 2, {Piece(text)}, 0);
  op->flags = RWF_APPEND;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(2));
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 6);
  // An operation object is as new when it is used again.
  loop_->Submit(Op(IoKind::kWrite, file.get(), 3, {Piece(text)}, 0));
  ASSERT_TRUE(RunUntilIo(3));
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 6);
  op = Op(IoKind::kWrite, file.get(), 4, {Piece(text)}, 0);
  op->flags = 0x40000000;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(4));
  EXPECT_EQ(events_.io[3].result, -EOPNOTSUPP);
}

TEST_F(LoopTest, SyncsAndAllocates) {
  UniqueFd file = OpenFile("blocks");
  IoOp* op = Op(IoKind::kFallocate, file.get(), 1, {}, 8192);
  op->length = 4096;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0].result, 0);
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 12288);

  op = Op(IoKind::kFallocate, file.get(), 2, {}, 1 << 20);
  op->length = 4096;
  op->flags = FALLOC_FL_KEEP_SIZE;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(2));
  EXPECT_EQ(events_.io[1].result, 0);
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 12288);

  loop_->Submit(Op(IoKind::kFsync, file.get(), 3));
  op = Op(IoKind::kFsync, file.get(), 4);
  op->flags = 1;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(4));
  EXPECT_EQ(events_.io[2].result, 0);
  EXPECT_EQ(events_.io[3].result, 0);

  op = Op(IoKind::kFallocate, file.get(), 5, {}, 0);
  op->length = 0;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(5));
  EXPECT_EQ(events_.io[4].result, -EINVAL);
}

TEST_F(LoopTest, PollsOnce) {
  Pipe pipe = MakePipe();
  IoOp* op = Op(IoKind::kPoll, pipe.reader.get(), 1);
  op->flags = POLLIN;
  loop_->Submit(op);
  op = Op(IoKind::kPoll, pipe.writer.get(), 2);
  op->flags = POLLOUT;
  loop_->Submit(op);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0], (IoReport{3, 2, POLLOUT}));
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  ASSERT_TRUE(RunUntilIo(2));
  EXPECT_EQ(events_.io[1], (IoReport{3, 1, POLLIN}));
  ASSERT_EQ(write(pipe.writer.get(), "x", 1), 1);
  loop_->Poll();
  EXPECT_EQ(events_.io.size(), 2u);
}

TEST_F(LoopTest, BadDescriptorsAreReportedNotFatal) {
  std::string buffer(16, 'x');
  UniqueFd closed = MakeEvent();
  const int number = closed.get();
  closed.reset();
  uint64_t cookie = 0;
  for (const int fd : {-1, number, 1'000'000}) {
    for (const IoKind kind :
         {IoKind::kRead, IoKind::kWrite, IoKind::kFsync, IoKind::kFallocate, IoKind::kPoll}) {
      loop_->Submit(Op(kind, fd, ++cookie, {Piece(buffer)}, 0));
    }
  }
  ASSERT_TRUE(RunUntilIo(cookie));
  for (const IoReport& report : events_.io) EXPECT_EQ(report.result, -EBADF) << report.cookie;
  UniqueFd directory(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  loop_->Submit(Op(IoKind::kRead, directory.get(), ++cookie, {Piece(buffer)}, 0));
  ASSERT_TRUE(RunUntilIo(cookie));
  EXPECT_EQ(events_.io.back().result, -EISDIR);
}

TEST_F(LoopTest, BadMemoryIsReportedNotFatal) {
  UniqueFd file = OpenFile("full");
  ASSERT_EQ(write(file.get(), "0123456789", 10), 10);
  std::vector<iovec> nowhere{{nullptr, 10}};
  loop_->Submit(Op(IoKind::kRead, file.get(), 1, nowhere, 0));
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0].result, -EFAULT);
}

TEST_F(LoopTest, TakesMoreOperationsThanTheRingHasEntries) {
  Make(4);
  UniqueFd file = OpenFile("many");
  constexpr uint64_t kCount = 1000;
  std::vector<uint64_t> numbers(kCount);
  for (uint64_t i = 0; i < kCount; ++i) {
    const uint64_t value = i * i;
    ASSERT_EQ(pwrite(file.get(), &value, sizeof(value), static_cast<off_t>(8 * i)), 8);
  }
  for (uint64_t i = 0; i < kCount; ++i) {
    loop_->Submit(Op(IoKind::kRead, file.get(), i, {{&numbers[i], 8}}, 8 * i));
  }
  EXPECT_EQ(loop_->pending(), kCount);
  ASSERT_TRUE(RunUntilIo(kCount));
  std::vector<bool> seen(kCount);
  for (const IoReport& report : events_.io) {
    EXPECT_EQ(report.result, 8);
    EXPECT_FALSE(seen[report.cookie]);
    seen[report.cookie] = true;
  }
  for (uint64_t i = 0; i < kCount; ++i) EXPECT_EQ(numbers[i], i * i);
  EXPECT_EQ(loop_->pending(), 0u);
}

// Everything finishes at once, with a completion queue that holds a fraction of it.
TEST_F(LoopTest, TakesMoreCompletionsThanTheRingHasEntries) {
  Make(4);
  constexpr uint64_t kCount = 300;
  UniqueFd event = MakeEvent();
  for (uint64_t i = 0; i < kCount; ++i) {
    IoOp* op = Op(IoKind::kPoll, event.get(), i);
    op->flags = POLLIN;
    loop_->Submit(op);
  }
  loop_->Flush();
  loop_->Poll();
  EXPECT_EQ(events_.io.size(), 0u);
  Signal(event);
  ASSERT_TRUE(RunUntilIo(kCount));
  EXPECT_EQ(events_.io.size(), kCount);
}

TEST_F(LoopTest, OperationsOfABatchEnterTheKernelTogether) {
  UniqueFd file = OpenFile("batch");
  std::string text = "x";
  const uint64_t before = loop_->enters();
  for (uint64_t i = 0; i < 32; ++i) {
    loop_->Submit(Op(IoKind::kWrite, file.get(), i, {Piece(text)}, i));
  }
  EXPECT_EQ(loop_->enters(), before);
  loop_->Flush();
  EXPECT_EQ(loop_->enters(), before + 1);
  loop_->Flush();
  EXPECT_EQ(loop_->enters(), before + 1) << "nothing to give";
  ASSERT_TRUE(RunUntilIo(32));
}

TEST_F(LoopTest, AReportMaySubmit) {
  UniqueFd file = OpenFile("chain");
  std::string text = "z";
  uint64_t next = 1;
  events_.on_io = [&](const IoOp& op, int32_t result) {
    EXPECT_EQ(result, 1);
    EXPECT_EQ(op.cookie, next - 1);
    if (next < 5000) {
      loop_->Submit(Op(IoKind::kWrite, file.get(), next, {Piece(text)}, next));
      ++next;
    }
  };
  loop_->Submit(Op(IoKind::kWrite, file.get(), 0, {Piece(text)}, 0));
  ASSERT_TRUE(RunUntilIo(5000));
  EXPECT_EQ(lseek(file.get(), 0, SEEK_END), 5000);
}

TEST_F(LoopTest, CancelEndsThatCookieOnly) {
  Pipe pipe = MakePipe();
  std::string a(1, '\0'), b(1, '\0'), c(1, '\0');
  loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(a)}));
  loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 2, {Piece(b)}));
  IoOp* op = Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(c)});
  op->queue = 4;  // the same cookie on another queue is another operation
  loop_->Submit(op);
  loop_->Flush();
  loop_->Cancel(3, 1);
  loop_->Cancel(3, 55);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0], (IoReport{3, 1, -ECANCELED}));
  EXPECT_EQ(loop_->pending(), 2u);
  ASSERT_EQ(write(pipe.writer.get(), "xy", 2), 2);
  ASSERT_TRUE(RunUntilIo(3));
  EXPECT_THAT(std::vector(events_.io.begin() + 1, events_.io.end()),
              UnorderedElementsAre(IoReport{3, 2, 1}, IoReport{4, 1, 1}));
}

TEST_F(LoopTest, CancelBeforeTheKernelHasItWorksToo) {
  Pipe pipe = MakePipe();
  std::string a(1, '\0');
  loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(a)}));
  loop_->Cancel(3, 1);
  ASSERT_TRUE(RunUntilIo(1));
  EXPECT_EQ(events_.io[0].result, -ECANCELED);
}

TEST_F(LoopTest, CancelInAReportSparesTheOperationsThatFollow) {
  Pipe pipe = MakePipe();
  UniqueFd file = OpenFile("follow");
  std::string a(1, '\0'), text = "t";
  // The report of one operation cancels another, and submits a third that may get its memory.
  loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(a)}));
  events_.on_io = [&](const IoOp& op, int32_t) {
    if (op.cookie == 1) return;
    loop_->Cancel(3, 1);
    events_.on_io = [&](const IoOp& done, int32_t) {
      if (done.cookie == 1) loop_->Submit(Op(IoKind::kWrite, file.get(), 3, {Piece(text)}, 0));
    };
  };
  loop_->Submit(Op(IoKind::kWrite, file.get(), 2, {Piece(text)}, 0));
  ASSERT_TRUE(RunUntilIo(3));
  EXPECT_EQ(events_.io[1], (IoReport{3, 1, -ECANCELED}));
  EXPECT_EQ(events_.io[2], (IoReport{3, 3, 1}));
}

TEST_F(LoopTest, CancelAllLeavesTheWatches) {
  Pipe pipe = MakePipe();
  UniqueFd event = MakeEvent();
  loop_->Watch(event.Duplicate(), 1);
  std::vector<char> bytes(100);
  for (uint64_t i = 0; i < 100; ++i) {
    loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), i, {{&bytes[i], 1}}));
  }
  loop_->Flush();
  loop_->CancelAll();
  ASSERT_TRUE(RunUntilIo(100));
  for (const IoReport& report : events_.io) EXPECT_EQ(report.result, -ECANCELED);
  EXPECT_EQ(loop_->pending(), 0u);
  Signal(event);
  EXPECT_TRUE(RunUntil([&] { return events_.watches[1] == 1; }));
}

TEST_F(LoopTest, ALoopMayGoWithEverythingUnderWay) {
  for (int i = 0; i < 50; ++i) {
    Pipe pipe = MakePipe();
    std::string a(1, '\0');
    loop_->Watch(MakeEvent(), 1);
    loop_->SetTimer(0, 1, MonotonicNs() + 1000 * kMs);
    loop_->Submit(Op(IoKind::kRead, pipe.reader.get(), 1, {Piece(a)}));
    if (i % 2 == 0) loop_->Flush();
    Make(8);
  }
}

TEST_F(LoopTest, ALoopThatWasNeverEnabledMayGoToo) {
  for (int i = 0; i < 50; ++i) {
    ASSERT_OK_AND_ASSIGN(auto unused, Loop::Create(8, &events_));
  }
}

}  // namespace
}  // namespace virtbay
