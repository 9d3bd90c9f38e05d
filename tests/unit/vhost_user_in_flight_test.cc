// GET_INFLIGHT_FD and SET_INFLIGHT_FD: the memory that is made, and what a front-end may give.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "framework/virtq/in_flight_log.h"
#include "hostif/guest/vhost_user_channel.h"
#include "tests/unit/vhost_user_fixture.h"

namespace virtbay::vhost_user {
namespace {

struct Wire {
  uint64_t mmap_size = 0;
  uint64_t mmap_offset = 0;
  uint16_t num_queues = 0;
  uint16_t queue_size = 0;

  std::vector<std::byte> Bytes(size_t size = kInflightSize) const {
    std::vector<std::byte> bytes(size);
    const InflightDescription description{mmap_size, mmap_offset, num_queues, queue_size};
    std::memcpy(bytes.data(), &description, std::min(size, sizeof description));
    return bytes;
  }
};

class VhostUserInFlightTest : public VhostUserTest {
 protected:
  void SetUp() override {
    Negotiate();
    ShareMemory();
  }
  // The answer of GET_INFLIGHT_FD, with its descriptor.
  std::optional<guest::VhostUserMessage> Get(const Wire& wanted, size_t size = kInflightSize) {
    if (!front_.SendBytes(Request::kGetInflightFd, wanted.Bytes(size))) return std::nullopt;
    guest::VhostUserChannel channel(UniqueFd(fcntl(front_.fd(), F_DUPFD_CLOEXEC, 0)));
    auto message = channel.Receive();
    if (!message.ok()) return std::nullopt;
    return *std::move(message);
  }
  int64_t Set(const Wire& given, int fd) {
    return front_.AckBytes(Request::kSetInflightFd, given.Bytes(), {fd});
  }
};

TEST_F(VhostUserInFlightTest, MakesMemoryForEveryRing) {
  for (const size_t size : {size_t{kInflightSize}, sizeof(InflightDescription)}) {
    const auto reply = Get({0, 0, 2, 64}, size);
    ASSERT_TRUE(reply.has_value());
    EXPECT_EQ(reply->header.flags, 0x5u);
    ASSERT_EQ(reply->payload.size(), size) << "as the front-end's struct is";
    InflightDescription made{};
    std::memcpy(&made, reply->payload.data(), kInflightSize);
    EXPECT_EQ(made.mmap_size, 2 * InFlightLogSize(false, 64));
    EXPECT_EQ(made.mmap_offset, 0u);
    EXPECT_EQ(made.num_queues, 2);
    EXPECT_EQ(made.queue_size, 64);
    ASSERT_EQ(reply->fds.size(), 1u);
    EXPECT_EQ(lseek(reply->fds[0].get(), 0, SEEK_END), static_cast<off_t>(made.mmap_size));
    EXPECT_NE(ftruncate(reply->fds[0].get(), 0), 0) << "nobody can take it away";
  }
}

TEST_F(VhostUserInFlightTest, DoesNotKeepWhatItMade) {
  // With the answer to a later message the server is done with the one before.
  const auto count = [this] {
    EXPECT_TRUE(front_.Get(Request::kGetFeatures).has_value());
    return CountFds();
  };
  ASSERT_TRUE(Get({0, 0, 2, 64}).has_value());
  const int before = count();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(Get({0, 0, 2, 64}).has_value());
  EXPECT_EQ(count(), before);
}

TEST_F(VhostUserInFlightTest, RingsGetTheirRegions) {
  auto reply = Get({0, 0, 2, 64});
  ASSERT_TRUE(reply.has_value());
  const uint64_t size = InFlightLogSize(false, 64);
  ASSERT_EQ(Set({2 * size, 0, 2, 64}, reply->fds[0].get()), 0);
  StartRing(0);
  StartRing(1);
  for (uint32_t i = 0; i < 2; ++i) {
    const SharedArea area = device_.queue(i).in_flight;
    ASSERT_TRUE(area);
    EXPECT_EQ(area.offset, i * size);
    EXPECT_EQ(area.size, size);
  }
  EXPECT_NE(Set({2 * size, 0, 2, 64}, reply->fds[0].get()), 0) << "while a ring runs";
}

TEST_F(VhostUserInFlightTest, RingsBeyondHaveNone) {
  auto reply = Get({0, 0, 1, 64});
  ASSERT_TRUE(reply.has_value());
  ASSERT_EQ(Set({InFlightLogSize(false, 64), 0, 1, 64}, reply->fds[0].get()), 0);
  StartRing(1);
  EXPECT_FALSE(device_.queue(1).in_flight);
}

TEST_F(VhostUserInFlightTest, AResetForgetsWhatWasInFlight) {
  auto reply = Get({0, 0, 1, 64});
  ASSERT_TRUE(reply.has_value());
  const uint64_t size = InFlightLogSize(false, 64);
  ASSERT_EQ(Set({size, 0, 1, 64}, reply->fds[0].get()), 0);
  SplitLogHeader header{};
  header.version = 1;
  ASSERT_EQ(pwrite(reply->fds[0].get(), &header, sizeof header, 0),
            static_cast<ssize_t>(sizeof header));
  ASSERT_EQ(front_.Ack(Request::kResetDevice), 0);
  ASSERT_EQ(pread(reply->fds[0].get(), &header, sizeof header, 0),
            static_cast<ssize_t>(sizeof header));
  EXPECT_EQ(header.version, 0);
}

TEST_F(VhostUserInFlightTest, ANewPlaceForARingThatStoppedForgetsItsLog) {
  auto reply = Get({0, 0, 1, 64});
  ASSERT_TRUE(reply.has_value());
  const uint64_t size = InFlightLogSize(false, 64);
  ASSERT_EQ(Set({size, 0, 1, 64}, reply->fds[0].get()), 0);
  StartRing(0, 7);
  const auto state = [&] {
    front_.Send(Request::kGetVringBase, VringState{0, 0});
    return front_.Receive()->As<VringState>().num;
  };
  const uint32_t stopped = state();
  SplitLogHeader header{};
  header.version = 1;
  const auto put = [&] { return pwrite(reply->fds[0].get(), &header, sizeof header, 0); };
  const auto version = [&] {
    SplitLogHeader now{};
    EXPECT_EQ(pread(reply->fds[0].get(), &now, sizeof now, 0), static_cast<ssize_t>(sizeof now));
    return now.version;
  };
  ASSERT_GT(put(), 0);
  StartRing(0, stopped);
  EXPECT_EQ(version(), 1) << "it goes on";
  state();
  StartRing(0, stopped + 9);
  EXPECT_EQ(version(), 0) << "it is another one";
}

TEST_F(VhostUserInFlightTest, RefusesWhatCannotBe) {
  const uint64_t size = InFlightLogSize(false, 64);
  const UniqueFd good = MakeMemory(2 * size);
  const Wire wrong[] = {
      {2 * size, 0, 0, 64},        {2 * size, 0, 2, 0},
      {2 * size, 0, 2, 72},        {2 * size, 4, 2, 64},
      {2 * size, 8, 2, 64},        {2 * size + 8, 0, 2, 64},
      {UINT64_MAX, 0, 2, 64},      {2 * size, UINT64_MAX - 7, 2, 64},
      {2 * size, 0, 65535, 32768}, {0, 0, 1, 1},
      {2 * size, 0, 2, 32769},
  };
  for (const Wire& wire : wrong) {
    EXPECT_GT(Set(wire, good.get()), 0) << wire.mmap_size << " " << wire.num_queues;
  }
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_GT(Set({2 * size, 0, 2, 64}, pipes[0]), 0);
  close(pipes[0]);
  close(pipes[1]);
  EXPECT_GT(front_.AckBytes(Request::kSetInflightFd, Wire{2 * size, 0, 2, 64}.Bytes()), 0);
  EXPECT_EQ(Set({2 * size, 0, 2, 64}, good.get()), 0);
  EXPECT_TRUE(front_.Alive());
}

TEST_F(VhostUserInFlightTest, AsksForMoreThanThereCanBeEndTheConnection) {
  ASSERT_TRUE(front_.SendBytes(Request::kGetInflightFd, Wire{0, 0, 0, 64}.Bytes()));
  EXPECT_TRUE(front_.Closed());
}

}  // namespace
}  // namespace virtbay::vhost_user
