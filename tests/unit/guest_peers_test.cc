// The guest library's vhost-user front-end against other projects' back-ends, where they are
// installed: it must not only agree with itself and with this project's server.
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "hostif/guest/driver.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::guest {
namespace {

using ::virtbay::testing::IsOk;

constexpr char kVirtiofsd[] = "/usr/lib/qemu/virtiofsd";
constexpr char kStorageDaemon[] = "/usr/bin/qemu-storage-daemon";

// A back-end process that inherits a listening socket as descriptor 3; killed with the object.
class Peer {
 public:
  Peer(const std::string& socket, const std::vector<std::string>& command) {
    UniqueFd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket.copy(address.sun_path, sizeof(address.sun_path) - 1);
    EXPECT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(listening.get(), 1), 0);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::setenv("MALLOC_ARENA_MAX", "16", 1);
    ::dup2(listening.get(), 3);
    // dup2 onto itself keeps close-on-exec.
    ::fcntl(3, F_SETFD, 0);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ~Peer() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_ = -1;
};

class PeersTest : public ::testing::Test {
 protected:
  testing::TempDir dir_;
  std::string socket_ = (dir_ / "s").native();
};

TEST_F(PeersTest, TheCVirtiofsdServesFiles) {
  if (::access(kVirtiofsd, X_OK) != 0) GTEST_SKIP() << kVirtiofsd << " is not installed";
  if (::geteuid() != 0) GTEST_SKIP() << "virtiofsd's sandbox needs root";
  std::filesystem::create_directory(dir_ / "share");
  dir_.Write("share/hello", "from the host");
  const Peer peer(socket_, {kVirtiofsd, "--fd=3", "-o", "source=" + (dir_ / "share").native(), "-o",
                            "sandbox=chroot"});
  ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Connect(socket_));
  ASSERT_OK_AND_ASSIGN(auto session, FuseSession::Create(std::move(transport), {}));
  FuseClient& client = session->client();
  EXPECT_EQ(client.Lookup(kFuseRootId, "nothing").error, ENOENT);
  const auto hello = client.Lookup(kFuseRootId, "hello");
  ASSERT_TRUE(hello.ok());
  EXPECT_EQ(hello.value.attr.size, 13u);
  const auto open = client.Open(hello.value.nodeid, O_RDWR);
  ASSERT_TRUE(open.ok());
  const auto text = client.Read(hello.value.nodeid, open.value.fh, 5, 4096);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(text.value.data()), text.value.size()),
            "the host");
  // The largest request: 256 pages and their headers, indirect.
  std::vector<std::byte> data(1u << 20);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 31 + i / 4096);
  const auto written = client.Write(hello.value.nodeid, open.value.fh, 0, data);
  ASSERT_TRUE(written.ok());
  EXPECT_EQ(written.value, data.size());
  const auto back = client.Read(hello.value.nodeid, open.value.fh, 0, 1u << 20);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back.value, data);
  EXPECT_EQ(testing::ReadFile(dir_ / "share/hello").size(), data.size());
  const auto list = client.OpenDir(kFuseRootId);
  ASSERT_TRUE(list.ok());
  const auto entries = client.ReadDirPlus(kFuseRootId, list.value.fh, 0, 4096);
  ASSERT_TRUE(entries.ok());
  EXPECT_TRUE(std::any_of(entries.value.begin(), entries.value.end(), [&](const auto& entry) {
    return entry.name == "hello" && entry.entry.nodeid == hello.value.nodeid;
  }));
  EXPECT_EQ(session->hiprio().Forget(hello.value.nodeid, 1), 0);
}

TEST_F(PeersTest, TheStorageDaemonServesBlocks) {
  if (::access(kStorageDaemon, X_OK) != 0) GTEST_SKIP() << kStorageDaemon << " is not installed";
  const std::string image = dir_.Write("disk", std::string(1u << 20, 'd')).native();
  const Peer peer(socket_, {kStorageDaemon, "--blockdev",
                            "driver=file,node-name=f,filename=" + image, "--export",
                            "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=2,"
                            "addr.type=fd,addr.str=3"});
  ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Connect(socket_));
  EXPECT_TRUE(transport->has(kVhostUserProtocolConfig));
  uint64_t sectors = 0;
  ASSERT_OK(transport->ReadConfig(0, std::as_writable_bytes(std::span(&sectors, 1))));
  EXPECT_EQ(sectors, 2048u);
  ASSERT_OK_AND_ASSIGN(auto memory, GuestMemory::Create(1u << 20));
  DriverOptions options;
  options.queue_count = 2;
  options.queue_size = 128;
  ASSERT_OK_AND_ASSIGN(auto driver,
                       Driver::Create(std::move(transport), std::move(memory), options));

  struct Header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
  };
  ASSERT_OK_AND_ASSIGN(const GuestRange range, driver->memory().Allocate(8192, 4096));
  // One request; its status byte (0: good).
  const auto request = [&](DriverQueue& queue, uint32_t type, uint64_t sector) -> int {
    const Header header{.type = type, .reserved = 0, .sector = sector};
    std::memcpy(range.host, &header, sizeof(header));
    range.host[64] = std::byte{0xff};
    const Segment head{range.address, sizeof(header)};
    const Segment data{range.address + 4096, 4096};
    const Segment status{range.address + 64, 1};
    const bool write = type == 1;
    const std::vector<Segment> readable = write ? std::vector{head, data} : std::vector{head};
    const std::vector<Segment> writable = write ? std::vector{status} : std::vector{data, status};
    if (!queue.Add(readable, writable, 1)) return -1;
    queue.Publish();
    if (!queue.Wait(WaitMode::kSleep).ok()) return -2;
    std::array<UsedBuffer, 1> used;
    if (queue.TakeUsed(used) != 1) return -3;
    return static_cast<int>(range.host[64]);
  };
  for (uint32_t q = 0; q < 2; ++q) {
    std::fill_n(range.host + 4096, 4096, static_cast<std::byte>('a' + q));
    EXPECT_EQ(request(driver->queue(q), 1, 8 * q), 0);
  }
  for (uint32_t q = 0; q < 2; ++q) {
    std::fill_n(range.host + 4096, 4096, std::byte{0});
    EXPECT_EQ(request(driver->queue(1 - q), 0, 8 * q), 0);
    EXPECT_EQ(std::to_integer<char>(range.host[4096 + 4095]), static_cast<char>('a' + q));
  }
  // Stopped and started again, the ring goes on where it was.
  ASSERT_OK(driver->Stop());
  ASSERT_OK(driver->Start());
  EXPECT_EQ(request(driver->queue(0), 0, 0), 0);
  EXPECT_EQ(std::to_integer<char>(range.host[4096]), 'a');
}

}  // namespace
}  // namespace virtbay::guest
