// Port forwards in text, and their sockets.
#include "plugins/proxy-net/flow/forward.h"
#include "tests/unit/proxy_net_flow_fixture.h"

namespace virtbay::proxy_net {
namespace {

using testing::HasSubstr;

TEST(ForwardTest, ReadsAndWritesTheGrammar) {
  for (const auto& [given, canonical] : std::vector<std::pair<std::string, std::string>>{
           {"tcp:8080:80", "tcp:127.0.0.1:8080:80"},
           {"udp:0.0.0.0:53:5353", "udp:0.0.0.0:53:5353"},
           {"tcp:[::1]:0:22", "tcp:[::1]:0:22"},
           {"tcp:10.1.2.3:8000-8010:80-90", "tcp:10.1.2.3:8000-8010:80-90"}}) {
    const auto forward = Forward::Parse(given);
    ASSERT_TRUE(forward.ok()) << given;
    EXPECT_EQ(forward.value().ToString(), canonical);
  }
}

TEST(ForwardTest, SaysWhatIsWrong) {
  for (const auto& [text, why] :
       std::vector<std::pair<std::string, std::string>>{{"", "tcp:"},
                                                        {"icmp:1:1", "tcp:"},
                                                        {"tcp:80", "no port of the guest"},
                                                        {"tcp:80:0", "guest's port"},
                                                        {"tcp:80:65536", "guest's port"},
                                                        {"tcp:x:80", "host's port"},
                                                        {"tcp:1-2:80", "equally long"},
                                                        {"tcp:2-1:80-81", "host's port"},
                                                        {"tcp:0-1:80-81", "port 0"},
                                                        {"tcp:::1:80:80", "brackets"},
                                                        {"tcp:[127.0.0.1]:80:80", "brackets"},
                                                        {"tcp:host:80:80", "address"},
                                                        {"tcp:1-65535:1-65535", "4096"}}) {
    const auto forward = Forward::Parse(text);
    ASSERT_FALSE(forward.ok()) << text;
    EXPECT_THAT(forward.error().text, HasSubstr(why)) << text;
    EXPECT_THAT(forward.error().text, HasSubstr("'" + text + "'"));
  }
  EXPECT_FALSE(ParseForwards("tcp:1:1,bad").ok());
  EXPECT_EQ(ParseForwards("tcp:1:1,,udp:2:2,").value().size(), 2u);
}

TEST(ForwardTest, FindsAFreePortAndSaysWhichIsTaken) {
  FakeFlowHost host;
  host.descriptors = 3;
  Forward any = Forward::Parse("tcp:0:80").value();
  auto bound = Bind(&any, &host);
  ASSERT_TRUE(bound.ok());
  EXPECT_NE(any.host_first, 0);
  EXPECT_EQ(host.descriptors, 2);
  Forward same = any;
  const auto taken = Bind(&same, &host);
  ASSERT_FALSE(taken.ok());
  EXPECT_EQ(taken.error().sys_errno, EADDRINUSE);
  EXPECT_THAT(taken.error().text, HasSubstr(std::to_string(any.host_first)));
  EXPECT_EQ(host.descriptors, 2);
  Unbind(&bound.value(), &host);
  EXPECT_EQ(host.descriptors, 3);
  Forward many = Forward::Parse("udp:20000-20010:1-11").value();
  const auto short_of = Bind(&many, &host);
  ASSERT_FALSE(short_of.ok());
  EXPECT_EQ(host.descriptors, 3);
}

}  // namespace
}  // namespace virtbay::proxy_net
