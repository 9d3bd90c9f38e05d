// The option strings of a network adapter of WSL and of its ports.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "hostif/wsl/net_adapter.h"
#include "tests/support/status_matchers.h"

namespace virtbay::wsl {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using ::virtbay::testing::StatusIs;
using enum absl::StatusCode;

TEST(NetAdapter, EveryOption) {
  ASSERT_OK_AND_ASSIGN(
      const ParsedNetAdapter parsed,
      ParseNetAdapter("eth0;client_ip=192.168.1.7;client_mac=00:15:5D:01:02:03;"
                      "gateway_ip=192.168.1.1;gateway_mac=00-11-22-33-44-56;"
                      "gateway_mac_ipv6=00:11:22:33:44:57;client_ip_ipv6=2001:db8::7;"
                      "netmask=255.255.255.0;nameservers=192.168.1.1,2001:db8::1,;"
                      "swiotlb=0x10000000,67108864;vm_id=872270E1-A899-4AF6-B454-7193634435AD"));
  EXPECT_THAT(parsed.warnings, ElementsAre(HasSubstr("gateway_mac_ipv6")));
  const NetAdapter& adapter = parsed.adapter;
  EXPECT_EQ(adapter.name, "eth0");
  EXPECT_EQ(adapter.client_ip->s_addr, htonl(0xc0a80107));
  EXPECT_EQ(adapter.client_mac, (MacAddress{0x00, 0x15, 0x5d, 0x01, 0x02, 0x03}));
  EXPECT_EQ(adapter.gateway_mac, (MacAddress{0x00, 0x11, 0x22, 0x33, 0x44, 0x56}));
  EXPECT_EQ(adapter.nameservers.size(), 2u);
  EXPECT_EQ(adapter.device.swiotlb->size, 64u << 20);
  EXPECT_THAT(PluginOptions(adapter),
              UnorderedElementsAre(
                  Pair("guest-address", "192.168.1.7"), Pair("prefix6", "2001:db8::/64"),
                  Pair("mac", "00:15:5d:01:02:03"), Pair("gateway", "192.168.1.1"),
                  Pair("gateway-mac", "00:11:22:33:44:56"), Pair("subnet", "192.168.1.0/24"),
                  Pair("guest-dns", "192.168.1.1,2001:db8::1")));
}

TEST(NetAdapter, Defaults) {
  ASSERT_OK_AND_ASSIGN(const ParsedNetAdapter parsed, ParseNetAdapter("eth0"));
  EXPECT_THAT(PluginOptions(parsed.adapter),
              UnorderedElementsAre(Pair("mac", "00:00:00:00:01:00"),
                                   Pair("gateway-mac", "00:11:22:33:44:55")));
  ASSERT_OK_AND_ASSIGN(const ParsedNetAdapter masked,
                       ParseNetAdapter("eth0;gateway_ip=172.20.1.1;netmask=255.255.240.0"));
  EXPECT_THAT(PluginOptions(masked.adapter), ::testing::Contains(Pair("subnet", "172.20.0.0/20")));
  ASSERT_OK_AND_ASSIGN(const ParsedNetAdapter alone, ParseNetAdapter("eth0;netmask=255.255.0.0"));
  EXPECT_THAT(alone.warnings, ElementsAre(HasSubstr("netmask")));
}

TEST(NetAdapter, WarnsOfWhatItIgnores) {
  ASSERT_OK_AND_ASSIGN(const ParsedNetAdapter parsed, ParseNetAdapter("eth0;colour=red;mtu=1500"));
  EXPECT_THAT(parsed.warnings, ElementsAre(HasSubstr("'colour'"), HasSubstr("'mtu'")));
}

TEST(NetAdapter, RefusesByName) {
  for (const auto& [text, reason] : {
           std::pair<const char*, const char*>{"", "no name"},
           {"e;client_ip=1.2.3", "client_ip: '1.2.3' is not an IPv4 address"},
           {"e;client_ip=2001:db8::7", "client_ip: "},
           {"e;client_ip=01.02.03.256", "client_ip: "},
           {"e;client_ip", "client_ip: needs a value"},
           {"e;client_ip_ipv6=1.2.3.4", "client_ip_ipv6: "},
           {"e;client_ip_ipv6=fe80::1%eth0", "client_ip_ipv6: "},
           {"e;gateway_ip=gateway", "gateway_ip: "},
           {"e;client_mac=00:11:22:33:44", "client_mac: "},
           {"e;client_mac=00:11:22:33:44:5g", "client_mac: "},
           {"e;client_mac=00:11-22:33:44:55", "client_mac: "},
           {"e;client_mac=001122334455", "client_mac: "},
           {"e;client_mac=00.11.22.33.44.55", "client_mac: "},
           {"e;client_mac=01:00:5e:00:00:01", "a group's address"},
           {"e;gateway_mac=ff:ff:ff:ff:ff:ff", "a group's address"},
           {"e;gateway_mac_ipv6=00:00:00:00:00:00", "no device's address"},
           {"e;netmask=255.0.255.0", "netmask: "},
           {"e;netmask=0.0.0.0", "netmask: "},
           {"e;netmask=24", "netmask: "},
           {"e;nameservers=1.1.1.1,dns", "nameservers: "},
           {"e;nameservers=1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,"
            "1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1",
            "more than 16"},
           {"e;swiotlb=lowmem", "swiotlb: "},
       }) {
    EXPECT_THAT(ParseNetAdapter(text), StatusIs(kInvalidArgument, reason)) << text;
  }
  EXPECT_OK(ParseNetAdapter("e;netmask=255.255.255.255"));
}

TEST(NetPort, BothForms) {
  ASSERT_OK_AND_ASSIGN(const ParsedNetPort ephemeral,
                       ParseNetPort("tag=eth0;guest_port=80;listen_addr=127.0.0.1"));
  EXPECT_EQ(ephemeral.port.tag, "eth0");
  EXPECT_EQ(ephemeral.port.guest_port, 80);
  EXPECT_EQ(ephemeral.port.host_port, 0);
  EXPECT_FALSE(ephemeral.port.udp);
  EXPECT_TRUE(ephemeral.port.allocate);
  EXPECT_EQ(std::get<in_addr>(ephemeral.port.listen_addr).s_addr, htonl(INADDR_LOOPBACK));

  ASSERT_OK_AND_ASSIGN(
      const ParsedNetPort full,
      ParseNetPort("tag=eth0;guest_port=80;listen_addr=::;host_port=8080;allocate=false;udp;"
                   "vm_id=872270E1-A899-4AF6-B454-7193634435AD;colour=red"));
  EXPECT_EQ(full.port.host_port, 8080);
  EXPECT_TRUE(full.port.udp);
  EXPECT_FALSE(full.port.allocate);
  EXPECT_TRUE(std::holds_alternative<in6_addr>(full.port.listen_addr));
  EXPECT_THAT(full.warnings, ElementsAre(HasSubstr("'colour'")));

  ASSERT_OK_AND_ASSIGN(
      const ParsedNetPort older,
      ParseNetPort("tag=eth0;port_number=5353;udp;listen_addr=0.0.0.0;allocate=true"));
  EXPECT_EQ(older.port.guest_port, 5353);
  EXPECT_EQ(older.port.host_port, 5353);
  EXPECT_TRUE(older.port.udp);
}

TEST(NetPort, RefusesByName) {
  for (const auto& [text, reason] : {
           std::pair<const char*, const char*>{"", "tag: is missing"},
           {"guest_port=1;listen_addr=::", "tag: is missing"},
           {"tag=e;listen_addr=::", "guest_port: is missing"},
           {"tag=e;guest_port=1", "listen_addr: is missing"},
           {"tag=e;guest_port=0;listen_addr=::", "guest_port: '0'"},
           {"tag=e;guest_port=65536;listen_addr=::", "guest_port: '65536'"},
           {"tag=e;guest_port=1;host_port=x;listen_addr=::", "host_port: 'x'"},
           {"tag=e;guest_port=1;listen_addr=localhost", "listen_addr: 'localhost'"},
           {"tag=e;guest_port=1;listen_addr=::;udp=1", "udp: takes no value"},
           {"tag=e;guest_port=1;listen_addr=::;allocate=yes", "allocate: 'yes'"},
           {"tag=e;guest_port=1;port_number=2;listen_addr=::", "port_number: "},
       }) {
    EXPECT_THAT(ParseNetPort(text), StatusIs(kInvalidArgument, reason)) << text;
  }
}

}  // namespace
}  // namespace virtbay::wsl
