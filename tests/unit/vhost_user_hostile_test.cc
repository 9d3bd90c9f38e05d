// A front-end that gives away descriptors which wait for it, hide others, or keep it alive.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "hostif/vhost_user/front_end_fd.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/vhost_user_fixture.h"

namespace virtbay::vhost_user {
namespace {

struct Pair {
  explicit Pair(int type = SOCK_STREAM) {
    int fds[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
    mine.reset(fds[0]);
    theirs.reset(fds[1]);
  }
  UniqueFd mine;
  UniqueFd theirs;
};

// A connection that nobody reads and whose last close waits for a day: its own end, and the others
// that have to live on.
struct Lingering {
  Lingering() {
    const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    EXPECT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listen(listener.get(), 1), 0);
    EXPECT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    fd.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    peer.reset(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    const std::vector<char> data(1 << 16);
    while (send(fd.get(), data.data(), data.size(), MSG_DONTWAIT) > 0) {
    }
    const linger on{1, 86'400};
    EXPECT_EQ(setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &on, sizeof on), 0);
  }
  UniqueFd fd;
  UniqueFd peer;
};

// Puts `fd` into the queue at the other end of `socket` and gives it away.
void PutIntoQueue(int socket, UniqueFd fd, int flags = 0) {
  const char byte = 'x';
  iovec part{const_cast<char*>(&byte), 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(sizeof(int));
  const int raw = fd.get();
  std::memcpy(CMSG_DATA(rights), &raw, sizeof raw);
  ASSERT_EQ(sendmsg(socket, &message, flags | MSG_NOSIGNAL), 1);
}

class VhostUserHostileTest : public VhostUserTest {
 protected:
  void SetUp() override { Negotiate(); }

  // Sends it with a message that takes one, and keeps nothing of it.
  void Give(Request request, UniqueFd fd) {
    const uint64_t ring = 0;
    const auto payload = request == Request::kSetBackendReqFd ? std::span<const std::byte>()
                                                              : std::as_bytes(std::span(&ring, 1));
    ASSERT_TRUE(front_.SendBytes(request, payload, {fd.get()}));
  }

  static constexpr Request kTakeSockets[] = {Request::kSetVringCall, Request::kSetVringErr,
                                             Request::kSetBackendReqFd};
};

TEST_F(VhostUserHostileTest, ASocketWithSomethingInItsQueueIsRefusedAndItsCloseWaitsForNobody) {
  for (const Request request : kTakeSockets) {
    Pair pair;
    Lingering connection;
    PutIntoQueue(pair.mine.get(), std::move(connection.fd));
    pair.mine.reset();
    Give(request, std::move(pair.theirs));
    EXPECT_TRUE(front_.Alive()) << "the last close did not hold the server up";
    // Bytes without a descriptor are as little what a call is for.
    Pair bytes;
    ASSERT_EQ(send(bytes.mine.get(), "x", 1, 0), 1);
    Give(request, std::move(bytes.theirs));
    EXPECT_TRUE(front_.Alive());
  }
  EXPECT_TRUE(log_.Contains("ring 0: the socket has something in its queue"));
  EXPECT_TRUE(log_.Contains("the back-end channel: the socket has something in its queue"));
}

// Of a byte that was read out of band the queue keeps the descriptor, and no length shows it.
TEST_F(VhostUserHostileTest, ADescriptorBehindAByteOutOfBandDoesNotHide) {
  Pair pair;
  Lingering connection;
  PutIntoQueue(pair.mine.get(), std::move(connection.fd), MSG_OOB);
  char byte = 0;
  ASSERT_EQ(recv(pair.theirs.get(), &byte, 1, MSG_OOB), 1);
  Give(Request::kSetVringCall, std::move(pair.theirs));
  EXPECT_TRUE(front_.Alive());
  EXPECT_TRUE(log_.Contains("ring 0: the socket has something in its queue"));
}

TEST_F(VhostUserHostileTest, NothingComesInAtASocketThatWasTaken) {
  for (const Request request : kTakeSockets) {
    Pair pair;
    Give(request, std::move(pair.theirs));
    ASSERT_TRUE(front_.Alive());
    EXPECT_LT(send(pair.mine.get(), "x", 1, MSG_NOSIGNAL | MSG_DONTWAIT), 0)
        << "it is read by none";
  }
}

TEST_F(VhostUserHostileTest, OtherSocketsAreRefused) {
  testing::TempDir directory;
  const UniqueFd listener(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = directory / "s";
  std::memcpy(address.sun_path, path.c_str(), path.size());
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener.get(), 4), 0);
  // It may be a device's of this process.
  const UniqueFd connected = testing::ConnectTo(path);
  const UniqueFd unconnected(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const Pair packets(SOCK_SEQPACKET);
  const Pair datagrams(SOCK_DGRAM);
  for (const int fd : {listener.get(), connected.get(), unconnected.get(), packets.theirs.get(),
                       datagrams.theirs.get()}) {
    EXPECT_EQ(front_.Ack(Request::kSetVringCall, uint64_t{0}, {fd}), 1);
    EXPECT_EQ(front_.AckBytes(Request::kSetBackendReqFd, {}, {fd}), 1);
  }
  EXPECT_TRUE(log_.Contains("ring 0: the socket is not one of a pair"));
  EXPECT_TRUE(log_.Contains("ring 0: the socket is not connected"));
}

TEST_F(VhostUserHostileTest, AFrontEndDoesNotKeepItselfAlive) {
  for (const Request request : kTakeSockets) {
    Connect();
    Negotiate();
    Give(request, UniqueFd(dup(front_.fd())));
    EXPECT_TRUE(front_.Closed());
    front_.Disconnect();
    WaitUntilGone();
    EXPECT_TRUE(log_.Contains("gave its own end of the connection"));
  }
}

TEST_F(VhostUserHostileTest, DescriptorsThatNobodyReceivedHoldNobodyUp) {
  Lingering in_queue;
  Lingering in_payload;
  Lingering too_many;
  Lingering nested;
  Pair pair;
  PutIntoQueue(pair.mine.get(), std::move(nested.fd));
  pair.mine.reset();
  // The server reads no further while nobody takes its replies.
  const Header header{static_cast<uint32_t>(Request::kGetFeatures), kVersion, 0};
  const auto bytes = std::as_bytes(std::span(&header, 1));
  int sent = 0;
  for (pollfd room{front_.fd(), POLLOUT, 0}; poll(&room, 1, 100) == 1;) {
    ASSERT_TRUE(front_.SendRaw(bytes));
    ++sent;
  }
  char dropped[sizeof(Header) + 8];
  // Room for what follows.
  for (int i = 0; i < sent / 4; ++i) ASSERT_GT(recv(front_.fd(), dropped, sizeof dropped, 0), 0);
  ASSERT_GE(sent, 8);
  ASSERT_TRUE(front_.SendRaw(bytes, {in_queue.fd.get()}));
  ASSERT_TRUE(front_.SendRaw(bytes, std::vector<int>(253, too_many.fd.get())));
  ASSERT_TRUE(front_.SendRaw(bytes, {pair.theirs.get()}));
  for (UniqueFd* fd : {&in_queue.fd, &too_many.fd, &pair.theirs}) fd->reset();
  front_.Disconnect();
  WaitUntilGone();

  Connect();
  Negotiate();
  const Header kick{static_cast<uint32_t>(Request::kSetVringKick), kVersion, 8};
  ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&kick, 1))));
  const uint64_t ring = 0;
  ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&ring, 1)), {in_payload.fd.get()}));
  in_payload.fd.reset();
  EXPECT_TRUE(front_.Closed());
  WaitUntilGone();
}

TEST_F(VhostUserHostileTest, ARefusedFrontEndsDescriptorsHoldNobodyUp) {
  testing::TempDir directory;
  const std::string path = directory / "s";
  ServerOptions options;
  options.socket_path = path;
  options.log = log_.log();
  // The server's thread comes to the second one when all that it sends is there, and nowhere else.
  std::promise<void> sent;
  options.on_connect = [&sent] { sent.get_future().wait(); };
  FakeDevice device(2, 16);
  ASSERT_OK_AND_ASSIGN(
      auto server,
      Server::Create([&](DevicePortEvents* e) { return device.Attach(e); }, std::move(options)));
  const FrontEnd first(testing::ConnectTo(path));
  Lingering connection;
  FrontEnd second(testing::ConnectTo(path));
  EXPECT_TRUE(second.SendBytes(Request::kGetFeatures, {}, {connection.fd.get()}));
  connection.fd.reset();
  second.Disconnect();
  sent.set_value();
  EXPECT_TRUE(log_.WaitFor("refused a second front-end"));
  EXPECT_TRUE(first.Alive());
}

// ---- memory -------------------------------------------------------------------------------------

TEST_F(VhostUserHostileTest, MemoryOfAFileSystemThatIsServedByOthersIsRefused) {
  const UniqueFd file(open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(file);
  EXPECT_GT(front_.Ack(Request::kSetMemTable, OneRegionTable(), {file.get()}), 0);
  EXPECT_TRUE(log_.Contains("the descriptor's file system, proc, is not one that this kernel"));
}

TEST(VhostUserFrontEndFdTest, FindsTheTypeOfAFileSystem) {
  constexpr char kMounts[] =
      "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
      "27 0 254:1 / / rw shared:1 master:2 - ext4 /dev/vda rw\n"
      "40 27 0:44 / /a\\040b rw - fuse.sshfs host: rw\n"
      "41 27 0:45 / /- rw - nfs4 host:/ rw\n"
      "42 27 0:46\n"
      "43 27 0:47 / /x rw -\n";
  EXPECT_EQ(FileSystemType(kMounts, 27, 0), "ext4");
  EXPECT_EQ(FileSystemType(kMounts, 40, 0), "fuse.sshfs");
  EXPECT_EQ(FileSystemType(kMounts, 41, 0), "nfs4");
  for (const int id : {42, 43, 44}) EXPECT_EQ(FileSystemType(kMounts, id, 0), "");
  EXPECT_EQ(FileSystemType(kMounts, -1, makedev(254, 1)), "ext4");
  EXPECT_EQ(FileSystemType(kMounts, -1, makedev(0, 44)), "fuse.sshfs");
  EXPECT_EQ(FileSystemType(kMounts, -1, makedev(0, 99)), "");
}

TEST(VhostUserFrontEndFdTest, MemoryOfThisKernelIsTaken) {
  const UniqueFd memfd(memfd_create("guest", MFD_CLOEXEC));
  EXPECT_OK(CheckMemoryFd(memfd.get()));
  // Wherever the build is: no test of a local disk, but the current directory's own.
  const testing::TempDir directory;
  const std::string path = directory / "memory";
  const UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  EXPECT_OK(CheckMemoryFd(file.get()));
}

}  // namespace
}  // namespace virtbay::vhost_user
