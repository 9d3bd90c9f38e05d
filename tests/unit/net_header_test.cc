// The parts of sdk/net by themselves: the checks of a vnet header, the layers of a frame,
// checksums, the receive filter, addresses, a frame's end.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "sdk/net/checksum.h"
#include "sdk/net/rx_filter.h"
#include "sdk/net/vnet_header.h"
#include "tests/support/fake_guest_link.h"
#include "tests/support/net_frames.h"

namespace virtbay::testing {
namespace {

using sdk::Gso;
using sdk::GuestOffloads;
using sdk::Offload;
using sdk::net::CheckRx;
using sdk::net::CheckTx;
using sdk::net::FindLayers;
using sdk::net::HostOffloads;
using sdk::net::Layers;
using sdk::net::RxDrop;
using sdk::net::RxFilter;
using sdk::net::TxDrop;
using sdk::net::VnetHeader;

constexpr HostOffloads kAll{true, true, true, true, true};

std::span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

VnetHeader Large(const TestFrame& frame, uint8_t type, uint16_t size) {
  VnetHeader header;
  header.flags = sdk::net::kVnetNeedsCsum;
  header.gso_type = type;
  header.gso_size = size;
  header.hdr_len = frame.headers;
  header.csum_start = frame.transport;
  header.csum_offset = frame.csum_offset;
  return header;
}

TxDrop Check(const VnetHeader& header, const TestFrame& frame, Offload* offload,
             const HostOffloads& allowed = kAll) {
  return CheckTx(header, allowed,
                 Bytes(frame.bytes).first(std::min<size_t>(frame.bytes.size(), sdk::kHeaderView)),
                 static_cast<uint32_t>(frame.bytes.size()), offload);
}

TEST(VnetHeaderTest, GoodHeadersOfEveryKindPass) {
  Offload offload;
  for (const uint32_t vlans : {0u, 1u, 2u}) {
    for (const bool ipv6 : {false, true}) {
      const TestFrame tcp = MakeFrame({.ipv6 = ipv6, .payload = 5000, .vlans = vlans});
      const uint8_t type = ipv6 ? sdk::net::kVnetGsoTcp6 : sdk::net::kVnetGsoTcp4;
      EXPECT_EQ(Check(Large(tcp, type | sdk::net::kVnetGsoEcn, 1400), tcp, &offload),
                TxDrop::kCount);
      EXPECT_EQ(offload.gso, ipv6 ? Gso::kTcp6 : Gso::kTcp4);
      EXPECT_TRUE(offload.ecn);
      EXPECT_EQ(offload.gso_size, 1400);
      EXPECT_EQ(offload.hdr_len, tcp.headers);
      const TestFrame udp = MakeFrame({.ipv6 = ipv6, .udp = true, .payload = 5000, .vlans = vlans});
      EXPECT_EQ(Check(Large(udp, sdk::net::kVnetGsoUdp, 1400), udp, &offload), TxDrop::kCount);
      EXPECT_EQ(offload.gso, Gso::kUdp);
    }
  }
  // Unknown flags are to be ignored (virtio 1.3 5.1.6.2.2), and so is what no flag says is there.
  const TestFrame frame = MakeFrame({});
  VnetHeader header;
  header.flags = 0xfe;
  header.csum_start = header.csum_offset = header.gso_size = header.hdr_len = 0xffff;
  EXPECT_EQ(Check(header, frame, &offload), TxDrop::kCount);
  EXPECT_FALSE(offload.needs_csum);
  EXPECT_EQ(offload.csum_start, 0);
}

// CVE-2024-11614: offload fields of the guest's that point past the packet.
TEST(VnetHeaderTest, Cve2024_11614ChecksumsBeyondTheFrame) {
  const TestFrame frame = MakeFrame({});
  const auto size = static_cast<uint32_t>(frame.bytes.size());
  Offload offload;
  VnetHeader header;
  header.flags = sdk::net::kVnetNeedsCsum;
  for (uint32_t start = 0; start < 0x10000; start += start < 300 ? 1 : 997) {
    for (uint32_t offset = 0; offset < 0x10000; offset += offset < 300 ? 1 : 997) {
      header.csum_start = static_cast<uint16_t>(start);
      header.csum_offset = static_cast<uint16_t>(offset);
      const bool inside = start >= 14 && start + offset + 2 <= size;
      ASSERT_EQ(Check(header, frame, &offload), inside ? TxDrop::kCount : TxDrop::kCsumRange)
          << start << "+" << offset;
    }
  }
}

TEST(VnetHeaderTest, LiesAboutSegmentationAreNamed) {
  const TestFrame tcp = MakeFrame({.payload = 20'000});
  const TestFrame udp = MakeFrame({.udp = true, .payload = 20'000});
  Offload offload;
  const auto with = [&](auto change) {
    VnetHeader header = Large(tcp, sdk::net::kVnetGsoTcp4, 1448);
    change(header);
    return Check(header, tcp, &offload);
  };
  EXPECT_EQ(with([](VnetHeader&) {}), TxDrop::kCount);
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_size = 0; }), TxDrop::kGsoSizeZero);
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_size = 1; }), TxDrop::kGsoSegments);
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_size = 19; }), TxDrop::kGsoSegments);
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_size = 20; }), TxDrop::kCount);
  EXPECT_EQ(with([](VnetHeader& h) { h.flags = 0; }), TxDrop::kGsoWithoutCsum);
  EXPECT_EQ(with([](VnetHeader& h) { h.hdr_len = 0xffff; }), TxDrop::kHdrLen);
  // Too little is corrected: the headers are where the frame has them.
  EXPECT_EQ(with([](VnetHeader& h) { h.hdr_len = 0; }), TxDrop::kCount);
  EXPECT_EQ(offload.hdr_len, tcp.headers);
  EXPECT_EQ(with([](VnetHeader& h) { h.hdr_len = 1000; }), TxDrop::kCount);
  EXPECT_EQ(offload.hdr_len, tcp.headers);
  for (const int type : {2, 6, 7, 0x10, 0x7f, 0x80, 0x82, 0xff}) {
    EXPECT_EQ(with([&](VnetHeader& h) { h.gso_type = static_cast<uint8_t>(type); }),
              TxDrop::kGsoUnknown)
        << type;
  }
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_type = sdk::net::kVnetGsoUfo; }), TxDrop::kGsoRefused);
  // The frame is of another kind, or its checksum is elsewhere.
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_type = sdk::net::kVnetGsoTcp6; }), TxDrop::kGsoHeaders);
  EXPECT_EQ(with([](VnetHeader& h) { h.gso_type = sdk::net::kVnetGsoUdp; }), TxDrop::kGsoHeaders);
  EXPECT_EQ(with([](VnetHeader& h) { ++h.csum_start; }), TxDrop::kGsoHeaders);
  EXPECT_EQ(with([](VnetHeader& h) { h.csum_offset = 6; }), TxDrop::kGsoHeaders);
  VnetHeader datagrams = Large(udp, sdk::net::kVnetGsoUdp, 156);
  EXPECT_EQ(Check(datagrams, udp, &offload), TxDrop::kGsoSegments);
  datagrams.gso_size = 157;
  EXPECT_EQ(Check(datagrams, udp, &offload), TxDrop::kCount);
  datagrams.gso_type |= sdk::net::kVnetGsoEcn;
  EXPECT_EQ(Check(datagrams, udp, &offload), TxDrop::kGsoUnknown);
  // Nothing behind the headers, a fragment, headers that end the frame too early.
  const TestFrame empty = MakeFrame({.payload = 0});
  EXPECT_EQ(Check(Large(empty, sdk::net::kVnetGsoTcp4, 1448), empty, &offload),
            TxDrop::kGsoSegments);
  TestFrame fragment = tcp;
  fragment.bytes[20] = 0x20;
  EXPECT_EQ(Check(Large(fragment, sdk::net::kVnetGsoTcp4, 1448), fragment, &offload),
            TxDrop::kGsoHeaders);
  TestFrame long_header = MakeFrame({.payload = 10});
  long_header.bytes[long_header.transport + 12] = static_cast<char>(0xf0);
  EXPECT_EQ(Check(Large(long_header, sdk::net::kVnetGsoTcp4, 1448), long_header, &offload),
            TxDrop::kGsoHeaders);
  TestFrame short_header = tcp;
  short_header.bytes[tcp.transport + 12] = 0x40;
  EXPECT_EQ(Check(Large(short_header, sdk::net::kVnetGsoTcp4, 1448), short_header, &offload),
            TxDrop::kGsoHeaders);
}

TEST(VnetHeaderTest, WhatWasNotNegotiatedIsRefused) {
  const TestFrame tcp4 = MakeFrame({.payload = 5000});
  const TestFrame tcp6 = MakeFrame({.ipv6 = true, .payload = 5000});
  const TestFrame udp = MakeFrame({.udp = true, .payload = 5000});
  Offload offload;
  const auto without = [](auto change) {
    HostOffloads allowed = kAll;
    change(allowed);
    return allowed;
  };
  EXPECT_EQ(Check(Large(tcp4, sdk::net::kVnetGsoTcp4, 1400), tcp4, &offload,
                  without([](HostOffloads& o) { o.tso4 = false; })),
            TxDrop::kGsoRefused);
  EXPECT_EQ(Check(Large(tcp6, sdk::net::kVnetGsoTcp6, 1400), tcp6, &offload,
                  without([](HostOffloads& o) { o.tso6 = false; })),
            TxDrop::kGsoRefused);
  EXPECT_EQ(Check(Large(tcp4, sdk::net::kVnetGsoTcp4 | sdk::net::kVnetGsoEcn, 1400), tcp4, &offload,
                  without([](HostOffloads& o) { o.ecn = false; })),
            TxDrop::kGsoRefused);
  EXPECT_EQ(Check(Large(udp, sdk::net::kVnetGsoUdp, 1400), udp, &offload,
                  without([](HostOffloads& o) { o.uso = false; })),
            TxDrop::kGsoRefused);
  EXPECT_EQ(Check(Large(udp, sdk::net::kVnetGsoNone, 0), udp, &offload,
                  without([](HostOffloads& o) { o.csum = false; })),
            TxDrop::kCsumRefused);
}

TEST(VnetHeaderTest, LayersOfFramesCutAnywhere) {
  for (const uint32_t vlans : {0u, 2u}) {
    for (const bool ipv6 : {false, true}) {
      for (const bool udp : {false, true}) {
        const TestFrame frame =
            MakeFrame({.ipv6 = ipv6, .udp = udp, .payload = 40, .vlans = vlans});
        for (size_t n = 0; n <= frame.bytes.size(); ++n) {
          // A copy of just that length, so that a sanitizer sees one byte too many.
          const std::string cut = frame.bytes.substr(0, n);
          Layers layers;
          ASSERT_EQ(FindLayers(Bytes(cut), &layers), n >= frame.headers) << n;
          if (n < frame.headers) continue;
          EXPECT_EQ(layers.transport, frame.transport);
          EXPECT_EQ(layers.headers_len, frame.headers);
          EXPECT_EQ(layers.ipv6, ipv6);
        }
      }
    }
  }
  // IPv6 extension headers, also such that never end or lead out of the frame.
  TestFrame frame = MakeFrame({.ipv6 = true, .payload = 40});
  std::string options = frame.bytes;
  options[20] = 0;
  options.insert(54, std::string("\x06\x01", 2) + std::string(14, '\0'));
  Layers layers;
  ASSERT_TRUE(FindLayers(Bytes(options), &layers));
  EXPECT_EQ(layers.transport, frame.transport + 16u);
  options[55] = static_cast<char>(0xff);
  EXPECT_FALSE(FindLayers(Bytes(options), &layers));
  std::string endless = frame.bytes.substr(0, 54) + std::string(400, '\0');
  endless[20] = 0;
  EXPECT_FALSE(FindLayers(Bytes(endless), &layers));
  std::string fragment = frame.bytes;
  fragment[20] = 44;
  ASSERT_TRUE(FindLayers(Bytes(fragment), &layers));
  EXPECT_TRUE(layers.fragment);
}

TEST(VnetHeaderTest, WhatABackEndSaysIsCheckedToo) {
  const GuestOffloads all{true, true, true, true, true, true, true};
  Offload offload;
  EXPECT_EQ(CheckRx(offload, all, 13), RxDrop::kShort);
  EXPECT_EQ(CheckRx(offload, all, 14), RxDrop::kCount);
  offload.needs_csum = true;
  offload.csum_start = 34;
  offload.csum_offset = 16;
  EXPECT_EQ(CheckRx(offload, all, 51), RxDrop::kCsumRange);
  EXPECT_EQ(CheckRx(offload, all, 52), RxDrop::kCount);
  offload.gso = Gso::kTcp4;
  offload.hdr_len = 54;
  EXPECT_EQ(CheckRx(offload, all, 1000), RxDrop::kGsoSize);
  offload.gso_size = 100;
  EXPECT_EQ(CheckRx(offload, all, 1000), RxDrop::kCount);
  EXPECT_EQ(CheckRx(offload, all, 53), RxDrop::kCsumRange);
  GuestOffloads some = all;
  some.tso4 = false;
  EXPECT_EQ(CheckRx(offload, some, 1000), RxDrop::kGsoRefused);
  some = all;
  some.csum = false;
  EXPECT_EQ(CheckRx(offload, some, 1000), RxDrop::kGsoRefused);
  offload.ecn = true;
  some = all;
  some.ecn = false;
  EXPECT_EQ(CheckRx(offload, some, 1000), RxDrop::kGsoRefused);
}

TEST(ChecksumTest, AgreesWithAPlainOne) {
  std::mt19937 random(1);
  for (size_t n = 0; n < 300; ++n) {
    std::string text(n, '\0');
    for (char& c : text) c = static_cast<char>(random());
    const uint32_t plain = PlainSum(text);
    const uint16_t sum = sdk::net::OnesSum(Bytes(text));
    // In memory order: as two bytes.
    const auto swapped = static_cast<uint16_t>(sum << 8 | sum >> 8);
    ASSERT_EQ(swapped, plain) << n;
  }
  for (const bool ipv6 : {false, true}) {
    for (const bool udp : {false, true}) {
      for (uint32_t payload = 0; payload < 70; ++payload) {
        const FrameSpec spec{.ipv6 = ipv6, .udp = udp, .payload = payload};
        TestFrame frame = MakeFrame(spec);
        ASSERT_FALSE(ChecksumGood(frame.bytes, spec, frame));
        Offload offload;
        offload.needs_csum = true;
        offload.csum_start = frame.transport;
        offload.csum_offset = frame.csum_offset;
        sdk::net::FinishChecksum(
            {reinterpret_cast<std::byte*>(frame.bytes.data()), frame.bytes.size()}, offload);
        ASSERT_TRUE(ChecksumGood(frame.bytes, spec, frame));
      }
    }
  }
}

TEST(RxFilterTest, ModesTablesAndVlans) {
  const auto to = [](const char* mac) {
    const sdk::Result<sdk::MacAddress> parsed = sdk::ParseMac("02:00:00:00:00:09");
    std::string frame(18, '\0');
    for (size_t i = 0; i < 6; ++i) {
      frame[i] = static_cast<char>(std::strtoul(mac + 3 * i, nullptr, 16));
    }
    EXPECT_TRUE(parsed.ok());
    return frame;
  };
  RxFilter filter;
  filter.Reset(0x5254'0012'3456, false);
  using Verdict = RxFilter::Verdict;
  const std::string own = to("52:54:00:12:34:56");
  const std::string other = to("02:00:00:00:00:02");
  const std::string group = to("01:00:5e:00:00:01");
  const std::string everyone = to("ff:ff:ff:ff:ff:ff");
  const auto judge = [&](const std::string& frame) { return filter.Judge(Bytes(frame)); };
  for (const auto& frame : {own, other, group, everyone}) EXPECT_EQ(judge(frame), Verdict::kPass);
  filter.SetMode(RxFilter::kPromiscuous, false);
  EXPECT_EQ(judge(own), Verdict::kPass);
  EXPECT_EQ(judge(everyone), Verdict::kPass);
  EXPECT_EQ(judge(other), Verdict::kAddress);
  EXPECT_EQ(judge(group), Verdict::kAddress);
  filter.SetMode(RxFilter::kAllMulticast, true);
  EXPECT_EQ(judge(group), Verdict::kPass);
  filter.SetMode(RxFilter::kNoMulticast, true);
  EXPECT_EQ(judge(group), Verdict::kAddress);
  filter.SetMode(RxFilter::kNoMulticast, false);
  filter.SetMode(RxFilter::kAllMulticast, false);
  filter.SetTable(true, Bytes(group).first(6));
  EXPECT_EQ(judge(group), Verdict::kPass);
  EXPECT_EQ(judge(other), Verdict::kAddress);
  filter.SetTable(false, Bytes(other).first(6));
  EXPECT_EQ(judge(other), Verdict::kPass);
  filter.SetTable(false, {});
  EXPECT_EQ(judge(other), Verdict::kAddress);
  const std::string many(6 * 65, 'a');
  filter.SetTable(false, Bytes(many));
  EXPECT_EQ(judge(other), Verdict::kPass);
  filter.SetMode(RxFilter::kNoUnicast, true);
  EXPECT_EQ(judge(own), Verdict::kAddress);
  filter.SetMode(RxFilter::kNoBroadcast, true);
  EXPECT_EQ(judge(everyone), Verdict::kAddress);

  filter.Reset(0x5254'0012'3456, true);
  std::string tagged = MakeFrame({.vlans = 1, .vlan_id = 4095}).bytes;
  EXPECT_EQ(judge(tagged), Verdict::kVlan);
  filter.SetVlan(4095, true);
  EXPECT_EQ(judge(tagged), Verdict::kPass);
  filter.SetVlan(4095, false);
  EXPECT_EQ(judge(tagged), Verdict::kVlan);
  EXPECT_EQ(judge(own), Verdict::kPass);
}

TEST(MacTest, TextBothWays) {
  ASSERT_TRUE(sdk::ParseMac("52:54:00:aB:34:56").ok());
  EXPECT_EQ(sdk::FormatMac(sdk::ParseMac("52:54:00:aB:34:56").value()), "52:54:00:ab:34:56");
  for (const char* bad :
       {"", "52", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:", "52-54-00-12-34-56",
        "5g:54:00:12:34:56", "01:00:00:00:00:00", "00:00:00:00:00:00", "+2:54:00:12:34:56"}) {
    EXPECT_FALSE(sdk::ParseMac(bad).ok()) << bad;
  }
}

// A back-end that looks at a frame after its end must not get at what its token is for by then.
TEST(TxFrameTest, NothingIsLeftOfOneThatHasEnded) {
  tests::FakeGuestLink link;
  for (const bool requeue : {false, true}) {
    sdk::TxFrame frame = link.Frame(std::vector<uint8_t>(100, 7));
    EXPECT_EQ(frame.size(), 100u);
    requeue ? frame.Requeue() : frame.Complete();
    EXPECT_EQ(link.held_frames, 0u);
    EXPECT_FALSE(frame);
    EXPECT_EQ(frame.size(), 0u);
    EXPECT_TRUE(frame.headers().empty());
    frame.Complete();
    frame.Requeue();
    EXPECT_EQ(link.held_frames, 0u);
  }
}

}  // namespace
}  // namespace virtbay::testing
