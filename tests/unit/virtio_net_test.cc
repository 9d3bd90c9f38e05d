// The virtio-net plugin: its options, the back-ends without an interface, rate limits, and TAP
// interfaces of this kernel in network namespaces that the test makes.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "plugins/virtio-net/options.h"
#include "plugins/virtio-net/rate_limit.h"
#include "tests/support/net_frames.h"
#include "tests/support/without_privilege.h"
#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using guest::NetClient;
using guest::NetClientOptions;
using guest::NetFrame;
using guest::NetHeader;
using ::testing::HasSubstr;
using ::testing::Not;

class VirtioNetTest : public DeviceTest {
 protected:
  using Options = std::map<std::string, std::string>;

  absl::Status Add(const std::string& name, const Options& options, DeviceHandle* device) {
    absl::StatusOr<DeviceHandle> added = host_->Add(Spec(name, options, VIRTBAY_VIRTIO_NET));
    if (!added.ok()) return added.status();
    *device = *added;
    return absl::OkStatus();
  }
  std::string AddError(const Options& options) {
    DeviceHandle device;
    return std::string(Add("bad", options, &device).message());
  }
  absl::StatusOr<std::unique_ptr<NetClient>> Connect(const DeviceHandle& device,
                                                     NetClientOptions options = {}) {
    absl::StatusOr<std::unique_ptr<guest::InProcessTransport>> transport =
        guest::InProcessTransport::Attach(device);
    if (!transport.ok()) return transport.status();
    return NetClient::Create(*std::move(transport), std::move(options));
  }
  static uint64_t Count(const DeviceHandle& device, const std::string& name) {
    const absl::StatusOr<DeviceInfo> info = device.Inspect();
    return info.ok() ? info->metrics.at(name) : ~uint64_t{0};
  }
};

// ---- options ------------------------------------------------------------------------------------

TEST_F(VirtioNetTest, OptionsThatMakeNoSenseAreNamed) {
  EXPECT_THAT(AddError({}), HasSubstr("option tap: missing"));
  EXPECT_THAT(AddError({{"backend", "cable"}}), HasSubstr("option backend: 'cable'"));
  EXPECT_THAT(AddError({{"backend", "null"}, {"tap", "x"}}), HasSubstr("option tap: only"));
  EXPECT_THAT(AddError({{"tap", "x"}, {"tap-fd", "3"}}), HasSubstr("option tap-fd"));
  EXPECT_THAT(AddError({{"tap", ""}}), HasSubstr("option tap"));
  EXPECT_THAT(AddError({{"tap", "../x"}}), HasSubstr("option tap"));
  EXPECT_THAT(AddError({{"tap", "vb%d"}}), HasSubstr("option tap"));
  EXPECT_THAT(AddError({{"tap", "a-name-that-is-too-long"}}), HasSubstr("option tap"));
  EXPECT_THAT(AddError({{"tap-fd", "x"}}), HasSubstr("option tap-fd"));
  EXPECT_THAT(AddError({{"tap-fd", "-1"}}), HasSubstr("option tap-fd"));
  EXPECT_THAT(AddError({{"tap-fd", "99999"}}), HasSubstr("option tap-fd"));
  EXPECT_THAT(AddError({{"backend", "null"}, {"tx-rate", "0"}}), HasSubstr("option tx-rate"));
  EXPECT_THAT(AddError({{"backend", "null"}, {"rx-rate", "fast"}}), HasSubstr("option rx-rate"));
  EXPECT_THAT(AddError({{"backend", "null"}, {"rx-burst", "1M"}}), HasSubstr("option rx-burst"));
  EXPECT_THAT(AddError({{"backend", "null"}, {"tx-rate", "1M"}, {"tx-burst", "100"}}),
              HasSubstr("option tx-burst"));
  // Descriptors that are no TAP interface.
  Pipe pipe;
  EXPECT_THAT(AddError({{"tap-fd", absl::StrCat(pipe.reader.get())}}),
              HasSubstr("is no TAP interface"));
}

TEST(VirtioNetOptions, Bytes) {
  using virtio_net::ParseBytes;
  EXPECT_EQ(ParseBytes("1500").value(), 1500u);
  EXPECT_EQ(ParseBytes("64k").value(), 65536u);
  EXPECT_EQ(ParseBytes("10M").value(), 10u << 20);
  EXPECT_EQ(ParseBytes("16G").value(), uint64_t{16} << 30);
  for (const char* bad : {"", "K", "-1", "1KB", "17G", "99999999999999999999", "1.5M", "1T"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(RateLimit, LetsABurstThroughAndThenItsRate) {
  virtio_net::RateLimit limit;
  limit.Set(1'000'000, 10'000);  // 1 us a byte, 10 ms at once
  uint64_t now = 1'000'000'000'000;
  for (int i = 0; i < 10; ++i) EXPECT_EQ(limit.Take(1000, now), 0u);
  const uint64_t wait = limit.Take(1000, now);
  EXPECT_EQ(wait, 1u);
  EXPECT_EQ(limit.Take(60'000, now + wait), 0u);  // into debt
  EXPECT_EQ(limit.Wait(now + wait), 60'000'000u);
  // Over a second: its rate.
  uint64_t taken = 0;
  now += 1'000'000'000;
  for (const uint64_t end = now + 1'000'000'000; now < end; now += 100'000) {
    if (limit.Take(700, now) == 0) taken += 700;
  }
  EXPECT_NEAR(static_cast<double>(taken), 1'010'000, 2'000);
}

// Every pair looks before it takes a frame from the interface, and knows its size only then.
TEST(RateLimit, PairsThatPassAtOnceAllPay) {
  virtio_net::RateLimit limit;
  limit.Set(1'000'000, 10'000);
  const uint64_t now = 1'000'000'000'000;
  for (int pair = 0; pair < 4; ++pair) EXPECT_EQ(limit.Wait(now), 0u);
  for (int pair = 0; pair < 4; ++pair) limit.Charge(60'000, now);
  EXPECT_EQ(limit.Wait(now), 230'000'001u);
  EXPECT_EQ(limit.Wait(now + 230'000'001), 0u);
}

// The slowest with the largest burst and the other way round, on a host that is up for ten years.
TEST(RateLimit, HoldsAtItsExtremes) {
  constexpr uint64_t kMost = uint64_t{1} << 34;
  constexpr uint64_t kFrame = 65562;
  const uint64_t now = uint64_t{10} * 366 * 86400 * 1'000'000'000;
  virtio_net::RateLimit slow;
  slow.Set(1, kMost);
  uint64_t taken = 0;
  while (slow.Take(kFrame, now) == 0) taken += kFrame;
  EXPECT_GE(taken, kMost);
  EXPECT_LT(taken, kMost + kFrame);
  EXPECT_EQ(slow.Wait(now), (taken - kMost) * 1'000'000'000 + 1);
  EXPECT_EQ(slow.Wait(now + (taken - kMost) * 1'000'000'000 + 1), 0u);
  virtio_net::RateLimit fast;
  fast.Set(kMost, 1514);
  EXPECT_EQ(fast.Take(kFrame, now), 0u);
  EXPECT_GT(fast.Wait(now), 3'000u);
  EXPECT_LT(fast.Wait(now), 4'000u);
  EXPECT_EQ(fast.Take(1, now + 4'000), 0u);
}

// ---- without an interface -----------------------------------------------------------------------

TEST_F(VirtioNetTest, TheNullBackEndCountsAndDrops) {
  DeviceHandle device;
  ASSERT_OK(Add("null", {{"backend", "null"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  const TestFrame frame = MakeFrame({.payload = 10});
  for (int i = 0; i < 1000; ++i) {
    ASSERT_OK(client->Send(0, {}, frame.bytes));
    if (i % 100 == 99) {
      ASSERT_OK(client->WaitSent(0));
    }
  }
  EXPECT_EQ(Count(device, "tx_frames"), 1000u);
  EXPECT_EQ(Count(device, "tx_bytes"), 1000 * frame.bytes.size());
  EXPECT_FALSE(client->HasFrame(0));
  ASSERT_OK_AND_ASSIGN(const std::string shown, device.Control("show", ""));
  EXPECT_THAT(shown, HasSubstr("\"backend\": \"null\""));
}

TEST_F(VirtioNetTest, FramesOfOneBurstGoBackTogether) {
  DeviceHandle device;
  ASSERT_OK(Add("null", {{"backend", "null"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  const TestFrame frame = MakeFrame({.payload = 10});
  const std::string bytes = std::string(sizeof(NetHeader), '\0') + frame.bytes;
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range,
                       client->driver().memory().Allocate(bytes.size()));
  std::memcpy(range.host, bytes.data(), bytes.size());
  const guest::Segment segment{range.address, static_cast<uint32_t>(bytes.size())};
  const auto told = [&] {
    const absl::StatusOr<DeviceInfo> info = device.Inspect();
    return info.ok() ? info->queues[1].calls + info->queues[1].calls_suppressed : 0;
  };
  const uint64_t before = told();
  for (uint64_t i = 0; i < 64; ++i) ASSERT_TRUE(client->tx(0).Add({&segment, 1}, {}, i));
  client->tx(0).Publish();
  ASSERT_OK(client->WaitSent(0));
  EXPECT_EQ(Count(device, "tx_frames"), 64u);
  // The guest was told once for all of them.
  EXPECT_EQ(told() - before, 1u);
}

TEST_F(VirtioNetTest, TheLoopGivesFramesBackWithTheirOffloads) {
  DeviceHandle device;
  ASSERT_OK(Add("loop", {{"backend", "loop"}, {"queue-pairs", "2"}}, &device));
  NetClientOptions options;
  options.rx_pairs = 2;
  options.rx_buffers = 100;
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device, std::move(options)));
  for (uint32_t pair = 0; pair < 2; ++pair) {
    for (const uint32_t payload : {6u, 200u, 210u, 1446u, 60'000u}) {
      const TestFrame frame = MakeFrame({.payload = payload});
      NetHeader header;
      header.flags = guest::kNetHdrNeedsCsum;
      header.csum_start = frame.transport;
      header.csum_offset = frame.csum_offset;
      if (payload > 1446) {
        header.gso_type = guest::kNetHdrGsoTcp4;
        header.gso_size = 1446;
        header.hdr_len = frame.headers;
      }
      ASSERT_OK(client->Send(pair, header, frame.bytes));
      ASSERT_OK_AND_ASSIGN(const NetFrame got, client->Receive(pair));
      EXPECT_EQ(got.data, frame.bytes);
      EXPECT_EQ(got.header.gso_type, header.gso_type);
      EXPECT_EQ(got.header.flags, header.flags);
    }
  }
}

TEST_F(VirtioNetTest, EveryPairHasAThread) {
  DeviceHandle device;
  ASSERT_OK(Add("mq", {{"backend", "loop"}, {"queue-pairs", "2"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  std::set<std::string> threads;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(task.path() / "comm");
    std::string name;
    std::getline(file, name);
    if (name.starts_with("vb-mq-")) threads.insert(name);
  }
  EXPECT_EQ(threads, (std::set<std::string>{"vb-mq-0", "vb-mq-2"}));
}

// The frames of both pairs come back whole and in order while both threads are busy.
TEST_F(VirtioNetTest, PairsServeTheirQueuesAtTheSameTime) {
  constexpr uint32_t kFrames = 10'000;
  DeviceHandle device;
  ASSERT_OK(Add("both", {{"backend", "loop"}, {"queue-pairs", "2"}}, &device));
  NetClientOptions options;
  options.rx_pairs = 2;
  options.rx_buffers = 200;
  options.in_order = true;
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device, std::move(options)));
  std::vector<TestFrame> frames;
  for (uint32_t i = 0; i < 97; ++i) frames.push_back(MakeFrame({.payload = 64 + 5 * i}));
  std::array<uint32_t, 2> sent{}, came{};
  while (came[0] < kFrames || came[1] < kFrames) {
    for (uint32_t pair = 0; pair < 2; ++pair) {
      if (sent[pair] < kFrames && sent[pair] - came[pair] < 100) {
        ASSERT_OK(client->Send(pair, {}, frames[sent[pair]++ % frames.size()].bytes));
      }
      while (client->HasFrame(pair)) {
        ASSERT_OK_AND_ASSIGN(const NetFrame got, client->Receive(pair));
        ASSERT_EQ(got.data, frames[came[pair]++ % frames.size()].bytes);
      }
    }
  }
  EXPECT_EQ(Count(device, "tx_frames"), 2 * kFrames);
  EXPECT_EQ(Count(device, "rx_frames"), 2 * kFrames);
}

TEST_F(VirtioNetTest, ARateHoldsFramesBackAndDropsNone) {
  DeviceHandle device;
  // 300 frames of 1000 bytes at 2 MiB/s: the most of them wait.
  ASSERT_OK(Add("slow", {{"backend", "loop"}, {"tx-rate", "2M"}, {"tx-burst", "1514"}}, &device));
  NetClientOptions options;
  options.rx_buffers = 250;
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device, std::move(options)));
  std::thread sender([&] {
    for (uint32_t i = 0; i < 200; ++i) {
      const TestFrame frame = MakeFrame({.payload = 800 + i});
      EXPECT_OK(client->Send(0, {}, frame.bytes));
    }
  });
  sender.join();
  EXPECT_GT(client->Unsent(0), 0u);
  for (uint32_t i = 0; i < 200; ++i) {
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client->Receive(0));
    ASSERT_EQ(got.data, MakeFrame({.payload = 800 + i}).bytes);
  }
  ASSERT_OK(client->WaitSent(0));
  EXPECT_GT(Count(device, "tx_rate_waits"), 50u);
  // Those that are held when the device stops come again, in their order. While the receive queue
  // is stopped and the transmit queue not yet, the loop has nowhere to put what its rate lets pass.
  for (uint32_t i = 0; i < 100; ++i) {
    ASSERT_OK(client->Send(0, {}, MakeFrame({.payload = 900 + i}).bytes));
  }
  ASSERT_OK(client->driver().Stop());
  ASSERT_OK(client->driver().Start());
  size_t last = 0;
  for (uint64_t came = 0; came + Count(device, "rx_drops_no_buffers") < 100; ++came) {
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client->Receive(0));
    EXPECT_GT(got.data.size(), last);
    last = got.data.size();
  }
  ASSERT_OK(client->WaitSent(0));
  EXPECT_EQ(last, MakeFrame({.payload = 999}).bytes.size());
}

// ---- with interfaces of this kernel -------------------------------------------------------------

// Puts this process into a network namespace of its own, where it is root; empty, or why not.
std::string EnterNamespace() {
  static const std::string why = []() -> std::string {
    if (geteuid() != 0) {
      const uid_t uid = geteuid();
      const gid_t gid = getegid();
      if (unshare(CLONE_NEWUSER) != 0) return absl::StrCat("no user namespace: ", strerror(errno));
      std::ofstream("/proc/self/setgroups") << "deny";
      std::ofstream("/proc/self/uid_map") << "0 " << uid << " 1";
      std::ofstream("/proc/self/gid_map") << "0 " << gid << " 1";
    }
    if (unshare(CLONE_NEWNET) != 0) return absl::StrCat("no network namespace: ", strerror(errno));
    const UniqueFd tun(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    if (!tun) return absl::StrCat("/dev/net/tun: ", strerror(errno));
    ifreq request{};
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(tun.get(), TUNSETIFF, &request) != 0) {
      return absl::StrCat("TUNSETIFF: ", strerror(errno));
    }
    return "";
  }();
  return why;
}

// In the namespace of the calling thread: gives the interface an address of 10.77.x.1/24, up.
void BringUp(const std::string& name, const char* address, int mtu = 1500) {
  const UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::memcpy(request.ifr_name, name.data(), name.size());
  auto* const in = reinterpret_cast<sockaddr_in*>(&request.ifr_addr);
  in->sin_family = AF_INET;
  inet_pton(AF_INET, address, &in->sin_addr);
  ASSERT_EQ(ioctl(fd.get(), SIOCSIFADDR, &request), 0) << strerror(errno);
  inet_pton(AF_INET, "255.255.255.0", &in->sin_addr);
  ASSERT_EQ(ioctl(fd.get(), SIOCSIFNETMASK, &request), 0);
  request.ifr_mtu = mtu;
  ASSERT_EQ(ioctl(fd.get(), SIOCSIFMTU, &request), 0);
  request.ifr_flags = IFF_UP | IFF_RUNNING;
  ASSERT_EQ(ioctl(fd.get(), SIOCSIFFLAGS, &request), 0) << strerror(errno);
}

UniqueFd OpenTap(const char* name, int flags) {
  UniqueFd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags = static_cast<short>(flags);
  if (ioctl(fd.get(), TUNSETIFF, &request) != 0) fd.reset();
  return fd;
}

class TapTest : public VirtioNetTest {
 protected:
  void SetUp() override {
    if (const std::string why = EnterNamespace(); !why.empty()) GTEST_SKIP() << why;
    VirtioNetTest::SetUp();
  }
};

TEST_F(TapTest, ErrorsSayWhatIsWrong) {
  const UniqueFd busy = OpenTap("vbbusy", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
  ASSERT_TRUE(busy.valid());
  EXPECT_THAT(AddError({{"tap", "vbbusy"}}), HasSubstr("another process uses it"));
  const UniqueFd tun = OpenTap("vbtun", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
  for (const char* pairs : {"1", "2"}) {
    EXPECT_THAT(AddError({{"tap", "lo"}, {"queue-pairs", pairs}}),
                HasSubstr("option tap: interface lo is no TAP interface"));
    EXPECT_THAT(AddError({{"tap", "vbtun"}, {"queue-pairs", pairs}}),
                HasSubstr("option tap: interface vbtun is a TUN interface, not TAP"));
  }
  EXPECT_THAT(AddError({{"tap", "vbbusy"}, {"queue-pairs", "2"}}),
              HasSubstr("interface vbbusy (it was made without multi_queue)"));
  EXPECT_THAT(AddError({{"tap-fd", absl::StrCat(tun.get())}}), HasSubstr("is a TUN interface"));
  const UniqueFd bare = OpenTap("vbbare", IFF_TAP | IFF_NO_PI);
  EXPECT_THAT(AddError({{"tap-fd", absl::StrCat(bare.get())}}),
              HasSubstr("was not opened with IFF_VNET_HDR"));
  EXPECT_THAT(AddError({{"tap-fd", absl::StrCat(busy.get(), ",", busy.get())}}),
              HasSubstr("was not opened with IFF_MULTI_QUEUE"));
  const UniqueFd fresh(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  EXPECT_THAT(AddError({{"tap-fd", absl::StrCat(fresh.get())}}), HasSubstr("is no TAP interface"));
}

// In a process that has threads of its own only from here on.
std::string TapErrorHere() {
  const absl::StatusOr<std::unique_ptr<Host>> host = Host::Create(HostOptions{});
  if (!host.ok()) return std::string(host.status().message());
  DeviceSpec spec;
  spec.name = "tap";
  spec.plugin = VIRTBAY_VIRTIO_NET;
  spec.options = {{"tap", "vbnone"}};
  return std::string((*host)->Add(spec).status().message());
}

TEST(TapWithoutTest, TheRightToMakeOneIsNamed) {
  WithoutPrivilege(VIRTBAY_VIRTIO_NET, [] {
    const bool may_open = access("/dev/net/tun", R_OK | W_OK) == 0;
    EXPECT_THAT(TapErrorHere(),
                HasSubstr(may_open ? "interface vbnone (needs CAP_NET_ADMIN, or an interface that"
                                   : "option tap: cannot open /dev/net/tun"));
  });
}

TEST(TapWithoutTest, AKernelWithoutTheDriverIsNamed) {
  constexpr int kSkipped = 77;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
        mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("none", "/dev/net", "tmpfs", 0, nullptr) != 0) {
      _exit(kSkipped);
    }
    EXPECT_THAT(TapErrorHere(), HasSubstr("cannot open /dev/net/tun (the kernel has no TUN/TAP"));
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kSkipped) GTEST_SKIP() << "no mount namespace, or no /dev/net";
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see above";
}

TEST_F(TapTest, DatagramsBothWaysWithTheKernelsOffloads) {
  DeviceHandle device;
  ASSERT_OK(Add("tap", {{"tap", "vb0"}, {"mac", "52:54:00:12:34:56"}}, &device));
  BringUp("vb0", "10.77.0.1");
  NetClientOptions options;
  options.rx_buffers = 200;
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device, std::move(options)));
  const UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in here{}, guest{};
  here.sin_family = guest.sin_family = AF_INET;
  here.sin_port = htons(2000);
  guest.sin_port = htons(1000);
  inet_pton(AF_INET, "10.77.0.1", &here.sin_addr);
  inet_pton(AF_INET, "10.77.0.2", &guest.sin_addr);
  ASSERT_EQ(bind(udp.get(), reinterpret_cast<sockaddr*>(&here), sizeof(here)), 0);
  const std::string payload(1200, 'd');
  ASSERT_EQ(sendto(udp.get(), payload.data(), payload.size(), 0,
                   reinterpret_cast<sockaddr*>(&guest), sizeof(guest)),
            1200);
  // The kernel asks for the address first; then comes the datagram, its checksum left to us.
  std::string kernel_mac;
  NetFrame datagram;
  for (int i = 0; i < 50 && datagram.data.empty(); ++i) {
    ASSERT_OK_AND_ASSIGN(NetFrame got, client->Receive(0));
    if (Get16(got.data, 12) == 0x0806 && Get16(got.data, 20) == 1) {
      kernel_mac = got.data.substr(6, 6);
      const std::string mac("\x52\x54\x00\x12\x34\x56", 6);
      std::string reply = kernel_mac + mac + got.data.substr(12, 8) + std::string("\x00\x02", 2) +
                          mac + got.data.substr(38, 4) + kernel_mac + got.data.substr(28, 4);
      if (got.data.substr(38, 4) == std::string("\x0a\x4d\x00\x02", 4)) {
        ASSERT_OK(client->Send(0, {}, reply));
      }
    } else if (Get16(got.data, 12) == 0x0800 && got.data[23] == 17 && Get16(got.data, 36) == 1000) {
      datagram = std::move(got);
    }
  }
  ASSERT_EQ(datagram.data.size(), 42u + 1200);
  EXPECT_EQ(datagram.data.substr(42), payload);
  EXPECT_EQ(datagram.header.flags & guest::kNetHdrNeedsCsum, guest::kNetHdrNeedsCsum);
  EXPECT_EQ(datagram.header.csum_start, 34);

  // Back: one whose checksum the kernel must not look at, as a driver sends it.
  std::string back = kernel_mac + datagram.data.substr(0, 6) + datagram.data.substr(12);
  std::swap_ranges(back.begin() + 26, back.begin() + 30, back.begin() + 30);
  std::swap_ranges(back.begin() + 34, back.begin() + 36, back.begin() + 36);
  NetHeader header;
  header.flags = guest::kNetHdrNeedsCsum;
  header.csum_start = 34;
  header.csum_offset = 6;
  ASSERT_OK(client->Send(0, header, back, 500));
  std::string got(2000, '\0');
  pollfd look{.fd = udp.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&look, 1, 60'000), 1);
  ASSERT_EQ(recv(udp.get(), got.data(), got.size(), 0), 1200);
  EXPECT_EQ(got.substr(0, 1200), payload);

  // The interface down: counted, and the guest has its buffer back.
  const UniqueFd change(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "vb0");
  ASSERT_EQ(ioctl(change.get(), SIOCSIFFLAGS, &request), 0);
  ASSERT_OK(client->Send(0, header, back));
  ASSERT_OK(client->WaitSent(0));
  EXPECT_EQ(Count(device, "tx_drops_tap_down"), 1u);
}

TEST_F(TapTest, TheMtuIsTheInterfacesOrTheOptions) {
  const UniqueFd holder = OpenTap("vbmtu", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE);
  ASSERT_TRUE(holder.valid());
  BringUp("vbmtu", "10.77.1.1", 9000);
  DeviceHandle device;
  ASSERT_OK(Add("its", {{"tap", "vbmtu"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  EXPECT_EQ(client->ReadConfig()->mtu, 9000);
  client.reset();
  ASSERT_OK(Add("ours", {{"tap", "vbmtu"}, {"mtu", "1280"}}, &device));
  ASSERT_OK_AND_ASSIGN(client, Connect(device));
  EXPECT_EQ(client->ReadConfig()->mtu, 1280);
  const UniqueFd look(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  std::strcpy(request.ifr_name, "vbmtu");
  ASSERT_EQ(ioctl(look.get(), SIOCGIFMTU, &request), 0);
  EXPECT_EQ(request.ifr_mtu, 1280);
}

TEST_F(TapTest, QueuesComeAndGoWithTheGuestsPairs) {
  DeviceHandle device;
  ASSERT_OK(Add("mq", {{"tap", "vbmq"}, {"queue-pairs", "2"}}, &device));
  BringUp("vbmq", "10.77.2.1");
  NetClientOptions options;
  options.rx_pairs = 2;
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device, std::move(options)));
  const auto set = [&](char pairs) {
    const absl::StatusOr<uint8_t> ack = client->Command(4, 0, std::string{pairs, 0});
    EXPECT_OK(ack);
    EXPECT_EQ(ack.value_or(9), 0);
  };
  const UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  ASSERT_EQ(setsockopt(udp.get(), SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)), 0);
  // Broadcasts need no ARP; each port is another flow. Returns how many came on which pair.
  const auto spread = [&] {
    std::array<int, 2> came{};
    for (uint16_t port = 5000; port < 5064; ++port) {
      sockaddr_in all{};
      all.sin_family = AF_INET;
      all.sin_port = htons(port);
      inet_pton(AF_INET, "10.77.2.255", &all.sin_addr);
      EXPECT_EQ(sendto(udp.get(), "x", 1, 0, reinterpret_cast<sockaddr*>(&all), sizeof(all)), 1);
      for (bool found = false; !found;) {
        for (uint32_t pair = 0; pair < 2; ++pair) {
          if (!client->HasFrame(pair)) continue;
          const absl::StatusOr<NetFrame> got = client->Receive(pair);
          EXPECT_OK(got);
          if (!got.ok()) return came;
          if (Get16(got->data, 12) != 0x0800 || Get16(got->data, 36) != port) continue;
          found = true;
          ++came[pair];
        }
      }
    }
    return came;
  };
  set(2);
  const std::array<int, 2> both = spread();
  EXPECT_GT(both[0], 0);
  EXPECT_GT(both[1], 0);
  set(1);
  EXPECT_EQ(spread(), (std::array<int, 2>{64, 0}));
  set(2);
  const std::array<int, 2> again = spread();
  EXPECT_GT(again[1], 0);
}

TEST_F(TapTest, TheInterfaceGoesOnWithAnotherDevice) {
  for (const char* pairs : {"1", "2"}) {
    const std::string tap = absl::StrCat("vbst", pairs);
    const std::string subnet = absl::StrCat("10.77.", 8 + pairs[0] - '0');
    const DeviceSpec spec =
        Spec("goes-on", {{"tap", tap}, {"queue-pairs", pairs}}, VIRTBAY_VIRTIO_NET);
    ASSERT_OK_AND_ASSIGN(DeviceHandle device, host_->Add(spec));
    BringUp(tap.c_str(), (subnet + ".1").c_str());
    const unsigned index = if_nametoindex(tap.c_str());
    ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
    ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace before, client->ReadConfig());
    const uint64_t features = client->features();
    const UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const int on = 1;
    ASSERT_EQ(setsockopt(udp.get(), SOL_SOCKET, SO_BROADCAST, &on, sizeof(on)), 0);
    const auto say = [&](const std::string& text) {
      sockaddr_in all{};
      all.sin_family = AF_INET;
      all.sin_port = htons(5000);
      inet_pton(AF_INET, (subnet + ".255").c_str(), &all.sin_addr);
      EXPECT_EQ(sendto(udp.get(), text.data(), text.size(), 0, reinterpret_cast<sockaddr*>(&all),
                       sizeof(all)),
                static_cast<ssize_t>(text.size()));
    };
    const auto hear = [&](const std::string& text) {
      for (;;) {
        const absl::StatusOr<NetFrame> got = client->Receive(0);
        if (!got.ok()) return false;
        if (absl::EndsWith(got->data, text)) return true;
      }
    };
    say("before");
    EXPECT_TRUE(hear("before"));
    ASSERT_OK(device.Control("link", "down").status());
    ASSERT_OK(device.Control("link", "up").status());
    ASSERT_OK_AND_ASSIGN(DeviceState state, device.Save());
    client.reset();
    ASSERT_OK(host_->Remove("goes-on"));
    // Nobody has it, but it is there, and what it gets it keeps.
    EXPECT_EQ(if_nametoindex(tap.c_str()), index);
    say("meanwhile");
    ASSERT_OK_AND_ASSIGN(device, host_->Add(spec, std::move(state)));
    ASSERT_OK_AND_ASSIGN(client, Connect(device));
    EXPECT_TRUE(hear("meanwhile"));
    EXPECT_EQ(if_nametoindex(tap.c_str()), index);
    EXPECT_EQ(client->features(), features);
    ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace after, client->ReadConfig());
    EXPECT_EQ(std::memcmp(before.mac, after.mac, 6), 0);
    EXPECT_EQ(after.mtu, before.mtu);
    say("after");
    EXPECT_TRUE(hear("after"));
    EXPECT_THAT(*device.Control("show", ""), HasSubstr("\"tap\": \"" + tap));
    // And the last one to have it takes it along.
    client.reset();
    ASSERT_OK(host_->Remove("goes-on"));
    EXPECT_EQ(if_nametoindex(tap.c_str()), 0u);
  }
}

TEST_F(VirtioNetTest, OnlyAStateOfItsKindIsTaken) {
  DeviceHandle device;
  ASSERT_OK(Add("saved", {{"backend", "loop"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  ASSERT_OK(device.Control("link", "down").status());
  ASSERT_OK_AND_ASSIGN(DeviceState state, device.Save());
  EXPECT_EQ(state.type, "virtio-net");
  // It serves nobody any more.
  EXPECT_TRUE(device.Inspect()->needs_reset);
  client.reset();
  EXPECT_FALSE(Connect(device).ok());
  DeviceState other;
  other.type = "proxy-net";
  other.version = state.version;
  other.bytes = state.bytes;
  const DeviceSpec spec = Spec("restored", {{"backend", "loop"}}, VIRTBAY_VIRTIO_NET);
  EXPECT_EQ(host_->Add(spec, std::move(other)).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_OK_AND_ASSIGN(device, host_->Add(spec, std::move(state)));
  ASSERT_OK_AND_ASSIGN(client, Connect(device));
  EXPECT_EQ(client->ReadConfig()->status, 0);  // the link is still down
  // Devices of other types have no state.
  ASSERT_OK_AND_ASSIGN(const DeviceHandle op, host_->Add(Spec("op", {})));
  EXPECT_EQ(op.Save().status().code(), absl::StatusCode::kUnimplemented);
}

// All that is left of a device whose state was taken is to be removed.
TEST_F(VirtioNetTest, WhoseStateWasTakenDoesNothingMore) {
  DeviceHandle device;
  ASSERT_OK(Add("taken", {{"backend", "loop"}}, &device));
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  ASSERT_OK_AND_ASSIGN(DeviceState state, device.Save());
  const auto over = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    EXPECT_THAT(status.message(), HasSubstr("its state was taken"));
  };
  over(device.Save().status());
  over(device.Start());
  over(device.Control("show", "").status());
  client.reset();
  EXPECT_FALSE(Connect(device).ok());
  EXPECT_EQ(device.Inspect()->state, "stopped");
  EXPECT_OK(device.Stop());
  EXPECT_OK(host_->Remove("taken"));
}

TEST_F(TapTest, ADeviceThatCouldNotSaveGoesOn) {
  DeviceHandle device;
  ASSERT_OK(Add("kept", {{"tap", "vbkept"}}, &device));
  BringUp("vbkept", "10.77.20.1");
  ASSERT_OK_AND_ASSIGN(auto client, Connect(device));
  // UBSan needs descriptors for its first look at a type of object: a frame and a save before there
  // are none.
  DeviceHandle other;
  ASSERT_OK(Add("other", {{"tap", "vbother"}}, &other));
  ASSERT_OK(Connect(other).status());
  ASSERT_OK(other.Save().status());
  const UniqueFd udp(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in guest{};
  guest.sin_family = AF_INET;
  guest.sin_port = htons(1000);
  inet_pton(AF_INET, "10.77.20.2", &guest.sin_addr);
  ASSERT_EQ(sendto(udp.get(), "x", 1, 0, reinterpret_cast<sockaddr*>(&guest), sizeof(guest)), 1);
  ASSERT_OK(client->Receive(0).status());
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{.rlim_cur = 3, .rlim_max = limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::StatusOr<DeviceState> state = device.Save();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_FALSE(state.ok());
  EXPECT_THAT(state.status().message(), HasSubstr("a descriptor of the state"));
  EXPECT_THAT(device.Inspect()->failure, Not(HasSubstr("taken")));
  client.reset();
  ASSERT_OK(device.Start());
  ASSERT_OK(device.Control("show", "").status());
  ASSERT_OK_AND_ASSIGN(client, Connect(device));
  TestFrame frame = MakeFrame({});
  ASSERT_OK(client->Send(0, {}, frame.bytes));
  ASSERT_OK(client->WaitSent(0));
  EXPECT_EQ(Count(device, "tx_frames"), 1u);
  EXPECT_OK(device.Save().status());
}

// What is refused before the plugin has the state leaves it whole, so that it can be tried again.
TEST_F(TapTest, AStateStaysItsOwnersUntilItIsUsed) {
  DeviceSpec spec = Spec("first", {{"tap", "vbown"}}, VIRTBAY_VIRTIO_NET);
  ASSERT_OK_AND_ASSIGN(DeviceHandle device, host_->Add(spec));
  ASSERT_OK_AND_ASSIGN(DeviceState state, device.Save());
  ASSERT_EQ(state.fds.size(), 1u);
  const std::string bytes = state.bytes;
  const int fd = state.fds[0].fd.get();
  const auto refused = [&](const DeviceSpec& bad, absl::StatusCode code) {
    const absl::Status status = host_->Add(bad, std::move(state)).status();
    EXPECT_EQ(status.code(), code) << status;
    ASSERT_EQ(state.fds.size(), 1u);
    EXPECT_EQ(state.fds[0].fd.get(), fd);
    EXPECT_EQ(state.bytes, bytes);
  };
  refused(spec, absl::StatusCode::kAlreadyExists);
  ASSERT_OK(host_->Remove("first"));
  DeviceSpec bad = spec;
  bad.options["mtu"] = "17";
  refused(bad, absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.name = "a/b";
  refused(bad, absl::StatusCode::kInvalidArgument);
  bad = spec;
  bad.plugin = VIRTBAY_OP_PLUGIN;
  bad.options.clear();
  refused(bad, absl::StatusCode::kFailedPrecondition);
  state.version = 99;
  refused(spec, absl::StatusCode::kFailedPrecondition);
  state.version = 1;
  ASSERT_OK_AND_ASSIGN(device, host_->Add(spec, std::move(state)));
  // NOLINTNEXTLINE(bugprone-use-after-move): what it is like then is what is looked at
  EXPECT_TRUE(state.fds.empty() && state.bytes.empty());
  EXPECT_THAT(*device.Control("show", ""), HasSubstr("\"tap\": \"vbown"));
  // And it is gone when the plugin had it, whatever it said; descriptors for nothing are an error.
  ASSERT_OK_AND_ASSIGN(state, device.Save());
  ASSERT_OK(host_->Remove("first"));
  state.fds.push_back({77, UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))});
  EXPECT_THAT(host_->Add(spec, std::move(state)).status().message(), HasSubstr("for nothing"));
  // NOLINTNEXTLINE(bugprone-use-after-move)
  EXPECT_TRUE(state.fds.empty());
}

TEST_F(TapTest, TcpBetweenTwoKernelsOverTwoDevices) {
  // This namespace - TAP - device - guest driver = cable = guest driver - device - TAP - another
  // namespace; what the one kernel leaves to do the other takes.
  DeviceHandle near, far;
  ASSERT_OK(Add("near", {{"tap", "vbnear"}}, &near));
  BringUp("vbnear", "10.77.3.1");
  UniqueFd far_tap;
  UniqueFd listener;
  std::thread other([&] {
    ASSERT_EQ(unshare(CLONE_NEWNET), 0);
    far_tap = OpenTap("vbfar", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR);
    ASSERT_TRUE(far_tap.valid());
    BringUp("vbfar", "10.77.3.2");
    listener.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in any{};
    any.sin_family = AF_INET;
    any.sin_port = htons(7000);
    ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&any), sizeof(any)), 0);
    ASSERT_EQ(listen(listener.get(), 1), 0);
  });
  other.join();
  ASSERT_TRUE(listener.valid());
  ASSERT_OK(Add("far", {{"tap-fd", absl::StrCat(far_tap.get())}}, &far));
  const auto options = [] {
    NetClientOptions made;
    made.rx_buffers = 250;
    return made;
  };
  ASSERT_OK_AND_ASSIGN(auto near_guest, Connect(near, options()));
  ASSERT_OK_AND_ASSIGN(auto far_guest, Connect(far, options()));
  std::atomic<bool> stop = false;
  std::thread cable([&] {
    NetClient* const ends[2] = {near_guest.get(), far_guest.get()};
    std::deque<NetFrame> waiting[2];
    while (!stop.load()) {
      bool moved = false;
      for (int i = 0; i < 2; ++i) {
        while (waiting[i].size() < 64 && ends[i]->HasFrame(0)) {
          absl::StatusOr<NetFrame> frame = ends[i]->Receive(0);
          ASSERT_OK(frame);
          frame->header.num_buffers = 0;
          waiting[i].push_back(*std::move(frame));
          moved = true;
        }
        while (!waiting[i].empty() &&
               ends[1 - i]->Send(0, waiting[i].front().header, waiting[i].front().data).ok()) {
          waiting[i].pop_front();
          moved = true;
        }
      }
      if (!moved) std::this_thread::yield();
    }
  });
  std::string sent(16 << 20, '\0');
  for (size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<char>(i * 31 + i / 4093);
  std::string received;
  std::thread server([&] {
    const UniqueFd fd(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    std::string buffer(1 << 20, '\0');
    for (;;) {
      const ssize_t n = recv(fd.get(), buffer.data(), buffer.size(), 0);
      if (n <= 0) break;
      received.append(buffer, 0, static_cast<size_t>(n));
    }
    EXPECT_EQ(send(fd.get(), received.data(), received.size(), MSG_NOSIGNAL | MSG_WAITALL),
              static_cast<ssize_t>(received.size()));
  });
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in there{};
  there.sin_family = AF_INET;
  there.sin_port = htons(7000);
  inet_pton(AF_INET, "10.77.3.2", &there.sin_addr);
  ASSERT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&there), sizeof(there)), 0)
      << strerror(errno);
  EXPECT_EQ(send(fd.get(), sent.data(), sent.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(sent.size()));
  shutdown(fd.get(), SHUT_WR);
  std::string back;
  std::string buffer(1 << 20, '\0');
  for (ssize_t n = 0; (n = recv(fd.get(), buffer.data(), buffer.size(), 0)) > 0;) {
    back.append(buffer, 0, static_cast<size_t>(n));
  }
  server.join();
  tcp_info info{};
  socklen_t length = sizeof(info);
  ASSERT_EQ(getsockopt(fd.get(), IPPROTO_TCP, TCP_INFO, &info, &length), 0);
  stop.store(true);
  cable.join();
  EXPECT_TRUE(received == sent);
  EXPECT_TRUE(back == sent);
  // With segmentation offloads a frame carries far more than the MTU.
  EXPECT_GT(Count(near, "rx_bytes") / Count(near, "rx_frames"), 2000u);
  EXPECT_GT(Count(near, "rx_merged_buffers"), 0u);
  RecordProperty("retransmits", static_cast<int>(info.tcpi_total_retrans));
}

}  // namespace
}  // namespace virtbay::testing
