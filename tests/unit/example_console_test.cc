// The example virtio-console behind the in-process driver: echo, a terminal, and a guest or an
// other end that does not take what it is given.
#include <fcntl.h>
#include <linux/virtio_console.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/example_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kIn = 0;   // to the guest
constexpr uint32_t kOut = 1;  // from it

class ExampleConsoleTest : public ExampleTest {
 protected:
  ExampleConsoleTest() : ExampleTest(VIRTBAY_CONSOLE_PLUGIN) {}

  // What comes to the guest, until it is so many bytes.
  std::string Receive(size_t length) {
    std::string got;
    while (got.size() < length) {
      const auto reply = guest_->Call("", 4096, kIn);
      if (!reply.ok()) return got + reply.status().ToString();
      EXPECT_LE(reply->written, 4096u);
      got += reply->room.substr(0, reply->written);
    }
    return got;
  }
};

TEST_F(ExampleConsoleTest, EchoesWhatTheGuestWrites) {
  Start({});
  ASSERT_OK_AND_ASSIGN(const Guest::Reply sent, guest_->Call("hello", 0, kOut));
  EXPECT_EQ(sent.written, 0u);
  EXPECT_EQ(Receive(5), "hello");
  // Also into a buffer that waits, and more than one buffer holds.
  const uint64_t waiting = guest_->Send("", 3, kIn);
  ASSERT_OK(guest_->Call("abcdef", 0, kOut));
  ASSERT_OK_AND_ASSIGN(const Guest::Reply first, guest_->Take(waiting, kIn));
  EXPECT_EQ(first.written, 3u);
  EXPECT_EQ(first.room + Receive(3), "abcdef");
  std::string large(30000, 'x');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>('a' + i % 23);
  ASSERT_OK(guest_->Call(large, 0, kOut));
  EXPECT_EQ(Receive(large.size()), large);
  EXPECT_EQ(Metric("bytes_from_guest"), 5 + 6 + large.size());
  EXPECT_EQ(Metric("bytes_to_guest"), 5 + 6 + large.size());
  EXPECT_EQ(Metric("bytes_dropped"), 0u);
}

// A kernel that prints must not be kept: it spins until its bytes are taken.
TEST_F(ExampleConsoleTest, WhatNobodyTakesIsDropped) {
  Start({});
  const std::string chunk(30000, 'y');
  for (int i = 0; i < 12; ++i) ASSERT_OK(guest_->Call(chunk, 0, kOut));
  const uint64_t dropped = Metric("bytes_dropped");
  EXPECT_GT(dropped, 0u);
  EXPECT_EQ(Metric("bytes_from_guest") + dropped, 12 * chunk.size());
  // It goes on as soon as somebody listens again.
  Receive(12 * chunk.size() - dropped);
  ASSERT_OK(guest_->Call("again", 0, kOut));
  EXPECT_EQ(Receive(5), "again");
}

TEST_F(ExampleConsoleTest, BuffersWithoutRoomOrBytesComeBack) {
  Start({});
  ASSERT_OK(guest_->Call("", 16, kOut));  // nothing to send in it
  EXPECT_EQ(guest_->Call("unwanted", 0, kIn)->written, 0u);
  ASSERT_OK(guest_->Call("on", 0, kOut));
  EXPECT_EQ(Receive(2), "on");
  EXPECT_FALSE(guest_->NeedsReset());
}

TEST_F(ExampleConsoleTest, BuffersThatWaitSurviveAStop) {
  Start({});
  const uint64_t waiting = guest_->Send("", 64, kIn);
  ASSERT_OK(guest_->driver().Stop());
  EXPECT_FALSE(guest_->Has(waiting, kIn));
  ASSERT_OK(guest_->driver().Start());
  ASSERT_OK(guest_->Call("later", 0, kOut));
  ASSERT_OK_AND_ASSIGN(const Guest::Reply reply, guest_->Take(waiting, kIn));
  EXPECT_EQ(reply.room.substr(0, reply.written), "later");
}

TEST_F(ExampleConsoleTest, ATerminalIsTheOtherEnd) {
  const TempDir dir;
  Start({{"backend", "pty"}, {"link", dir / "console"}});
  ASSERT_OK_AND_ASSIGN(const std::string path, device_.Control("path", ""));
  EXPECT_EQ(std::filesystem::read_symlink(dir / "console"), path);
  const UniqueFd terminal(open(path.c_str(), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(terminal.valid());
  ASSERT_OK(guest_->Call("login: ", 0, kOut));
  std::array<char, 64> got;
  EXPECT_EQ(read(terminal.get(), got.data(), got.size()), 7);
  EXPECT_EQ(std::string(got.data(), 7), "login: ");
  ASSERT_EQ(write(terminal.get(), "root\n", 5), 5);
  EXPECT_EQ(Receive(5), "root\n");
  guest_.reset();
  ASSERT_OK(host_->Remove("example"));
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::symlink_status(dir / "console")));
}

TEST_F(ExampleConsoleTest, ATerminalWithoutReaderDoesNotKeepTheGuest) {
  Start({{"backend", "pty"}});
  for (int i = 0; i < 6; ++i) ASSERT_OK(guest_->Call(std::string(20000, 'z'), 0, kOut));
  EXPECT_GT(Metric("bytes_dropped"), 0u);
}

TEST_F(ExampleConsoleTest, SaysHowLargeItIs) {
  Start({{"columns", "132"}, {"rows", "43"}});
  EXPECT_EQ(guest_->Config<uint16_t>(0), 132);
  EXPECT_EQ(guest_->Config<uint16_t>(2), 43);
  ASSERT_OK(device_.Control("resize", "100x30"));
  EXPECT_TRUE(guest_->WaitForConfigChange());
  EXPECT_EQ(guest_->Config<uint16_t>(0), 100);
  EXPECT_EQ(guest_->Config<uint16_t>(2), 30);
  for (const char* text : {"", "100", "x", "1x", "70000x1", "1x2x3"}) {
    EXPECT_THAT(device_.Control("resize", text), StatusIs(absl::StatusCode::kInvalidArgument, "x"));
  }
}

TEST_F(ExampleConsoleTest, TheEmergencyWriteNeedsNoQueue) {
  Start({});
  const uint32_t letter = '!';
  auto& transport = guest_->driver().transport();
  ASSERT_OK(transport.WriteConfig(offsetof(virtio_console_config, emerg_wr),
                                  std::as_bytes(std::span(&letter, 1))));
  EXPECT_FALSE(transport.WriteConfig(0, std::as_bytes(std::span(&letter, 1))).ok());
  EXPECT_EQ(Receive(1), "!");
}

TEST_F(ExampleConsoleTest, AnotherOneGoesOn) {
  Start({{"rows", "50"}});
  ASSERT_OK(guest_->Call("before", 0, kOut));
  HandOver({});
  EXPECT_EQ(guest_->Config<uint16_t>(2), 50);
  EXPECT_EQ(Receive(6), "before");
}

TEST_F(ExampleConsoleTest, WrongOptionsAreNamed) {
  EXPECT_THAT(Refusal({{"backend", "tcp"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "option backend: \"tcp\""));
  EXPECT_THAT(Refusal({{"rows", "0"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "option rows"));
  EXPECT_THAT(Refusal({{"link", "/x"}}),
              StatusIs(absl::StatusCode::kInvalidArgument, "option link"));
  EXPECT_THAT(Refusal({{"colour", "green"}}), StatusIs(absl::StatusCode::kInvalidArgument,
                                                       "option colour: there is no such option"));
  // A link is never put over something else.
  const TempDir dir;
  const auto file = dir.Write("file", "precious");
  EXPECT_FALSE(Refusal({{"backend", "pty"}, {"link", file}}).ok());
  EXPECT_EQ(ReadFile(file), "precious");
}

}  // namespace
}  // namespace virtbay::testing
