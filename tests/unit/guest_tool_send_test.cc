// virtbay-guest's way to the host: its targets, and hosts that answer, refuse, hang and go away.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>

#include "hostif/swiotlb/guest/send.h"
#include "tests/support/temp_dir.h"

namespace virtbay::guest_tool {
namespace {

using ::testing::HasSubstr;
using ::virtbay::testing::TempDir;
using std::chrono_literals::operator""ms;
using std::chrono_literals::operator""s;

constexpr char kOk[] = "{\"ok\":true,\"result\":{}}\n";

TEST(Target, Forms) {
  std::string why;
  auto target = ParseTarget("vsock:2:5000", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->kind, Target::Kind::kVsock);
  EXPECT_EQ(target->cid, 2u);
  EXPECT_EQ(target->port, 5000u);
  target = ParseTarget("vsock:host:4294967295", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->cid, 2u);
  EXPECT_EQ(target->port, 4294967295u);
  target = ParseTarget("unix:/a:b", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->name, "/a:b");
  target = ParseTarget("tcp:[::1]:80", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->name, "::1");
  target = ParseTarget("tcp:127.0.0.1:80", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->name, "127.0.0.1");
  target = ParseTarget("device:/dev/virtio-ports/x", &why);
  ASSERT_TRUE(target) << why;
  EXPECT_EQ(target->kind, Target::Kind::kDevice);
}

TEST(Target, RefusesEverythingElse) {
  for (const std::string& text : {std::string(),
                                  std::string("vsock"),
                                  std::string("vsock:"),
                                  std::string("vsock:2"),
                                  std::string("vsock:2:"),
                                  std::string("vsock:2:0"),
                                  std::string("vsock:x:1"),
                                  std::string("vsock:2:4294967296"),
                                  std::string("vsock:-1:5"),
                                  std::string("tcp:localhost:80"),
                                  std::string("tcp:127.0.0.1"),
                                  std::string("tcp:127.0.0.1:65536"),
                                  std::string("tcp:127.0.0.1:http"),
                                  std::string("tcp::80"),
                                  std::string("unix:"),
                                  std::string("device:"),
                                  std::string("file:/x"),
                                  "unix:/" + std::string(200, 'x'),
                                  std::string("unix:/a\0b", 9),
                                  std::string(":1")}) {
    std::string why;
    EXPECT_FALSE(ParseTarget(text, &why)) << text;
    EXPECT_THAT(why, HasSubstr(": ")) << text;
  }
}

TEST(Target, AVirtioPortByItsName) {
  TempDir dir;
  for (const auto& [port, name] : {std::pair<const char*, const char*>{"vport1p1", "other\n"},
                                   {"vport2p1", "virtbay.guest\n"},
                                   {"vport3p1", ""}}) {
    std::filesystem::create_directory(dir / port);
    dir.Write(std::string(port) + "/name", name);
  }
  const std::string directory = dir.path();
  EXPECT_EQ(VirtioPort("/dev/virtio-ports/virtbay.guest", directory), "vport2p1");
  EXPECT_EQ(VirtioPort("/dev/virtio-ports/other", directory), "vport1p1");
  EXPECT_EQ(VirtioPort("/dev/virtio-ports/virtbay", directory), "");
  EXPECT_EQ(VirtioPort("/dev/virtbay.guest", directory), "");
  EXPECT_EQ(VirtioPort("/dev/virtio-ports/other", directory + "/missing"), "");
}

// A host that accepts once and does what the test says.
class FakeHost {
 public:
  FakeHost(int listener, std::function<void(int)> serve)
      : listener_(listener), thread_([this, serve] {
          const int fd = ::accept(listener_, nullptr, nullptr);
          serve(fd);
          ::close(fd);
        }) {}
  ~FakeHost() {
    thread_.join();
    ::close(listener_);
  }

 private:
  const int listener_;
  std::thread thread_;
};

int ListenUnix(const std::string& path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  EXPECT_EQ(::listen(fd, 1), 0);
  return fd;
}

std::string ReadLine(int fd) {
  std::string line;
  char c = 0;
  while (::read(fd, &c, 1) == 1 && c != '\n') line += c;
  return line;
}

void Write(int fd, const std::string& text) {
  EXPECT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
}

Answer SendTo(const std::string& text, const std::string& line, std::chrono::milliseconds timeout) {
  std::string why;
  const auto target = ParseTarget(text, &why);
  EXPECT_TRUE(target) << why;
  return Send(*target, line, timeout);
}

TEST(Send, OverAUnixSocket) {
  TempDir dir;
  std::string got;
  {
    FakeHost host(ListenUnix(dir / "s"), [&](int fd) {
      got = ReadLine(fd);
      Write(fd, "{\"ok\"");  // in pieces
      Write(fd, ":true}");
      Write(fd, "\nmore");
    });
    const Answer answer = SendTo("unix:" + (dir / "s").native(), std::string(50'000, 'x'), 60s);
    EXPECT_TRUE(answer.ok) << answer.text;
    EXPECT_EQ(answer.text, "{\"ok\":true}");
  }
  EXPECT_EQ(got, std::string(50'000, 'x'));
}

TEST(Send, OverTcp) {
  for (const bool v6 : {false, true}) {
    const int fd = ::socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    sockaddr_in6 address = {};
    socklen_t size = v6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
    if (v6) {
      address.sin6_family = AF_INET6;
      address.sin6_addr = IN6ADDR_LOOPBACK_INIT;
    } else {
      auto* v4 = reinterpret_cast<sockaddr_in*>(&address);
      v4->sin_family = AF_INET;
      v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    }
    if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0) {
      ::close(fd);
      ASSERT_TRUE(v6) << "no IPv4 here";
      continue;
    }
    ASSERT_EQ(::listen(fd, 1), 0);
    ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
    FakeHost host(fd, [](int connection) {
      ReadLine(connection);
      Write(connection, kOk);
    });
    const Answer answer =
        SendTo((v6 ? "tcp:[::1]:" : "tcp:127.0.0.1:") + std::to_string(ntohs(address.sin6_port)),
               "x", 60s);
    EXPECT_TRUE(answer.ok) << answer.text;
  }
}

TEST(Send, OverADevice) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(master, 0);
  ASSERT_EQ(::grantpt(master), 0);
  ASSERT_EQ(::unlockpt(master), 0);
  const std::string name = ::ptsname(master);
  // Held open, so that the settings outlive the program.
  const int keep = ::open(name.c_str(), O_RDWR | O_NOCTTY);
  ASSERT_GE(keep, 0);
  std::string got;
  std::thread host([&] {
    got = ReadLine(master);
    Write(master, kOk);
  });
  const Answer answer = SendTo("device:" + name, "{\"a\":\"\\r\"}", 60s);
  host.join();
  EXPECT_TRUE(answer.ok) << answer.text;
  EXPECT_EQ(got, "{\"a\":\"\\r\"}");
  termios after = {};
  ASSERT_EQ(::tcgetattr(keep, &after), 0);
  EXPECT_NE(after.c_lflag & ECHO, 0u) << "as it was before";
  ::close(keep);
  ::close(master);
}

TEST(Send, ARefusalIsNotAnAcceptance) {
  for (const char* text :
       {"{\"error\":{\"message\":\"no\"},\"ok\":false}\n",
        "{\"error\":{\"message\":\"\\\"ok\\\":true\"},\"ok\":false}\n", "\n", "hello\n"}) {
    TempDir dir;
    FakeHost host(ListenUnix(dir / "s"), [&](int fd) {
      ReadLine(fd);
      Write(fd, text);
    });
    const Answer answer = SendTo("unix:" + (dir / "s").native(), "x", 60s);
    EXPECT_FALSE(answer.ok) << text;
    EXPECT_EQ(answer.text + "\n", text);
  }
}

TEST(Send, AHostThatGoesAway) {
  TempDir dir;
  FakeHost host(ListenUnix(dir / "s"), [&](int fd) {
    ReadLine(fd);
    Write(fd, "{\"ok\":true}");  // the line does not end
  });
  const Answer answer = SendTo("unix:" + (dir / "s").native(), "x", 60s);
  EXPECT_FALSE(answer.ok);
  EXPECT_THAT(answer.text, HasSubstr("without an answer")) << "half a line is none";
}

TEST(Send, AHostThatFloods) {
  TempDir dir;
  FakeHost host(ListenUnix(dir / "s"), [&](int fd) {
    ReadLine(fd);
    const std::string noise(4096, 'x');
    while (::send(fd, noise.data(), noise.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  const Answer answer = SendTo("unix:" + (dir / "s").native(), "x", 60s);
  EXPECT_FALSE(answer.ok);
  EXPECT_THAT(answer.text, HasSubstr("too long"));
}

TEST(Send, AHostThatSaysNothing) {
  TempDir dir;
  FakeHost host(ListenUnix(dir / "s"), [&](int fd) {
    ReadLine(fd);
    ReadLine(fd);  // until the guest has given up
  });
  const Answer answer = SendTo("unix:" + (dir / "s").native(), "x", 50ms);
  EXPECT_FALSE(answer.ok);
  EXPECT_THAT(answer.text, HasSubstr("in time"));
}

TEST(Send, NobodyThere) {
  TempDir dir;
  EXPECT_THAT(SendTo("unix:" + (dir / "s").native(), "x", 1s).text, HasSubstr("connect: "));
  EXPECT_THAT(SendTo("device:" + (dir / "d").native(), "x", 1s).text, HasSubstr("No such file"));
  const std::string file = dir.Write("f", "keep");
  EXPECT_THAT(SendTo("device:" + file, "x", 1s).text, HasSubstr("not a character device"));
  EXPECT_EQ(::virtbay::testing::ReadFile(file), "keep");
}

}  // namespace
}  // namespace virtbay::guest_tool
