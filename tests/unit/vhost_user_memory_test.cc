// The vhost-user memory table, and the back-end's own channel.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/process_state.h"
#include "tests/unit/vhost_user_fixture.h"

namespace virtbay::vhost_user {
namespace {

// A SET_MEM_TABLE of any regions.
std::vector<std::byte> Table(const std::vector<RegionDescription>& regions) {
  const MemTableHeader header{static_cast<uint32_t>(regions.size()), 0};
  std::vector<std::byte> bytes(sizeof header + regions.size() * sizeof(RegionDescription));
  std::memcpy(bytes.data(), &header, sizeof header);
  if (!regions.empty()) {
    std::memcpy(bytes.data() + sizeof header, regions.data(), bytes.size() - sizeof header);
  }
  return bytes;
}

class VhostUserMemoryTest : public VhostUserTest {
 protected:
  VhostUserMemoryTest() { Negotiate(); }

  int64_t SetTable(const std::vector<RegionDescription>& regions) {
    return front_.AckBytes(Request::kSetMemTable, Table(regions),
                           std::vector<int>(regions.size(), memory_.get()));
  }
  int64_t Add(const RegionDescription& region) {
    return front_.Ack(Request::kAddMemReg, SingleRegion{0, region}, {memory_.get()});
  }
  int64_t Remove(const RegionDescription& region) {
    return front_.Ack(Request::kRemMemReg, SingleRegion{0, region});
  }
  MemoryMapRef map() {
    return device_.With([](auto& s) { return s.map; });
  }
  int maps_set() {
    return device_.With([](auto& s) { return s.maps_set; });
  }
};

TEST_F(VhostUserMemoryTest, MapsWhatTheTableSays) {
  ASSERT_EQ(pwrite(memory_.get(), "at 4096", 8, 4096), 8);
  ASSERT_EQ(SetTable({{kGuest, 0x2000, kUser, 0x1000}, {0, 0x1000, 0x4000, 0}}), 0);
  std::byte* const data = map()->TranslateWhole(kGuest, 8);
  ASSERT_NE(data, nullptr);
  EXPECT_STREQ(reinterpret_cast<const char*>(data), "at 4096");
  EXPECT_NE(map()->TranslateWhole(0, 0x1000), nullptr);
  EXPECT_EQ(map()->TranslateWhole(kGuest, 0x2001), nullptr);
}

TEST_F(VhostUserMemoryTest, TheSameTableDisturbsNothing) {
  ShareMemory();
  StartRing(0);
  const auto mapping = map()->regions()[0].mapping;
  ShareMemory();
  EXPECT_EQ(maps_set(), 1);
  // The same file through another description of it.
  const UniqueFd again(
      open(("/proc/self/fd/" + std::to_string(memory_.get())).c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(front_.Ack(Request::kSetMemTable, OneRegionTable(), {again.get()}), 0);
  EXPECT_EQ(maps_set(), 1);
  // Equal in everything but the file.
  const UniqueFd other = MakeMemory(kMiB);
  EXPECT_EQ(front_.Ack(Request::kSetMemTable, OneRegionTable(), {other.get()}), 0);
  EXPECT_EQ(maps_set(), 2);
  EXPECT_NE(map()->regions()[0].mapping, mapping);
  EXPECT_EQ(device_.queue(0).starts, 1);  // the device moves with the map by itself
}

TEST_F(VhostUserMemoryTest, AGrownTableKeepsTheMappingsItHas) {
  ShareMemory();
  const auto mapping = map()->regions()[0].mapping;
  ASSERT_EQ(SetTable({{kGuest, kMiB, kUser, 0}, {0, 0x1000, 0x1000, 0}}), 0);
  EXPECT_EQ(map()->regions()[1].mapping, mapping);
}

TEST_F(VhostUserMemoryTest, BadTablesLeaveTheOldOneInForce) {
  ShareMemory();
  StartRing(0);
  const MemoryMapRef before = map();
  const int fds = CountFds();
  constexpr uint64_t kMax = ~uint64_t{0};
  const std::vector<std::vector<RegionDescription>> bad = {
      {{kGuest, 0, kUser, 0}},                                           // empty
      {{kGuest, kMiB + 1, kUser, 0}},                                    // longer than the file
      {{kGuest, kMiB, kUser, 1}},                                        // beyond its end
      {{kMax - 10, 0x1000, kUser, 0}},                                   // guest address wraps
      {{kGuest, 0x1000, kMax - 10, 0}},                                  // user address wraps
      {{kGuest, kMax, kUser, 0}},                                        // size
      {{kGuest, 0x1000, kUser, kMax - 0xfff}},                           // offset + size wraps
      {{0, 0x2000, 0, 0}, {0x1000, 0x1000, 0x8000, 0}},                  // guest overlap
      {{0, 0x2000, 0, 0}, {0x8000, 0x1000, 0x1000, 0}},                  // user overlap
      {{0, 0x1000, 0, 0}, {0, 0x1000, 0, 0}},                            // twice
      {{0, 0x1000, 0, 0}, {0x1000, 0x1000, 0x1000, 0}, {1, 1, 1, kMiB}}  // the last of three
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    EXPECT_GT(SetTable(bad[i]), 0) << i;
    EXPECT_EQ(map(), before) << i;
  }
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(CountFds(), fds);
}

TEST_F(VhostUserMemoryTest, RegionsAndFdsMustAgree) {
  const int fds = CountFds();
  const int fd = memory_.get();
  const auto one = Table({{kGuest, 0x1000, kUser, 0}});
  EXPECT_GT(front_.AckBytes(Request::kSetMemTable, one), 0);
  EXPECT_GT(front_.AckBytes(Request::kSetMemTable, one, {fd, fd}), 0);
  EXPECT_GT(front_.Ack(Request::kSetMemTable, MemTableHeader{2, 0}, {fd, fd}), 0);
  EXPECT_GT(front_.Ack(Request::kSetMemTable, MemTableHeader{0xffff'ffff, 0}), 0);
  EXPECT_GT(front_.Ack(Request::kSetMemTable, MemTableHeader{9, 0}, std::vector<int>(8, fd)), 0);
  EXPECT_GT(front_.Ack(Request::kAddMemReg, SingleRegion{}), 0);
  EXPECT_GT(front_.Ack(Request::kAddMemReg, SingleRegion{}, {fd, fd}), 0);
  EXPECT_EQ(CountFds(), fds);
  EXPECT_EQ(maps_set(), 0);
}

TEST_F(VhostUserMemoryTest, FdsThatAreNoMemoryAreRefused) {
  const UniqueFd event = MakeEventFd();
  const UniqueFd directory(open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  int pipe_fds[2];
  ASSERT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  const UniqueFd read_end(pipe_fds[0]);
  const UniqueFd write_end(pipe_fds[1]);
  for (const int fd : {event.get(), directory.get(), read_end.get()}) {
    EXPECT_GT(front_.Ack(Request::kSetMemTable, OneRegionTable(), {fd}), 0);
  }
}

TEST_F(VhostUserMemoryTest, RegionsComeAndGoOneByOne) {
  const RegionDescription first{0, 0x1000, 0x1000, 0};
  const RegionDescription second{0x1000, 0x1000, 0x2000, 0x1000};
  const int fds = CountFds();
  EXPECT_EQ(Add(first), 0);
  EXPECT_EQ(Add(second), 0);
  EXPECT_GT(Add(second), 0);
  EXPECT_EQ(map()->regions().size(), 2u);
  // Known by guest address, user address and size; the offset is not part of the name.
  EXPECT_GT(Remove({0, 0x1000, 0x2000, 0}), 0);
  EXPECT_GT(Remove({0, 0x2000, 0x1000, 0}), 0);
  EXPECT_EQ(Remove({0, 0x1000, 0x1000, 0x7777}), 0);
  EXPECT_EQ(map()->regions().size(), 1u);
  // The fd that some front-ends send along is closed.
  EXPECT_EQ(front_.Ack(Request::kRemMemReg, SingleRegion{0, second}, {memory_.get()}), 0);
  EXPECT_TRUE(map()->regions().empty());
  EXPECT_GT(Remove(first), 0);
  EXPECT_EQ(CountFds(), fds);
}

TEST_F(VhostUserMemoryTest, HoldsAsManyRegionsAsItSays) {
  for (uint64_t i = 0; i < kMaxMemSlots; ++i) {
    ASSERT_EQ(Add({i << 16, 0x1000, kUser + (i << 16), (i % 256) << 12}), 0) << i;
  }
  EXPECT_GT(Add({uint64_t{1} << 40, 0x1000, 0, 0}), 0);
  EXPECT_EQ(map()->regions().size(), 509u);
}

TEST_F(VhostUserMemoryTest, ARingWaitsForItsMemory) {
  ASSERT_EQ(front_.Ack(Request::kSetVringNum, VringState{0, 64}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(0)), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringKick, kVringFdNone), 0);
  EXPECT_FALSE(device_.queue(0).running);
  ASSERT_EQ(Add({0x10'0000, 0x1000, 0x10'0000, 0}), 0);
  EXPECT_FALSE(device_.queue(0).running);
  ASSERT_EQ(Add({kGuest, kMiB / 2, kUser, 0}), 0);
  EXPECT_TRUE(device_.queue(0).running);
}

TEST_F(VhostUserMemoryTest, ARingGoesWithItsMemoryAndComesBack) {
  const RegionDescription region{kGuest, kMiB, kUser, 0};
  ASSERT_EQ(Add(region), 0);
  ASSERT_EQ(Add({0, 0x1000, 0x1000, 0}), 0);
  const UniqueFd error = MakeEventFd();
  ASSERT_EQ(front_.Ack(Request::kSetVringErr, uint64_t{0}, {error.get()}), 0);
  StartRing(0, 21);
  // Of another region's end the ring knows nothing.
  ASSERT_EQ(Remove({0, 0x1000, 0x1000, 0}), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).stops, 0);
  ASSERT_EQ(Remove(region), 0);
  EXPECT_FALSE(device_.queue(0).running);
  uint64_t count = 0;
  EXPECT_EQ(read(error.get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 1u);
  // At another guest address, at the same user address: there it goes on, where it stopped.
  ASSERT_EQ(Add({kGuest + kMiB, kMiB, kUser, 0}), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).base, 21);
  EXPECT_EQ(device_.queue(0).descriptors, kGuest + kMiB);
}

TEST_F(VhostUserMemoryTest, ARefusedMapLeavesRingsWhereTheyWere) {
  ShareMemory();
  StartRing(0, 4);
  device_.With([](auto& s) { s.memory_error = absl::InternalError("no"); });
  EXPECT_GT(SetTable({{0x9000, kMiB, kUser, 0}}), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).descriptors, kGuest);
  EXPECT_EQ(device_.queue(0).base, 4);
}

TEST_F(VhostUserMemoryTest, ARingThatTheDeviceStoppedIsNotStartedByMemory) {
  ShareMemory();
  StartRing(0);
  device_.With([](auto& s) { s.queues[0].running = false; });
  ASSERT_EQ(Add({0, 0x1000, 0x1000, 0}), 0);
  EXPECT_FALSE(device_.queue(0).running);
  const UniqueFd kick = MakeEventFd();
  EXPECT_GT(front_.Ack(Request::kSetVringKick, uint64_t{0}, {kick.get()}), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringBase, VringState{0, 2}), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{0}, {kick.get()}), 0);
  EXPECT_TRUE(device_.queue(0).running);
}

class VhostUserChannelTest : public VhostUserMemoryTest {
 protected:
  // Our end of a channel whose other end the server has got.
  FrontEnd OpenChannel(int type = SOCK_STREAM) {
    int pair[2];
    EXPECT_EQ(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair), 0);
    FrontEnd channel{UniqueFd(pair[0])};
    const UniqueFd theirs(pair[1]);
    EXPECT_EQ(front_.AckBytes(Request::kSetBackendReqFd, {}, {theirs.get()}), 0);
    return channel;
  }
  static void ExpectConfigChange(const FrontEnd& channel) {
    const auto message = channel.Receive();
    ASSERT_TRUE(message);
    EXPECT_EQ(message->header.request, 2u);
    EXPECT_EQ(message->header.flags, 1u);
    EXPECT_EQ(message->header.size, 0u);
  }
};

TEST_F(VhostUserChannelTest, TellsOfAChangedConfiguration) {
  const FrontEnd channel = OpenChannel();
  device_.ChangeConfig();
  ExpectConfigChange(channel);
  // Nothing is asked for, and nothing can come back, to lie in the queue of our end.
  EXPECT_FALSE(channel.Send(static_cast<Request>(2), uint64_t{0}, {memory_.get()}));
  device_.ChangeConfig();
  ExpectConfigChange(channel);
}

TEST_F(VhostUserChannelTest, AChangeBeforeTheChannelIsToldLater) {
  device_.ChangeConfig();
  ASSERT_TRUE(front_.Alive());
  ExpectConfigChange(OpenChannel());
}

// User-mode Linux may pass one end of a pipe.
TEST_F(VhostUserChannelTest, NobodyNeedsToBeThere) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  UniqueFd read_end(fds[0]);
  {
    const UniqueFd write_end(fds[1]);
    ASSERT_EQ(front_.AckBytes(Request::kSetBackendReqFd, {}, {write_end.get()}), 0);
  }
  device_.ChangeConfig();
  Header message{};
  ASSERT_EQ(read(read_end.get(), &message, sizeof message), 12);
  EXPECT_EQ(message.request, 2u);
  // Neither SIGPIPE nor a closed connection when nobody is there any more.
  read_end.reset();
  device_.ChangeConfig();
  EXPECT_TRUE(front_.Alive());
}

TEST_F(VhostUserChannelTest, AChannelThatNobodyReadsCostsMessagesOnly) {
  const FrontEnd channel = OpenChannel();
  while (!log_.Contains("does not read its back-end channel")) {
    device_.ChangeConfig();
    ASSERT_TRUE(front_.Alive());
  }
  EXPECT_EQ(front_.Get(Request::kGetQueueNum), 2u);
  ExpectConfigChange(channel);
}

TEST_F(VhostUserChannelTest, AClosedChannelIsClosedHereToo) {
  const int before = CountFds();
  FrontEnd channel = OpenChannel();
  channel.Disconnect();
  EXPECT_TRUE(testing::Eventually([&] { return CountFds() == before; }));
  ASSERT_TRUE(front_.Alive());
}

TEST_F(VhostUserChannelTest, OddChannelsAreHarmless) {
  const UniqueFd unconnected(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const UniqueFd zero(open("/dev/zero", O_RDWR | O_CLOEXEC));
  const UniqueFd event = MakeEventFd();
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd mine(pair[0]);
  const UniqueFd packets(pair[1]);
  for (const int fd : {unconnected.get(), zero.get(), event.get(), memory_.get(), packets.get()}) {
    ASSERT_EQ(front_.AckBytes(Request::kSetBackendReqFd, {}, {fd}), 1);
    device_.ChangeConfig();
    ASSERT_TRUE(front_.Alive());
  }
}

}  // namespace
}  // namespace virtbay::vhost_user
