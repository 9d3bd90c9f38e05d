#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <stdexcept>
#include <thread>
#include <utility>

#include "absl/synchronization/notification.h"
#include "framework/base/clock.h"
#include "framework/base/gate.h"
#include "framework/base/log.h"
#include "framework/base/shared_fd.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay {
namespace {

using ::testing::ElementsAre;
using ::virtbay::testing::IsOkAndHolds;
using ::virtbay::testing::LogCapture;
using ::virtbay::testing::StatusIs;

TEST(Status, ErrnoHasCodeAndText) {
  EXPECT_THAT(ErrnoStatus(ENOENT, "open x"),
              StatusIs(absl::StatusCode::kNotFound, "open x: No such file or directory"));
  EXPECT_THAT(ErrnoStatus(EACCES, "open x"), StatusIs(absl::StatusCode::kPermissionDenied));
  EXPECT_THAT(ErrnoStatus(EINVAL, "ioctl"), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(Status, AnnotateKeepsTheCode) {
  EXPECT_OK(Annotate(absl::OkStatus(), "device a"));
  const absl::Status status = Annotate(absl::NotFoundError("no plugin"), "device a");
  EXPECT_EQ(status, absl::NotFoundError("device a: no plugin"));
  absl::Status marked = absl::NotFoundError("no plugin");
  marked.SetPayload("mark", absl::Cord("x"));
  EXPECT_EQ(Annotate(marked, "device a").GetPayload("mark"), absl::Cord("x"));
}

absl::StatusOr<int> Half(int n) {
  if (n % 2 != 0) return absl::InvalidArgumentError("odd");
  return n / 2;
}
absl::StatusOr<int> Quarter(int n) {
  VIRTBAY_ASSIGN_OR_RETURN(const int half, Half(n));
  VIRTBAY_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}
absl::Status EvenOnly(int n) {
  VIRTBAY_RETURN_IF_ERROR(Half(n).status());
  return absl::OkStatus();
}

TEST(Status, MacrosReturnEarly) {
  EXPECT_THAT(Quarter(12), IsOkAndHolds(3));
  EXPECT_THAT(Quarter(6), StatusIs(absl::StatusCode::kInvalidArgument, "odd"));
  EXPECT_OK(EvenOnly(2));
  EXPECT_THAT(EvenOnly(3), StatusIs(absl::StatusCode::kInvalidArgument));
}

bool Open(int fd) { return fcntl(fd, F_GETFD) >= 0; }

TEST(UniqueFd, ClosesOnceAndMoves) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  UniqueFd read_end(ends[0]);
  {
    UniqueFd write_end(ends[1]);
    UniqueFd moved = std::move(write_end);
    EXPECT_FALSE(write_end.valid());  // NOLINT(bugprone-use-after-move): that is the test
    EXPECT_EQ(moved.get(), ends[1]);
    EXPECT_TRUE(Open(ends[1]));
  }
  EXPECT_FALSE(Open(ends[1]));

  UniqueFd copy = read_end.Duplicate();
  ASSERT_TRUE(copy.valid());
  EXPECT_NE(copy.get(), read_end.get());
  EXPECT_NE(fcntl(copy.get(), F_GETFD) & FD_CLOEXEC, 0);
  const int number = copy.release();
  EXPECT_FALSE(copy);
  EXPECT_TRUE(Open(number));
  read_end = UniqueFd(number);
  EXPECT_FALSE(Open(ends[0]));
  read_end.reset();
  EXPECT_FALSE(Open(number));
  EXPECT_FALSE(UniqueFd().Duplicate().valid());
}

TEST(SharedFd, TheLastHolderCloses) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const UniqueFd read_end(ends[0]);
  SharedFd one = UniqueFd(ends[1]);
  ASSERT_TRUE(one);
  EXPECT_EQ(one.get(), ends[1]);
  SharedFd two = one;
  EXPECT_EQ(two.get(), ends[1]) << "no second descriptor";
  one.reset();
  EXPECT_FALSE(one.valid());
  EXPECT_EQ(one.get(), -1);
  EXPECT_TRUE(Open(ends[1]));
  SharedFd three = std::move(two);
  EXPECT_FALSE(two.valid());  // NOLINT(bugprone-use-after-move): that is the test
  three.reset(dup(ends[0]));
  EXPECT_FALSE(Open(ends[1]));
  EXPECT_TRUE(three.valid());
  EXPECT_FALSE(SharedFd(UniqueFd()).valid());
}

TEST(Gate, RefusesOnceClosedAndWaitsForThoseInside) {
  Gate gate;
  ASSERT_TRUE(gate.Enter());
  ASSERT_TRUE(gate.Enter());
  EXPECT_FALSE(gate.CloseAndWait(absl::ZeroDuration()));
  EXPECT_FALSE(gate.Enter());
  gate.Leave();
  std::atomic<bool> left{false};
  absl::Notification closing;
  std::thread leaver([&] {
    closing.WaitForNotification();
    left = true;
    gate.Leave();
  });
  closing.Notify();
  EXPECT_TRUE(gate.CloseAndWait());
  EXPECT_TRUE(left);
  leaver.join();
  gate.Open();
  EXPECT_TRUE(gate.Enter());
  gate.Leave();
}

TEST(Clock, DoesNotGoBack) {
  uint64_t last = MonotonicNs();
  const uint64_t cpu = ThreadCpuNs();
  for (int i = 0; i < 1000; ++i) {
    const uint64_t now = MonotonicNs();
    ASSERT_GE(now, last);
    last = now;
    CpuRelax();
  }
  EXPECT_GE(ThreadCpuNs(), cpu);
}

TEST(Log, LevelsHaveNames) {
  for (const LogLevel level : {LogLevel::kTrace, LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarn,
                               LogLevel::kError, LogLevel::kOff}) {
    EXPECT_THAT(ParseLogLevel(LogLevelName(level)), IsOkAndHolds(level));
  }
  for (const char* text : {"", "Info", "verbose", "info ", "6"}) {
    EXPECT_THAT(ParseLogLevel(text), StatusIs(absl::StatusCode::kInvalidArgument, "log level"));
  }
}

TEST(Log, WritesPrefixedLinesOfItsLevel) {
  const LogCapture capture(LogLevel::kInfo);
  const Log device = capture.log().Named("fs").Named("queue 1");
  device.Debug("too small");
  device.Info("started");
  capture.log().Error("bad");
  EXPECT_THAT(capture.lines(), ElementsAre("info fs: queue 1: started", "error bad"));

  // The level belongs to the sinks, not to a handle.
  device.set_level(LogLevel::kError);
  EXPECT_EQ(capture.log().level(), LogLevel::kError);
  capture.log().Warn("not now");
  EXPECT_EQ(capture.lines().size(), 2u);
  device.set_level(LogLevel::kOff);
  capture.log().Error("not even this");
  EXPECT_EQ(capture.lines().size(), 2u);
}

TEST(Log, FormatCharactersAreText) {
  const LogCapture capture;
  capture.log().Info("{} %s %n {0}");
  EXPECT_THAT(capture.lines(), ElementsAre("info {} %s %n {0}"));
}

TEST(Log, DefaultDropsEverything) {
  const Log log;
  log.Error("nobody hears this");
  log.Named("x").Info("nor this");
  EXPECT_FALSE(log.enabled(LogLevel::kError));
}

TEST(Log, ManyThreads) {
  const LogCapture capture;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([log = capture.log().Named(std::to_string(t))] {
      for (int i = 0; i < 100; ++i) log.Info("line");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(capture.lines().size(), 400u);
}

TEST(TempDir, GoesAway) {
  std::filesystem::path path;
  {
    const testing::TempDir dir;
    path = dir.path();
    EXPECT_EQ(testing::ReadFile(dir.Write("a", "text")), "text");
  }
  EXPECT_FALSE(std::filesystem::exists(path));
}

}  // namespace
}  // namespace virtbay
