// A NetDevice from the guest's side: frames and their headers either way, receive buffers, the
// control queue, capture, and hostile drivers. The back-end is a socket of the test's
// (net_relay.h).
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/support/net_frames.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"
#include "tests/unit/net_relay.h"

namespace virtbay::testing {
namespace {

using guest::NetClient;
using guest::NetClientOptions;
using guest::NetFrame;
using guest::NetHeader;
using ::testing::HasSubstr;

constexpr uint64_t Bit(uint32_t feature) { return uint64_t{1} << feature; }

struct FromDevice {
  RelayRecord record;
  std::string frame;
};

class NetDeviceTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    int fds[2] = {-1, -1};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    device_end_.reset(fds[0]);
    peer_.reset(fds[1]);
    const int large = 4 << 20;
    for (const int fd : fds) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof(large));
  }

  void Start(std::map<std::string, std::string> options, NetClientOptions client = {}) {
    client_.reset();
    options["fd"] = absl::StrCat(device_end_.get());
    static int count = 0;
    ASSERT_OK_AND_ASSIGN(
        device_, host_->Add(Spec(absl::StrCat("net", ++count), options, VIRTBAY_NET_RELAY)));
    Connect(std::move(client));
  }
  void Connect(NetClientOptions options = {}) {
    ASSERT_OK_AND_ASSIGN(auto transport, guest::InProcessTransport::Attach(device_));
    ASSERT_OK_AND_ASSIGN(client_, NetClient::Create(std::move(transport), std::move(options)));
  }
  uint64_t Count(const std::string& name) {
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    return info.ok() ? info->metrics.at(name) : ~uint64_t{0};
  }
  uint32_t InFlight(size_t queue) {
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    return info.ok() ? info->queues[queue].in_flight : ~uint32_t{0};
  }
  // Every drop, by name.
  std::map<std::string, uint64_t> Drops() {
    std::map<std::string, uint64_t> drops;
    const absl::StatusOr<DeviceInfo> info = device_.Inspect();
    if (!info.ok()) return {{"no device", 1}};
    for (const auto& [name, value] : info->metrics) {
      if (value > 0 && name.find("_drops_") != std::string::npos) drops[name] = value;
    }
    return drops;
  }

  // What the device gave its back-end, waited for.
  absl::StatusOr<FromDevice> Take() {
    pollfd look{.fd = peer_.get(), .events = POLLIN, .revents = 0};
    if (poll(&look, 1, 60'000) != 1) return absl::DeadlineExceededError("nothing came");
    std::string bytes(70'000, '\0');
    const ssize_t n = recv(peer_.get(), bytes.data(), bytes.size(), 0);
    FromDevice from;
    if (n < static_cast<ssize_t>(sizeof(from.record))) return absl::DataLossError("too short");
    std::memcpy(&from.record, bytes.data(), sizeof(from.record));
    from.frame = bytes.substr(sizeof(from.record), static_cast<size_t>(n) - sizeof(from.record));
    return from;
  }
  bool Quiet() {
    char byte = 0;
    return recv(peer_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
  }
  void Give(const RelayRecord& record, const std::string& frame) {
    const std::string bytes =
        std::string(reinterpret_cast<const char*>(&record), sizeof(record)) + frame;
    ASSERT_EQ(send(peer_.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }
  // Until the device has dealt with so many frames for the guest.
  void WaitHandled(uint64_t frames) {
    while (Count("committed") + Count("refused") < frames) std::this_thread::yield();
  }
  static NetHeader Large(const TestFrame& frame, uint8_t type, uint16_t size) {
    NetHeader header;
    header.flags = guest::kNetHdrNeedsCsum;
    header.gso_type = type;
    header.gso_size = size;
    header.hdr_len = frame.headers;
    header.csum_start = frame.transport;
    header.csum_offset = frame.csum_offset;
    return header;
  }
  static RelayRecord Record(uint16_t header_len, const TestFrame* needs_csum = nullptr) {
    RelayRecord record;
    record.header_len = header_len;
    if (needs_csum != nullptr) {
      record.needs_csum = 1;
      record.csum_start = needs_csum->transport;
      record.csum_offset = needs_csum->csum_offset;
    }
    return record;
  }

  // The first queues of the device's threads, which their names end with.
  static std::set<std::string> QueueThreads(const std::string& device) {
    std::set<std::string> queues;
    const std::string prefix = absl::StrCat("vb-", device, "-");
    for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
      std::ifstream file(task.path() / "comm");
      std::string name;
      std::getline(file, name);
      if (name.starts_with(prefix)) queues.insert(name.substr(prefix.size()));
    }
    return queues;
  }

  TempDir dir_;
  UniqueFd device_end_, peer_;
  DeviceHandle device_;
  std::unique_ptr<NetClient> client_;
};

// ---- configuration and features -----------------------------------------------------------------

TEST_F(NetDeviceTest, ConfigurationSpaceAndFeaturesAreAsConfigured) {
  Start({{"mac", "52:54:00:12:34:56"}, {"mtu", "9000"}, {"queue-pairs", "3"}, {"link", "down"}});
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace config, client_->ReadConfig());
  EXPECT_EQ(std::memcmp(config.mac, "\x52\x54\x00\x12\x34\x56", 6), 0);
  EXPECT_EQ(config.mtu, 9000);
  EXPECT_EQ(config.max_pairs, 3);
  EXPECT_EQ(config.status, 0);
  EXPECT_EQ(config.speed, UINT32_MAX);
  EXPECT_EQ(config.duplex, 0xff);
  EXPECT_EQ(client_->driver().queue_count(), 7u);
  for (const uint32_t feature :
       {guest::kNetCsum,      guest::kNetGuestCsum,   guest::kNetCtrlGuestOffloads,
        guest::kNetMtu,       guest::kNetMac,         guest::kNetGuestTso4,
        guest::kNetGuestTso6, guest::kNetGuestEcn,    guest::kNetHostTso4,
        guest::kNetHostTso6,  guest::kNetHostEcn,     guest::kNetMrgRxbuf,
        guest::kNetStatus,    guest::kNetCtrlVq,      guest::kNetCtrlRx,
        guest::kNetCtrlVlan,  guest::kNetCtrlRxExtra, guest::kNetGuestAnnounce,
        guest::kNetMq,        guest::kNetCtrlMacAddr, guest::kNetGuestUso4,
        guest::kNetGuestUso6, guest::kNetHostUso,     guest::kNetSpeedDuplex}) {
    EXPECT_NE(client_->features() & Bit(feature), 0u) << feature;
  }
  for (const uint32_t feature : {guest::kNetGuestUfo, guest::kNetHostUfo, guest::kNetStandby}) {
    EXPECT_EQ(client_->features() & Bit(feature), 0u) << feature;
  }
  // Without any: an address is made up, of this machine's own.
  Start({{"offloads", "false"}, {"mergeable", "false"}});
  EXPECT_EQ(client_->features() &
                (Bit(guest::kNetCsum) | Bit(guest::kNetGuestCsum) | Bit(guest::kNetHostTso4) |
                 Bit(guest::kNetGuestTso4) | Bit(guest::kNetMrgRxbuf) | Bit(guest::kNetMq) |
                 Bit(54) | Bit(55) | Bit(56)),
            0u);
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace other, client_->ReadConfig());
  EXPECT_EQ(other.mac[0] & 3, 2);
  EXPECT_EQ(other.mtu, 1500);
  EXPECT_EQ(other.status, 1);
  std::array<std::byte, 1> byte{};
  EXPECT_FALSE(client_->driver().transport().ReadConfig(24, byte).ok());
}

TEST_F(NetDeviceTest, OptionsThatMakeNoSenseAreNamed) {
  for (const auto& [key, value] : std::map<std::string, std::string>{{"mac", "01:00:5e:00:00:01"},
                                                                     {"mtu", "67"},
                                                                     {"mtu", "65536"},
                                                                     {"queue-pairs", "0"},
                                                                     {"queue-pairs", "17"},

                                                                     {"link", "sideways"},
                                                                     {"offloads", "perhaps"},
                                                                     {"pcap", "/nowhere/at/all"},
                                                                     {"pcap-snaplen", "3"}}) {
    EXPECT_THAT(
        std::string(host_->Add(Spec("bad", {{key, value}}, VIRTBAY_NET_RELAY)).status().message()),
        HasSubstr("option " + key));
  }
}

// ---- from the guest -----------------------------------------------------------------------------

TEST_F(NetDeviceTest, FramesOfEverySizeAndShapeReachTheBackEnd) {
  Start({});
  for (const uint32_t payload : {0u, 1u, 10u, 188u, 189u, 190u, 202u, 203u, 1446u}) {
    const TestFrame frame = MakeFrame({.payload = payload});
    for (const uint32_t piece : {UINT32_MAX, 1000u, 64u, 12u, 7u}) {
      if (frame.bytes.size() / piece > 120) continue;
      ASSERT_OK(client_->Send(0, {}, frame.bytes, piece));
      ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
      EXPECT_EQ(from.frame, frame.bytes) << payload << " in pieces of " << piece;
      EXPECT_GE(from.record.header_len, std::min<size_t>(frame.bytes.size(), 256));
      EXPECT_FALSE(from.record.needs_csum);
    }
  }
  const TestFrame large = MakeFrame({.payload = 60'000});
  ASSERT_OK(client_->Send(0, Large(large, guest::kNetHdrGsoTcp4, 1448), large.bytes, 4096));
  ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
  EXPECT_EQ(from.frame, large.bytes);
  EXPECT_EQ(from.record.gso, 1);
  EXPECT_EQ(from.record.gso_size, 1448);
  EXPECT_EQ(from.record.hdr_len, large.headers);
  EXPECT_EQ(from.record.csum_start, large.transport);
  ASSERT_OK(client_->WaitSent(0));
  EXPECT_TRUE(Drops().empty());
  EXPECT_GT(Count("tx_frames"), 10u);
}

// CVE-2022-2132: a vnet header over many descriptors, and chains that are too small for it.
TEST_F(NetDeviceTest, Cve2022_2132HeadersInPiecesAndChainsThatAreTooSmall) {
  Start({});
  const TestFrame frame = MakeFrame({.payload = 60});
  ASSERT_OK(client_->Send(0, {}, frame.bytes, 1));
  ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
  EXPECT_EQ(from.frame, frame.bytes);
  // 0 bytes make no chain; up to the Ethernet header they are no frame.
  uint64_t dropped = 0;
  for (size_t n = 1; n < 26; ++n) {
    ASSERT_OK(client_->SendRaw(0, std::string(n, '\0'), n % 2 == 0 ? 1 : UINT32_MAX));
    ++dropped;
  }
  ASSERT_OK(client_->WaitSent(0));
  EXPECT_EQ(Count("tx_drops_short"), dropped);
  EXPECT_TRUE(Quiet());
  ASSERT_OK(client_->SendRaw(0, std::string(26, '\0')));
  ASSERT_OK_AND_ASSIGN(const FromDevice least, Take());
  EXPECT_EQ(least.frame.size(), 14u);
  ASSERT_OK(client_->WaitSent(0));
  EXPECT_EQ(InFlight(1), 0u);
}

// CVE-2024-11614, and every other lie of a header: dropped, counted by its reason, and the buffer
// goes back to the guest.
TEST_F(NetDeviceTest, Cve2024_11614HeadersThatLieAreDroppedByReason) {
  Start({});
  const TestFrame tcp = MakeFrame({.payload = 4000});
  const auto send = [&](auto change) {
    NetHeader header = Large(tcp, guest::kNetHdrGsoTcp4, 1448);
    change(header);
    ASSERT_OK(client_->Send(0, header, tcp.bytes));
  };
  send([](NetHeader& h) { h.csum_start = 60'000; });
  send([](NetHeader& h) { h.csum_offset = 60'000; });
  send([](NetHeader& h) { h.csum_start = 0; });
  send([](NetHeader& h) { h.gso_size = 0; });
  send([](NetHeader& h) { h.gso_size = 1; });
  send([](NetHeader& h) { h.flags = 0; });
  send([](NetHeader& h) { h.gso_type = 2; });
  send([](NetHeader& h) { h.gso_type = guest::kNetHdrGsoUfo; });
  send([](NetHeader& h) { h.hdr_len = 65'000; });
  send([](NetHeader& h) { h.gso_type = guest::kNetHdrGsoTcp6; });
  // Too long without segmentation, and beyond 64 KiB with it.
  ASSERT_OK(client_->Send(0, {}, tcp.bytes));
  const TestFrame huge = MakeFrame({.payload = 70'000});
  ASSERT_OK(client_->Send(0, Large(huge, guest::kNetHdrGsoTcp4, 1448), huge.bytes));
  ASSERT_OK(client_->WaitSent(0));
  EXPECT_EQ(Drops(), (std::map<std::string, uint64_t>{{"tx_drops_csum_beyond_frame", 3},
                                                      {"tx_drops_gso_size_zero", 1},
                                                      {"tx_drops_gso_segments", 1},
                                                      {"tx_drops_gso_without_csum", 1},
                                                      {"tx_drops_gso_unknown", 1},
                                                      {"tx_drops_gso_not_negotiated", 1},
                                                      {"tx_drops_hdr_len_beyond_frame", 1},
                                                      {"tx_drops_gso_headers", 1},
                                                      {"tx_drops_too_long", 2}}));
  EXPECT_TRUE(Quiet());
  // Others are served as before.
  const TestFrame good = MakeFrame({});
  ASSERT_OK(client_->Send(0, {}, good.bytes));
  ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
  EXPECT_EQ(from.frame, good.bytes);
}

TEST_F(NetDeviceTest, OffloadsThatTheDriverDidNotTakeAreRefused) {
  NetClientOptions options;
  options.features = Bit(guest::kNetMac);
  Start({}, std::move(options));
  const TestFrame tcp = MakeFrame({.payload = 1000});
  NetHeader partial = Large(tcp, guest::kNetHdrGsoNone, 0);
  ASSERT_OK(client_->Send(0, partial, tcp.bytes));
  NetHeader whole = Large(tcp, guest::kNetHdrGsoTcp4, 500);
  whole.flags = 0;
  ASSERT_OK(client_->Send(0, whole, tcp.bytes));
  ASSERT_OK(client_->WaitSent(0));
  EXPECT_EQ(Drops(), (std::map<std::string, uint64_t>{{"tx_drops_csum_not_negotiated", 1},
                                                      {"tx_drops_gso_not_negotiated", 1}}));
}

// CVE-2020-14374 to 14378: fields that change while the device looks at them. What the back-end is
// told must be true of the frame that it got.
TEST_F(NetDeviceTest, Cve2020_14374HeadersThatChangeUnderTheDevice) {
  Start({});
  guest::GuestMemory& memory = client_->driver().memory();
  const TestFrame tcp = MakeFrame({.payload = 2000});
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, memory.Allocate(4096));
  const NetHeader good = Large(tcp, guest::kNetHdrGsoTcp4, 1000);
  std::memcpy(range.host, &good, sizeof(good));
  std::memcpy(range.host + sizeof(good), tcp.bytes.data(), tcp.bytes.size());
  std::atomic<bool> stop = false;
  std::thread flipper([&] {
    auto* const field = reinterpret_cast<uint16_t*>(range.host);
    while (!stop.load(std::memory_order_relaxed)) {
      // gso_size, csum_start, csum_offset, and the TCP header's length.
      for (const size_t i : {size_t{2}, size_t{3}, size_t{4}}) {
        const auto was = reinterpret_cast<const uint16_t*>(&good)[i];
        std::atomic_ref<uint16_t>(field[i]).store(0xffff, std::memory_order_relaxed);
        std::atomic_ref<uint16_t>(field[i]).store(was, std::memory_order_relaxed);
      }
      auto& doff = *reinterpret_cast<uint8_t*>(range.host + 12 + tcp.transport + 12);
      std::atomic_ref<uint8_t>(doff).store(0xf0, std::memory_order_relaxed);
      std::atomic_ref<uint8_t>(doff).store(0x50, std::memory_order_relaxed);
    }
  });
  const guest::Segment in{range.address, static_cast<uint32_t>(12 + tcp.bytes.size())};
  uint64_t seen = 0;
  for (int i = 0; i < 3000; ++i) {
    ASSERT_TRUE(client_->tx(0).Add({&in, 1}, {}, uint64_t{1} << 40));
    client_->tx(0).Publish();
    ASSERT_OK(client_->WaitSent(0));
    while (!Quiet()) {
      ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
      ++seen;
      ASSERT_LE(from.record.csum_start + from.record.csum_offset + 2u, from.frame.size());
      ASSERT_EQ(from.record.csum_start, tcp.transport);
      ASSERT_NE(from.record.gso_size, 0);
      ASSERT_TRUE(from.record.hdr_len == tcp.headers || from.record.hdr_len == tcp.headers + 40);
    }
  }
  stop.store(true);
  flipper.join();
  uint64_t dropped = 0;
  for (const auto& [name, count] : Drops()) dropped += count;
  EXPECT_EQ(seen + dropped, 3000u);
}

// ---- to the guest -------------------------------------------------------------------------------

TEST_F(NetDeviceTest, FramesReachTheGuestInOneBufferOrMany) {
  for (const uint32_t size : {2048u, 64u, 100u, 1526u}) {
    SCOPED_TRACE(absl::StrCat("buffers of ", size));
    NetClientOptions options;
    options.rx_buffer = size;
    options.rx_buffers = 250;
    Start({}, std::move(options));
    for (const uint32_t payload : {0u, 1u, 40u, 188u, 1446u, 10'000u}) {
      const TestFrame frame = MakeFrame({.payload = payload});
      for (const uint16_t header : {uint16_t{54}, uint16_t{14}, uint16_t{192}}) {
        if (header > frame.bytes.size() || (payload > 2000 && size < 200)) continue;
        Give(Record(header, &frame), frame.bytes);
        ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
        ASSERT_EQ(got.data, frame.bytes) << payload << " behind " << header;
        EXPECT_EQ(got.header.flags, guest::kNetHdrNeedsCsum);
        EXPECT_EQ(got.header.csum_start, frame.transport);
        EXPECT_EQ(got.buffers, (12 + frame.bytes.size() + size - 1) / size);
        EXPECT_EQ(got.header.num_buffers, got.buffers);
      }
      // Of the back-end's own bytes.
      RelayRecord record = Record(0);
      record.how = record.data_valid = 1;
      Give(record, frame.bytes);
      if (12 + frame.bytes.size() > size_t{size} * 240) continue;
      ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
      ASSERT_EQ(got.data, frame.bytes);
      EXPECT_EQ(got.header.flags, guest::kNetHdrDataValid);
    }
    EXPECT_TRUE(Drops().empty()) << ::testing::PrintToString(Drops());
  }
}

TEST_F(NetDeviceTest, BuffersInPiecesAreFilledWhole) {
  NetClientOptions options;
  options.rx_buffers = 0;
  options.indirect = true;
  Start({}, std::move(options));
  ASSERT_OK(client_->Post(0, 8, 1600, 37));
  const TestFrame frame = MakeFrame({.payload = 3000});
  Give(Record(54), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
  EXPECT_EQ(got.data, frame.bytes);
  EXPECT_EQ(got.buffers, 2u);
}

TEST_F(NetDeviceTest, LargeFramesTakeManyBuffersAndComeAtOnce) {
  NetClientOptions options;
  options.rx_buffer = 1526;
  options.rx_buffers = 200;
  Start({}, std::move(options));
  const TestFrame frame = MakeFrame({.payload = 64'000});
  RelayRecord record = Record(54, &frame);
  record.gso = 1;
  record.gso_size = 1448;
  record.hdr_len = frame.headers;
  for (int i = 0; i < 50; ++i) {
    Give(record, frame.bytes);
    // Receive fails when only a part of the buffers is there.
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
    ASSERT_EQ(got.data, frame.bytes);
    EXPECT_EQ(got.header.gso_type, guest::kNetHdrGsoTcp4);
    EXPECT_EQ(got.header.gso_size, 1448);
    EXPECT_EQ(got.header.hdr_len, frame.headers);
    EXPECT_EQ(got.buffers, 42u);
  }
  EXPECT_EQ(Count("rx_merged_buffers"), 50 * 42u);
}

TEST_F(NetDeviceTest, WithoutMergeableBuffersOneTakesAFrameOrItIsDropped) {
  NetClientOptions options;
  options.features = guest::kNetAllFeatures & ~Bit(guest::kNetMrgRxbuf);
  options.rx_buffer = 1526;
  Start({}, std::move(options));
  const TestFrame frame = MakeFrame({.payload = 1460});
  Give(Record(54), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
  EXPECT_EQ(got.data, frame.bytes);
  EXPECT_EQ(got.header.num_buffers, 1);
  const TestFrame longer = MakeFrame({.payload = 1461});
  RelayRecord record = Record(0);
  record.how = 3;
  Give(record, longer.bytes);
  record = Record(54);
  record.how = 2;
  Give(record, longer.bytes);  // cut by the buffer: the back-end sees that and gives it back
  WaitHandled(3);
  EXPECT_EQ(Count("refused"), 2u);
  Give(Record(54), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame after, client_->Receive(0));
  EXPECT_EQ(after.data, frame.bytes);
  EXPECT_EQ(client_->Posted(0), 64u);
}

TEST_F(NetDeviceTest, WhatTheGuestDoesNotTakeIsRefusedOrDoneHere) {
  NetClientOptions options;
  options.features =
      guest::kNetAllFeatures & ~(Bit(guest::kNetGuestCsum) | Bit(guest::kNetGuestTso6));
  Start({}, std::move(options));
  for (const bool ipv6 : {false, true}) {
    for (const bool udp : {false, true}) {
      const FrameSpec spec{.ipv6 = ipv6, .udp = udp, .payload = 777};
      const TestFrame frame = MakeFrame(spec);
      Give(Record(34, &frame), frame.bytes);
      ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
      EXPECT_EQ(got.header.flags, 0);
      EXPECT_TRUE(ChecksumGood(got.data, spec, frame)) << ipv6 << udp;
    }
  }
  const TestFrame large = MakeFrame({.payload = 5000});
  RelayRecord record = Record(54, &large);
  record.gso = 1;
  record.gso_size = 1448;
  Give(record, large.bytes);
  WaitHandled(5);
  EXPECT_EQ(Count("rx_drops_gso_not_negotiated"), 1u);

  Start({});
  Give(record, large.bytes);
  ASSERT_OK(client_->Receive(0));
  record.csum_start = 60'000;
  Give(record, large.bytes);
  record = Record(54, &large);
  record.gso = 2;
  Give(record, large.bytes);
  Give(Record(0), "short");
  WaitHandled(4);
  EXPECT_EQ(Drops(), (std::map<std::string, uint64_t>{{"rx_drops_csum_beyond_frame", 1},
                                                      {"rx_drops_gso_size_zero", 1},
                                                      {"rx_drops_short", 1}}));
  EXPECT_EQ(client_->Posted(0), 64u);
}

// CVE-2021-3748, CVE-2022-26353, CVE-2022-26354: buffers that are left behind when a frame fails
// half-way.
TEST_F(NetDeviceTest, Cve2021_3748NoBufferIsLostWhereAFrameFails) {
  NetClientOptions options;
  options.rx_buffer = 256;
  options.rx_buffers = 16;
  Start({}, std::move(options));
  // More than all buffers take, both ways.
  const TestFrame frame = MakeFrame({.payload = 6000});
  RelayRecord record = Record(54);
  record.how = 2;
  Give(record, frame.bytes);
  record = Record(0);
  record.how = 3;
  Give(record, frame.bytes);
  WaitHandled(2);
  EXPECT_EQ(Count("committed"), 0u);
  EXPECT_FALSE(client_->HasFrame(0));
  EXPECT_EQ(client_->Posted(0), 16u);
  // They are all still good, and none is there twice.
  for (int i = 0; i < 40; ++i) {
    const TestFrame good = MakeFrame({.payload = 3500});
    Give(Record(54), good.bytes);
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
    ASSERT_EQ(got.data, good.bytes);
    ASSERT_EQ(got.buffers, 14u);
  }
  ASSERT_OK(client_->driver().Stop());
  EXPECT_EQ(InFlight(0), 0u);
  EXPECT_EQ(client_->Posted(0), 16u);
  ASSERT_OK(client_->driver().Start());
  const TestFrame good = MakeFrame({.payload = 3500});
  Give(Record(54), good.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
  EXPECT_EQ(got.data, good.bytes);
}

TEST_F(NetDeviceTest, BuffersSmallerThanAHeaderGoBackUnused) {
  NetClientOptions options;
  options.rx_buffers = 0;
  Start({}, std::move(options));
  ASSERT_OK(client_->Post(0, 3, 11));
  ASSERT_OK(client_->Post(0, 4, 2048));
  const TestFrame frame = MakeFrame({.payload = 500});
  Give(Record(54), frame.bytes);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(client_->Receive(0).ok());
  }
  WaitHandled(1);
  EXPECT_GE(Count("rx_drops_bad_buffer"), 3u);
}

// ---- stopping and going on ----------------------------------------------------------------------

TEST_F(NetDeviceTest, AStopGivesEverythingBackAndAStartGoesOn) {
  Start({{"hold", "true"}});
  const TestFrame frame = MakeFrame({});
  for (int i = 0; i < 5; ++i) ASSERT_OK(client_->Send(0, {}, frame.bytes));
  while (Count("held") < 5) std::this_thread::yield();
  EXPECT_EQ(client_->Unsent(0), 5u);
  for (uint64_t round = 1; round <= 3; ++round) {
    ASSERT_OK(client_->driver().Stop());
    EXPECT_EQ(Count("held"), 0u);
    EXPECT_EQ(Count("pair_stops"), round);
    ASSERT_OK(client_->driver().Start());
    while (Count("held") < 5) std::this_thread::yield();
    EXPECT_EQ(client_->Unsent(0), 5u);
    Give(Record(54), frame.bytes);
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
    EXPECT_EQ(got.data, frame.bytes);
  }
  while (Count("alarms") == 0) std::this_thread::yield();
  // A reset begins anew.
  ASSERT_OK(client_->driver().Restart());
  EXPECT_EQ(Count("held"), 0u);
}

TEST_F(NetDeviceTest, AFrontEndMayComeAndGo) {
  Start({});
  const TestFrame frame = MakeFrame({});
  for (int i = 0; i < 5; ++i) {
    ASSERT_OK(client_->Send(0, {}, frame.bytes));
    ASSERT_OK(Take());
    Give(Record(54), frame.bytes);
    ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
    EXPECT_EQ(got.data, frame.bytes);
    client_.reset();
    Connect();
  }
}

// ---- the control queue --------------------------------------------------------------------------

std::string Number(uint64_t value, size_t bytes) {
  return {reinterpret_cast<const char*>(&value), bytes};
}

TEST_F(NetDeviceTest, FiltersAreSetByTheControlQueue) {
  Start({{"mac", "52:54:00:12:34:56"}});
  const auto command = [&](uint8_t group, uint8_t number, const std::string& data) {
    const absl::StatusOr<uint8_t> ack = client_->Command(group, number, data);
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  const auto passes = [&](const FrameSpec& spec) {
    const uint64_t before = Count("committed") + Count("refused");
    const TestFrame frame = MakeFrame(spec);
    Give(Record(54), frame.bytes);
    WaitHandled(before + 1);
    if (!client_->HasFrame(0)) return false;
    const absl::StatusOr<NetFrame> got = client_->Receive(0);
    EXPECT_OK(got);
    return got.ok() && got->data == frame.bytes;
  };
  const std::string other("\x02\x00\x00\x00\x00\x77", 6);
  const std::string group("\x01\x00\x5e\x00\x00\x01", 6);
  EXPECT_TRUE(passes({.destination = other}));
  EXPECT_EQ(command(0, 0, Number(0, 1)), 0);
  EXPECT_FALSE(passes({.destination = other}));
  EXPECT_TRUE(passes({}));
  EXPECT_FALSE(passes({.destination = group}));
  EXPECT_EQ(command(1, 0, Number(1, 4) + other + Number(1, 4) + group), 0);
  EXPECT_TRUE(passes({.destination = other}));
  EXPECT_TRUE(passes({.destination = group}));
  // Another address: that of the configuration space then, too.
  EXPECT_EQ(command(1, 1, std::string("\x52\x54\x00\x00\x00\x09", 6)), 0);
  EXPECT_FALSE(passes({}));
  EXPECT_TRUE(passes({.destination = std::string("\x52\x54\x00\x00\x00\x09", 6)}));
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace config, client_->ReadConfig());
  EXPECT_EQ(config.mac[5], 9);
  EXPECT_EQ(command(0, 0, Number(1, 1)), 0);
  EXPECT_FALSE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(command(2, 0, Number(7, 2)), 0);
  EXPECT_TRUE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(command(2, 1, Number(7, 2)), 0);
  EXPECT_FALSE(passes({.vlans = 1, .vlan_id = 7}));
  EXPECT_EQ(Count("rx_drops_vlan"), 2u);
  EXPECT_EQ(Count("rx_drops_filtered"), 3u);
  // A reset forgets it all.
  ASSERT_OK(client_->driver().Restart());
  ASSERT_OK_AND_ASSIGN(const guest::NetConfigSpace fresh, client_->ReadConfig());
  EXPECT_EQ(fresh.mac[5], 0x56);
}

TEST_F(NetDeviceTest, CommandsThatBreakTheRulesChangeNothing) {
  Start({{"queue-pairs", "2"}});
  uint64_t refused = 0;
  const auto refuse = [&](uint8_t group, uint8_t number, const std::string& data) {
    const absl::StatusOr<uint8_t> ack = client_->Command(group, number, data);
    ASSERT_OK(ack);
    EXPECT_EQ(*ack, 1) << int{group} << "/" << int{number} << " of " << data.size();
    ++refused;
  };
  // Every class with data of every length but the right one, and commands that there are not.
  for (int number = 0; number < 6; ++number) {
    for (const size_t n : {size_t{0}, size_t{2}, size_t{9}}) {
      refuse(0, static_cast<uint8_t>(number), std::string(n, '\1'));
    }
  }
  refuse(0, 6, "\1");
  for (size_t n = 0; n < 40; ++n) {
    if (n != 8) refuse(1, 0, std::string(n, '\0'));
    if (n != 6) refuse(1, 1, std::string(n, '\2'));
    if (n != 2) refuse(2, 0, std::string(n, '\0'));
    if (n > 0) refuse(3, 0, std::string(n, '\0'));
    if (n != 2) refuse(4, 0, std::string(n, '\1'));
    if (n != 8) refuse(5, 0, std::string(n, '\0'));
  }
  refuse(1, 0, Number(UINT32_MAX, 4) + Number(0, 4));
  refuse(1, 0, Number(0x2aaaaaab, 4) + std::string(6, '\0') + Number(0, 4));
  refuse(1, 0, Number(0, 4) + Number(2, 4) + std::string(6, '\0'));
  refuse(1, 1, std::string("\x01\x00\x5e\x00\x00\x01", 6));  // a group's
  refuse(1, 2, "");
  refuse(2, 0, Number(4096, 2));
  refuse(2, 2, Number(1, 2));
  refuse(3, 1, "");
  refuse(4, 0, Number(0, 2));
  refuse(4, 0, Number(3, 2));
  refuse(4, 1, Number(1, 2));
  refuse(5, 0, Number(UINT64_MAX, 8));
  refuse(5, 1, Number(0, 8));
  refuse(6, 0, "");
  refuse(255, 255, "x");
  refuse(1, 0, std::string(40'000, '\0'));  // longer than any
  // Chains without room for the answer, or without a command.
  ASSERT_OK_AND_ASSIGN(int ack, client_->CommandRaw(std::string("\0\0\0", 3), 0));
  EXPECT_EQ(ack, -1);
  ASSERT_OK_AND_ASSIGN(ack, client_->CommandRaw(std::string("\0", 1), 1));
  EXPECT_EQ(ack, 1);
  ASSERT_OK_AND_ASSIGN(ack, client_->CommandRaw("", 1));
  EXPECT_EQ(ack, 1);
  EXPECT_EQ(Count("control_errors"), refused + 3);
  // It is still promiscuous.
  const TestFrame frame = MakeFrame({.destination = std::string("\x02\x00\x00\x00\x00\x77", 6)});
  Give(Record(54), frame.bytes);
  ASSERT_OK(client_->Receive(0));
  EXPECT_EQ(client_->control().ring().in_flight(), 0u);
}

TEST_F(NetDeviceTest, QueuePairsAndWhereTheControlQueueIs) {
  NetClientOptions options;
  options.rx_pairs = 3;
  Start({{"queue-pairs", "3"}}, std::move(options));
  const auto set = [&](uint16_t pairs) {
    const absl::StatusOr<uint8_t> ack = client_->Command(4, 0, Number(pairs, 2));
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  for (const uint16_t pairs : {uint16_t{3}, uint16_t{1}, uint16_t{2}}) {
    EXPECT_EQ(set(pairs), 0);
    EXPECT_EQ(Count("pairs_set"), pairs);
  }
  for (uint32_t pair = 0; pair < 3; ++pair) {
    const TestFrame frame = MakeFrame({.payload = 100 + pair});
    ASSERT_OK(client_->Send(pair, {}, frame.bytes));
    ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
    EXPECT_EQ(from.frame, frame.bytes);
    EXPECT_EQ(from.record.pair, pair);
  }
  // Without MQ it is queue 2 (virtio 1.3 5.1.2), which is else the second pair's.
  NetClientOptions single;
  single.features = guest::kNetAllFeatures & ~Bit(guest::kNetMq);
  Start({{"queue-pairs", "3"}}, std::move(single));
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(0, 1, Number(1, 1)));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(set(1), 1);
}

// Each pair's burst waits for the others': with one thread for several pairs they would not meet.
TEST_F(NetDeviceTest, PairsOfAParallelDeviceHaveAThreadEach) {
  constexpr uint32_t kPairs = 3;
  ASSERT_OK_AND_ASSIGN(
      device_, host_->Add(Spec("parallel", {{"fd", "-1"}, {"queue-pairs", "3"}, {"meet", "true"}},
                               VIRTBAY_NET_RELAY_PARALLEL)));
  NetClientOptions options;
  options.rx_pairs = kPairs;
  Connect(std::move(options));
  // A pair's two queues share a thread, and the control queue has the first one's.
  EXPECT_EQ(QueueThreads("parallel"), (std::set<std::string>{"0", "2", "4"}));
  const TestFrame frame = MakeFrame({.payload = 100});
  for (uint32_t pair = 0; pair < kPairs; ++pair) ASSERT_OK(client_->Send(pair, {}, frame.bytes));
  for (uint32_t pair = 0; pair < kPairs; ++pair) ASSERT_OK(client_->WaitSent(pair));
  EXPECT_EQ(Count("met"), kPairs);
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(4, 0, Number(2, 2)));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(Count("pairs_set"), 2u);
}

// Frames that are dropped and frames that are sent, in one burst: they end in another order than
// they came in, and go back in that.
TEST_F(NetDeviceTest, FramesGoBackInOrderWhereTheDriverWantsIt) {
  for (const bool packed : {false, true}) {
    NetClientOptions options;
    options.packed = packed;
    options.in_order = true;
    Start({}, std::move(options));
    ASSERT_NE(client_->features() & Bit(35), 0u);
    const TestFrame frame = MakeFrame({.payload = 100});
    const TestFrame large = MakeFrame({.payload = 30'000});
    uint64_t given = 0;
    for (int i = 0; i < 300; ++i) {
      ASSERT_OK(client_->Send(0, {}, frame.bytes));
      ASSERT_OK(client_->SendRaw(0, std::string(20, 'x')));
      ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
      EXPECT_EQ(from.frame, frame.bytes);
      // To it, every third over several buffers.
      const bool merged = i % 3 == 0;
      RelayRecord record = merged ? Record(54, &large) : Record(54);
      if (merged) {
        record.gso = 1;
        record.gso_size = 1448;
        record.hdr_len = large.headers;
      }
      Give(record, merged ? large.bytes : frame.bytes);
      ++given;
      ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
      EXPECT_EQ(got.data, merged ? large.bytes : frame.bytes);
    }
    ASSERT_OK(client_->WaitSent(0));
    WaitHandled(given);
    EXPECT_EQ(Count("committed"), given);
    EXPECT_EQ(Count("tx_drops_short"), 300u);
    EXPECT_EQ(Count("tx_frames"), 300u);
  }
}

TEST_F(NetDeviceTest, GuestOffloadsChangeAtRunTime) {
  NetClientOptions options;
  options.features = guest::kNetAllFeatures & ~Bit(guest::kNetGuestTso6);
  Start({}, std::move(options));
  const TestFrame frame = MakeFrame({.payload = 500});
  const auto set = [&](uint64_t bits) {
    const absl::StatusOr<uint8_t> ack = client_->Command(5, 0, Number(bits, 8));
    EXPECT_OK(ack);
    return ack.value_or(9);
  };
  const uint64_t calls = Count("offload_calls");
  EXPECT_EQ(set(0), 0);
  EXPECT_EQ(Count("offload_calls"), calls + 1);
  Give(Record(34, &frame), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame finished, client_->Receive(0));
  EXPECT_TRUE(ChecksumGood(finished.data, {.payload = 500}, frame));
  EXPECT_EQ(set(Bit(guest::kNetGuestCsum)), 0);
  Give(Record(34, &frame), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame partial, client_->Receive(0));
  EXPECT_EQ(partial.data, frame.bytes);
  // Not negotiated.
  EXPECT_EQ(set(Bit(guest::kNetGuestCsum) | Bit(guest::kNetGuestTso6)), 1);
}

TEST_F(NetDeviceTest, TheLinkGoesDownAndUpAndTheGuestAnnouncesItself) {
  Start({});
  auto& transport = client_->driver().transport();
  const auto changed = [&] {
    pollfd look{.fd = transport.config_fd(), .events = POLLIN, .revents = 0};
    return poll(&look, 1, 60'000) == 1 && transport.TakeConfigChanges().value_or(0) > 0;
  };
  const TestFrame frame = MakeFrame({});
  EXPECT_FALSE(device_.Control("link", "perhaps").ok());
  EXPECT_FALSE(device_.Control("jump", "").ok());
  ASSERT_OK(device_.Control("link", "down"));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 0);
  ASSERT_OK(client_->Send(0, {}, frame.bytes));
  ASSERT_OK(client_->WaitSent(0));
  Give(Record(54), frame.bytes);
  WaitHandled(1);
  EXPECT_EQ(Drops(), (std::map<std::string, uint64_t>{{"tx_drops_link_down", 1},
                                                      {"rx_drops_link_down", 1}}));
  ASSERT_OK_AND_ASSIGN(const std::string shown, device_.Control("show", ""));
  EXPECT_THAT(shown, HasSubstr("\"link\": \"down\""));
  ASSERT_OK(device_.Control("link", "up"));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 1);
  Give(Record(54), frame.bytes);
  ASSERT_OK(client_->Receive(0));
  ASSERT_OK(device_.Control("announce", ""));
  EXPECT_TRUE(changed());
  EXPECT_EQ(client_->ReadConfig()->status, 3);
  ASSERT_OK_AND_ASSIGN(const uint8_t ack, client_->Command(3, 0, ""));
  EXPECT_EQ(ack, 0);
  EXPECT_EQ(client_->ReadConfig()->status, 1);
  EXPECT_EQ(Count("link_changes"), 2u);
}

// ---- capture ------------------------------------------------------------------------------------

struct Captured {
  uint32_t size = 0;
  uint32_t flags = 0;
  std::string bytes;
  std::string comment;
};

// A reader of pcapng that knows no more than the format's text.
std::vector<Captured> ReadCapture(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(in)), {});
  const auto u32 = [&](size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, all.data() + at, 4);
    return value;
  };
  const auto u16 = [&](size_t at) {
    uint16_t value = 0;
    std::memcpy(&value, all.data() + at, 2);
    return value;
  };
  std::vector<Captured> frames;
  for (size_t at = 0; at < all.size();) {
    const uint32_t type = u32(at);
    const uint32_t length = u32(at + 4);
    EXPECT_EQ(length % 4, 0u);
    EXPECT_LE(at + length, all.size());
    if (length < 12 || at + length > all.size()) break;
    EXPECT_EQ(u32(at + length - 4), length);
    if (at == 0) {
      EXPECT_EQ(type, 0x0a0d0d0au);
      EXPECT_EQ(u32(at + 8), 0x1a2b3c4du);
    } else if (type == 6) {
      Captured one;
      const uint32_t kept = u32(at + 20);
      one.size = u32(at + 24);
      one.bytes = all.substr(at + 28, kept);
      for (size_t option = at + 28 + (kept + 3) / 4 * 4; u16(option) != 0;
           option += 4 + (u16(option + 2) + 3u) / 4 * 4) {
        if (u16(option) == 2) one.flags = u32(option + 4);
        if (u16(option) == 1) one.comment = all.substr(option + 4, u16(option + 2));
      }
      frames.push_back(one);
    } else {
      EXPECT_EQ(type, 1u);
    }
    at += length;
  }
  return frames;
}

TEST_F(NetDeviceTest, ACaptureHoldsEveryFrameWithItsOffloads) {
  const std::string path = (dir_ / "net.pcapng").string();
  Start({{"pcap", path}});
  const TestFrame large = MakeFrame({.payload = 30'000});
  const TestFrame small = MakeFrame({.udp = true, .payload = 33});
  ASSERT_OK(client_->Send(0, Large(large, guest::kNetHdrGsoTcp4, 1448), large.bytes));
  ASSERT_OK(Take());
  NetHeader lie = Large(large, guest::kNetHdrGsoTcp4, 0);
  ASSERT_OK(client_->Send(0, lie, large.bytes));
  ASSERT_OK(client_->WaitSent(0));
  Give(Record(42, &small), small.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
  EXPECT_EQ(got.data, small.bytes);
  // What is under way is in the file when the queues have stopped.
  ASSERT_OK(client_->driver().Stop());
  const std::vector<Captured> frames = ReadCapture(path);
  ASSERT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames[0].bytes, large.bytes);
  EXPECT_EQ(frames[0].size, large.bytes.size());
  EXPECT_EQ(frames[0].flags, 2u);
  EXPECT_EQ(frames[0].comment, "csum 34+16, tso4, segments of 1448 behind 54");
  EXPECT_EQ(frames[1].comment, "dropped: gso_size_zero");
  EXPECT_EQ(frames[2].bytes, small.bytes);
  EXPECT_EQ(frames[2].flags, 1u);
  EXPECT_EQ(frames[2].comment, "csum 34+6");
  EXPECT_EQ(Count("pcap_drops"), 0u);
}

TEST_F(NetDeviceTest, ACaptureOfHeadersLeavesThePayloadAlone) {
  const std::string path = (dir_ / "net.pcapng").string();
  Start({{"pcap", path}, {"pcap-snaplen", "96"}});
  const TestFrame frame = MakeFrame({.payload = 1400});
  ASSERT_OK(client_->Send(0, {}, frame.bytes));
  ASSERT_OK(Take());
  Give(Record(54), frame.bytes);
  ASSERT_OK(client_->Receive(0));
  ASSERT_OK(client_->driver().Stop());
  const std::vector<Captured> frames = ReadCapture(path);
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(frames[0].bytes, frame.bytes.substr(0, 96));
  EXPECT_EQ(frames[1].bytes, frame.bytes.substr(0, 54));
  EXPECT_EQ(frames[1].size, frame.bytes.size());
}

}  // namespace
}  // namespace virtbay::testing
