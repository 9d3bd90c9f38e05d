// plugins/proxy-net/dns: the resolver against servers of the test's own, message by message.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <set>

#include "plugins/proxy-net/dns/dns_service.h"
#include "plugins/proxy-net/packet/socket_address.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/proxy_net_bytes.h"

namespace virtbay::proxy_net {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr uint64_t kSecond = 1'000'000'000;
constexpr char kExampleA[] = "076578616d706c65036f726700 0001 0001";  // example.org A

DomainName Name(const char* text) { return *DomainName::Parse(text); }
IpAddress Ip(const char* text) { return *IpAddress::Parse(text); }

Buffer Query(const std::string& question, const char* id = "1234", bool edns = false,
             const char* flags = "0100") {
  return Hex(std::string(id) + flags + "0001 0000 0000" + (edns ? "0001" : "0000") + question +
             (edns ? "00 0029 1000 00000000 0000" : ""));
}

std::ptrdiff_t OpenDescriptors() {
  return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                       std::filesystem::directory_iterator());
}

// A server on loopback, over UDP and TCP on the same port.
class Server {
 public:
  Server() {
    for (int tries = 0; tries < 100; ++tries) {
      udp_ = Fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
      tcp_ = Fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      SocketAddress address = SocketAddress::Of({Ipv4Address::Of(127, 0, 0, 1), 0});
      EXPECT_EQ(bind(udp_.get(), address.get(), address.size), 0);
      EXPECT_EQ(getsockname(udp_.get(), address.get(), &address.size), 0);
      endpoint_ = *address.ToEndpoint();
      if (bind(tcp_.get(), address.get(), address.size) == 0 && listen(tcp_.get(), 8) == 0) return;
    }
    ADD_FAILURE() << "no port that is free for both";
  }

  DnsServer config() const { return {endpoint_, 0}; }
  // What came as a datagram; waits for it.
  Buffer Receive() {
    Buffer bytes(65536);
    pollfd ready{udp_.get(), POLLIN, 0};
    EXPECT_EQ(poll(&ready, 1, 10000), 1) << "no datagram came";
    from_.size = sizeof from_.storage;
    const ssize_t n =
        recvfrom(udp_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT, from_.get(), &from_.size);
    bytes.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return bytes;
  }
  bool Silent() const {
    pollfd ready{udp_.get(), POLLIN, 0};
    return poll(&ready, 1, 0) == 0;
  }
  void Send(const Buffer& bytes) {
    EXPECT_EQ(sendto(udp_.get(), bytes.data(), bytes.size(), 0, from_.get(), from_.size),
              static_cast<ssize_t>(bytes.size()));
  }
  uint16_t client_port() const { return from_.ToEndpoint()->port; }
  void Accept() {
    pollfd ready{tcp_.get(), POLLIN, 0};
    ASSERT_EQ(poll(&ready, 1, 10000), 1) << "nobody connected";
    connection_ = Fd(accept(tcp_.get(), nullptr, nullptr));
  }
  Buffer ReceiveTcp(size_t n) {
    Buffer bytes(n);
    EXPECT_EQ(recv(connection_.get(), bytes.data(), n, MSG_WAITALL), static_cast<ssize_t>(n));
    return bytes;
  }
  void CloseTcp() { connection_.Close(); }
  void StopTcp() { tcp_.Close(); }
  void StopUdp() { udp_.Close(); }
  int connection() const { return connection_.get(); }

 private:
  Fd udp_, tcp_, connection_;
  Endpoint endpoint_;
  SocketAddress from_;
};

Buffer WithLength(const Buffer& message) {
  return Join(
      {Buffer{static_cast<uint8_t>(message.size() >> 8), static_cast<uint8_t>(message.size())},
       message});
}

// A response to a query as it came: its id and question, and what is given.
Buffer ResponseTo(const Buffer& query, const char* flags, const std::string& counts,
                  const std::string& records, size_t question = 17) {
  Buffer out = Join({Buffer(query.begin(), query.begin() + 2), Hex(flags), Hex(counts),
                     Buffer(query.begin() + 12, query.begin() + 12 + static_cast<long>(question)),
                     Hex(records)});
  return out;
}

class ProxyNetDnsTest : public ::testing::Test {
 protected:
  struct Got {
    DnsClient to;
    Buffer bytes;
    DnsTransport transport;
  };

  DnsConfig Config(std::vector<DnsServer> servers) {
    DnsConfig config;
    config.resolver.servers = std::move(servers);
    config.follow = false;
    return config;
  }
  void Start(DnsConfig config) {
    auto service = DnsService::Create(
        std::move(config),
        {[this](const DnsClient& to, Bytes bytes, DnsTransport transport) {
           got.push_back({to, Exactly(bytes), transport});
         },
         [this](const std::vector<DomainName>& search) { searches.push_back(search); }});
    ASSERT_TRUE(service.ok()) << service.error().text;
    dns = std::move(*service);
  }
  void Start() { Start(Config({server.config()})); }
  void Ask(const Buffer& query, uint16_t port = 4000,
           DnsTransport transport = DnsTransport::kDatagram, uint64_t stream = 0) {
    dns->Query({{Ip("10.0.2.15"), port}, stream}, Exactly(query), transport, now);
  }
  // Runs it until that many answers have come in all.
  void RunUntil(const std::function<bool()>& done) {
    for (int i = 0; i < 2000 && !done(); ++i) {
      pollfd ready{dns->fd(), POLLIN, 0};
      if (poll(&ready, 1, 10) == 1) dns->OnReady(now);
    }
    EXPECT_TRUE(done());
  }
  void RunUntilAnswers(size_t n) {
    RunUntil([&] { return got.size() >= n; });
    ASSERT_THAT(got, SizeIs(n));
  }
  const Resolver::Counters& counters() const { return dns->resolver().counters(); }

  Server server;
  uint64_t now = 1000 * kSecond;
  std::vector<Got> got;
  std::vector<std::vector<DomainName>> searches;
  std::unique_ptr<DnsService> dns;
};

TEST_F(ProxyNetDnsTest, AQueryAndItsAnswerByteByByte) {
  Start();
  const Buffer query = Query(kExampleA, "1234", true);
  Ask(query);
  const Buffer at_server = server.Receive();
  // EDNS goes through as it is; only the id is another.
  EXPECT_EQ(ToHex(Bytes(at_server).subspan(2)), ToHex(Bytes(query).subspan(2)));
  server.Send(ResponseTo(at_server, "8180", "0001 0001 0000 0001",
                         "c00c 0001 0001 0000003c 0004 5db8d822"
                         "00 0029 04d0 00008000 0000"));
  RunUntilAnswers(1);
  EXPECT_EQ(ToHex(got[0].bytes),
            ToHex(Hex("1234 8180 0001 0001 0000 0001" + std::string(kExampleA) +
                      "c00c 0001 0001 0000003c 0004 5db8d822"
                      "00 0029 04d0 00008000 0000")));
  EXPECT_EQ(got[0].to.endpoint.port, 4000);
  EXPECT_EQ(dns->resolver().in_flight(), 0u);
  EXPECT_EQ(dns->NextDeadline(), UINT64_MAX);
}

TEST_F(ProxyNetDnsTest, IdsAndPortsAreRandom) {
  Start();
  std::set<std::string> ids;
  std::set<uint16_t> ports;
  for (uint16_t i = 0; i < 64; ++i) {
    Ask(Query(kExampleA), static_cast<uint16_t>(5000 + i));
    const Buffer at_server = server.Receive();
    ids.insert(ToHex(Bytes(at_server).first(2)));
    ports.insert(server.client_port());
  }
  EXPECT_GT(ids.size(), 56u);
  EXPECT_GT(ports.size(), 56u);
}

TEST_F(ProxyNetDnsTest, OnlyTheAnswerToTheQuestionIsTaken) {
  Start();
  Ask(Query(kExampleA));
  const Buffer asked = server.Receive();
  const std::string record = "c00c 0001 0001 0000003c 0004 5db8d822";
  const Buffer good = ResponseTo(asked, "8180", "0001 0001 0000 0000", record);
  Buffer other_id = good;
  other_id[1] ^= 1;
  Buffer other_name = good;
  other_name[13] ^= 1;
  Buffer other_type = good;
  other_type[26] = 28;
  Buffer no_response = good;
  no_response[2] = 0x01;
  for (const Buffer& bad :
       {other_id, other_name, other_type, no_response,
        ResponseTo(asked, "8180", "0001 0002 0000 0000", record),
        ResponseTo(asked, "8180", "0001 0001 0000 0000", "c00c 0001 0001 0000003c 0005 5db8d822"),
        ResponseTo(asked, "8180", "0001 0001 0000 0000", "c01d 0001 0001 0000003c 0004 5db8d822"),
        ResponseTo(asked, "8180", "0000 0000 0000 0000", "", 0), Buffer(), Buffer(11),
        Buffer(good.begin(), good.begin() + 20)}) {
    server.Send(bad);
  }
  RunUntil([&] { return counters().mismatched == 11; });
  EXPECT_THAT(got, IsEmpty());
  // Another socket, which knows id, question and port: the kernel keeps it out.
  const Fd other(socket(AF_INET, SOCK_DGRAM, 0));
  SocketAddress to = SocketAddress::Of({Ip("127.0.0.1"), server.client_port()});
  sendto(other.get(), good.data(), good.size(), 0, to.get(), to.size);
  // The same letters in the other case are the same name.
  Buffer upper = good;
  upper[13] = 'E';
  server.Send(upper);
  RunUntilAnswers(1);
  EXPECT_EQ(counters().mismatched, 11u);
}

TEST_F(ProxyNetDnsTest, RetransmitsAndGivesUp) {
  Start();
  Ask(Query(kExampleA));
  const Buffer first = server.Receive();
  const uint16_t port = server.client_port();
  EXPECT_EQ(dns->NextDeadline(), now + 2 * kSecond);
  now += 2 * kSecond - 1;
  dns->OnTime(now);
  EXPECT_TRUE(server.Silent());
  dns->OnTime(++now);
  EXPECT_EQ(ToHex(server.Receive()), ToHex(first)) << "the answer to either is one";
  EXPECT_EQ(server.client_port(), port);
  EXPECT_EQ(dns->NextDeadline(), now + 4 * kSecond);
  now += 4 * kSecond;
  dns->OnTime(now);
  ASSERT_THAT(got, SizeIs(1));
  EXPECT_EQ(ToHex(got[0].bytes),
            ToHex(Hex("1234 8182 0001 0000 0000 0000" + std::string(kExampleA))));
  EXPECT_EQ(counters().failed, 1u);
  EXPECT_EQ(dns->NextDeadline(), UINT64_MAX);
  // Too late.
  server.Send(ResponseTo(first, "8180", "0001 0000 0000 0000", ""));
  dns->OnReady(now);
  EXPECT_THAT(got, SizeIs(1));
}

TEST_F(ProxyNetDnsTest, FailsOverToTheNextServer) {
  Server second;
  Start(Config({server.config(), second.config()}));
  // One that is silent.
  Ask(Query(kExampleA));
  server.Receive();
  now += 2 * kSecond;
  dns->OnTime(now);
  second.Send(ResponseTo(second.Receive(), "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(1);
  // One that fails, in each of the ways that another may do better.
  for (const char* flags : {"8182", "8185", "8184", "8181"}) {
    Ask(Query(kExampleA));
    server.Send(ResponseTo(server.Receive(), flags, "0001 0000 0000 0000", ""));
    RunUntil([&] { return !second.Silent(); });
    second.Send(ResponseTo(second.Receive(), "8183", "0001 0000 0000 0000", ""));
    RunUntilAnswers(got.size() + 1);
    EXPECT_EQ(got.back().bytes[3], 0x83) << "that there is no such name is an answer";
  }
  // Both fail: what the last one says.
  Ask(Query(kExampleA));
  server.Send(ResponseTo(server.Receive(), "8185", "0001 0000 0000 0000", ""));
  RunUntil([&] { return !second.Silent(); });
  second.Send(ResponseTo(second.Receive(), "8182", "0001 0000 0000 0000", ""));
  RunUntilAnswers(got.size() + 1);
  EXPECT_EQ(got.back().bytes[3], 0x82);
  // Nobody is there: no waiting.
  server.StopUdp();
  Ask(Query(kExampleA));
  RunUntil([&] { return !second.Silent(); });
  second.Send(ResponseTo(second.Receive(), "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(got.size() + 1);
}

TEST_F(ProxyNetDnsTest, NumberInFlightIsBounded) {
  DnsConfig config = Config({server.config()});
  config.resolver.max_in_flight = 4;
  Start(config);
  for (uint16_t i = 0; i < 4; ++i) Ask(Query(kExampleA), static_cast<uint16_t>(4000 + i));
  EXPECT_THAT(got, IsEmpty());
  // The same once more takes no place, and gets one answer.
  Ask(Query(kExampleA), 4003);
  EXPECT_EQ(counters().duplicates, 1u);
  EXPECT_THAT(got, IsEmpty());
  Ask(Query(kExampleA), 4004);
  ASSERT_THAT(got, SizeIs(1));
  EXPECT_EQ(got[0].bytes[3], 0x82);
  EXPECT_EQ(got[0].to.endpoint.port, 4004);
  EXPECT_EQ(counters().refused_full, 1u);
  server.Send(ResponseTo(server.Receive(), "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(2);
  Ask(Query(kExampleA), 4005);
  EXPECT_EQ(dns->resolver().in_flight(), 4u);
}

TEST_F(ProxyNetDnsTest, DescriptorsAreCountedByWhoeverCountsThem) {
  int left = 2;
  DnsConfig config = Config({server.config()});
  config.resolver.descriptors = {[&] { return left > 0 && left-- > 0; }, [&] { ++left; }};
  Start(config);
  for (uint16_t i = 0; i < 3; ++i) Ask(Query(kExampleA), static_cast<uint16_t>(4000 + i));
  ASSERT_THAT(got, SizeIs(1));
  EXPECT_EQ(got[0].bytes[3], 0x82);
  EXPECT_EQ(left, 0);
  server.Send(ResponseTo(server.Receive(), "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(2);
  EXPECT_EQ(left, 1);
  dns.reset();
  EXPECT_EQ(left, 2);
}

// CVE-2021-3593, CVE-2021-3594: a message in a datagram taken for whole.
TEST(ProxyNetDnsResponseTest, EveryTruncation) {
  const Buffer whole = Hex("1234 8180 0001 0002 0000 0001" + std::string(kExampleA) +
                           "c00c 0005 0001 0000003c 0005 026162 c00c"
                           "c00c 0001 0001 0000003c 0004 c0000201"
                           "00 0029 1000 00000000 0000");
  const DnsQuestion question{*DomainName::Parse("example.org"), kTypeA, kClassIn};
  DnsResponse said;
  for (size_t size = 0; size <= whole.size(); ++size) {
    Buffer cut = Exactly(Bytes(whole).first(size));
    const bool taken = CheckResponse(cut, 0x1234, question, &said) == ResponseFault::kNone;
    EXPECT_EQ(taken, size == whole.size()) << size;
    // One that says so may end early, but not within its question.
    if (size < 12) continue;
    cut[2] |= 2;
    const bool as_cut = CheckResponse(cut, 0x1234, question, &said) == ResponseFault::kNone;
    EXPECT_EQ(as_cut, size >= 12 + Hex(kExampleA).size()) << size;
  }
}

TEST_F(ProxyNetDnsTest, MalformedQueriesAreRefused) {
  Start();
  struct Case {
    Buffer query;
    int rcode;  // -1: silence
  };
  const Case cases[] = {
      {Buffer(), -1},
      {Buffer(11), -1},
      {Query(kExampleA, "1234", false, "8100"), -1},
      {Query(kExampleA, "1234", false, "2000"), 4},
      {Hex("1234 0100 0000 0000 0000 0000"), 1},
      {Hex("1234 0100 0002 0000 0000 0000" + std::string(kExampleA) + kExampleA), 1},
      {Hex("1234 0100 0001 0001 0000 0000" + std::string(kExampleA)), 1},
      {Query("076578616d706c65036f7267"), 1},
      {Query("c00c 0001 0001"), 1},
      {Query("c000 0001 0001", "0000"), 1},
      {Query(std::string(kExampleA) + "00"), 1},
      {Hex("1234 0100 0001 0000 0000 0002" + std::string(kExampleA) +
           "00 0029 1000 00000000 0000 00 0029 1000 00000000 0000"),
       1},
      {Buffer(5000, 0), -1},
  };
  for (const Case& c : cases) {
    got.clear();
    Ask(c.query);
    if (c.rcode < 0) {
      EXPECT_THAT(got, IsEmpty()) << ToHex(c.query).substr(0, 80);
      continue;
    }
    ASSERT_THAT(got, SizeIs(1)) << ToHex(c.query);
    EXPECT_EQ(got[0].bytes[3] & 15, c.rcode) << ToHex(c.query);
    EXPECT_EQ(ToHex(Bytes(got[0].bytes).first(2)), ToHex(Bytes(c.query).first(2)));
  }
  EXPECT_TRUE(server.Silent());
  const Buffer whole = Query(kExampleA, "1234", true);
  for (size_t size = 0; size < whole.size(); ++size) {
    Ask(Buffer(whole.begin(), whole.begin() + static_cast<long>(size)));
  }
  EXPECT_TRUE(server.Silent());
}

TEST_F(ProxyNetDnsTest, StaticRecords) {
  DnsConfig config = Config({server.config()});
  ASSERT_TRUE(
      config.resolver.records
          .Add("host.virtbay.internal=10.0.2.254, host.virtbay.internal=fd00::fe, a.test=b.test,"
               "b.test=host.virtbay.internal, outside.test=example.org, loop1.test=loop2.test, "
               "loop2.test=loop1.test")
          .ok());
  Start(config);
  const std::string host = "04686f7374 0776697274626179 08696e7465726e616c 00";
  const auto answer = [&](const std::string& question, bool edns = false) {
    got.clear();
    Ask(Query(question, "1234", edns));
    return got.empty() ? std::string() : ToHex(got[0].bytes);
  };
  const auto hex = [](const std::string& text) { return ToHex(Hex(text)); };
  EXPECT_EQ(answer(host + "0001 0001"), hex("1234 8580 0001 0001 0000 0000" + host + "0001 0001" +
                                            host + "0001 0001 0000003c 0004 0a0002fe"));
  EXPECT_EQ(answer("04484f5354 0776697274626179 08696e7465726e616c 00 001c 0001", true),
            hex("1234 8580 0001 0001 0000 0001 04484f5354 0776697274626179 08696e7465726e616c 00 "
                "001c 0001" +
                host +
                "001c 0001 0000003c 0010 fd0000000000000000000000000000fe"
                "00 0029 04d0 00000000 0000"));
  // No record of that type, yet the name is there.
  EXPECT_EQ(answer(host + "000f 0001"), hex("1234 8580 0001 0000 0000 0000" + host + "000f 0001"));
  // Aliases among them.
  const std::string a = "0161 0474657374 00", b = "0162 0474657374 00";
  EXPECT_EQ(
      answer(a + "0001 0001"),
      hex("1234 8580 0001 0003 0000 0000" + a + "0001 0001" + a + "0005 0001 0000003c 0008" + b +
          b + "0005 0001 0000003c 0017" + host + host + "0001 0001 0000003c 0004 0a0002fe"));
  EXPECT_EQ(answer(a + "0005 0001"), hex("1234 8580 0001 0001 0000 0000" + a + "0005 0001" + a +
                                         "0005 0001 0000003c 0008" + b));
  EXPECT_EQ(answer("056c6f6f7031 0474657374 00 0001 0001").substr(4, 4), "8182") << "in a circle";
  EXPECT_TRUE(server.Silent());

  // One that leads outside: the servers are asked for where it leads, and the client gets all of
  // it.
  const std::string outside = "076f757473696465 0474657374 00";
  EXPECT_EQ(answer(outside + "0001 0001"), "");
  const Buffer asked = server.Receive();
  EXPECT_EQ(ToHex(Bytes(asked).subspan(2)),
            hex("0100 0001 0000 0000 0000" + std::string(kExampleA)));
  server.Send(ResponseTo(asked, "8180", "0001 0002 0000 0000",
                         "c00c 0005 0001 0000000a 0006 03777777 c00c"
                         "03777777 c00c 0001 0001 0000000b 0004 01020304"));
  RunUntilAnswers(1);
  EXPECT_EQ(ToHex(got[0].bytes),
            hex("1234 8180 0001 0003 0000 0000" + outside + "0001 0001" + outside +
                "0005 0001 0000003c 000d" +
                "076578616d706c65036f726700"
                "076578616d706c65036f726700 0005 0001 0000000a 0011" +
                "03777777076578616d706c65036f726700"
                "03777777076578616d706c65036f726700 0001 0001 0000000b 0004 01020304"));
}

TEST(ProxyNetDnsRecordsTest, Contradictions) {
  StaticRecords records;
  for (const char* bad : {"a", "=1.2.3.4", "a=", "a b=1.2.3.4", "a=b c", "a=a", "x=1.2.3.4,x=y",
                          "z=y,z=1.2.3.4", "w=y,w=q"}) {
    EXPECT_FALSE(records.Add(bad).ok()) << bad;
  }
  EXPECT_EQ(records.Find(Name("nothing")), nullptr);
}

TEST_F(ProxyNetDnsTest, TruncatedAnswersAreFetchedOverTcpForWhoTakesMore) {
  Start();
  Ask(Query(kExampleA, "1234", true));
  const Buffer asked = server.Receive();
  server.Send(ResponseTo(asked, "8380", "0001 0000 0000 0000", ""));
  RunUntil([&] { return counters().over_tcp == 1; });
  server.Accept();
  RunUntil([&] {
    pollfd ready{server.connection(), POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
  });
  Buffer over_tcp = server.ReceiveTcp(asked.size() + 2);
  over_tcp.erase(over_tcp.begin(), over_tcp.begin() + 2);
  EXPECT_EQ(ToHex(Bytes(over_tcp).subspan(2)), ToHex(Bytes(asked).subspan(2)));
  // 1000 bytes of text, more than 512.
  std::string text;
  for (int i = 0; i < 4; ++i) text += "fa" + std::string(500, '6');
  const Buffer whole =
      ResponseTo(over_tcp, "8180", "0001 0001 0000 0000", "c00c 0010 0001 0000003c 03ec" + text);
  const Buffer framed = WithLength(whole);
  // In two pieces.
  send(server.connection(), framed.data(), 100, 0);
  dns->OnReady(now);
  send(server.connection(), framed.data() + 100, framed.size() - 100, 0);
  RunUntilAnswers(1);
  EXPECT_EQ(got[0].bytes.size(), whole.size());
  EXPECT_EQ(ToHex(Bytes(got[0].bytes).subspan(2)), ToHex(Bytes(whole).subspan(2)));
  // Who takes 512 bytes is told to come back.
  Ask(Query(kExampleA), 4001);
  server.Send(ResponseTo(server.Receive(), "8380", "0001 0000 0000 0000", ""));
  RunUntilAnswers(2);
  EXPECT_EQ(ToHex(Bytes(got[1].bytes).first(4)), "12348380");
  EXPECT_EQ(counters().over_tcp, 1u);
}

TEST_F(ProxyNetDnsTest, AnAnswerThatIsTooLargeForTheClientIsCutToNothing) {
  Start();
  Ask(Query(kExampleA));
  const Buffer asked = server.Receive();
  std::string text;
  for (int i = 0; i < 4; ++i) text += "fa" + std::string(500, '6');
  server.Send(
      ResponseTo(asked, "8180", "0001 0001 0000 0000", "c00c 0010 0001 0000003c 03ec" + text));
  RunUntilAnswers(1);
  EXPECT_EQ(ToHex(got[0].bytes),
            ToHex(Hex("1234 8380 0001 0000 0000 0000" + std::string(kExampleA))));
}

TEST_F(ProxyNetDnsTest, StreamsCarryAnswersOf64KiB) {
  Start();
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Fd client(pair[1]);
  ASSERT_TRUE(dns->AddStream(pair[0], now));
  const Buffer query = WithLength(Query(kExampleA));
  // Byte by byte, and two at once.
  for (const uint8_t byte : query) {
    send(client.get(), &byte, 1, 0);
    dns->OnReady(now);
  }
  server.Accept();
  RunUntil([&] {
    pollfd ready{server.connection(), POLLIN, 0};
    return poll(&ready, 1, 0) == 1;
  });
  Buffer asked = server.ReceiveTcp(query.size());
  asked.erase(asked.begin(), asked.begin() + 2);
  // As many records as fill it.
  Buffer whole = ResponseTo(asked, "8180", "0001 0ffe 0000 0000", "");
  for (int i = 0; i < 0xffe; ++i) {
    const Buffer record = Hex("c00c 0001 0001 0000003c 0004 5db8d822");
    whole.insert(whole.end(), record.begin(), record.end());
  }
  ASSERT_GT(whole.size(), 65000u);
  Buffer received;
  const Buffer framed = WithLength(whole);
  size_t sent = 0;
  RunUntil([&] {
    if (sent < framed.size()) {
      const ssize_t n =
          send(server.connection(), framed.data() + sent, framed.size() - sent, MSG_DONTWAIT);
      if (n > 0) sent += static_cast<size_t>(n);
    }
    Buffer chunk(65536);
    const ssize_t n = recv(client.get(), chunk.data(), chunk.size(), MSG_DONTWAIT);
    if (n > 0) received.insert(received.end(), chunk.begin(), chunk.begin() + n);
    return received.size() == framed.size();
  });
  EXPECT_EQ(ToHex(Bytes(received).first(4)), ToHex(Bytes(framed).first(2)) + "1234");
  EXPECT_TRUE(std::equal(received.begin() + 4, received.end(), framed.begin() + 4));
  // The client closes: so does the other end.
  EXPECT_EQ(dns->streams(), 1u);
  shutdown(client.get(), SHUT_WR);
  RunUntil([&] { return dns->streams() == 0; });
}

TEST_F(ProxyNetDnsTest, AStreamFallsBackToDatagramsWhereNoServerTakesConnections) {
  server.StopTcp();
  Start();
  Ask(Query(kExampleA), 0, DnsTransport::kStream, 7);
  RunUntil([&] { return !server.Silent(); });
  server.Send(ResponseTo(server.Receive(), "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(1);
  EXPECT_EQ(got[0].to.stream, 7u);
  EXPECT_EQ(got[0].transport, DnsTransport::kStream);
}

TEST_F(ProxyNetDnsTest, StreamsAreBoundedAndEndWhenTheyAreSilent) {
  server.StopTcp();
  Start();
  std::vector<Fd> clients;
  const auto add = [&] {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    clients.emplace_back(pair[1]);
    return dns->AddStream(pair[0], now);
  };
  for (uint32_t i = 0; i < DnsStreams::kMaxStreams; ++i) EXPECT_TRUE(add());
  EXPECT_FALSE(add());
  // One client asks a thousand things at once and takes no answers: no more than its share is under
  // way.
  Buffer flood;
  for (uint16_t i = 0; i < 1000; ++i) {
    Buffer query = WithLength(Query(kExampleA));
    query[2] = static_cast<uint8_t>(i >> 8);
    query[3] = static_cast<uint8_t>(i);
    flood.insert(flood.end(), query.begin(), query.end());
  }
  send(clients[0].get(), flood.data(), flood.size(), MSG_DONTWAIT);
  for (int i = 0; i < 50; ++i) dns->OnReady(now);
  EXPECT_EQ(dns->resolver().in_flight(), DnsStreams::kMaxPending);
  EXPECT_EQ(dns->streams(), DnsStreams::kMaxStreams);
  now += DnsStreams::kIdleNs;
  dns->OnTime(now);
  EXPECT_EQ(dns->streams(), 0u);
  EXPECT_EQ(dns->resolver().in_flight(), 0u) << "what they asked went with them";
}

// The class of consomme's asynchronous resolver: an answer after its asker, or all of it, has gone.
TEST_F(ProxyNetDnsTest, NothingArrivesAfterTheAskerHasGone) {
  const std::ptrdiff_t before = OpenDescriptors();
  Start();
  Ask(Query(kExampleA), 0, DnsTransport::kStream, 7);
  Ask(Query(kExampleA), 4001);
  const Buffer asked = server.Receive();
  dns->Forget(7);
  EXPECT_EQ(dns->resolver().in_flight(), 1u);
  // The same slot for somebody else.
  Ask(Query(kExampleA), 4002);
  const Buffer second = server.Receive();
  server.Send(ResponseTo(asked, "8180", "0001 0000 0000 0000", ""));
  server.Send(ResponseTo(second, "8180", "0001 0000 0000 0000", ""));
  RunUntilAnswers(1);
  EXPECT_EQ(got[0].to.endpoint.port, 4002);
  dns.reset();
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(ProxyNetResolvConfTest, Text) {
  const ResolvConf conf = ResolvConf::Parse(
      "# comment\n; too\nnameserver 192.0.2.53\n nameserver\t2001:db8::53  # behind\nnameserver "
      "nonsense\n"
      "nameserver fe80::1%1\nsearch old.example\nsearch example.org lab.example.org "
      "bad..name\noptions ndots:1\r\nnameserver 127.0.0.53");
  ASSERT_THAT(conf.servers, SizeIs(4));
  EXPECT_EQ(conf.servers[0].endpoint.ToString(), "192.0.2.53:53");
  EXPECT_EQ(conf.servers[1].endpoint.ToString(), "[2001:db8::53]:53");
  EXPECT_EQ(conf.servers[2].scope, 1u);
  EXPECT_EQ(conf.servers[3].endpoint.ToString(), "127.0.0.53:53");
  EXPECT_THAT(conf.search, ::testing::ElementsAre(Name("example.org"), Name("lab.example.org")));
  EXPECT_EQ(ResolvConf::Parse("").servers[0].endpoint.ToString(), "127.0.0.1:53");
  std::string many;
  for (int i = 0; i < 100; ++i) many += "nameserver 192.0.2.1\n";
  EXPECT_THAT(ResolvConf::Parse(many).servers, SizeIs(ResolvConf::kMaxServers));
}

class ProxyNetResolvConfFileTest : public ProxyNetDnsTest {
 protected:
  void Write(const std::filesystem::path& path, const std::string& text) {
    std::ofstream(path) << text;
  }
  // Runs until the search list is that one.
  void ExpectSearch(const char* name) {
    RunUntil([&] {
      return !searches.empty() && searches.back() == std::vector<DomainName>{Name(name)};
    });
  }
  virtbay::testing::TempDir dir;
};

TEST_F(ProxyNetResolvConfFileTest, ChangesAreFollowed) {
  const std::filesystem::path folder = dir.path();
  const std::filesystem::path file = folder / "resolv.conf";
  Write(file, "search one.example\n");
  DnsConfig config;
  config.resolv_conf = file;
  Start(config);
  ExpectSearch("one.example");
  Write(file, "search two.example\n");
  ExpectSearch("two.example");
  // Replaced, as most programs do.
  Write(folder / "new", "search three.example\n");
  std::filesystem::rename(folder / "new", file);
  ExpectSearch("three.example");
  // A link to another folder, whose file is written, then replaced.
  std::filesystem::create_directory(folder / "run");
  Write(folder / "run/stub", "search four.example\n");
  std::filesystem::create_symlink(folder / "run/stub", folder / "link");
  std::filesystem::rename(folder / "link", file);
  ExpectSearch("four.example");
  Write(folder / "run/stub", "search five.example\n");
  ExpectSearch("five.example");
  Write(folder / "run/new", "search six.example\n");
  std::filesystem::rename(folder / "run/new", folder / "run/stub");
  ExpectSearch("six.example");
  // Gone, and there again.
  std::filesystem::remove(file);
  RunUntil([&] { return searches.back().empty(); });
  Write(file, "search seven.example\n");
  ExpectSearch("seven.example");
  // When nothing happens, nothing is to be read.
  for (int i = 0; i < 10; ++i) dns->OnReady(now);
  pollfd ready{dns->fd(), POLLIN, 0};
  EXPECT_EQ(poll(&ready, 1, 0), 0);
}

}  // namespace
}  // namespace virtbay::proxy_net
