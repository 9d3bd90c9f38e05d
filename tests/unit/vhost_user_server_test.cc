// The vhost-user server's sockets: by path, inherited, from systemd; one front-end after another.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "hostif/vhost_user/server.h"
#include "hostif/vhost_user/snapshot.h"
#include "hostif/vhost_user/socket.h"
#include "tests/support/fake_device_port.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"
#include "tests/support/vhost_user_front_end.h"

namespace virtbay::vhost_user {
namespace {

using testing::ConnectTo;
using testing::CountFds;
using testing::FakeDevice;
using testing::FrontEnd;
using testing::MakeEventFd;
using testing::MakeMemory;
using testing::StatusIs;

class VhostUserServerTest : public ::testing::Test {
 protected:
  AttachFunction Attach() {
    return [this](DevicePortEvents* events) { return device_.Attach(events); };
  }
  ServerOptions Options() {
    ServerOptions options;
    options.log = log_.log();
    options.on_connect = [this] {
      const std::lock_guard lock(mutex_);
      ++connects_;
    };
    options.on_disconnect = [this] {
      const std::lock_guard lock(mutex_);
      ++disconnects_;
      changed_.notify_all();
    };
    return options;
  }
  ServerOptions AtPath() {
    ServerOptions options = Options();
    options.socket_path = path_;
    return options;
  }
  void WaitForDisconnects(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return disconnects_ >= count; });
  }
  static bool IsSocket(const std::string& path) {
    struct stat file {};
    return lstat(path.c_str(), &file) == 0 && S_ISSOCK(file.st_mode);
  }

  testing::TempDir directory_;
  const std::string path_ = directory_ / "s";
  testing::LogCapture log_;
  FakeDevice device_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int connects_ = 0;
  int disconnects_ = 0;
};

TEST_F(VhostUserServerTest, MakesAndRemovesItsSocketFile) {
  const int before = CountFds();
  {
    ServerOptions options = AtPath();
    options.socket_mode = 0662;  // whatever the umask takes away
    ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), std::move(options)));
    struct stat file {};
    ASSERT_EQ(lstat(path_.c_str(), &file), 0);
    EXPECT_EQ(file.st_mode, S_IFSOCK | 0662u);
    EXPECT_FALSE(server->connected());
    EXPECT_FALSE(server->ended());
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_EQ(CountFds(), before);
}

TEST_F(VhostUserServerTest, ServesTheNextFrontEnd) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), AtPath()));
  const UniqueFd memory = MakeMemory(1 << 20);
  const UniqueFd event = MakeEventFd();
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd mine(pair[0]);
  const UniqueFd channel(pair[1]);
  int before = 0;
  for (int i = 0; i < 100; ++i) {
    FrontEnd front(ConnectTo(path_));
    ASSERT_EQ(front.Ack(Request::kSetProtocolFeatures, kOfferedProtocolFeatures), 0);
    ASSERT_EQ(front.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
    EXPECT_TRUE(server->connected());
    // It leaves a running ring, memory, a channel and, now and then, half a message behind.
    ASSERT_EQ(front.AckBytes(Request::kSetBackendReqFd, {}, {channel.get()}), 0);
    ASSERT_EQ(front.Ack(Request::kAddMemReg, SingleRegion{0, {0, 1 << 20, 0, 0}}, {memory.get()}),
              0);
    ASSERT_EQ(front.Ack(Request::kSetVringNum, VringState{0, 16}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringAddr, VringAddress{0, 0, 0, 0x2000, 0x1000, 0}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringCall, uint64_t{0}, {event.get()}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringErr, uint64_t{1}, {event.get()}), 0);
    ASSERT_EQ(front.Ack(Request::kSetVringKick, uint64_t{0}, {event.get()}), 0);
    ASSERT_TRUE(device_.queue(0).running);
    if (i % 3 == 0) {
      const uint32_t half = static_cast<uint32_t>(Request::kSetVringCall);
      ASSERT_TRUE(front.SendRaw(std::as_bytes(std::span(&half, 1)), {event.get()}));
    }
    // Half of them connect again before the server can have seen the end of the last one.
    front.Disconnect();
    if (i % 2 == 0) WaitForDisconnects(i + 1);
    if (i == 0) before = CountFds();
  }
  WaitForDisconnects(100);
  EXPECT_EQ(CountFds(), before);
  EXPECT_FALSE(device_.With([](auto& s) { return s.attached; }));
  EXPECT_EQ(device_.With([](auto& s) { return s.attaches; }), 100);
  EXPECT_FALSE(log_.Contains("second"));
}

TEST_F(VhostUserServerTest, ASecondFrontEndIsRefused) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), AtPath()));
  const FrontEnd first(ConnectTo(path_));
  ASSERT_TRUE(first.Alive());
  for (int i = 0; i < 3; ++i) {
    const FrontEnd second(ConnectTo(path_));
    EXPECT_TRUE(second.Closed());
  }
  EXPECT_TRUE(log_.Contains("warn refused a second front-end (pid "));
  EXPECT_TRUE(first.Alive());
}

TEST_F(VhostUserServerTest, ABusyDeviceClosesTheConnectionUntilItIsFree) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), AtPath()));
  class Nothing final : public DevicePortEvents {
    void OnConfigChanged() override {}
  } nothing;
  ASSERT_OK_AND_ASSIGN(auto port, device_.Attach(&nothing));
  {
    const FrontEnd front(ConnectTo(path_));
    EXPECT_TRUE(front.Closed());
  }
  EXPECT_TRUE(log_.WaitFor("the device is in use"));
  EXPECT_FALSE(server->connected());
  port.reset();
  const FrontEnd front(ConnectTo(path_));
  EXPECT_TRUE(front.Alive());
}

TEST_F(VhostUserServerTest, EndsWithAFrontEndConnected) {
  ASSERT_OK_AND_ASSIGN(auto server, Server::Create(Attach(), AtPath()));
  const FrontEnd front(ConnectTo(path_));
  ASSERT_TRUE(front.Alive());
  server.reset();
  EXPECT_TRUE(front.Closed());
  EXPECT_FALSE(device_.With([](auto& s) { return s.attached; }));
}

TEST_F(VhostUserServerTest, APathInUseIsAnError) {
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), AtPath()));
  const auto second = Server::Create(Attach(), AtPath());
  EXPECT_THAT(second, StatusIs(absl::StatusCode::kAlreadyExists, path_ + "': in use"));
  const FrontEnd front(ConnectTo(path_));
  EXPECT_TRUE(front.Alive());
}

TEST_F(VhostUserServerTest, AStaleSocketIsReplacedButNothingElse) {
  { ASSERT_OK(ListenAt(path_, 0600)); }
  EXPECT_FALSE(IsSocket(path_));
  // A process that was killed leaves its file.
  const UniqueFd killed(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(bind(killed.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_TRUE(IsSocket(path_));
  {
    ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), AtPath()));
    EXPECT_TRUE(FrontEnd(ConnectTo(path_)).Alive());
  }
  // A file, a directory, a link to a socket.
  directory_.Write("s", "precious");
  EXPECT_THAT(Server::Create(Attach(), AtPath()),
              StatusIs(absl::StatusCode::kAlreadyExists, "is not a socket"));
  EXPECT_EQ(testing::ReadFile(path_), "precious");
  std::filesystem::remove(path_);
  std::filesystem::create_directory(path_);
  EXPECT_THAT(Server::Create(Attach(), AtPath()),
              StatusIs(absl::StatusCode::kAlreadyExists, "is not a socket"));
  std::filesystem::remove(path_);
  std::filesystem::create_symlink("elsewhere", path_);
  EXPECT_THAT(Server::Create(Attach(), AtPath()),
              StatusIs(absl::StatusCode::kAlreadyExists, "is not a socket"));
}

TEST_F(VhostUserServerTest, ASocketFileOfSomebodyElseIsNotRemoved) {
  ASSERT_OK_AND_ASSIGN(auto first, Server::Create(Attach(), AtPath()));
  std::filesystem::remove(path_);
  ASSERT_OK_AND_ASSIGN(const auto second, Server::Create(Attach(), AtPath()));
  first.reset();
  EXPECT_TRUE(IsSocket(path_));
  EXPECT_TRUE(FrontEnd(ConnectTo(path_)).Alive());
}

TEST_F(VhostUserServerTest, BadPathsAreNamed) {
  const auto create = [&](const std::string& path) {
    ServerOptions options = Options();
    options.socket_path = path;
    return Server::Create(Attach(), std::move(options)).status();
  };
  EXPECT_THAT(create(directory_ / std::string(120, 'x')),
              StatusIs(absl::StatusCode::kInvalidArgument, "at most 107"));
  EXPECT_THAT(create(directory_ / "missing/s"), StatusIs(absl::StatusCode::kNotFound, "missing/s"));
  EXPECT_THAT(create(""), StatusIs(absl::StatusCode::kInvalidArgument));
  ServerOptions both = AtPath();
  both.socket = MakeEventFd();
  EXPECT_THAT(Server::Create(Attach(), std::move(both)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(VhostUserServerTest, TakesAListeningSocket) {
  ASSERT_OK_AND_ASSIGN(ListeningSocket socket, ListenAt(path_, 0600));
  ServerOptions options = Options();
  options.socket = std::move(socket.fd);
  {
    ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), std::move(options)));
    for (int i = 0; i < 2; ++i) {
      EXPECT_TRUE(FrontEnd(ConnectTo(path_)).Alive());
    }
  }
  // Its file belongs to whoever made it.
  EXPECT_TRUE(IsSocket(path_));
}

TEST_F(VhostUserServerTest, TakesAConnectedSocketAndEndsWithIt) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  FrontEnd front{UniqueFd(pair[0])};
  ServerOptions options = Options();
  options.socket = UniqueFd(pair[1]);
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), std::move(options)));
  ASSERT_TRUE(front.Alive());
  EXPECT_FALSE(server->ended());
  front.Disconnect();
  WaitForDisconnects(1);
  while (!server->ended()) std::this_thread::yield();
  EXPECT_FALSE(server->connected());
}

TEST_F(VhostUserServerTest, OtherFdsAreRefused) {
  const auto create = [&](int fd) {
    ServerOptions options = Options();
    options.socket = UniqueFd(fd);
    return Server::Create(Attach(), std::move(options)).status();
  };
  EXPECT_THAT(create(eventfd(0, EFD_CLOEXEC)), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(create(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, "not a UNIX stream socket"));
  EXPECT_THAT(create(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, "not a UNIX stream socket"));
  EXPECT_THAT(create(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument, "neither listens nor is connected"));
}

TEST(VhostUserActivationTest, ParsesWhatSystemdSets) {
  EXPECT_THAT(ParseActivation(nullptr, nullptr, nullptr, 7),
              testing::IsOkAndHolds(::testing::IsEmpty()));
  EXPECT_THAT(ParseActivation("8", "2", "a:b", 7), testing::IsOkAndHolds(::testing::IsEmpty()));
  ASSERT_OK_AND_ASSIGN(auto sockets, ParseActivation("7", "2", "a:b", 7));
  ASSERT_EQ(sockets.size(), 2u);
  EXPECT_EQ(sockets[0].fd, 3);
  EXPECT_EQ(sockets[1].fd, 4);
  EXPECT_EQ(sockets[1].name, "b");
  ASSERT_OK_AND_ASSIGN(sockets, ParseActivation("7", "1", nullptr, 7));
  EXPECT_EQ(sockets[0].name, "");
  for (const auto& [pid, fds, names] :
       {std::tuple("x", "1", "a"), std::tuple("7", "", "a"), std::tuple("7", "-1", "a"),
        std::tuple("7", "1x", "a"), std::tuple("7", "99999999", ""), std::tuple("7", "2", "a"),
        std::tuple("7", "1", "a:b")}) {
    EXPECT_THAT(ParseActivation(pid, fds, names, 7), StatusIs(absl::StatusCode::kInvalidArgument))
        << pid << " " << fds << " " << names;
  }
}

// The thread may find the next one begun when it comes to see that the last one is over.
TEST_F(VhostUserServerTest, IsFrozenAgainAtOnce) {
  ServerOptions options = AtPath();
  options.can_freeze = true;
  ASSERT_OK_AND_ASSIGN(const auto server, Server::Create(Attach(), std::move(options)));
  for (int i = 0; i < 2000; ++i) {
    ASSERT_OK(server->Freeze(absl::Seconds(60)).status()) << i;
    server->Thaw();
  }
}

}  // namespace
}  // namespace virtbay::vhost_user
