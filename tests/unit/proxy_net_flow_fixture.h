// What the tests of proxy-net's flows share: a shard over plain memory and real sockets, with a
// clock of the test's own, and a guest that writes its segments one by one.
#ifndef VIRTBAY_TESTS_UNIT_PROXY_NET_FLOW_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_PROXY_NET_FLOW_FIXTURE_H_

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "framework/base/unique_fd.h"
#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/shard.h"
#include "plugins/proxy-net/packet/build.h"
#include "plugins/proxy-net/packet/checksum.h"
#include "plugins/proxy-net/packet/parse.h"
#include "plugins/proxy-net/packet/socket_address.h"
#include "tests/support/fake_guest_link.h"

namespace virtbay::proxy_net {

inline constexpr uint64_t kMs = 1'000'000;
inline constexpr uint64_t kSec = 1'000'000'000;

// The device as a shard sees it. Everything the guest asks for is sent to the loopback.
class FakeFlowHost : public FlowHost {
 public:
  uint64_t now = 1000 * kSec;
  int descriptors = 1 << 20;
  bool denied = false;
  std::optional<IpAddress> redirect;  // instead of the loopback
  std::optional<uint16_t> redirect_port;
  bool has_address = true;
  int service = -1;  // of the next flow
  int continues = 0;
  std::vector<std::string> notes;

  uint64_t NowNs() const override { return now; }
  bool TakeDescriptor() override { return descriptors > 0 && descriptors-- > 0; }
  void GiveDescriptor() override { ++descriptors; }
  Route RouteOf(uint8_t, const Endpoint& to) override {
    IpAddress loopback =
        to.address.is_v4() ? IpAddress(Ipv4Address::Of(127, 0, 0, 1)) : *IpAddress::Parse("::1");
    return {!denied,
            {redirect.value_or(loopback), redirect_port.value_or(to.port)},
            std::exchange(service, -1)};
  }
  bool StillAllowed(uint8_t, const Endpoint&) override { return !denied; }
  std::optional<IpAddress> GuestAddress(bool v6) const override {
    if (!has_address) return std::nullopt;
    return *IpAddress::Parse(v6 ? "fd00::15" : "10.0.2.15");
  }
  IpAddress GatewayAddress(bool v6) const override {
    return *IpAddress::Parse(v6 ? "fd00::2" : "10.0.2.2");
  }
  void ContinueSoon() override { ++continues; }
  void Note(const char* text) override { notes.emplace_back(text); }
};

// A segment or datagram that reached the guest.
struct Seen {
  Frame frame;
  TcpHeader tcp;
  std::string payload;
  sdk::Offload offload;
  std::vector<uint8_t> bytes;

  bool has(uint8_t flag) const { return tcp.has(flag); }
};

class FlowTest : public testing::Test {
 protected:
  static constexpr uint8_t kFin = TcpHeader::kFin;
  static constexpr uint8_t kSyn = TcpHeader::kSyn;
  static constexpr uint8_t kRst = TcpHeader::kRst;
  static constexpr uint8_t kAck = TcpHeader::kAck;
  static constexpr uint32_t kIsn = 5000;

  // Called by a test that wants others; the first use of shard() makes it.
  FlowLimits limits;
  uint32_t shards = 1;
  tests::FakeGuestLink link;
  FakeFlowHost host;
  EventCounters counters;
  bool v6 = false;

  Shard& shard() {
    if (shard_ == nullptr) {
      shared_ = std::make_unique<SharedFlows>(limits, shards, SipKey{1, 2});
      shard_ = std::make_unique<Shard>(&link, 0, &host, &counters, shared_.get());
      EXPECT_TRUE(shard_->ok());
      shard_->SetMacs({{2, 0, 0, 0, 0, 1}}, {{2, 0, 0, 0, 0, 2}});
    }
    return *shard_;
  }
  void DropShard() { shard_.reset(); }
  // Of the shard that there is.
  SharedFlows* shared() { return shared_.get(); }

  IpAddress GuestAddress() const { return *host.GuestAddress(v6); }
  IpAddress RemoteAddress() const { return *IpAddress::Parse(v6 ? "2001:db8::9" : "192.0.2.9"); }

  // ---- sockets of the host's side ---------------------------------------------------------------
  // A listening socket on the loopback; its port.
  // Listens, and does not answer who connects now.
  void ListenInVain() {
    Listen(/*backlog=*/0);
    const SocketAddress to = SocketAddress::Of({*IpAddress::Parse("127.0.0.1"), port_});
    for (UniqueFd& waiting : waiting_) {
      waiting.reset(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      std::ignore = connect(waiting.get(), to.get(), to.size);
    }
  }
  uint16_t Listen(int backlog = 128, int receive_buffer = 0) {
    listener_ = UniqueFd(socket(v6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (receive_buffer != 0) {
      setsockopt(listener_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    SocketAddress any = SocketAddress::Of({*IpAddress::Parse(v6 ? "::1" : "127.0.0.1"), 0});
    EXPECT_EQ(bind(listener_.get(), any.get(), any.size), 0);
    EXPECT_EQ(listen(listener_.get(), backlog), 0);
    EXPECT_EQ(getsockname(listener_.get(), any.get(), &any.size), 0);
    port_ = any.ToEndpoint()->port;
    return port_;
  }
  // A forward from a port of the loopback to the guest's, as it listens.
  ForwardSpec AddForward(uint8_t protocol, uint16_t guest_port_number, uint32_t number = 1) {
    ForwardSpec spec;
    spec.protocol = protocol;
    spec.host = {*IpAddress::Parse(v6 ? "::1" : "127.0.0.1"), 0};
    spec.guest_port = guest_port_number;
    spec.forward = number;
    auto fd = ForwardSpec::OpenSocket(&spec, false);
    EXPECT_TRUE(fd.ok() && host.TakeDescriptor() && shard().AddListener(spec, *fd));
    return spec;
  }
  static UniqueFd ConnectTo(const Endpoint& end, int type = SOCK_STREAM) {
    UniqueFd fd(socket(end.address.is_v6() ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC, 0));
    SocketAddress to = SocketAddress::Of(end);
    EXPECT_EQ(connect(fd.get(), to.get(), to.size), 0);
    return fd;
  }
  UniqueFd AcceptOne() {
    WaitFor(listener_.get(), POLLIN);
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    EXPECT_GE(fd.get(), 0);
    return fd;
  }
  static bool WaitFor(int fd, short events) {
    pollfd one = {fd, events, 0};
    return poll(&one, 1, 10'000) == 1;
  }
  static std::string Read(int fd, size_t bytes) {
    std::string text;
    while (text.size() < bytes && WaitFor(fd, POLLIN)) {
      char buffer[65536];
      const ssize_t n = recv(fd, buffer, std::min(sizeof(buffer), bytes - text.size()), 0);
      if (n <= 0) break;
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  }
  static void Write(int fd, std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = send(fd, text.data(), text.size(), MSG_NOSIGNAL);
      if (n < 0 && errno == EAGAIN) {
        if (!WaitFor(fd, POLLOUT)) return;
        continue;
      }
      ASSERT_GT(n, 0);
      text.remove_prefix(static_cast<size_t>(n));
    }
  }
  // The socket's next word: bytes, "EOF", or the error's name.
  static std::string Ending(int fd) {
    WaitFor(fd, POLLIN);
    char buffer[16];
    const ssize_t n = recv(fd, buffer, sizeof(buffer), 0);
    if (n > 0) return std::string(buffer, static_cast<size_t>(n));
    if (n == 0) return "EOF";
    return errno == ECONNRESET ? "RESET" : strerror(errno);
  }

  // ---- the shard's turn -------------------------------------------------------------------------
  // Waits for sockets to be ready and lets the shard see to them.
  void Poll() {
    ASSERT_TRUE(WaitFor(shard().epoll_fd(), POLLIN));
    shard().OnReady();
    RunContinues();
  }
  void RunContinues() {
    while (host.continues > 0) {
      host.continues = 0;
      shard().Continue();
    }
  }
  // Polls until the condition holds.
  void PollUntil(const std::function<bool()>& done) {
    for (int i = 0; i < 10'000 && !done(); ++i) {
      if (!WaitFor(shard().epoll_fd(), POLLIN)) break;
      shard().OnReady();
      RunContinues();
    }
    ASSERT_TRUE(done());
  }
  // Time passes.
  void Pass(uint64_t ns) {
    host.now += ns;
    shard().OnTimer();
    RunContinues();
  }

  // ---- the guest's words ------------------------------------------------------------------------
  std::vector<uint8_t> IpFrame(uint8_t protocol, Bytes transport, uint8_t hop_limit = 64) {
    std::vector<uint8_t> bytes(kEthernetSize + kIpv6Size + transport.size());
    Writer writer(bytes);
    EthernetHeader ethernet;
    ethernet.destination = {{2, 0, 0, 0, 0, 2}};
    ethernet.source = {{2, 0, 0, 0, 0, 1}};
    ethernet.type = v6 ? kEtherIpv6 : kEtherIpv4;
    WriteEthernet(ethernet, &writer);
    IpHeader ip;
    ip.source = GuestAddress();
    ip.destination = RemoteAddress();
    ip.protocol = protocol;
    ip.hop_limit = hop_limit;
    ip.dont_fragment = true;
    ip.payload_length = static_cast<uint32_t>(transport.size());
    WriteIp(ip, &writer);
    writer.Put(transport);
    EXPECT_TRUE(writer.ok());
    bytes.resize(writer.position());
    return bytes;
  }
  void Deliver(std::vector<std::vector<uint8_t>> frames, const sdk::Offload& offload = {}) {
    std::vector<sdk::TxFrame> held;
    for (auto& frame : frames) held.push_back(link.Frame(std::move(frame), offload));
    shard().BeginBurst();
    for (const sdk::TxFrame& frame : held) {
      const Bytes headers(reinterpret_cast<const uint8_t*>(frame.headers().data()),
                          frame.headers().size());
      const Parsed<Frame> parsed =
          ParseFrame(headers, frame.size(), offload.gso != sdk::Gso::kNone);
      ASSERT_TRUE(parsed.ok());
      if (const auto place = shard().PlaceOf(*parsed)) {
        ASSERT_TRUE(shard().core().Claim(place->hash));
      }
      shard().OnPacket(frame, *parsed);
    }
    shard().EndBurst();
    RunContinues();
  }

  std::vector<uint8_t> Segment(uint8_t flags, uint32_t sequence, uint32_t ack,
                               std::string_view payload = "", uint32_t window = 65535,
                               const TcpOptions& options = {}) {
    TcpHeader tcp;
    tcp.source_port = guest_port;
    tcp.destination_port = port_;
    tcp.sequence = sequence;
    tcp.acknowledgement = ack;
    tcp.flags = flags;
    tcp.window = static_cast<uint16_t>(window);
    tcp.options = options;
    std::vector<uint8_t> bytes(kTcpSize + kTcpMaxOptions + payload.size());
    Writer writer(bytes);
    WriteTcp(tcp, &writer);
    writer.Put({reinterpret_cast<const uint8_t*>(payload.data()), payload.size()});
    bytes.resize(writer.position());
    FillChecksum(GuestAddress(), RemoteAddress(), kProtocolTcp, bytes);
    return IpFrame(kProtocolTcp, bytes);
  }
  void Say(uint8_t flags, uint32_t sequence, uint32_t ack, std::string_view payload = "",
           uint32_t window = 65535, const TcpOptions& options = {}) {
    Deliver({Segment(flags, sequence, ack, payload, window, options)});
  }

  // ---- what the guest heard ---------------------------------------------------------------------
  std::vector<Seen> Heard() {
    std::vector<Seen> all;
    for (auto& received : link.received) {
      Seen seen;
      seen.bytes = received.bytes;
      const Parsed<Frame> parsed =
          ParseFrame(seen.bytes, seen.bytes.size(), received.offload.gso != sdk::Gso::kNone);
      EXPECT_TRUE(parsed.ok());
      if (!parsed.ok()) continue;
      seen.frame = *parsed;
      seen.offload = received.offload;
      if (parsed->tcp() != nullptr) seen.tcp = *parsed->tcp();
      seen.payload.assign(reinterpret_cast<const char*>(seen.bytes.data()) + parsed->payload_offset,
                          parsed->payload_length);
      CheckSum(seen);
      all.push_back(std::move(seen));
    }
    link.received.clear();
    return all;
  }
  // Exactly one.
  Seen HeardOne() {
    std::vector<Seen> all = Heard();
    EXPECT_EQ(all.size(), 1u);
    return all.empty() ? Seen() : all[0];
  }
  // The bytes of all segments, which follow each other from `sequence` on.
  std::string HeardBytes(uint32_t sequence) {
    std::string bytes;
    for (const Seen& seen : Heard()) {
      if (seen.payload.empty()) continue;
      EXPECT_EQ(seen.tcp.sequence, sequence + static_cast<uint32_t>(bytes.size()));
      bytes += seen.payload;
    }
    return bytes;
  }
  static void CheckSum(const Seen& seen) {
    if (!seen.frame.ip.has_value() ||
        std::holds_alternative<std::monostate>(seen.frame.transport)) {
      return;
    }
    const IpHeader& ip = *seen.frame.ip;
    const Bytes transport =
        Bytes(seen.bytes).subspan(seen.frame.transport_offset, ip.payload_length);
    if (!seen.offload.needs_csum) {
      if (ip.protocol == kProtocolIcmp) {
        EXPECT_EQ(ChecksumOf(transport), 0);
      } else {
        EXPECT_TRUE(TransportChecksumOk(ip.source, ip.destination, ip.protocol, transport));
      }
      return;
    }
    EXPECT_EQ(seen.offload.csum_start, seen.frame.transport_offset);
    const size_t at = seen.frame.transport_offset + seen.offload.csum_offset;
    const uint16_t sum = static_cast<uint16_t>(seen.bytes[at] << 8 | seen.bytes[at + 1]);
    EXPECT_EQ(sum, PseudoHeaderSum(ip.source, ip.destination, ip.protocol, ip.payload_length));
  }

  // ---- a connection that stands -----------------------------------------------------------------
  // The guest connects; our end's sequence number after the handshake is in `theirs`.
  void Connect(const TcpOptions& options = {}, uint32_t window = 65535) {
    Heard();
    Say(kSyn, kIsn, 0, "", window, options);
    // At once where the host has connected at once; the event that says so comes all the same.
    PollUntil([&] { return !link.received.empty(); });
    Poll();
    syn_ack = HeardOne();
    ASSERT_TRUE(syn_ack.has(kSyn));
    ASSERT_TRUE(syn_ack.has(kAck));
    ASSERT_EQ(syn_ack.tcp.acknowledgement, kIsn + 1);
    theirs = syn_ack.tcp.sequence + 1;
    ours = kIsn + 1;
    Say(kAck, ours, theirs, "", window);
    peer = AcceptOne();
    Heard();
  }
  static TcpOptions Full(uint16_t mss = 1460, uint8_t scale = 7) {
    TcpOptions options;
    options.mss = mss;
    options.window_scale = scale;
    options.sack_permitted = true;
    return options;
  }
  uint64_t Count(Event event) const { return counters.Get(event); }
  void ExpectNothingLeft() {
    const Shard::Totals totals = shard().totals();
    EXPECT_EQ(totals.tcp, 0u);
    EXPECT_EQ(totals.datagram, 0u);
    EXPECT_EQ(totals.half_open, 0u);
    EXPECT_EQ(totals.spill_chunks, 0u);
    EXPECT_EQ(totals.reserved_chunks, 0u);
    EXPECT_EQ(totals.timers, 0u);
    EXPECT_EQ(shared_->tcp.used(), 0u);
    EXPECT_EQ(shared_->datagram.used(), 0u);
    EXPECT_EQ(shared_->chunks.used(), 0u);
    EXPECT_EQ(shared_->half_open.load(), 0u);
    EXPECT_EQ(link.held_frames, 0u);
    EXPECT_EQ(host.descriptors, 1 << 20);
  }

  uint16_t guest_port = 40000;
  uint16_t port_ = 0;
  UniqueFd listener_;
  std::array<UniqueFd, 2> waiting_;  // what a listener that does not answer has room for
  UniqueFd peer;
  Seen syn_ack;
  uint32_t theirs = 0;
  uint32_t ours = 0;

 private:
  std::unique_ptr<SharedFlows> shared_;
  std::unique_ptr<Shard> shard_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_TESTS_UNIT_PROXY_NET_FLOW_FIXTURE_H_
