// The channel on which a guest reports, against a service that is only a table: right answers, and
// no harm from hostile lines, floods and silence. The guest's own program is the other end in
// tests/guest/wsl_cli_test.sh.
#include "hostif/device_host/guest_channel.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "hostif/device_host/unix_socket.h"
#include "hostif/swiotlb/guest_report.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::device_host {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::virtbay::testing::LogCapture;
using ::virtbay::testing::StatusIs;
using ::virtbay::testing::TempDir;
using enum absl::StatusCode;

constexpr char kReport[] = R"({"command":"guest","swiotlb":"0x10000000,67108864"})";
constexpr char kAccepted[] = R"({"ok":true,"result":{"swiotlb":"0x10000000,67108864"}})";

class FakeTarget final : public ControlTarget {
 public:
  absl::Status AddDevice(DeviceConfig) override { return absl::UnimplementedError(""); }
  absl::Status RemoveDevice(absl::string_view) override { return absl::UnimplementedError(""); }
  absl::StatusOr<DeviceReport> InspectDevice(absl::string_view) const override {
    return absl::UnimplementedError("");
  }
  std::vector<DeviceReport> InspectAll() const override { return {}; }
  absl::StatusOr<shares::AddedShare> AddShare(absl::string_view,
                                              const shares::ShareSpec&) override {
    return absl::UnimplementedError("");
  }
  absl::Status RemoveShare(absl::string_view, absl::string_view) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::vector<shares::ShareSpec>> ListShares(absl::string_view) const override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<std::string> CommandDevice(absl::string_view, const std::string&,
                                            absl::string_view) const override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<ReloadReport> ReloadDevice(absl::string_view name,
                                            const std::filesystem::path& from) override {
    ReloadReport report;
    report.device = std::string(name);
    report.version_after = from.native();
    return report;
  }
  absl::StatusOr<uint64_t> StartTrace(absl::string_view, const std::filesystem::path&,
                                      absl::Duration) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<uint64_t> StartRecord(absl::string_view, const std::filesystem::path&,
                                       absl::Duration, bool) override {
    return absl::UnimplementedError("");
  }
  absl::StatusOr<RecordingReport> StopRecording(uint64_t) override {
    return absl::UnimplementedError("");
  }
  absl::Status ApplyGuest(const swiotlb::GuestCapabilities& guest) override {
    return pool_.Apply(guest);
  }
  const Log& log() const override { return log_; }

  size_t Count(const std::string& part) const {
    size_t count = 0;
    for (const std::string& line : capture_.lines()) {
      if (line.find(part) != std::string::npos) ++count;
    }
    return count;
  }

 private:
  LogCapture capture_;
  const Log log_ = capture_.log();
  swiotlb::GuestPool pool_{log_, false};
};

class GuestChannelTest : public ::testing::Test {
 protected:
  void Listen(const std::string& address) {
    ASSERT_OK_AND_ASSIGN(const GuestAddress where, ParseGuestAddress(address));
    ASSERT_OK_AND_ASSIGN(channel_, GuestChannel::Create(where, &target_));
  }
  void ListenAtPath() { Listen("unix:" + path()); }
  std::string path() const { return dir_ / "guest.sock"; }
  UniqueFd Connect() {
    auto fd = ConnectUnix(path());
    EXPECT_OK(fd);
    return std::move(fd).value();
  }
  static void Write(const UniqueFd& fd, absl::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return;  // the channel has ended it
      text.remove_prefix(static_cast<size_t>(n));
    }
  }
  // Everything until the channel closes the connection.
  static std::string ReadAll(const UniqueFd& fd) {
    std::string text;
    char buffer[4096];
    for (;;) {
      const ssize_t n = ::recv(fd.get(), buffer, sizeof(buffer), 0);
      if (n <= 0) return text;
      text.append(buffer, static_cast<size_t>(n));
    }
  }
  std::string Exchange(absl::string_view text) {
    const UniqueFd fd = Connect();
    Write(fd, text);
    EXPECT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
    return ReadAll(fd);
  }

  TempDir dir_;
  FakeTarget target_;
  std::unique_ptr<GuestChannel> channel_;
};

TEST_F(GuestChannelTest, AppliesOneReport) {
  ListenAtPath();
  struct stat info = {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(Exchange(absl::StrCat(kReport, "\n")), absl::StrCat(kAccepted, "\n"));
  EXPECT_EQ(target_.Count("bounce pool is 0x10000000,67108864"), 1u);
  EXPECT_EQ(Exchange(absl::StrCat(kReport, "\n", kReport, "\n")),
            absl::StrCat(kAccepted, "\n", kAccepted, "\n"))
      << "the same again is accepted";
  EXPECT_THAT(Exchange("{\"command\":\"guest\",\"swiotlb\":\"0x20000000,67108864\"}\n"),
              HasSubstr("ALREADY_EXISTS"));
  EXPECT_THAT(Exchange("{\"command\":\"guest\",\"swiotlb\":\"none\"}\n"), HasSubstr("\"ok\":true"));
  EXPECT_EQ(target_.Count("which stays"), 1u);
  channel_.reset();
  EXPECT_NE(::stat(path().c_str(), &info), 0);
}

// A virtio port is one connection, however often the guest starts.
TEST_F(GuestChannelTest, AConnectionStaysUntilItsOtherEndGoes) {
  ListenAtPath();
  const UniqueFd fd = Connect();
  for (int i = 0; i < 3; ++i) {
    Write(fd, absl::StrCat(i == 1 ? "nonsense" : kReport, "\n"));
    std::string answer;
    while (answer.empty() || answer.back() != '\n') {
      char c = 0;
      ASSERT_EQ(::recv(fd.get(), &c, 1, 0), 1) << answer;
      answer += c;
    }
    EXPECT_THAT(answer, HasSubstr(i == 1 ? "INVALID_ARGUMENT" : "\"ok\":true"));
  }
}

// Answers are not made while nobody reads them, and all come in the end.
TEST_F(GuestChannelTest, AFloodOfLinesIsAnswered) {
  ListenAtPath();
  const UniqueFd fd = Connect();
  constexpr size_t kLines = 100'000;
  std::thread writer([&] {
    Write(fd, std::string(kLines, '\n'));
    ::shutdown(fd.get(), SHUT_WR);
  });
  const std::string answers = ReadAll(fd);
  writer.join();
  EXPECT_EQ(static_cast<size_t>(std::count(answers.begin(), answers.end(), '\n')), kLines);
}

TEST_F(GuestChannelTest, TakesALineInPiecesOrWithoutItsEnd) {
  ListenAtPath();
  const UniqueFd fd = Connect();
  for (const char* at = kReport; *at != '\0'; ++at) Write(fd, absl::string_view(at, 1));
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  EXPECT_EQ(ReadAll(fd), absl::StrCat(kAccepted, "\n"));
}

TEST_F(GuestChannelTest, TellsOfRestrictedPools) {
  ListenAtPath();
  const std::string report =
      R"({"command":"guest","swiotlb":"none","reason":"no file","restricted_pools":[)"
      R"({"node":"/reserved-memory/a","swiotlb":"0x5c000000,33554432","devices":["/d","/e"]}]})"
      "\n";
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Exchange(report), "{\"ok\":true,\"result\":{\"swiotlb\":\"none\"}}\n");
  }
  EXPECT_EQ(target_.Count("/reserved-memory/a is a pool for /d, /e: swiotlb=0x5c000000,33554432"),
            1u);
  EXPECT_EQ(target_.Count("the guest says: no file"), 1u);
}

TEST_F(GuestChannelTest, RefusesWhatIsNoReport) {
  ListenAtPath();
  for (const char* line : {"\n", "hello\n", "{\"command\":\"remove\",\"name\":\"x\"}\n",
                           "{\"command\":\"guest\",\"swiotlb\":\"0x1000,0\"}\n", "\xff\xfe\n"}) {
    EXPECT_THAT(Exchange(line), HasSubstr("INVALID_ARGUMENT")) << line;
  }
  EXPECT_EQ(Exchange(absl::StrCat(kReport, "\n")), absl::StrCat(kAccepted, "\n"))
      << "nothing was applied";
}

TEST_F(GuestChannelTest, RefusesALineWithoutEnd) {
  ListenAtPath();
  const UniqueFd fd = Connect();
  Write(fd, std::string(swiotlb::kMaxReportLine + 1, 'x'));
  EXPECT_THAT(ReadAll(fd), HasSubstr("longer than")) << "at once, and the connection ends";
}

TEST_F(GuestChannelTest, DoesNotFillTheLog) {
  ListenAtPath();
  for (int i = 0; i < 50; ++i) EXPECT_THAT(Exchange("x\n"), HasSubstr("INVALID_ARGUMENT"));
  EXPECT_EQ(target_.Count("warn guest channel: guest report: the line is not JSON"), 8u);
}

TEST_F(GuestChannelTest, SilentConnectionsKeepNobodyOut) {
  ListenAtPath();
  std::vector<UniqueFd> silent;
  for (size_t i = 0; i < 3 * GuestChannel::kMaxConnections; ++i) {
    silent.push_back(Connect());
    Write(silent.back(), "{");
  }
  EXPECT_EQ(Exchange(absl::StrCat(kReport, "\n")), absl::StrCat(kAccepted, "\n"));
  // The oldest had to go.
  EXPECT_EQ(ReadAll(silent.front()), "");
}

TEST_F(GuestChannelTest, EndsWithConnectionsOpen) {
  ListenAtPath();
  const UniqueFd fd = Connect();
  Write(fd, "{");
  channel_.reset();
  EXPECT_EQ(ReadAll(fd), "");
}

TEST_F(GuestChannelTest, OverTcp) {
  Listen("tcp:127.0.0.1:0");
  const std::string prefix = "tcp:127.0.0.1:";
  ASSERT_THAT(channel_->address(), ::testing::StartsWith(prefix));
  uint32_t port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(channel_->address().substr(prefix.size()), &port));
  ASSERT_NE(port, 0u);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  Write(fd, absl::StrCat(kReport, "\n"));
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  EXPECT_EQ(ReadAll(fd), absl::StrCat(kAccepted, "\n"));
}

// The kernel's own vsock loopback, where that is loaded.
TEST_F(GuestChannelTest, OverVsockFromTheGuestNamed) {
  constexpr uint32_t kPort = 0x76620001;
  sockaddr_vm address = {};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_LOCAL;
  address.svm_port = kPort;
  const auto connected = [&] {
    UniqueFd fd(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
      fd.reset();
    return fd;
  };
  ASSERT_OK_AND_ASSIGN(const GuestAddress where, ParseGuestAddress(absl::StrCat("vsock:", kPort)));
  auto channel = GuestChannel::Create(where, &target_);
  if (!channel.ok()) GTEST_SKIP() << channel.status();
  UniqueFd fd = connected();
  if (!fd) GTEST_SKIP() << "no vsock loopback";
  Write(fd, absl::StrCat(kReport, "\n"));
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  EXPECT_EQ(ReadAll(fd), absl::StrCat(kAccepted, "\n"));
  channel->reset();

  Listen(absl::StrCat("vsock:77:", kPort));
  fd = connected();
  ASSERT_TRUE(fd);
  Write(fd, absl::StrCat(kReport, "\n"));
  EXPECT_EQ(ReadAll(fd), "") << "from another guest than the one named";
}

TEST_F(GuestChannelTest, AnAddressInUseIsSaid) {
  ListenAtPath();
  ASSERT_OK_AND_ASSIGN(const GuestAddress where, ParseGuestAddress("unix:" + path()));
  EXPECT_THAT(GuestChannel::Create(where, &target_), StatusIs(kAlreadyExists, path()));
}

TEST(GuestAddress, Forms) {
  ASSERT_OK_AND_ASSIGN(GuestAddress address, ParseGuestAddress("unix:/run/a:b"));
  EXPECT_EQ(address.kind, GuestAddress::Kind::kUnix);
  EXPECT_EQ(address.name, "/run/a:b");
  ASSERT_OK_AND_ASSIGN(address, ParseGuestAddress("vsock:5000"));
  EXPECT_EQ(address.kind, GuestAddress::Kind::kVsock);
  EXPECT_EQ(address.port, 5000u);
  EXPECT_FALSE(address.cid.has_value());
  ASSERT_OK_AND_ASSIGN(address, ParseGuestAddress("vsock:3:5000"));
  EXPECT_EQ(address.cid, 3u);
  ASSERT_OK_AND_ASSIGN(address, ParseGuestAddress("tcp:127.0.0.2:0"));
  EXPECT_EQ(address.name, "127.0.0.2");
  ASSERT_OK_AND_ASSIGN(address, ParseGuestAddress("tcp:[::1]:80"));
  EXPECT_EQ(address.name, "::1");
  EXPECT_EQ(address.port, 80u);
}

TEST(GuestAddress, RefusesEverythingElse) {
  for (const std::string& text : {std::string(),
                                  std::string("/run/guest.sock"),
                                  std::string("unix:"),
                                  std::string("vsock:"),
                                  std::string("vsock:0"),
                                  std::string("vsock:x"),
                                  std::string("vsock:x:1"),
                                  std::string("vsock:1:2:3"),
                                  std::string("vsock:4294967295"),
                                  std::string("vsock:4294967295:1"),
                                  std::string("tcp:80"),
                                  std::string("tcp::80"),
                                  std::string("tcp:0.0.0.0:80"),
                                  std::string("tcp:192.168.1.1:80"),
                                  std::string("tcp:[::]:80"),
                                  std::string("tcp:[::1:80"),
                                  std::string("tcp:localhost:80"),
                                  std::string("tcp:127.0.0.1:65536"),
                                  std::string("udp:127.0.0.1:80"),
                                  std::string("unix:/a\0b", 9)}) {
    EXPECT_THAT(ParseGuestAddress(text), StatusIs(kInvalidArgument)) << text;
  }
}

}  // namespace
}  // namespace virtbay::device_host
