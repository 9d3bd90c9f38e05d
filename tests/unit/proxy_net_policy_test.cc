// plugins/proxy-net/policy: rules, canonical addresses, what is denied by default.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "plugins/proxy-net/policy/policy_store.h"
#include "plugins/proxy-net/policy/saved_rules.h"

namespace virtbay::proxy_net {
namespace {

using ::testing::HasSubstr;

IpAddress Ip(const char* text) { return *IpAddress::Parse(text); }

Denial Judge(const Policy& policy, const char* address, uint16_t port = 80,
             Protocol protocol = Protocol::kTcp) {
  return policy.Judge(Ip(address), port, protocol).denial;
}

Policy With(const char* rules) {
  Policy policy;
  auto parsed = ParseRules(rules);
  EXPECT_TRUE(parsed.ok()) << rules;
  policy.SetRules(*parsed);
  return policy;
}

// The class of a filter that looks at what the guest wrote: ::ffff:127.0.0.1 reaches 127.0.0.1.
TEST(ProxyNetPolicyTest, DeniedByDefaultInEveryWriting) {
  struct Case {
    const char* address;
    Denial denial;
  };
  const Case cases[] = {
      {"93.184.216.34", Denial::kNone},
      {"10.1.2.3", Denial::kNone},
      {"192.168.1.1", Denial::kNone},
      {"2606:2800:220:1::1", Denial::kNone},
      {"fd00::1", Denial::kNone},
      {"127.0.0.1", Denial::kLoopback},
      {"127.255.255.255", Denial::kLoopback},
      {"0.0.0.0", Denial::kUnspecified},
      {"0.1.2.3", Denial::kUnspecified},
      {"169.254.1.1", Denial::kLinkLocal},
      {"169.254.169.254", Denial::kLinkLocal},
      {"100.100.100.200", Denial::kLinkLocal},
      {"100.100.100.201", Denial::kNone},
      {"192.0.0.192", Denial::kLinkLocal},
      {"fd00:ec2::254", Denial::kLinkLocal},
      {"fd20:ce::254", Denial::kLinkLocal},
      {"fd20:ce::255", Denial::kNone},
      {"::ffff:0:127.0.0.1", Denial::kLoopback},
      {"::ffff:0:93.184.216.34", Denial::kNone},
      {"224.0.0.251", Denial::kMulticast},
      {"255.255.255.255", Denial::kBroadcast},
      {"240.0.0.1", Denial::kReserved},
      {"::", Denial::kUnspecified},
      {"::1", Denial::kLoopback},
      {"fe80::1", Denial::kLinkLocal},
      // A scope written into the address, as some stacks do.
      {"fe80:3::1", Denial::kLinkLocal},
      {"febf::1", Denial::kLinkLocal},
      {"fec0::1", Denial::kReserved},
      {"ff02::1", Denial::kMulticast},
      {"ff0e::1", Denial::kMulticast},
      // v4-mapped: connect() takes it to the IPv4 address.
      {"::ffff:127.0.0.1", Denial::kLoopback},
      {"::ffff:0.0.0.0", Denial::kUnspecified},
      {"::ffff:169.254.169.254", Denial::kLinkLocal},
      {"::ffff:224.0.0.1", Denial::kMulticast},
      {"::ffff:255.255.255.255", Denial::kBroadcast},
      {"::ffff:93.184.216.34", Denial::kNone},
      // v4-compatible.
      {"::127.0.0.1", Denial::kLoopback},
      {"::169.254.169.254", Denial::kLinkLocal},
      {"::0.0.0.2", Denial::kUnspecified},
      // NAT64.
      {"64:ff9b::127.0.0.1", Denial::kLoopback},
      {"64:ff9b::0.0.0.0", Denial::kUnspecified},
      {"64:ff9b::a9fe:a9fe", Denial::kLinkLocal},
      {"64:ff9b::93.184.216.34", Denial::kNone},
      {"64:ff9b:1::127.0.0.1", Denial::kReserved},
      // 6to4 and ISATAP.
      {"2002:7f00:1::1", Denial::kLoopback},
      {"2002:a9fe:a9fe::1", Denial::kLinkLocal},
      {"2002:5db8:d822::1", Denial::kNone},
      {"2001:db8::5efe:7f00:1", Denial::kLoopback},
      // Teredo, whatever is in it.
      {"2001:0:4136:e378:8000:63bf:3fff:fdd2", Denial::kTransition},
  };
  const Policy policy;
  for (const Case& c : cases) {
    for (const Protocol p : {Protocol::kTcp, Protocol::kUdp, Protocol::kIcmp}) {
      EXPECT_EQ(Judge(policy, c.address, 80, p), c.denial) << c.address;
    }
  }
}

TEST(ProxyNetPolicyTest, AMappedAddressIsConnectedToAsIpv4) {
  const Decision d = Policy().Judge(Ip("::ffff:93.184.216.34"), 80, Protocol::kTcp);
  EXPECT_TRUE(d.allowed());
  EXPECT_EQ(d.target, Ip("93.184.216.34"));
  EXPECT_EQ(Policy().Judge(Ip("64:ff9b::1.2.3.4"), 80, Protocol::kTcp).target,
            Ip("64:ff9b::1.2.3.4"));
}

TEST(ProxyNetPolicyTest, TheFirstRuleThatMatchesDecides) {
  const Policy policy = With(
      "allow 10.0.0.0/8:443/tcp, deny 10.1.0.0/16, allow 10.0.0.0/8:80-90, deny 10.0.0.0/8,"
      "allow [2001:db8::/32]:443, deny [2001:db8::/32], deny 64.0.0.0/8");
  EXPECT_EQ(Judge(policy, "10.1.2.3", 443), Denial::kNone);
  EXPECT_EQ(Judge(policy, "10.1.2.3", 443, Protocol::kUdp), Denial::kRule);
  EXPECT_EQ(Judge(policy, "10.2.2.3", 79), Denial::kRule);
  EXPECT_EQ(Judge(policy, "10.2.2.3", 80), Denial::kNone);
  EXPECT_EQ(Judge(policy, "10.2.2.3", 90, Protocol::kUdp), Denial::kNone);
  EXPECT_EQ(Judge(policy, "10.2.2.3", 91), Denial::kRule);
  EXPECT_EQ(Judge(policy, "10.2.2.3", 85, Protocol::kIcmp), Denial::kRule) << "ICMP has no ports";
  EXPECT_EQ(Judge(policy, "11.2.2.3"), Denial::kNone);
  EXPECT_EQ(Judge(policy, "2001:db8::1", 443), Denial::kNone);
  EXPECT_EQ(Judge(policy, "2001:db8::1", 80), Denial::kRule);
  // Each in its other writings.
  EXPECT_EQ(Judge(policy, "::ffff:10.1.2.3"), Denial::kRule);
  EXPECT_EQ(Judge(policy, "64:ff9b::10.1.2.3"), Denial::kRule);
  EXPECT_EQ(Judge(policy, "2002:a01:203::"), Denial::kRule);
  EXPECT_EQ(Judge(policy, "64:ff9b::64.1.2.3"), Denial::kRule);
}

TEST(ProxyNetPolicyTest, AllowListWithNothingElse) {
  const Policy policy = With("allow 93.184.216.34:443/tcp, deny any");
  EXPECT_EQ(Judge(policy, "93.184.216.34", 443), Denial::kNone);
  EXPECT_EQ(Judge(policy, "93.184.216.34", 80), Denial::kRule);
  EXPECT_EQ(Judge(policy, "2606:2800:220:1::1", 443), Denial::kRule);
}

TEST(ProxyNetPolicyTest, OnlyARuleForJustThatOpensWhatIsDeniedByDefault) {
  for (const char* wide : {"allow any", "allow 0.0.0.0/0, allow [::/0]",
                           "allow 126.0.0.0/7, allow 168.0.0.0/6", "allow any:80/tcp"}) {
    const Policy policy = With(wide);
    EXPECT_EQ(Judge(policy, "127.0.0.1"), Denial::kLoopback) << wide;
    EXPECT_EQ(Judge(policy, "::1"), Denial::kLoopback) << wide;
    EXPECT_EQ(Judge(policy, "169.254.169.254"), Denial::kLinkLocal) << wide;
    EXPECT_EQ(Judge(policy, "::ffff:127.0.0.1"), Denial::kLoopback) << wide;
  }
  // Nor does one that begins within what is denied and goes on beyond it.
  const Policy beyond = With("allow 224.0.0.0/3, allow [fe80::/9]");
  EXPECT_EQ(Judge(beyond, "224.0.0.251"), Denial::kMulticast);
  EXPECT_EQ(Judge(beyond, "fe80::1"), Denial::kLinkLocal);
  const Policy policy = With(
      "allow 127.0.0.1:8080/tcp, allow 169.254.169.254, allow [::1]:1-2, "
      "allow 0.0.0.0/8, allow [::], allow [2001::/32]");
  EXPECT_EQ(Judge(policy, "127.0.0.1", 8080), Denial::kNone);
  EXPECT_EQ(Judge(policy, "::ffff:127.0.0.1", 8080), Denial::kNone);
  EXPECT_EQ(Judge(policy, "127.0.0.1", 8081), Denial::kLoopback);
  EXPECT_EQ(Judge(policy, "127.0.0.2", 8080), Denial::kLoopback);
  EXPECT_EQ(Judge(policy, "169.254.169.254"), Denial::kNone);
  EXPECT_EQ(Judge(policy, "169.254.169.253"), Denial::kLinkLocal);
  EXPECT_EQ(Judge(policy, "::1", 2), Denial::kNone);
  // Those never.
  EXPECT_EQ(Judge(policy, "0.0.0.0"), Denial::kUnspecified);
  EXPECT_EQ(Judge(policy, "::"), Denial::kUnspecified);
  EXPECT_EQ(Judge(policy, "2001::1"), Denial::kTransition);
}

TEST(ProxyNetPolicyTest, TheHostsVirtualAddress) {
  Policy policy = With("deny any");
  HostAlias alias;
  alias.v4 = Ip("10.0.2.254").v4();
  alias.v6 = Ip("fd00::fe").v6();
  policy.SetHostAlias(alias);
  EXPECT_EQ(Judge(policy, "10.0.2.254", 8080), Denial::kHostPort);
  EXPECT_EQ(Judge(policy, "10.0.2.254", 0, Protocol::kIcmp), Denial::kHostPort);
  alias.ports = *ParseHostPorts("tcp:8080, udp:5000-5010");
  policy.SetHostAlias(alias);
  const Decision d = policy.Judge(Ip("10.0.2.254"), 8080, Protocol::kTcp);
  EXPECT_TRUE(d.allowed());
  EXPECT_EQ(d.target, Ip("127.0.0.1"));
  EXPECT_EQ(policy.Judge(Ip("fd00::fe"), 8080, Protocol::kTcp).target, Ip("::1"));
  EXPECT_EQ(Judge(policy, "::ffff:10.0.2.254", 8080), Denial::kNone);
  EXPECT_EQ(Judge(policy, "10.0.2.254", 8080, Protocol::kUdp), Denial::kHostPort);
  EXPECT_EQ(Judge(policy, "10.0.2.254", 5010, Protocol::kUdp), Denial::kNone);
  EXPECT_EQ(Judge(policy, "fd00::fe", 5011, Protocol::kUdp), Denial::kHostPort);
}

TEST(ProxyNetPolicyTest, TheHostsOwnAddresses) {
  Policy policy = With("allow 192.0.2.7:22/tcp, allow 192.0.2.0/24");
  EXPECT_EQ(Judge(policy, "192.0.2.7"), Denial::kNone);
  policy.SetDeniedHostAddresses({Ip("192.0.2.7"), Ip("192.0.2.3"), Ip("2001:db8::7")});
  EXPECT_EQ(Judge(policy, "192.0.2.7"), Denial::kHostOwn);
  EXPECT_EQ(Judge(policy, "::ffff:192.0.2.3"), Denial::kHostOwn);
  EXPECT_EQ(Judge(policy, "2001:db8::7"), Denial::kHostOwn);
  EXPECT_EQ(Judge(policy, "192.0.2.7", 22), Denial::kNone);
  EXPECT_EQ(Judge(policy, "192.0.2.8"), Denial::kNone);
}

TEST(ProxyNetPolicyTest, RulesAsText) {
  for (const char* text :
       {"allow any", "deny any:53/udp", "allow 10.0.0.0/8", "deny 10.0.0.1", "deny 10.0.0.1/tcp",
        "allow 10.0.0.0/8:80/tcp", "deny 10.0.0.0/8:1000-2000", "allow [2001:db8::/32]",
        "allow [2001:db8::1]:443/tcp", "deny [::/0]/icmp", "deny 0.0.0.0/0"}) {
    auto rule = Rule::Parse(text);
    ASSERT_TRUE(rule.ok()) << text << ": " << rule.error().text;
    EXPECT_EQ(rule->ToString(), text);
    EXPECT_EQ(*Rule::Parse(rule->ToString()), *rule);
  }
  for (const char* bad : {"",
                          "allow",
                          "allow ",
                          "permit any",
                          "any",
                          "allow any:",
                          "allow any:0",
                          "allow any:65536",
                          "allow any:90-80",
                          "allow any:80-",
                          "allow any:-80",
                          "allow any/sctp",
                          "allow any:80/icmp",
                          "allow 10.0.0.1/33",
                          "allow 10.0.0.1/8",
                          "allow 10.0.0.0/",
                          "allow 10.0.0.0/-8",
                          "allow 2001:db8::1",
                          "allow 2001:db8::/32",
                          "allow [2001:db8::1",
                          "allow [10.0.0.1]",
                          "allow [2001:db8::1]443",
                          "allow [fe80::1%eth0]",
                          "allow [::ffff:10.0.0.1]",
                          "allow [::/129]",
                          "allow example.com",
                          "allow 10.0.0.1:http",
                          "allow 10.0.0.1 80"}) {
    auto rule = Rule::Parse(bad);
    EXPECT_FALSE(rule.ok()) << bad;
  }
  EXPECT_THAT(Rule::Parse("allow 2001:db8::1").error().text, HasSubstr("brackets"));
  EXPECT_FALSE(ParseRules("allow any, nonsense").ok());
  EXPECT_TRUE(ParseRules(" , ")->empty());
  for (const char* bad : {"8080", "tcp", "tcp:", "icmp:1", "tcp:0", "tcp:1-70000", "tcp:x"}) {
    EXPECT_FALSE(ParseHostPorts(bad).ok()) << bad;
  }
}

TEST(ProxyNetPolicyTest, AChangeReachesACopyOnceAndHasItsOwnGeneration) {
  PolicyStore store;
  Policy mine = store.Get();
  EXPECT_FALSE(store.Refresh(&mine));
  store.Change([](Policy* p) { p->SetRules(*ParseRules("deny 1.2.3.4")); });
  EXPECT_EQ(Judge(mine, "1.2.3.4"), Denial::kNone);
  const uint64_t before = mine.generation();
  EXPECT_TRUE(store.Refresh(&mine));
  EXPECT_NE(mine.generation(), before);
  EXPECT_FALSE(store.Refresh(&mine));
  EXPECT_EQ(Judge(mine, "1.2.3.4"), Denial::kRule);
}

SavedRules Saved(const char* of_option, const char* in_force) {
  return {*ParseRules(of_option), *ParseRules(in_force)};
}

// The text is what devices hand to each other: it does not change.
TEST(ProxyNetSavedRulesTest, AreReadAsTheyWereSaved) {
  const SavedRules saved = Saved("deny 10.0.0.0/8, allow any:53/udp",
                                 "allow [2001:db8::/32]:1-7/tcp, deny any/icmp, deny 10.0.0.0/8");
  const std::string text =
      "2 3\n"
      "deny 10.0.0.0/8\n"
      "allow any:53/udp\n"
      "allow [2001:db8::/32]:1-7/tcp\n"
      "deny any/icmp\n"
      "deny 10.0.0.0/8\n";
  EXPECT_EQ(saved.ToString(), text);
  const auto read = SavedRules::Parse(text);
  ASSERT_TRUE(read.ok()) << read.error().text;
  EXPECT_EQ(read.value(), saved);
  const auto none = SavedRules::Parse("0 0\n");
  ASSERT_TRUE(none.ok()) << none.error().text;
  EXPECT_EQ(none.value(), SavedRules());
  EXPECT_EQ(SavedRules().ToString(), "0 0\n");
}

// A rule without its last digit is another rule: nothing that is cut is taken.
TEST(ProxyNetSavedRulesTest, AreNotReadInPart) {
  const std::string text = Saved("deny 10.0.0.12", "allow 10.0.0.10:8080, deny any").ToString();
  for (size_t n = 0; n < text.size(); ++n) {
    EXPECT_FALSE(SavedRules::Parse(text.substr(0, n)).ok()) << n;
  }
  EXPECT_FALSE(SavedRules::Parse(text + "deny any\n").ok());
  EXPECT_FALSE(SavedRules::Parse(text + "\n").ok());
}

TEST(ProxyNetSavedRulesTest, SayWhatIsWrong) {
  for (const auto& [text, why] : std::vector<std::pair<std::string, std::string>>{
           {"", "two numbers"},
           {"\n", "two numbers"},
           {"1\ndeny any\n", "two numbers"},
           {"0 x\n", "two numbers"},
           {"0 -1\n", "two numbers"},
           {"0 1 \ndeny any\n", "two numbers"},
           {"0  1\ndeny any\n", "two numbers"},
           {"0 4097\n", "up to 4096"},
           {"4097 0\n", "up to 4096"},
           {"0 18446744073709551616\n", "up to 4096"},
           {"0 2\ndeny any\n", "1 of 2 rules"},
           {"1 0\n", "0 of 1 rules"},
           {"0 1\n\n", "does not begin with"},
           {"0 1\nforbid any\n", "does not begin with"},
           {"0 1\ndeny 10.0.0.0/33\n", "prefix length"},
           {"0 1\ndeny [2001:db8::/129]\n", "prefix length"},
           {"0 1\ndeny 10.0.0.1/8\n", "bits behind its prefix"},
           {"0 1\ndeny [10.0.0.0/8]\n", "without IPv6"},
           {"0 1\ndeny [::ffff:10.0.0.1]\n", "is an IPv4 address"},
           {"0 1\ndeny nowhere\n", "IPv4 or IPv6 address"},
           {"1 0\ndeny any/sctp\n", "tcp, udp and icmp"},
           {"0 1\ndeny any:0\n", "no port"},
           {"0 1\ndeny any, deny any\n", "IPv4 or IPv6 address"}}) {
    const auto read = SavedRules::Parse(text);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_THAT(read.error().text, ::testing::StartsWith("state of the rules: "));
    EXPECT_THAT(read.error().text, HasSubstr(why)) << text;
  }
}

TEST(ProxyNetSavedRulesTest, AsManyAsThereMayBe) {
  SavedRules saved;
  saved.of_option.assign(Policy::kMaxRules, *Rule::Parse("deny 10.0.0.0/8"));
  saved.in_force.assign(Policy::kMaxRules, *Rule::Parse("deny [2001:db8::]:1-65535/udp"));
  const auto read = SavedRules::Parse(saved.ToString());
  ASSERT_TRUE(read.ok()) << read.error().text;
  EXPECT_EQ(read.value(), saved);
  EXPECT_EQ(saved.AtRunTime(), (SavedRules::Changes{Policy::kMaxRules, Policy::kMaxRules}));
}

TEST(ProxyNetSavedRulesTest, CountWhatWasDoneAtRunTime) {
  struct Case {
    const char* of_option;
    const char* in_force;
    SavedRules::Changes changes;
  };
  const Case cases[] = {
      {"", "", {0, 0}},
      {"deny any:1, deny any:2", "deny any:1, deny any:2", {0, 0}},
      {"", "deny any:1, deny any:2", {2, 0}},
      {"deny any:1, deny any:2", "", {0, 2}},
      {"deny any:1, deny any:2", "deny any:3, deny any:1, deny any:4, deny any:2", {2, 0}},
      {"deny any:1, deny any:2, deny any:3", "deny any:1, deny any:3, deny any:4", {1, 1}},
      {"deny any:1, deny any:2", "deny any:2, deny any:1", {1, 1}},  // moved
      {"deny any:1", "deny any:1, deny any:1", {1, 0}},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(Saved(c.of_option, c.in_force).AtRunTime(), c.changes) << c.in_force;
  }
}

}  // namespace
}  // namespace virtbay::proxy_net
