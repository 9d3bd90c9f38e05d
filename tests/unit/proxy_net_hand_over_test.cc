// A proxy-net device whose state is taken while one queue pair has something for another that is
// stopped already.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/parse.h"
#include "tests/support/status_matchers.h"
#include "virtbay/host.h"

namespace virtbay {
namespace {

using proxy_net::IpAddress;
using proxy_net::TcpHeader;
using proxy_net::Writer;

class ProxyNetHandOverTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(host_, Host::Create(HostOptions{}));
    spec_.name = "net";
    spec_.plugin = VIRTBAY_PROXY_NET;
    spec_.options = {{"ipv6", "off"},
                     {"mac", "52:54:00:00:00:01"},
                     {"queue-pairs", "2"},
                     {"dns-records", "static.test=192.0.2.77"}};
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec_));
    Connect();
    ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(4, 0, std::string("\2\0", 2)));
    ASSERT_EQ(ack, 0);
  }
  void Connect() {
    ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
    guest::NetClientOptions options;
    options.rx_pairs = 2;
    ASSERT_OK_AND_ASSIGN(client_,
                         guest::NetClient::Create(std::move(transport), std::move(options)));
  }
  void Replace() {
    ASSERT_OK_AND_ASSIGN(DeviceState state, device_.Save());
    client_.reset();
    ASSERT_OK(host_->Remove("net"));
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(spec_, std::move(state)));
    Connect();
  }
  // A segment of the guest's to the resolver on the gateway's address, on the second pair.
  void Send(uint8_t flags, const std::string& payload = "") {
    const IpAddress guest = *IpAddress::Parse("10.0.2.15");
    const IpAddress gateway = *IpAddress::Parse("10.0.2.2");
    std::vector<uint8_t> bytes(2048);
    Writer out(bytes);
    proxy_net::WriteEthernet({{{0x52, 0x55, 0x0a, 0, 2, 2}},
                              {{0x52, 0x54, 0, 0, 0, 1}},
                              proxy_net::kEtherIpv4,
                              std::nullopt,
                              0},
                             &out);
    proxy_net::IpHeader ip;
    ip.source = guest;
    ip.destination = gateway;
    ip.protocol = proxy_net::kProtocolTcp;
    ip.payload_length = static_cast<uint32_t>(proxy_net::kTcpSize + payload.size());
    proxy_net::WriteIp(ip, &out);
    const size_t start = out.position();
    TcpHeader tcp;
    tcp.source_port = 40'000;
    tcp.destination_port = 53;
    tcp.sequence = next_;
    tcp.acknowledgement = acknowledged_;
    tcp.flags = flags;
    tcp.window = 65535;
    proxy_net::WriteTcp(tcp, &out);
    out.Put({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
    proxy_net::FillChecksum(guest, gateway, proxy_net::kProtocolTcp, out.written(start));
    ASSERT_OK(client_->Send(1, {}, {reinterpret_cast<const char*>(bytes.data()), out.position()}));
    next_ += static_cast<uint32_t>(payload.size()) + ((flags & TcpHeader::kSyn) != 0 ? 1 : 0);
  }
  // The next segment on that pair, whose payload goes to `payload`.
  std::optional<TcpHeader> Receive(std::string* payload = nullptr) {
    for (;;) {
      const absl::StatusOr<guest::NetFrame> frame = client_->Receive(1);
      EXPECT_OK(frame);
      if (!frame.ok()) return std::nullopt;
      const auto parsed = proxy_net::ParseFrame(
          {reinterpret_cast<const uint8_t*>(frame->data.data()), frame->data.size()},
          frame->data.size());
      if (!parsed.ok() || parsed->tcp() == nullptr) continue;
      if (payload != nullptr) *payload = frame->data.substr(parsed->payload_offset);
      return *parsed->tcp();
    }
  }

  std::unique_ptr<Host> host_;
  DeviceSpec spec_;
  DeviceHandle device_;
  std::unique_ptr<guest::NetClient> client_;
  uint32_t next_ = 1000;
  uint32_t acknowledged_ = 0;
};

TEST_F(ProxyNetHandOverTest, AStreamToTheResolverThatWasUnderWayBetweenPairsGoesOn) {
  // The first pair, whose resolver is, does not run any more.
  ASSERT_OK(client_->driver().transport().StopQueue(1).status());
  Send(TcpHeader::kSyn);
  const std::optional<TcpHeader> accepted = Receive();
  ASSERT_TRUE(accepted.has_value());
  ASSERT_EQ(accepted->flags, TcpHeader::kSyn | TcpHeader::kAck);
  acknowledged_ = accepted->sequence + 1;
  Replace();
  const std::string query("\x12\x34\x01\0\0\x01\0\0\0\0\0\0\6static\4test\0\0\1\0\1", 29);
  Send(TcpHeader::kAck, std::string("\0\x1d", 2) + query);
  std::string answer;
  while (answer.empty()) {
    const std::optional<TcpHeader> segment = Receive(&answer);
    ASSERT_TRUE(segment.has_value());
    ASSERT_FALSE(segment->has(TcpHeader::kRst));
    ASSERT_FALSE(segment->has(TcpHeader::kFin));
  }
  EXPECT_NE(answer.find(std::string("\xc0\0\x02\x4d", 4)), std::string::npos);
}

}  // namespace
}  // namespace virtbay
