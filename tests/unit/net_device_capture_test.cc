// Captures of a NetDevice's frames, read back.
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/unit/net_device_fixture.h"

namespace virtbay::testing {
namespace {

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
