// Options of the proxy-net plugin, by themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "plugins/proxy-net/options.h"

namespace virtbay::proxy_net {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

sdk::Result<Options> Parse(const std::vector<Options::KeyValue>& given) {
  return Options::Parse(given);
}

std::string ErrorOf(const std::vector<Options::KeyValue>& given) {
  const auto result = Parse(given);
  return result.ok() ? "" : result.error().text;
}

TEST(ProxyNetOptionsTest, Defaults) {
  auto o = Parse({});
  ASSERT_TRUE(o.ok()) << o.error().text;
  EXPECT_EQ(o->lan.gateway.ToString(), "10.0.2.2");
  EXPECT_EQ(o->lan.guest.ToString(), "10.0.2.15");
  EXPECT_EQ(o->lan.pool_size, 16u);
  EXPECT_EQ(o->lan.mtu, 1500);
  EXPECT_EQ(o->ipv6, Ipv6Mode::kAuto);
  EXPECT_TRUE(o->lan.ipv4 && o->lan.ipv6 && o->lan.dhcp && o->lan.dhcp6 && o->lan.proxy_neighbors);
  EXPECT_TRUE(o->dns.follow);
  EXPECT_TRUE(o->dns.resolver.servers.empty());
  EXPECT_EQ(o->dns.resolver.max_in_flight, 256u);
  EXPECT_EQ(o->dns.resolver.max_datagram, 1452u);
  EXPECT_TRUE(o->rules.empty() && o->lan.aliases.empty());
  EXPECT_FALSE(o->deny_host_addresses || o->host.v4.has_value() || o->host.v6.has_value());
}

TEST(ProxyNetOptionsTest, TheLink) {
  auto o = Parse({{"mac", "02:00:00:00:00:07"},
                  {"gateway-mac", "02:00:00:00:00:01"},
                  {"mtu", "9000"},
                  {"subnet", "192.168.7.0/24"},
                  {"lease-time", "600"},
                  {"prefix6", "2001:db8:7::/64"},
                  {"ipv6", "on"},
                  {"dhcp6", "off"},
                  {"hostname", "guest7"},
                  {"domain", "example.org"},
                  {"search", "example.org, lab.example.org"},
                  {"guest-dns", "192.168.7.53,2001:db8::53"},
                  {"dhcp-pool", "3"},
                  {"proxy-neighbors", "no"},
                  {"host.anything", "is the host's"}});
  ASSERT_TRUE(o.ok()) << o.error().text;
  EXPECT_EQ(o->lan.guest_mac->ToString(), "02:00:00:00:00:07");
  EXPECT_EQ(o->lan.gateway.ToString(), "192.168.7.2");
  EXPECT_EQ(o->lan.guest.ToString(), "192.168.7.15");
  EXPECT_EQ(o->lan.pool_size, 3u);
  EXPECT_EQ(o->lan.gateway6().ToString(), "2001:db8:7::2");
  EXPECT_EQ(o->lan.hostname, "guest7");
  EXPECT_EQ(o->lan.search, *o->search);
  EXPECT_THAT(*o->search, SizeIs(2));
  EXPECT_THAT(o->lan.dns, SizeIs(2));
  EXPECT_EQ(o->ipv6, Ipv6Mode::kOn);
  EXPECT_FALSE(o->lan.dhcp6 || o->lan.proxy_neighbors);
}

TEST(ProxyNetOptionsTest, AddressesThatFitTogether) {
  const auto lan = [](const std::vector<Options::KeyValue>& given) { return Parse(given)->lan; };
  EXPECT_EQ(lan({{"subnet", "10.9.0.0/30"}}).gateway.ToString(), "10.9.0.1");
  EXPECT_EQ(lan({{"subnet", "10.9.0.0/30"}}).guest.ToString(), "10.9.0.2");
  EXPECT_EQ(lan({{"subnet", "10.9.0.0/30"}}).pool_size, 1u);
  EXPECT_EQ(lan({{"guest-address", "10.0.2.250"}}).pool_size, 5u);
  EXPECT_EQ(lan({{"gateway", "10.0.2.20"}}).pool_size, 5u) << "up to the gateway";
  EXPECT_EQ(lan({{"gateway", "10.0.2.254"}}).gateway.ToString(), "10.0.2.254");
  EXPECT_EQ(lan({{"host-ports", "tcp:1"}, {"host-address", "10.0.2.18"}}).pool_size, 3u);
  // Without any that is free there is no virtual address of IPv4.
  EXPECT_FALSE(Parse({{"subnet", "10.9.0.0/30"}, {"host-ports", "tcp:1"}})->host.v4.has_value());
}

TEST(ProxyNetOptionsTest, TheResolver) {
  auto o = Parse({{"dns", "192.0.2.53, 192.0.2.54:5353, 2001:db8::53, [2001:db8::54]:5353"},
                  {"dns-records", "a.test=192.0.2.1,b.test=a.test"},
                  {"dns-in-flight", "16"},
                  {"ipv6", "off"},
                  {"mtu", "576"},
                  {"resolv-conf", "/run/resolv.conf"}});
  ASSERT_TRUE(o.ok()) << o.error().text;
  std::vector<std::string> servers;
  for (const DnsServer& s : o->dns.resolver.servers) servers.push_back(s.endpoint.ToString());
  EXPECT_THAT(servers, ElementsAre("192.0.2.53:53", "192.0.2.54:5353", "[2001:db8::53]:53",
                                   "[2001:db8::54]:5353"));
  EXPECT_NE(o->dns.resolver.records.Find(*DomainName::Parse("a.test")), nullptr);
  EXPECT_EQ(o->dns.resolver.max_in_flight, 16u);
  EXPECT_EQ(o->dns.resolver.max_datagram, 548u);
  EXPECT_EQ(o->dns.resolv_conf, "/run/resolv.conf");
  EXPECT_TRUE(o->dns.follow) << "for its search list";
  EXPECT_FALSE(Parse({{"dns", "192.0.2.53"}, {"search", ""}})->dns.follow);
}

TEST(ProxyNetOptionsTest, AliasesThatLeadNowhereAreNamed) {
  const std::string loop = ErrorOf({{"dns-records", "x.test=b.test,b.test=c.test,c.test=b.test"}});
  EXPECT_THAT(loop, HasSubstr("b.test"));
  EXPECT_THAT(loop, HasSubstr("c.test"));
  EXPECT_TRUE(Parse({{"dns-records", "a=b,b=c,c=d,d=e,e=f,f=g,g=h,h=i,i=192.0.2.1"}}).ok())
      << "eight of them";
  EXPECT_TRUE(Parse({{"dns-records", "a.test=b.test,c.test=b.test,b.test=elsewhere.test"}}).ok());
}

TEST(ProxyNetOptionsTest, NetworksOfEverydayUseAreTaken) {
  for (const char* subnet :
       {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "1.0.0.0/8",
        "126.0.0.0/8", "128.0.0.0/8", "223.0.0.0/8", "169.253.0.0/16", "169.255.0.0/16"}) {
    EXPECT_TRUE(Parse({{"subnet", subnet}}).ok()) << subnet;
  }
  for (const char* prefix : {"fd00::/64", "fc00::/64", "2001:db8::/64", "2001:1::/64", "2003::/64",
                             "64:ff9b:2::/64", "2600:1:2:3::/64"}) {
    EXPECT_TRUE(Parse({{"prefix6", prefix}}).ok()) << prefix;
  }
}

TEST(ProxyNetOptionsTest, ThePolicyAndTheHostsVirtualAddress) {
  auto o = Parse({{"rules", "allow 10.0.0.0/8:443/tcp, deny any"},
                  {"deny-host-addresses", "true"},
                  {"host-ports", "tcp:8080,udp:53"}});
  ASSERT_TRUE(o.ok()) << o.error().text;
  EXPECT_THAT(o->rules, SizeIs(2));
  EXPECT_TRUE(o->deny_host_addresses);
  EXPECT_EQ(o->host.v4->ToString(), "10.0.2.254");
  EXPECT_EQ(o->host.v6->ToString(), "fd76:6972:7462:6179::fe");
  EXPECT_THAT(o->host.ports, SizeIs(2));
  EXPECT_THAT(o->lan.aliases, SizeIs(2));
  const auto* entry = o->dns.resolver.records.Find(*DomainName::Parse("host.virtbay.internal"));
  ASSERT_NE(entry, nullptr);
  EXPECT_THAT(entry->a, ElementsAre(*o->host.v4));
  EXPECT_THAT(entry->aaaa, ElementsAre(*o->host.v6));
  auto named = Parse({{"host-ports", "tcp:1"},
                      {"host-name", "me.test"},
                      {"ipv6", "off"},
                      {"host-address", "10.0.2.9"}});
  ASSERT_TRUE(named.ok()) << named.error().text;
  EXPECT_NE(named->dns.resolver.records.Find(*DomainName::Parse("me.test")), nullptr);
  EXPECT_FALSE(named->host.v6.has_value());
}

TEST(ProxyNetOptionsTest, ErrorsNameTheOptionAndWhatIsWrong) {
  struct Case {
    std::vector<Options::KeyValue> given;
    const char* start;
    const char* part;
  };
  const Case cases[] = {
      {{{"nonsense", "1"}}, "option nonsense: ", "no such option"},
      {{{"mtu", "575"}}, "option mtu: ", "575"},
      {{{"mtu", "1279"}}, "option mtu: ", "1280"},
      {{{"mtu", "65521"}}, "option mtu: ", "65520"},
      {{{"mac", "01:00:00:00:00:01"}}, "option mac: ", "one host"},
      {{{"mac", "52:55:0a:00:02:02"}}, "option mac: ", "gateway"},
      {{{"gateway-mac", "nonsense"}}, "option gateway-mac: ", "nonsense"},
      {{{"ipv4", "maybe"}}, "option ipv4: ", "maybe"},
      {{{"ipv4", "off"}, {"ipv6", "off"}}, "option ipv4: ", "nothing"},
      {{{"ipv6", "maybe"}}, "option ipv6: ", "auto"},
      {{{"subnet", "10.0.2.1/24"}}, "option subnet: ", "behind its prefix"},
      {{{"subnet", "10.0.2.0/31"}}, "option subnet: ", "8 to 30"},
      {{{"subnet", "224.0.0.0/24"}}, "option subnet: ", "multicast"},
      {{{"subnet", "239.255.0.0/16"}}, "option subnet: ", "multicast"},
      {{{"subnet", "127.0.0.0/24"}}, "option subnet: ", "loopback"},
      {{{"subnet", "127.0.0.0/8"}}, "option subnet: ", "loopback"},
      {{{"subnet", "169.254.0.0/16"}}, "option subnet: ", "link-local (169.254.0.0/16)"},
      {{{"subnet", "169.254.7.0/24"}}, "option subnet: ", "link-local"},
      {{{"subnet", "169.0.0.0/8"}}, "option subnet: ", "link-local"},
      {{{"subnet", "0.0.0.0/8"}}, "option subnet: ", "this network"},
      {{{"subnet", "0.1.2.0/24"}}, "option subnet: ", "this network"},
      {{{"subnet", "240.0.0.0/8"}}, "option subnet: ", "reserved"},
      {{{"subnet", "255.255.255.0/24"}}, "option subnet: ", "reserved"},
      {{{"subnet", "2001:db8::/64"}}, "option subnet: ", "IPv4"},
      {{{"gateway", "10.0.3.2"}}, "option gateway: ", "subnet"},
      {{{"gateway", "10.0.2.0"}}, "option gateway: ", "host"},
      {{{"gateway", "10.0.2.255"}}, "option gateway: ", "host"},
      {{{"subnet", "10.0.3.0/24"}, {"gateway", "10.0.2.2"}}, "option gateway: ", "10.0.2.2"},
      {{{"guest-address", "10.0.2.2"}}, "option guest-address: ", "gateway"},
      {{{"guest-address", "10.0.3.15"}}, "option guest-address: ", "10.0.3.15"},
      {{{"guest-address", "::1"}}, "option guest-address: ", "IPv4"},
      {{{"dhcp-pool", "0"}}, "option dhcp-pool: ", "1024"},
      {{{"dhcp-pool", "241"}}, "option dhcp-pool: ", "240"},
      {{{"lease-time", "59"}}, "option lease-time: ", "60"},
      {{{"prefix6", "2001:db8::/48"}}, "option prefix6: ", "64"},
      {{{"prefix6", "fe80::/64"}}, "option prefix6: ", "link-local (fe80::/10)"},
      {{{"prefix6", "febf:1::/64"}}, "option prefix6: ", "link-local"},
      {{{"prefix6", "fec0::/64"}}, "option prefix6: ", "site-local"},
      {{{"prefix6", "ff02::/64"}}, "option prefix6: ", "multicast"},
      {{{"prefix6", "::/64"}}, "option prefix6: ", "loopback"},
      {{{"prefix6", "::1/128"}}, "option prefix6: ", "64"},
      {{{"prefix6", "::ffff:0:0/96"}}, "option prefix6: ", "IPv4"},
      {{{"prefix6", "64:ff9b::/64"}}, "option prefix6: ", "NAT64 (64:ff9b::/96)"},
      {{{"prefix6", "64:ff9b:1:7::/64"}}, "option prefix6: ", "NAT64"},
      {{{"prefix6", "2002:c000:201::/64"}}, "option prefix6: ", "6to4"},
      {{{"prefix6", "2001:0:1:2::/64"}}, "option prefix6: ", "Teredo"},
      {{{"prefix6", "2001:db8::1/64"}}, "option prefix6: ", "behind"},
      {{{"hostname", "a b"}}, "option hostname: ", "a b"},
      {{{"domain", "."}}, "option domain: ", "name"},
      {{{"search", "ok.test, not ok"}}, "option search: ", "not ok"},
      {{{"guest-dns", "10.0.2.3,nobody"}}, "option guest-dns: ", "nobody"},
      {{{"guest-dns", "0.0.0.0"}}, "option guest-dns: ", "0.0.0.0"},
      {{{"dns", "192.0.2.53:"}}, "option dns: ", "192.0.2.53:"},
      {{{"dns", "192.0.2.53:0"}}, "option dns: ", "1 to 65535"},
      {{{"dns", "[2001:db8::53"}}, "option dns: ", "["},
      {{{"dns", "resolver.test"}}, "option dns: ", "resolver.test"},
      {{{"dns", "1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1,1.1.1.1"}},
       "option dns: ",
       "8"},
      {{{"resolv-conf", "etc/resolv.conf"}}, "option resolv-conf: ", "absolute"},
      {{{"dns-records", "a"}}, "option dns-records: ", "NAME"},
      {{{"dns-records", "a.test=a.test"}}, "option dns-records: ", "a.test"},
      {{{"dns-records", "a.test=B.test,b.test=A.test"}}, "option dns-records: ", "loop"},
      {{{"dns-records", "c.test=192.0.2.1,a.test=b.test"}, {"dns-records", "b.test=a.test"}},
       "option dns-records: ",
       "loop"},
      {{{"dns-records", "a=b,b=c,c=d,d=e,e=f,f=g,g=h,h=i,i=j,j=192.0.2.1"}},
       "option dns-records: ",
       "more than 8 aliases"},
      {{{"dns-in-flight", "0"}}, "option dns-in-flight: ", "4096"},
      {{{"rules", "allow nobody"}}, "option rules: ", "nobody"},
      {{{"host-ports", "8080"}}, "option host-ports: ", "tcp:PORT"},
      {{{"host-address", "10.0.2.9"}}, "option host-ports: ", "missing"},
      {{{"host-ports", "tcp:1"}, {"host-address", "10.0.2.2"}},
       "option host-address: ",
       "10.0.2.2"},
      {{{"host-ports", "tcp:1"}, {"host-address", "10.0.3.2"}},
       "option host-address: ",
       "10.0.3.2"},
      {{{"host-ports", "tcp:1"}, {"host-address6", "2001:db8::1"}},
       "option host-address6: ",
       "prefix"},
      {{{"host-ports", "tcp:1"}, {"host-name", "-"}, {"dns-records", "-=x"}},
       "option host-name: ",
       "alias"},
  };
  for (const Case& c : cases) {
    EXPECT_THAT(ErrorOf(c.given), AllOf(StartsWith(c.start), HasSubstr(c.part)))
        << c.given[0].first << "=" << c.given[0].second;
  }
}

}  // namespace
}  // namespace virtbay::proxy_net
