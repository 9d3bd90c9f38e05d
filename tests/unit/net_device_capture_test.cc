// Captures of a NetDevice's frames, read back.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
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
std::vector<Captured> ParseCapture(const std::string& all, int* sections = nullptr) {
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
    if (at == 0 || type == 0x0a0d0d0au) {
      EXPECT_EQ(type, 0x0a0d0d0au);
      EXPECT_EQ(u32(at + 8), 0x1a2b3c4du);
      if (sections != nullptr) ++*sections;
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
std::vector<Captured> ReadCapture(const std::string& path, int* sections = nullptr) {
  std::ifstream in(path, std::ios::binary);
  return ParseCapture(std::string((std::istreambuf_iterator<char>(in)), {}), sections);
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

// A device that goes on for another may have another address and keep more of each frame.
TEST_F(NetDeviceTest, ACaptureGoesOnInASectionOfItsOwn) {
  const std::string path = (dir_ / "net.pcapng").string();
  Start({{"pcap", path}, {"pcap-snaplen", "96"}});
  const TestFrame frame = MakeFrame({.payload = 500});
  ASSERT_OK(client_->Send(0, {}, frame.bytes));
  ASSERT_OK(Take());
  ASSERT_OK_AND_ASSIGN(DeviceState state, device_.Save());
  client_.reset();
  ASSERT_OK_AND_ASSIGN(
      device_,
      host_->Add(
          Spec("on",
               {{"fd", absl::StrCat(device_end_.get())}, {"pcap", path}, {"pcap-snaplen", "200"}},
               VIRTBAY_NET_RELAY),
          std::move(state)));
  Connect();
  ASSERT_OK(client_->Send(0, {}, frame.bytes));
  ASSERT_OK(Take());
  ASSERT_OK(client_->driver().Stop());
  int sections = 0;
  const std::vector<Captured> frames = ReadCapture(path, &sections);
  EXPECT_EQ(sections, 2);
  ASSERT_EQ(frames.size(), 2u);
  EXPECT_EQ(frames[0].bytes, frame.bytes.substr(0, 96));
  EXPECT_EQ(frames[1].bytes, frame.bytes.substr(0, 200));
}

TEST_F(NetDeviceTest, ACaptureThatCannotBeginMakesNoDevice) {
  const auto added = host_->Add(Spec(
      "full", {{"fd", absl::StrCat(device_end_.get())}, {"pcap", "/dev/full"}}, VIRTBAY_NET_RELAY));
  EXPECT_THAT(added.status().message(), ::testing::HasSubstr("option pcap: /dev/full"));
  EXPECT_THAT(added.status().message(), ::testing::HasSubstr("No space left"));
}

// The disk is full for a while. What does not fit is counted, and what fits again can be read.
TEST_F(NetDeviceTest, ACaptureOnAFullDiskStaysOneOfWholeBlocks) {
  const std::string path = (dir_ / "net.pcapng").string();
  Start({{"pcap", path}});
  const TestFrame frame = MakeFrame({.payload = 900});
  const auto send = [&] {
    ASSERT_OK(client_->Send(0, {}, frame.bytes));
    ASSERT_OK(Take());
  };
  uint64_t sent = 0;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  // In the midst of the third frame.
  const rlimit full{std::filesystem::file_size(path) + 2500, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  while (Count("pcap_drops") < 3) send(), ++sent;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  const TestFrame last = MakeFrame({.payload = 333});
  ASSERT_OK(client_->Send(0, {}, last.bytes));
  ASSERT_OK(client_->driver().Stop());
  const std::vector<Captured> frames = ReadCapture(path);
  EXPECT_EQ(frames.size() + Count("pcap_drops"), sent + 1);
  ASSERT_GE(frames.size(), 2u);
  EXPECT_EQ(frames[1].bytes, frame.bytes);
  EXPECT_EQ(frames.back().bytes, last.bytes);
}

// ---- a capture to a FIFO ------------------------------------------------------------------------

class NetDeviceFifoTest : public NetDeviceTest {
 protected:
  void SetUp() override {
    NetDeviceTest::SetUp();
    ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  }
  UniqueFd Reader() { return UniqueFd(open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)); }
  void Send(const TestFrame& frame) {
    const bool large = frame.bytes.size() > 1500;
    ASSERT_OK(client_->Send(0, large ? Large(frame, guest::kNetHdrGsoTcp4, 1448) : NetHeader{},
                            frame.bytes));
    ASSERT_OK(Take());
    ++sent_;
  }
  // What is in it, until the other end is closed or it is empty.
  static std::string Drain(int fd) {
    std::string all;
    std::array<char, 65536> some;
    for (;;) {
      const ssize_t n = read(fd, some.data(), some.size());
      if (n <= 0) return all;
      all.append(some.data(), static_cast<size_t>(n));
    }
  }
  void SendUntilDrops(const TestFrame& frame, uint64_t drops) {
    while (Count("pcap_drops") < drops && !HasFatalFailure()) Send(frame);
  }
  // Sends until it has come out, and returns `all` with what has.
  std::string SendThrough(const TestFrame& frame, int fd, std::string all = {}) {
    for (int i = 0; i < 2000 && !HasFatalFailure(); ++i) {
      Send(frame);
      // What is sent meanwhile has to fit once more.
      pollfd look{.fd = fd, .events = POLLIN, .revents = 0};
      poll(&look, 1, 10);
      all += Drain(fd);
      if (all.find(frame.bytes) != std::string::npos && IsWhole(all)) return all;
    }
    ADD_FAILURE() << "it never came out whole, in " << all.size() << " bytes";
    return all;
  }
  static bool IsWhole(const std::string& blocks) {
    size_t at = 0;
    for (uint32_t length = 0; at + 8 <= blocks.size(); at += length) {
      std::memcpy(&length, blocks.data() + at + 4, sizeof(length));
      if (length < 12) return false;
    }
    return at == blocks.size();
  }

  const std::string path_ = (dir_ / "fifo").string();
  uint64_t sent_ = 0;
};

// Readers come and go; neither they nor their absence hold up the device.
TEST_F(NetDeviceFifoTest, ACaptureBeginsAnewForEachReader) {
  Start({{"pcap", path_}});
  const TestFrame early = MakeFrame({.payload = 100});
  SendUntilDrops(early, 3);
  for (const uint32_t size : {200u, 300u}) {
    UniqueFd reader = Reader();
    ASSERT_TRUE(reader.valid());
    const TestFrame frame = MakeFrame({.payload = size});
    int sections = 0;
    const std::vector<Captured> frames = ParseCapture(SendThrough(frame, reader.get()), &sections);
    EXPECT_EQ(sections, 1);
    ASSERT_GE(frames.size(), 1u);
    EXPECT_EQ(frames.back().bytes, frame.bytes);
    reader.reset();
    SendUntilDrops(early, Count("pcap_drops") + 3);
  }
  ASSERT_OK(client_->driver().Stop());
}

TEST_F(NetDeviceFifoTest, AReaderThatIsThereFirstMissesNothing) {
  UniqueFd reader = Reader();
  Start({{"pcap", path_}});
  const TestFrame frame = MakeFrame({.payload = 700});
  for (int i = 0; i < 20; ++i) Send(frame);
  ASSERT_OK(client_->driver().Stop());
  EXPECT_EQ(ParseCapture(Drain(reader.get())).size(), 20u);
  EXPECT_EQ(Count("pcap_drops"), 0u);
}

// What a slow one has no room for is left out whole, and goes on where there is room again.
TEST_F(NetDeviceFifoTest, ASlowReaderGetsWholeBlocks) {
  UniqueFd reader = Reader();
  Start({{"pcap", path_}});
  // No room for a third: it is cut.
  ASSERT_GE(fcntl(reader.get(), F_SETPIPE_SZ, 65536), 65536);
  const TestFrame frame = MakeFrame({.payload = 30'000});
  SendUntilDrops(frame, 3);
  const TestFrame last = MakeFrame({.payload = 333});
  std::string all = SendThrough(last, reader.get());
  ASSERT_OK(client_->driver().Stop());
  all += Drain(reader.get());
  const std::vector<Captured> frames = ParseCapture(all);
  ASSERT_GE(frames.size(), 2u);
  EXPECT_EQ(frames.size() + Count("pcap_drops"), sent_);
  EXPECT_EQ(frames.front().bytes, frame.bytes);
  EXPECT_EQ(frames.back().bytes, last.bytes);
}

// Neither does one that goes on for another wait for a reader.
TEST_F(NetDeviceFifoTest, ADeviceThatGoesOnNeedsNoReaderEither) {
  Start({{"pcap", path_}});
  SendUntilDrops(MakeFrame({.payload = 100}), 1);
  ASSERT_OK_AND_ASSIGN(DeviceState state, device_.Save());
  client_.reset();
  ASSERT_OK_AND_ASSIGN(
      device_, host_->Add(Spec("on", {{"fd", absl::StrCat(device_end_.get())}, {"pcap", path_}},
                               VIRTBAY_NET_RELAY),
                          std::move(state)));
  Connect();
  UniqueFd reader = Reader();
  const TestFrame frame = MakeFrame({.payload = 250});
  EXPECT_EQ(ParseCapture(SendThrough(frame, reader.get())).back().bytes, frame.bytes);
}

}  // namespace
}  // namespace virtbay::testing
