// plugins/proxy-net/dns against dnsmasq, where there is one: every record type that it serves, over
// datagrams and streams, and answers that are larger than a datagram.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/packet/socket_address.h"
#include "tests/unit/proxy_net_bytes.h"

namespace virtbay::proxy_net {
namespace {

// One dnsmasq on a port of loopback, which ends with its owner.
class Dnsmasq {
 public:
  explicit Dnsmasq(const std::vector<std::string>& records) {
    for (int tries = 0; tries < 20 && pid_ < 0; ++tries) Start(records);
  }
  ~Dnsmasq() {
    if (pid_ < 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  bool running() const { return pid_ > 0; }
  DnsServer server() const { return {endpoint_, 0}; }

 private:
  void Start(const std::vector<std::string>& records) {
    // A port that was free a moment ago.
    {
      const Fd probe(socket(AF_INET, SOCK_DGRAM, 0));
      SocketAddress address = SocketAddress::Of({Ipv4Address::Of(127, 0, 0, 1), 0});
      if (bind(probe.get(), address.get(), address.size) != 0) return;
      getsockname(probe.get(), address.get(), &address.size);
      endpoint_ = *address.ToEndpoint();
    }
    std::vector<std::string> args = {VIRTBAY_DNSMASQ,
                                     "--keep-in-foreground",
                                     "--conf-file=/dev/null",
                                     "--pid-file=",
                                     "--listen-address=127.0.0.1",
                                     "--bind-interfaces",
                                     "--no-resolv",
                                     "--no-hosts",
                                     "--user=",
                                     "--group=",
                                     "--log-facility=/dev/null",
                                     "--edns-packet-max=4096",
                                     "--port=" + std::to_string(endpoint_.port)};
    args.insert(args.end(), records.begin(), records.end());
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
    // It listens for streams when everything else is ready.
    const SocketAddress to = SocketAddress::Of(endpoint_);
    while (true) {
      const Fd connection(socket(AF_INET, SOCK_STREAM, 0));
      if (connect(connection.get(), to.get(), to.size) == 0) break;
      int status = 0;
      if (waitpid(child, &status, WNOHANG) == child) return;
      poll(nullptr, 0, 10);
    }
    pid_ = child;
  }

  pid_t pid_ = -1;
  Endpoint endpoint_;
};

class ProxyNetDnsPeerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::string> records = {"--host-record=a.test,192.0.2.1,2001:db8::1",
                                        "--cname=alias.test,a.test",
                                        "--mx-host=a.test,mail.test,10",
                                        "--srv-host=_sip._udp.test,a.test,5060,1,2",
                                        "--ptr-record=1.2.0.192.in-addr.arpa,a.test",
                                        "--caa-record=a.test,0,issue,ca.test"};
    // 3 KiB: more than a datagram of 512 bytes, less than one of 4096. And 60 KiB.
    for (int i = 0; i < 12; ++i) records.push_back(Txt("mid.test", i));
    for (int i = 0; i < 220; ++i) records.push_back(Txt("big.test", i));
    peer = std::make_unique<Dnsmasq>(records);
    if (!peer->running()) GTEST_SKIP() << "dnsmasq does not start here";
    DnsConfig config;
    config.follow = false;
    config.resolver.servers = {peer->server()};
    config.resolver.max_datagram = 4096;
    auto service = DnsService::Create(config, {[this](const DnsClient&, Bytes bytes, DnsTransport) {
                                                 got.push_back(Exactly(bytes));
                                               },
                                               nullptr});
    ASSERT_TRUE(service.ok());
    dns = std::move(*service);
  }
  static std::string Txt(const char* name, int i) {
    return std::string("--txt-record=") + name + "," + std::string(240, 'x') + std::to_string(i);
  }
  static Buffer Query(const char* name, uint16_t type, std::optional<uint16_t> edns) {
    Buffer out(512);
    const size_t size = WriteQuery(0x1234, kFlagRecursionDesired,
                                   {*DomainName::Parse(name), type, kClassIn}, edns, out);
    out.resize(size);
    return out;
  }
  void RunUntil(const std::function<bool()>& done) {
    for (int i = 0; i < 10000 && !done(); ++i) {
      pollfd ready{dns->fd(), POLLIN, 0};
      if (poll(&ready, 1, 10) == 1) dns->OnReady(1);
    }
    ASSERT_TRUE(done());
  }
  // What comes back, checked to be a response to that.
  DnsResponse Ask(const char* name, uint16_t type, DnsTransport transport,
                  std::optional<uint16_t> edns = std::nullopt) {
    got.clear();
    dns->Query({}, Query(name, type, edns), transport, 1);
    RunUntil([&] { return !got.empty(); });
    DnsResponse said;
    if (got.empty()) return said;
    EXPECT_EQ(CheckResponse(got[0], 0x1234, {*DomainName::Parse(name), type, kClassIn}, &said),
              ResponseFault::kNone);
    return said;
  }

  std::unique_ptr<Dnsmasq> peer;
  std::vector<Buffer> got;
  std::unique_ptr<DnsService> dns;
};

TEST_F(ProxyNetDnsPeerTest, RecordTypesOverBothTransports) {
  struct Case {
    const char* name;
    uint16_t type;
    uint16_t answers;
  };
  const Case cases[] = {
      {"a.test", kTypeA, 1},     {"a.test", kTypeAaaa, 1},
      {"alias.test", kTypeA, 2}, {"alias.test", kTypeCname, 1},
      {"a.test", 15, 1},         {"_sip._udp.test", 33, 1},
      {"a.test", 257, 1},        {"1.2.0.192.in-addr.arpa", 12, 1},
      {"mid.test", 16, 12},
  };
  for (const DnsTransport transport : {DnsTransport::kDatagram, DnsTransport::kStream}) {
    for (const Case& c : cases) {
      const DnsResponse said = Ask(c.name, c.type, transport, uint16_t{4096});
      EXPECT_EQ(said.rcode, 0) << c.name << " " << c.type;
      EXPECT_EQ(said.answers, c.answers) << c.name << " " << c.type;
    }
  }
  EXPECT_EQ(dns->resolver().in_flight(), 0u);
}

TEST_F(ProxyNetDnsPeerTest, LargeAnswers) {
  const DnsResponse small = Ask("mid.test", 16, DnsTransport::kDatagram);
  EXPECT_TRUE(small.truncated);
  EXPECT_LE(got[0].size(), 512u);
  // The client comes back over a stream.
  const DnsResponse mid = Ask("mid.test", 16, DnsTransport::kStream);
  EXPECT_FALSE(mid.truncated);
  EXPECT_EQ(mid.answers, 12);
  const DnsResponse cut = Ask("big.test", 16, DnsTransport::kDatagram, uint16_t{4096});
  EXPECT_TRUE(cut.truncated);
  EXPECT_LE(got[0].size(), 4096u);
  const DnsResponse big = Ask("big.test", 16, DnsTransport::kStream);
  EXPECT_FALSE(big.truncated);
  EXPECT_EQ(big.answers, 220);
  EXPECT_GT(got[0].size(), 50000u);
}

TEST_F(ProxyNetDnsPeerTest, ManyQueriesOnOneStream) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Fd client(pair[1]);
  ASSERT_TRUE(dns->AddStream(pair[0], 1));
  Buffer all;
  for (uint16_t i = 0; i < 200; ++i) {
    Buffer query =
        Query(i % 2 == 0 ? "a.test" : "mid.test", i % 2 == 0 ? kTypeA : uint16_t{16}, std::nullopt);
    query[0] = static_cast<uint8_t>(i >> 8);
    query[1] = static_cast<uint8_t>(i);
    all.push_back(static_cast<uint8_t>(query.size() >> 8));
    all.push_back(static_cast<uint8_t>(query.size()));
    all.insert(all.end(), query.begin(), query.end());
  }
  ASSERT_EQ(send(client.get(), all.data(), all.size(), 0), static_cast<ssize_t>(all.size()));
  Buffer received;
  std::vector<bool> seen(200);
  size_t answers = 0;
  RunUntil([&] {
    Buffer chunk(65536);
    const ssize_t n = recv(client.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n > 0) received.insert(received.end(), chunk.begin(), chunk.begin() + n);
    while (received.size() >= 2) {
      const size_t size = size_t{received[0]} << 8 | received[1];
      if (received.size() < size + 2) break;
      const size_t id = size_t{received[2]} << 8 | received[3];
      EXPECT_LT(id, seen.size());
      if (id < seen.size() && !seen[id]) ++answers;
      if (id < seen.size()) seen[id] = true;
      received.erase(received.begin(), received.begin() + static_cast<std::ptrdiff_t>(size + 2));
    }
    return answers == 200;
  });
  EXPECT_EQ(dns->resolver().in_flight(), 0u);
}

}  // namespace
}  // namespace virtbay::proxy_net
