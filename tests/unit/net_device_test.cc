// A NetDevice from the guest's side: frames and their headers either way, receive buffers, stops,
// and hostile drivers.
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/unit/net_device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

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

// CVE-2018-1059, CVE-2020-10725: buffers that are not in the guest's memory, or only a part of them
// is, at each place of a burst in turn. They come back empty, and those beside them are served.
TEST_F(NetDeviceTest, Cve2018_1059Cve2020_10725EachBadBufferOfABurst) {
  NetClientOptions options;
  options.rx_buffers = 0;
  Start({}, std::move(options));
  constexpr uint32_t kBurst = 8;
  constexpr uint64_t kToken = 1'000'000;
  guest::GuestMemory& memory = client_->driver().memory();
  const guest::GuestMemory::Region& region = memory.regions()[0];
  const guest::Segment nowhere{0x1000, 64};
  const guest::Segment beyond{region.address + region.size - 8, 64};
  const std::string frame = MakeFrame({.payload = 60}).bytes;
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange range, memory.Allocate(uint64_t{kBurst} * 2048));
  const auto take = [&](guest::DriverQueue& queue) {
    std::map<uint64_t, uint32_t> back;
    while (back.size() < kBurst && queue.Wait(guest::WaitMode::kSleep).ok()) {
      std::array<guest::UsedBuffer, kBurst> used;
      const size_t n = queue.TakeUsed(used);
      for (size_t i = 0; i < n; ++i) back[used[i].token - kToken] = used[i].written;
    }
    return back;
  };
  uint64_t given = 0;
  for (const guest::Segment& bad : {nowhere, beyond}) {
    for (uint32_t at = 0; at < kBurst; ++at) {
      // From the guest: its header is where it should be, its frame is not.
      for (uint32_t i = 0; i < kBurst; ++i) {
        std::byte* const host = range.host + size_t{i} * 2048;
        std::memset(host, 0, sizeof(NetHeader));
        std::memcpy(host + sizeof(NetHeader), frame.data(), frame.size());
        const uint64_t address = range.address + uint64_t{i} * 2048;
        const std::array<guest::Segment, 2> segments{
            guest::Segment{address, sizeof(NetHeader)},
            i == at
                ? bad
                : guest::Segment{address + sizeof(NetHeader), static_cast<uint32_t>(frame.size())}};
        ASSERT_TRUE(client_->tx(0).Add(segments, {}, kToken + i));
      }
      client_->tx(0).Publish();
      for (uint32_t i = 0; i + 1 < kBurst; ++i) {
        ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
        EXPECT_EQ(from.frame, frame);
      }
      EXPECT_EQ(take(client_->tx(0)).size(), kBurst);
      EXPECT_TRUE(Quiet());

      // To the guest.
      for (uint32_t i = 0; i < kBurst; ++i) {
        const guest::Segment good{range.address + uint64_t{i} * 2048, 2048};
        ASSERT_TRUE(client_->rx(0).Add({}, {i == at ? &bad : &good, 1}, kToken + i));
      }
      client_->rx(0).Publish();
      for (uint32_t i = 0; i + 1 < kBurst; ++i) Give(Record(54), frame);
      const std::map<uint64_t, uint32_t> back = take(client_->rx(0));
      ASSERT_EQ(back.size(), kBurst);
      for (const auto& [token, written] : back) {
        EXPECT_EQ(written, token == at ? 0 : sizeof(NetHeader) + frame.size()) << token;
      }
      given += kBurst - 1;
      WaitHandled(given);
    }
  }
  EXPECT_EQ(device_.Inspect()->dma_violations, 4u * kBurst);
  EXPECT_FALSE(device_.Inspect()->needs_reset);
  EXPECT_EQ(InFlight(0), 0u);
  EXPECT_EQ(InFlight(1), 0u);
}

// The class of CVE-2019-14835: chains of more segments than the ring has descriptors.
TEST_F(NetDeviceTest, Cve2019_14835ChainsLongerThanTheRing) {
  NetClientOptions options;
  options.queue_size = 16;
  options.rx_buffers = 0;
  Start({}, std::move(options));
  const TestFrame frame = MakeFrame({.payload = 40});
  // The least piece that fits an indirect table: 106 bytes in 106 entries.
  ASSERT_OK(client_->Send(0, {}, frame.bytes, 1));
  ASSERT_OK_AND_ASSIGN(const FromDevice from, Take());
  EXPECT_EQ(from.frame, frame.bytes);
  ASSERT_OK(client_->Post(0, 4, 120, 1));
  Give(Record(54), frame.bytes);
  ASSERT_OK_AND_ASSIGN(const NetFrame got, client_->Receive(0));
  EXPECT_EQ(got.data, frame.bytes);
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

}  // namespace
}  // namespace virtbay::testing
