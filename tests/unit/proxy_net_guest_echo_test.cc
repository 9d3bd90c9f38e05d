// Echoes of ICMPv6 to addresses that hold an IPv4 one, by a guest behind proxy-net.
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "tests/unit/proxy_net_guest_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

// The guest's kernel would send none of them itself, so they go past it.
class EchoToMapped : public ProxyNetGuestTest {
 protected:
  static constexpr size_t kIp6 = 40;
  static constexpr size_t kMessage = 16;

  void Begin(std::map<std::string, std::string> options = {}) {
    Start(std::move(options));
    if (IsSkipped()) return;
    if (!InHost([] {
          return UniqueFd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_ICMP)).valid();
        })) {
      GTEST_SKIP() << "no ping socket";
    }
    packets_.reset(socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, htons(ETH_P_IPV6)));
    ASSERT_TRUE(packets_.valid());
    link_.sll_family = AF_PACKET;
    link_.sll_protocol = htons(ETH_P_IPV6);
    link_.sll_ifindex = static_cast<int>(if_nametoindex("tap0"));
    link_.sll_halen = ETH_ALEN;
    constexpr std::array<uint8_t, 6> kGateway = {0x52, 0x55, 0x0a, 0, 2, 2};
    std::memcpy(link_.sll_addr, kGateway.data(), kGateway.size());
    ASSERT_EQ(bind(packets_.get(), reinterpret_cast<sockaddr*>(&link_), sizeof(link_)), 0);
  }
  static std::string Bytes(const std::string& address) {
    std::array<char, 16> bytes;
    EXPECT_EQ(inet_pton(AF_INET6, address.c_str(), bytes.data()), 1) << address;
    return {bytes.data(), bytes.size()};
  }
  // The checksum of an ICMPv6 packet, 0 when it holds the right one (RFC 4443 2.3).
  static uint16_t Sum(const std::string& packet) {
    uint32_t sum = 58 + static_cast<uint32_t>(packet.size() - kIp6);
    for (size_t i = 8; i < packet.size(); ++i) {
      sum += uint32_t{static_cast<uint8_t>(packet[i])} << (i % 2 == 0 ? 8 : 0);
    }
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    return static_cast<uint16_t>(~sum);
  }
  void Echo(const std::string& to, uint8_t hop_limit = 64) {
    std::string packet = {0x60, 0, 0, 0, 0, kMessage, 58, static_cast<char>(hop_limit)};
    packet += Bytes("fd76:6972:7462:6179::15") + Bytes(to);
    packet += std::string({static_cast<char>(128), 0, 0, 0, 0x12, 0x34, 0, 7});
    packet += "mapped!!";
    const uint16_t sum = Sum(packet);
    packet[kIp6 + 2] = static_cast<char>(sum >> 8);
    packet[kIp6 + 3] = static_cast<char>(sum);
    ASSERT_EQ(sendto(packets_.get(), packet.data(), packet.size(), 0,
                     reinterpret_cast<sockaddr*>(&link_), sizeof(link_)),
              static_cast<ssize_t>(packet.size()));
  }
  // The next ICMPv6 message to the guest that is no neighbor discovery, its IPv6 header included.
  std::string Answer() {
    while (true) {
      pollfd one = {packets_.get(), POLLIN, 0};
      if (TEMP_FAILURE_RETRY(poll(&one, 1, 20'000)) != 1) return std::string(64, '\0');
      std::array<char, 2048> buffer;
      sockaddr_ll from = {};
      socklen_t size = sizeof(from);
      const ssize_t n = recvfrom(packets_.get(), buffer.data(), buffer.size(), 0,
                                 reinterpret_cast<sockaddr*>(&from), &size);
      if (n < static_cast<ssize_t>(kIp6 + 8) || from.sll_pkttype == PACKET_OUTGOING) continue;
      const auto type = static_cast<uint8_t>(buffer[kIp6]);
      if (buffer[6] != 58 || (type >= 130 && type <= 143)) continue;
      return {buffer.data(), static_cast<size_t>(n)};
    }
  }
  static std::string SourceOf(const std::string& packet) { return packet.substr(8, 16); }
  static int TypeOf(const std::string& packet) { return static_cast<uint8_t>(packet[kIp6]); }
  static int CodeOf(const std::string& packet) { return static_cast<uint8_t>(packet[kIp6 + 1]); }

  UniqueFd packets_;
  sockaddr_ll link_ = {};
};

TEST_F(EchoToMapped, GoesAsIcmpAndIsAnsweredAsIcmpv6) {
  Begin();
  if (IsSkipped()) return;
  const std::string to = absl::StrCat("::ffff:", kHost4);
  Echo(to);
  const std::string answer = Answer();
  EXPECT_EQ(TypeOf(answer), 129);
  EXPECT_EQ(CodeOf(answer), 0);
  EXPECT_EQ(SourceOf(answer), Bytes(to));
  EXPECT_EQ(answer.substr(kIp6 + 4), std::string({0x12, 0x34, 0, 7}) + "mapped!!");
  EXPECT_EQ(Sum(answer), 0);
  EXPECT_EQ(Metric("echo_opened"), 1u);
}

// As for TCP and UDP: judged is the address that a socket would reach, and one that a translator on
// the way would.
TEST_F(EchoToMapped, IsJudgedByTheAddressInside) {
  Begin({{"rules", absl::StrCat("deny ", kHost4, "/icmp, allow 127.0.0.2/icmp")}});
  if (IsSkipped()) return;
  for (const std::string& to :
       {absl::StrCat("::ffff:", kHost4), absl::StrCat("64:ff9b::", kHost4),
        std::string("::ffff:127.0.0.1"), std::string("64:ff9b::127.0.0.1"),
        std::string("::ffff:169.254.169.254"), std::string("::ffff:0.0.0.0")}) {
    Echo(to);
    const std::string answer = Answer();
    EXPECT_EQ(TypeOf(answer), 1) << to;
    EXPECT_EQ(CodeOf(answer), 1) << to;
  }
  Echo("::ffff:127.0.0.2");
  EXPECT_EQ(TypeOf(Answer()), 129);
  // A NAT64 prefix is IPv6's to route, as it is for TCP and UDP; the host has no such route.
  Echo("64:ff9b::198.51.100.1");
  const std::string answer = Answer();
  EXPECT_EQ(TypeOf(answer), 1);
  EXPECT_EQ(CodeOf(answer), 0);
}

TEST_F(EchoToMapped, HearsOfErrorsInIcmpv6sTerms) {
  Begin();
  if (IsSkipped()) return;
  // A network of the host's on which this test is all there is.
  const UniqueFd tun = InHost([] {
    UniqueFd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    ifreq request = {};
    std::strcpy(request.ifr_name, "tun9");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    EXPECT_EQ(ioctl(fd.get(), TUNSETIFF, &request), 0);
    EXPECT_TRUE(
        TapGuest::Run("ip link set tun9 up && ip addr add 203.0.113.1 peer 203.0.113.9 dev tun9"));
    return fd;
  });
  Echo("::ffff:203.0.113.9", 3);
  std::string echo;
  while (echo.size() < 28 || echo[0] != 0x45 || echo[9] != 1) {
    std::array<char, 2048> buffer;
    pollfd one = {tun.get(), POLLIN, 0};
    ASSERT_EQ(TEMP_FAILURE_RETRY(poll(&one, 1, 20'000)), 1);
    echo.assign(buffer.data(), static_cast<size_t>(read(tun.get(), buffer.data(), buffer.size())));
  }
  EXPECT_EQ(echo[8], 2);   // TTL
  EXPECT_EQ(echo[20], 8);  // an echo request of ICMP
  EXPECT_EQ(echo.substr(28), "mapped!!");

  // Time exceeded, from its other end.
  std::string error = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, 1, 0, 0};
  error += echo.substr(16, 4) + echo.substr(12, 4) + std::string({11, 0, 0, 0, 0, 0, 0, 0}) + echo;
  error[3] = static_cast<char>(error.size());
  const auto fill = [&](size_t begin, size_t end, size_t at) {
    uint32_t sum = 0;
    for (size_t i = begin; i < end; ++i) {
      sum += uint32_t{static_cast<uint8_t>(error[i])} << (i % 2 == 0 ? 8 : 0);
    }
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >> 16);
    error[at] = static_cast<char>(~sum >> 8);
    error[at + 1] = static_cast<char>(~sum);
  };
  fill(0, 20, 10);
  fill(20, error.size(), 22);
  ASSERT_EQ(write(tun.get(), error.data(), error.size()), static_cast<ssize_t>(error.size()));

  const std::string heard = Answer();
  EXPECT_EQ(TypeOf(heard), 3);  // time exceeded (RFC 4443 3.3)
  EXPECT_EQ(CodeOf(heard), 0);
  EXPECT_EQ(Sum(heard), 0);
  // What it is about is what the guest sent.
  ASSERT_GE(heard.size(), 2 * kIp6 + 8 + kMessage);
  const std::string about = heard.substr(kIp6 + 8);
  EXPECT_EQ(about.substr(24, 16), Bytes("::ffff:203.0.113.9"));
  EXPECT_EQ(TypeOf(about), 128);
  EXPECT_EQ(about.substr(kIp6 + 4), std::string({0x12, 0x34, 0, 7}) + "mapped!!");
}

}  // namespace
}  // namespace virtbay::testing
