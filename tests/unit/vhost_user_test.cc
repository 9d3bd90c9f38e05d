// The vhost-user back-end message by message, over a socketpair, with a fake device behind it.
#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <random>

#include "tests/unit/vhost_user_fixture.h"

namespace virtbay::vhost_user {
namespace {

TEST_F(VhostUserTest, OffersFeaturesAndCounts) {
  // RING_RESET has no message here.
  EXPECT_EQ(front_.Get(Request::kGetFeatures),
            FakeDevice::kFeatures | FakeDevice::kRingPacked | kProtocolFeaturesBit);
  Negotiate();
  EXPECT_EQ(front_.Get(Request::kGetQueueNum), 2u);
  EXPECT_EQ(front_.Get(Request::kGetMaxMemSlots), 509u);
  EXPECT_EQ(front_.Ack(Request::kSetOwner), 0);
  EXPECT_EQ(device_.With([](auto& s) { return s.features; }), FakeDevice::kFeatures);
}

// User-mode Linux asks for this acknowledgement and waits for it for ever.
TEST_F(VhostUserTest, AcknowledgesTheMessageThatNegotiatesAcknowledgements) {
  EXPECT_EQ(front_.Ack(Request::kSetProtocolFeatures, kProtocolReplyAck | kProtocolConfig), 0);
  EXPECT_EQ(front_.Ack(Request::kSetOwner), 0);
}

TEST_F(VhostUserTest, RefusedProtocolFeaturesAreStillAnswered) {
  EXPECT_GT(front_.Ack(Request::kSetProtocolFeatures, kProtocolReplyAck | (uint64_t{1} << 40)), 0);
  EXPECT_TRUE(log_.Contains("SET_PROTOCOL_FEATURES: protocol features 0x10000000000"));
}

TEST_F(VhostUserTest, WithoutReplyAckNothingIsAcknowledged) {
  const uint64_t bits = kProtocolConfig;
  ASSERT_TRUE(front_.Send(Request::kSetProtocolFeatures, bits, {}, true));
  ASSERT_TRUE(front_.SendBytes(Request::kSetOwner, {}, {}, true));
  // The next thing heard is the answer to this.
  EXPECT_TRUE(front_.Alive());
}

TEST_F(VhostUserTest, MessagesWithAReplyOfTheirOwnHaveNoSecondOne) {
  Negotiate();
  ASSERT_TRUE(front_.SendBytes(Request::kGetFeatures, {}, {}, true));
  const auto reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->header.flags, 0x5u);
  EXPECT_EQ(front_.Get(Request::kGetQueueNum), 2u);
}

TEST_F(VhostUserTest, RefusesFeaturesThatWereNotOffered) {
  Negotiate();
  EXPECT_GT(front_.Ack(Request::kSetFeatures, uint64_t{1} << 40), 0);
  EXPECT_EQ(device_.With([](auto& s) { return s.features_set; }), 1);
}

TEST_F(VhostUserTest, StartsARingAtItsKickFd) {
  Negotiate();
  ShareMemory();
  const UniqueFd call = MakeEventFd();
  ASSERT_EQ(front_.Ack(Request::kSetVringCall, uint64_t{1}, {call.get()}), 0);
  StartRing(1, 7);
  auto queue = device_.queue(1);
  EXPECT_EQ(queue.size, 64);
  EXPECT_EQ(queue.base, 7);
  EXPECT_EQ(queue.descriptors, kGuest);
  EXPECT_EQ(queue.avail, kGuest + 0x1000);
  EXPECT_EQ(queue.used, kGuest + 0x2000);
  EXPECT_TRUE(queue.has_kick);
  EXPECT_TRUE(queue.has_call);
  EXPECT_FALSE(queue.enabled);  // protocol features: disabled at first
  EXPECT_EQ(front_.Ack(Request::kSetVringEnable, VringState{1, 1}), 0);
  EXPECT_TRUE(device_.queue(1).enabled);
  // Acknowledging the same features again leaves the state alone.
  EXPECT_EQ(front_.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
  EXPECT_TRUE(device_.queue(1).enabled);
  EXPECT_EQ(front_.Ack(Request::kSetVringEnable, VringState{1, 0}), 0);
  EXPECT_FALSE(device_.queue(1).enabled);
  EXPECT_TRUE(device_.queue(1).running);
}

// As QEMU does with network devices: enabled first, and the features come with the start.
TEST_F(VhostUserTest, ARingMayBeEnabledBeforeTheFeaturesAreSet) {
  ASSERT_EQ(front_.Ack(Request::kSetProtocolFeatures, kOfferedProtocolFeatures), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringEnable, VringState{0, 1}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
  ASSERT_TRUE(front_.Send(Request::kSetMemTable, OneRegionTable(), {memory_.get()}));
  for (const uint32_t ring : {0u, 1u}) {
    ASSERT_TRUE(front_.Send(Request::kSetVringNum, VringState{ring, 8}));
    ASSERT_TRUE(front_.Send(Request::kSetVringAddr, Addresses(ring)));
    ASSERT_TRUE(front_.Send(Request::kSetVringKick, kVringFdNone | ring));
  }
  ASSERT_TRUE(front_.Alive());
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_TRUE(device_.queue(0).enabled);
  EXPECT_TRUE(device_.queue(1).running);
  EXPECT_FALSE(device_.queue(1).enabled);
}

TEST_F(VhostUserTest, WithoutProtocolFeaturesRingsAreEnabled) {
  ASSERT_TRUE(front_.Send(Request::kSetFeatures, FakeDevice::kFeatures));
  ASSERT_TRUE(front_.Send(Request::kSetMemTable, OneRegionTable(), {memory_.get()}));
  ASSERT_TRUE(front_.Send(Request::kSetVringNum, VringState{0, 8}));
  ASSERT_TRUE(front_.Send(Request::kSetVringAddr, Addresses(0)));
  ASSERT_TRUE(front_.Send(Request::kSetVringKick, kVringFdNone));
  // Needs VHOST_USER_F_PROTOCOL_FEATURES, and changes nothing.
  ASSERT_TRUE(front_.Send(Request::kSetVringEnable, VringState{0, 0}));
  ASSERT_TRUE(front_.Alive());
  const auto queue = device_.queue(0);
  EXPECT_TRUE(queue.running);
  EXPECT_TRUE(queue.enabled);
  EXPECT_FALSE(queue.has_kick);  // polled
  EXPECT_TRUE(log_.Contains("SET_VRING_ENABLE: needs"));
}

// NUM, BASE, ADDR, KICK, CALL, ENABLE and SET_MEM_TABLE in each of their 5,040 orders.
TEST_F(VhostUserTest, AcceptsAnyOrderOfRingMessages) {
  ASSERT_TRUE(front_.Send(Request::kSetProtocolFeatures, kOfferedProtocolFeatures));
  ASSERT_TRUE(front_.Send(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit));
  const UniqueFd kick = MakeEventFd();
  const UniqueFd call = MakeEventFd();
  std::array<int, 7> order{0, 1, 2, 3, 4, 5, 6};
  do {
    for (const int step : order) {
      switch (step) {
        case 0:
          ASSERT_TRUE(front_.Send(Request::kSetVringNum, VringState{0, 32}));
          break;
        case 1:
          ASSERT_TRUE(front_.Send(Request::kSetVringBase, VringState{0, 9}));
          break;
        case 2:
          ASSERT_TRUE(front_.Send(Request::kSetVringAddr, Addresses(0)));
          break;
        case 3:
          ASSERT_TRUE(front_.Send(Request::kSetVringKick, uint64_t{0}, {kick.get()}));
          break;
        case 4:
          ASSERT_TRUE(front_.Send(Request::kSetVringCall, uint64_t{0}, {call.get()}));
          break;
        case 5:
          ASSERT_TRUE(front_.Send(Request::kSetVringEnable, VringState{0, 1}));
          break;
        default:
          ASSERT_TRUE(front_.Send(Request::kSetMemTable, OneRegionTable(), {memory_.get()}));
      }
    }
    ASSERT_TRUE(front_.Alive());
    const auto queue = device_.queue(0);
    ASSERT_TRUE(queue.running);
    ASSERT_TRUE(queue.enabled);
    ASSERT_EQ(queue.size, 32);
    ASSERT_EQ(queue.base, 9);
    ASSERT_TRUE(queue.has_kick);
    ASSERT_TRUE(queue.has_call);
    // Back to the beginning: the reset, and no memory.
    ASSERT_TRUE(front_.Send(Request::kResetDevice));
    ASSERT_TRUE(front_.Send(Request::kSetMemTable, MemTableHeader{0, 0}));
    ASSERT_TRUE(front_.Send(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit));
  } while (std::next_permutation(order.begin(), order.end()));
  EXPECT_FALSE(log_.Contains("warn"));
}

TEST_F(VhostUserTest, GetVringBaseStopsTheRing) {
  Negotiate();
  ShareMemory();
  StartRing(0, 40'000);
  ASSERT_TRUE(front_.Send(Request::kGetVringBase, VringState{0, 0}));
  auto reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->header.flags, 0x5u);
  EXPECT_EQ(reply->As<VringState>().index, 0u);
  EXPECT_EQ(reply->As<VringState>().num, 40'000u);
  EXPECT_FALSE(device_.queue(0).running);
  // A second time: the same index, from a ring that no longer runs.
  ASSERT_TRUE(front_.Send(Request::kGetVringBase, VringState{0, 0}));
  reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->As<VringState>().num, 40'000u);
  // The addresses were forgotten, so a kick fd alone does not start it.
  const UniqueFd kick = MakeEventFd();
  EXPECT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{0}, {kick.get()}), 0);
  EXPECT_FALSE(device_.queue(0).running);
  EXPECT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(0)), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).base, 40'000);
  EXPECT_FALSE(device_.queue(0).has_call);
}

TEST_F(VhostUserTest, ARingWhoseRequestsDoNotEndEndsTheConnection) {
  Negotiate();
  ShareMemory();
  StartRing(0);
  device_.With([](auto& s) { s.stop_error = absl::DeadlineExceededError("3 in flight"); });
  ASSERT_TRUE(front_.Send(Request::kGetVringBase, VringState{0, 0}));
  EXPECT_TRUE(front_.Closed());
}

TEST_F(VhostUserTest, FdsOfARingAreEventfdsOrUnixSockets) {
  Negotiate();
  ShareMemory();
  const UniqueFd zero(open("/dev/zero", O_RDWR | O_CLOEXEC));
  const UniqueFd file = MakeMemory(4096);
  const UniqueFd net(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  // These have no type of file either, and a read of some waits for their other users.
  const UniqueFd timer(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
  const UniqueFd polls(epoll_create1(EPOLL_CLOEXEC));
  const UniqueFd notify(inotify_init1(IN_CLOEXEC));
  for (const int fd : {zero.get(), file.get(), net.get(), timer.get(), polls.get(), notify.get()}) {
    for (const Request request :
         {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr}) {
      EXPECT_EQ(front_.Ack(request, uint64_t{0}, {fd}), 1);
      EXPECT_TRUE(log_.Contains("ring 0: the descriptor is no eventfd, pipe or Unix socket"));
    }
  }
  int pipe[2] = {-1, -1};
  ASSERT_EQ(pipe2(pipe, O_CLOEXEC), 0);
  const UniqueFd reader(pipe[0]);
  const UniqueFd writer(pipe[1]);
  EXPECT_EQ(front_.Ack(Request::kSetVringCall, uint64_t{0}, {writer.get()}), 1);
  // What user-mode Linux calls a pipe is a pair of sockets.
  int pair[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const UniqueFd mine(pair[0]);
  const UniqueFd theirs(pair[1]);
  EXPECT_EQ(front_.Ack(Request::kSetVringCall, uint64_t{0}, {theirs.get()}), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringErr, uint64_t{0}, {theirs.get()}), 0);
  // The lock of its reading side can be held by somebody who sleeps.
  EXPECT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{0}, {theirs.get()}), 1);
  EXPECT_TRUE(log_.Contains("ring 0: the descriptor is a socket, not an eventfd"));
}

TEST_F(VhostUserTest, FdsOfARunningRingAreReplaced) {
  Negotiate();
  ShareMemory();
  StartRing(0);
  EXPECT_FALSE(device_.queue(0).has_call);
  const UniqueFd fd = MakeEventFd();
  EXPECT_EQ(front_.Ack(Request::kSetVringCall, uint64_t{0}, {fd.get()}), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringErr, uint64_t{0}, {fd.get()}), 0);
  EXPECT_TRUE(device_.queue(0).has_call);
  EXPECT_TRUE(device_.queue(0).has_error);
  EXPECT_EQ(front_.Ack(Request::kSetVringCall, kVringFdNone), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringErr, kVringFdNone), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringKick, kVringFdNone), 0);
  EXPECT_FALSE(device_.queue(0).has_call);
  EXPECT_FALSE(device_.queue(0).has_error);
  EXPECT_FALSE(device_.queue(0).has_kick);
  EXPECT_EQ(device_.queue(0).starts, 1);
}

TEST_F(VhostUserTest, ARunningRingMovesToNewAddresses) {
  Negotiate();
  ShareMemory();
  StartRing(0, 5);
  EXPECT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(0)), 0);
  EXPECT_EQ(device_.queue(0).starts, 1);  // the same: not disturbed
  EXPECT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(0, 0x8000)), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).starts, 2);
  EXPECT_EQ(device_.queue(0).base, 5);
  EXPECT_EQ(device_.queue(0).descriptors, kGuest + 0x8000);
}

TEST_F(VhostUserTest, SizeAndIndexOfAnEnabledRunningRingAreFixed) {
  Negotiate();
  ShareMemory();
  StartRing(0);
  ASSERT_EQ(front_.Ack(Request::kSetVringEnable, VringState{0, 1}), 0);
  EXPECT_EQ(front_.Ack(Request::kSetVringNum, VringState{0, 64}), 0);  // as it is
  EXPECT_GT(front_.Ack(Request::kSetVringNum, VringState{0, 32}), 0);
  EXPECT_GT(front_.Ack(Request::kSetVringBase, VringState{0, 3}), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).starts, 1);
}

// User-mode Linux unbinds a driver with SET_VRING_ENABLE 0 and GET_FEATURES only, and binds the
// next one over it.
TEST_F(VhostUserTest, ADriverIsBoundAgainWithoutGetVringBase) {
  Negotiate();
  ShareMemory();
  StartRing(0, 11);
  ASSERT_EQ(front_.Ack(Request::kSetVringEnable, VringState{0, 1}), 0);
  EXPECT_GT(front_.Ack(Request::kSetFeatures, (uint64_t{1} << 32) | kProtocolFeaturesBit), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringEnable, VringState{0, 0}), 0);
  ASSERT_TRUE(front_.Alive());
  EXPECT_EQ(front_.Ack(Request::kSetFeatures, (uint64_t{1} << 32) | kProtocolFeaturesBit), 0);
  EXPECT_EQ(device_.With([](auto& s) { return s.features; }), uint64_t{1} << 32);
  ShareMemory();
  StartRing(0, 0);
  EXPECT_EQ(device_.queue(0).base, 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringEnable, VringState{0, 1}), 0);
  EXPECT_TRUE(device_.queue(0).enabled);
}

// ---- packed rings -------------------------------------------------------------------------------

class VhostUserPackedTest : public VhostUserTest {
 protected:
  static constexpr uint64_t kPacked =
      FakeDevice::kFeatures | FakeDevice::kRingPacked | kProtocolFeaturesBit;

  void SetUp() override {
    VhostUserTest::SetUp();
    Negotiate();
    ASSERT_EQ(front_.Ack(Request::kSetFeatures, kPacked), 0);
    ShareMemory();
  }
};

TEST_F(VhostUserPackedTest, ABaseCarriesBothPlacesAndWrapCounters) {
  for (const uint32_t base : {0x8000u, 0x0000'0001u, 0x8004'8005u, 0x803f'0001u, 0xffff'ffffu}) {
    StartRing(0, base);
    EXPECT_EQ(device_.queue(0).base, base);
    ASSERT_TRUE(front_.Send(Request::kGetVringBase, VringState{0, 0}));
    const auto reply = front_.Receive();
    ASSERT_TRUE(reply.has_value());
    EXPECT_EQ(reply->As<VringState>().num, base);
  }
  // Not given: a new ring.
  ASSERT_EQ(front_.Ack(Request::kSetVringNum, VringState{1, 64}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(1)), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{1} | kVringFdNone), 0);
  EXPECT_TRUE(device_.queue(1).running);
  EXPECT_EQ(device_.queue(1).base, 0u);
}

TEST_F(VhostUserPackedTest, SizesNeedNotBePowersOfTwo) {
  for (const uint32_t size : {1u, 3u, 100u, 255u}) {
    EXPECT_EQ(front_.Ack(Request::kSetVringNum, VringState{0, size}), 0) << size;
  }
  for (const uint32_t size : {0u, FakeDevice::kMaxQueueSize + 1u, 65'536u + 100u}) {
    EXPECT_GT(front_.Ack(Request::kSetVringNum, VringState{0, size}), 0) << size;
  }
}

// Its event suppression areas are four bytes each, wherever they are.
TEST_F(VhostUserPackedTest, ThePartsOfThePackedRingAreLookedFor) {
  VringAddress at = Addresses(0);
  ASSERT_EQ(front_.Ack(Request::kSetVringNum, VringState{0, 64}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringBase, VringState{0, 0x8000}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{0} | kVringFdNone), 0);
  // The last bytes of memory, too few for the areas of a split ring.
  at.avail = kUser + kMiB - 8;
  at.used = at.avail + 4;
  ASSERT_EQ(front_.Ack(Request::kSetVringAddr, at), 0);
  EXPECT_TRUE(device_.queue(0).running);
}

// What was known of a ring in one layout is nothing in the other.
TEST_F(VhostUserPackedTest, AnotherLayoutWaitsForANewStart) {
  StartRing(0, 0x8005);
  ASSERT_EQ(front_.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
  EXPECT_FALSE(device_.queue(0).running);
  EXPECT_GT(front_.Ack(Request::kSetVringNum, VringState{0, 100}), 0);
  EXPECT_GT(front_.Ack(Request::kSetVringBase, VringState{0, 0x8000'8000}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{0} | kVringFdNone), 0);
  EXPECT_TRUE(device_.queue(0).running);
  EXPECT_EQ(device_.queue(0).base, 0u);
}

TEST_F(VhostUserTest, ResetForgetsRingsAndFeaturesButNotMemory) {
  Negotiate();
  ShareMemory();
  for (const Request request : {Request::kResetDevice, Request::kSetStatus}) {
    StartRing(0, 3);
    if (request == Request::kSetStatus) {
      EXPECT_EQ(front_.Ack(request, uint64_t{15}), 0);
      EXPECT_EQ(front_.Get(Request::kGetStatus), 15u);
      EXPECT_EQ(front_.Ack(request, uint64_t{0}), 0);
      EXPECT_EQ(front_.Get(Request::kGetStatus), 0u);
    } else {
      EXPECT_EQ(front_.Ack(request), 0);
    }
    EXPECT_FALSE(device_.queue(0).running);
    ASSERT_EQ(front_.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
  }
  EXPECT_EQ(device_.With([](auto& s) { return s.resets; }), 2);
  StartRing(0);
  EXPECT_EQ(front_.Ack(Request::kResetOwner), 0);
  EXPECT_FALSE(device_.queue(0).enabled);
}

TEST_F(VhostUserTest, StatusThatDoesNotFitIsRefused) {
  Negotiate();
  EXPECT_GT(front_.Ack(Request::kSetStatus, uint64_t{256}), 0);
  EXPECT_EQ(device_.With([](auto& s) { return s.resets; }), 0);
}

// CVE-2020-10723: an index that is cut to a ring that there is.
TEST_F(VhostUserTest, UnknownRingsAreRefusedInEveryMessage) {
  Negotiate();
  ShareMemory();
  const UniqueFd fd = MakeEventFd();
  const int before = CountFds();
  for (const uint32_t index : {2u, 255u, 256u, 257u, 65'536u, 0xffff'ffffu}) {
    EXPECT_GT(front_.Ack(Request::kSetVringNum, VringState{index, 16}), 0) << index;
    EXPECT_GT(front_.Ack(Request::kSetVringBase, VringState{index, 0}), 0) << index;
    EXPECT_GT(front_.Ack(Request::kSetVringAddr, Addresses(index)), 0) << index;
    EXPECT_GT(front_.Ack(Request::kSetVringEnable, VringState{index, 1}), 0) << index;
    for (const Request request :
         {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr}) {
      EXPECT_GT(front_.Ack(request, uint64_t{index}, {fd.get()}), 0) << index;
      EXPECT_GT(front_.Ack(request, uint64_t{index} | 0x1'0000'0000, {fd.get()}), 0) << index;
    }
  }
  // 2^32 + 0 is not ring 0.
  EXPECT_GT(front_.Ack(Request::kSetVringKick, uint64_t{1} << 32, {fd.get()}), 0);
  EXPECT_EQ(CountFds(), before);
  ASSERT_TRUE(front_.Send(Request::kGetVringBase, VringState{256, 0}));
  EXPECT_TRUE(front_.Closed());
}

// CVE-2019-14818: sizes of a ring that it cannot have.
TEST_F(VhostUserTest, RingValuesOutOfRangeAreRefused) {
  Negotiate();
  ShareMemory();
  for (const uint32_t size : {0u, 3u, 512u, 32'768u, 32'769u, 65'536u + 256u, 0xffff'ffffu}) {
    EXPECT_GT(front_.Ack(Request::kSetVringNum, VringState{0, size}), 0) << size;
  }
  EXPECT_GT(front_.Ack(Request::kSetVringBase, VringState{0, 65'536}), 0);
  EXPECT_GT(front_.Ack(Request::kSetVringEnable, VringState{0, 2}), 0);
  for (VringAddress bad : {VringAddress{0, 1, kDescriptors, kUsed, kAvail, 0},
                           VringAddress{0, 0, kDescriptors + 8, kUsed, kAvail, 0},
                           VringAddress{0, 0, kDescriptors, kUsed + 2, kAvail, 0},
                           VringAddress{0, 0, kDescriptors, kUsed, kAvail + 1, 0}}) {
    EXPECT_GT(front_.Ack(Request::kSetVringAddr, bad), 0);
  }
  // Outside the memory, across its end, and round the end of the address space. log is not looked
  // at without its flag.
  ASSERT_EQ(front_.Ack(Request::kSetVringNum, VringState{0, 256}), 0);
  ASSERT_EQ(front_.Ack(Request::kSetVringKick, kVringFdNone), 0);
  for (VringAddress bad : {VringAddress{0, 0, 0x1000, kUsed, kAvail, ~uint64_t{0}},
                           VringAddress{0, 0, kUser + kMiB - 16, kUsed, kAvail, 0},
                           VringAddress{0, 0, kDescriptors, kUser + kMiB - 8, kAvail, 0},
                           VringAddress{0, 0, kDescriptors, kUsed, ~uint64_t{0} - 1, 0}}) {
    EXPECT_GT(front_.Ack(Request::kSetVringAddr, bad), 0);
  }
  EXPECT_FALSE(device_.queue(0).running);
  EXPECT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(0)), 0);
  EXPECT_TRUE(device_.queue(0).running);
}

TEST_F(VhostUserTest, FdsMustAgreeWithTheirFlag) {
  Negotiate();
  const UniqueFd fd = MakeEventFd();
  const int before = CountFds();
  for (const Request request :
       {Request::kSetVringKick, Request::kSetVringCall, Request::kSetVringErr}) {
    EXPECT_GT(front_.Ack(request, uint64_t{0}), 0);
    EXPECT_GT(front_.Ack(request, kVringFdNone, {fd.get()}), 0);
    EXPECT_GT(front_.Ack(request, uint64_t{0}, {fd.get(), fd.get()}), 0);
  }
  EXPECT_EQ(CountFds(), before);
}

// CVE-2019-14818, CVE-2022-0669: descriptors that come with messages which take none.
// CVE-2020-10722, CVE-2020-10726, CVE-2021-3839: those of a log and of an inflight region, neither
// of which is offered, are among them.
// Every message with payload sizes round every boundary and with 0, 1, 2 and 8 fds: answered or,
// where the protocol has no word for a failure, disconnected; no descriptor stays behind.
TEST_F(VhostUserTest, EverySizeAndFdCountOfEveryMessage) {
  constexpr size_t kSizes[] = {0,  1,  7,  8,  9,   11,  12,  13,  39, 40,
                               41, 71, 72, 73, 264, 265, 268, 269, 300};
  const UniqueFd fd = MakeEventFd();
  const std::vector<std::byte> zeros(300);
  Negotiate();
  ASSERT_TRUE(front_.Alive());
  const int before = CountFds();
  const auto reconnect = [&] {
    Connect();
    Negotiate();
  };
  for (uint32_t request = 0; request < 50; ++request) {
    for (const size_t fds : {0u, 1u, 2u, 8u}) {
      for (const size_t size : kSizes) {
        // SET_PROTOCOL_FEATURES may have taken the acknowledgements away; the answer to this one
        // ends the answers to that one.
        if (!front_.SendBytes(static_cast<Request>(request), std::span(zeros).first(size),
                              std::vector<int>(fds, fd.get()), true) ||
            !front_.Send(Request::kGetQueueNum)) {
          reconnect();
          continue;
        }
        auto reply = front_.Receive();
        while (reply && reply->header.request != static_cast<uint32_t>(Request::kGetQueueNum)) {
          reply = front_.Receive();
        }
        if (!reply) {
          ASSERT_TRUE(front_.Closed());
          reconnect();
        } else if (request == static_cast<uint32_t>(Request::kGetQueueNum)) {
          ASSERT_TRUE(front_.Receive());
        }
      }
    }
    // What a good message left (rings' fds, memory, the channel) goes with the connection.
    reconnect();
    ASSERT_TRUE(front_.Alive());
    ASSERT_EQ(CountFds(), before) << request;
  }
}

TEST_F(VhostUserTest, MalformedFramingDisconnects) {
  const UniqueFd fd = MakeEventFd();
  struct Case {
    Header header;
    size_t fds;
  };
  const int before = CountFds();
  for (const Case& bad :
       {Case{{1, 0x0, 0}, 0}, Case{{1, 0x2, 0}, 1}, Case{{1, 0x3, 0}, 0}, Case{{1, 0x5, 0}, 1},
        Case{{1, 0x1, kMaxPayload + 1}, 1}, Case{{1, 0x1, 0xffff'ffff}, 0}, Case{{3, 0x1, 0}, 9},
        Case{{3, 0x1, 0}, 32}, Case{{3, 0x1, 0}, 33}, Case{{3, 0x1, 0}, 253}}) {
    ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&bad.header, 1)),
                               std::vector<int>(bad.fds, fd.get())));
    EXPECT_TRUE(front_.Closed());
    Connect();
    ASSERT_TRUE(front_.Alive());
    EXPECT_EQ(CountFds(), before) << bad.header.request << " " << bad.fds;
  }
}

TEST_F(VhostUserTest, FdsInsideAPayloadDisconnect) {
  const UniqueFd fd = MakeEventFd();
  const Header header{static_cast<uint32_t>(Request::kSetVringKick), kVersion, 8};
  const uint64_t payload = 0;
  const int before = CountFds();
  ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&header, 1))));
  ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&payload, 1)), {fd.get()}));
  EXPECT_TRUE(front_.Closed());
  WaitUntilGone();
  server_.reset();
  EXPECT_LT(CountFds(), before);
}

TEST_F(VhostUserTest, MessagesMayArriveByteByByte) {
  Negotiate();
  const UniqueFd fd = MakeEventFd();
  struct {
    Header header{static_cast<uint32_t>(Request::kSetVringCall), kVersion | kFlagNeedReply, 8};
    uint32_t low = 1;
    uint32_t high = 0;
  } message;
  const auto bytes = std::as_bytes(std::span(&message, 1));
  for (size_t i = 0; i < bytes.size(); ++i) {
    const std::vector<int> fds(i == 0 ? 1 : 0, fd.get());
    ASSERT_TRUE(front_.SendRaw(bytes.subspan(i, 1), fds));
  }
  const auto reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->As<uint64_t>(), 0u);
}

TEST_F(VhostUserTest, TheEndInsideAMessageIsAnEnd) {
  const Header header{2, kVersion, 8};
  ASSERT_TRUE(front_.SendRaw(std::as_bytes(std::span(&header, 1)).first(7)));
  front_.Disconnect();
  WaitUntilGone();
  EXPECT_TRUE(log_.Contains("ended inside a message header"));
}

TEST_F(VhostUserTest, UnknownMessagesAreRefusedAndTheConnectionGoesOn) {
  Negotiate();
  EXPECT_GT(front_.Ack(static_cast<Request>(4711), uint64_t{1}), 0);
  EXPECT_GT(front_.Ack(Request::kNetSetMtu, uint64_t{1500}), 0);
  EXPECT_TRUE(log_.Contains("message 4711: unknown"));
  EXPECT_TRUE(log_.Contains("NET_SET_MTU: needs a feature not offered"));
  // Nothing could be answered to this one that its sender would understand.
  ASSERT_TRUE(front_.Send(Request::kGetSharedObject, VringState{0, 0}));
  EXPECT_TRUE(front_.Closed());
}

TEST_F(VhostUserTest, MessagesNeedTheirProtocolFeature) {
  ASSERT_EQ(front_.Ack(Request::kSetProtocolFeatures, kProtocolReplyAck), 0);
  const UniqueFd fd = MakeEventFd();
  EXPECT_GT(front_.Ack(Request::kResetDevice), 0);
  EXPECT_GT(front_.Ack(Request::kSetStatus, uint64_t{0}), 0);
  EXPECT_GT(front_.AckBytes(Request::kSetBackendReqFd, {}, {fd.get()}), 0);
  EXPECT_GT(front_.Ack(Request::kAddMemReg, SingleRegion{}, {memory_.get()}), 0);
  EXPECT_EQ(device_.With([](auto& s) { return s.resets; }), 0);
}

struct ConfigMessage {
  ConfigHeader header{};
  std::array<std::byte, kMaxConfigSize> data{};
};

TEST_F(VhostUserTest, ConfigurationIsReadInTheSizeAskedFor) {
  Negotiate();
  ConfigMessage message;
  // UML: the payload is as long as what it asks for, which may be more than this device has.
  for (const uint32_t size : {1u, 4u, 16u, 17u, 60u, 256u}) {
    message.header = {0, size, 0};
    ASSERT_TRUE(
        front_.SendBytes(Request::kGetConfig,
                         std::as_bytes(std::span(&message, 1)).first(sizeof(ConfigHeader) + size)));
    const auto reply = front_.Receive();
    ASSERT_TRUE(reply);
    ASSERT_EQ(reply->payload.size(), sizeof(ConfigHeader) + size);
    const auto config = reply->As<ConfigMessage>();
    EXPECT_EQ(config.header.size, size);
    for (uint32_t i = 0; i < size; ++i) {
      EXPECT_EQ(config.data[i], std::byte(i < 16 ? i + 1 : 0)) << i;
    }
  }
  message.header = {12, 4, 0};
  ASSERT_TRUE(front_.Send(Request::kGetConfig, message));
  const auto reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->As<ConfigMessage>().data[0], std::byte{13});
}

// CVE-2020-10724: sizes and offsets beyond the configuration.
TEST_F(VhostUserTest, ConfigurationErrorsAreEmptyReplies) {
  Negotiate();
  for (const ConfigHeader bad :
       {ConfigHeader{16, 1, 0}, ConfigHeader{0, 257, 0}, ConfigHeader{0xffff'fffc, 8, 0},
        ConfigHeader{8, 0xffff'fffc, 0}, ConfigHeader{15, 250, 0}}) {
    ASSERT_TRUE(front_.Send(Request::kGetConfig, bad));
    const auto reply = front_.Receive();
    ASSERT_TRUE(reply);
    EXPECT_EQ(reply->header.size, 0u);
    EXPECT_EQ(reply->header.flags, 0x5u);
  }
  // Too short to hold even the header of its payload.
  ASSERT_TRUE(front_.Send(Request::kGetConfig, uint32_t{0}));
  const auto reply = front_.Receive();
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->header.size, 0u);
}

TEST_F(VhostUserTest, ConfigurationIsWrittenWithinItsBounds) {
  Negotiate();
  ConfigMessage message;
  message.data.fill(std::byte{0xee});
  const auto write = [&](uint32_t offset, uint32_t size, uint32_t flags, size_t sent) {
    message.header = {offset, size, flags};
    return front_.AckBytes(
        Request::kSetConfig,
        std::as_bytes(std::span(&message, 1)).first(sizeof(ConfigHeader) + sent));
  };
  EXPECT_EQ(write(4, 2, 0, 2), 0);
  EXPECT_EQ(write(8, 2, 1, 256), 0);
  EXPECT_GT(write(0, 4, 0, 3), 0);
  EXPECT_GT(write(0, 0xffff'ffff, 0, 8), 0);
  EXPECT_GT(write(15, 2, 0, 2), 0);
  EXPECT_GT(write(0xffff'ffff, 2, 0, 2), 0);
  EXPECT_GT(write(0, 1, 2, 1), 0);
  const auto config = device_.With([](auto& s) { return s.config; });
  EXPECT_EQ(config[3], std::byte{4});
  EXPECT_EQ(config[4], std::byte{0xee});
  EXPECT_EQ(config[5], std::byte{0xee});
  EXPECT_EQ(config[6], std::byte{7});
  EXPECT_EQ(config[8], std::byte{0xee});
  EXPECT_EQ(config[15], std::byte{16});
}

// Garbage with a correct header, 10,000 times, always from the same seed.
TEST_F(VhostUserTest, SurvivesRandomMessages) {
  std::mt19937 random(20'261'122);
  const auto pick = [&](uint32_t bound) {
    return std::uniform_int_distribution<uint32_t>(0, bound)(random);
  };
  constexpr uint64_t kNice[] = {0,
                                1,
                                2,
                                255,
                                256,
                                0x100,
                                64,
                                kUser,
                                kGuest,
                                kMiB,
                                ~uint64_t{0},
                                kOfferedProtocolFeatures,
                                FakeDevice::kFeatures};
  constexpr size_t kSizes[] = {0, 8, 8, 8, 12, 40, 40, 72, 268};
  const UniqueFd event = MakeEventFd();
  ASSERT_TRUE(front_.Alive());
  const int before = CountFds();
  std::array<uint64_t, 64> payload{};
  for (int i = 0; i < 10'000; ++i) {
    for (uint64_t& word : payload) {
      word =
          pick(3) == 0 ? (uint64_t{random()} << 32 | random()) : kNice[pick(std::size(kNice) - 1)];
    }
    const std::vector<int> fds(pick(3) == 0 ? pick(9) : pick(1),
                               pick(1) == 0 ? event.get() : memory_.get());
    const Header header{pick(45), (pick(15) == 0 ? pick(15) : kVersion) | (pick(1) << 3),
                        static_cast<uint32_t>(pick(50) == 0 ? pick(300) : kSizes[pick(8)])};
    std::vector<std::byte> bytes(sizeof header + std::min<size_t>(header.size, sizeof payload));
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, payload.data(), bytes.size() - sizeof header);
    // Replies are left in the socket now and then, so that the server has to wait with them.
    char dropped[4096];
    if (pick(7) == 0) static_cast<void>(recv(front_.fd(), dropped, sizeof dropped, MSG_DONTWAIT));
    pollfd writable{front_.fd(), POLLOUT, 0};
    if (poll(&writable, 1, 0) != 1 || !front_.SendRaw(bytes, fds)) {
      ASSERT_TRUE(front_.Closed());
      Connect();
    }
  }
  Connect();
  ASSERT_TRUE(front_.Alive());
  EXPECT_EQ(CountFds(), before);
}

// A front-end that sends and never reads costs one reply, and neither the server's thread nor its
// end.
TEST_F(VhostUserTest, AFrontEndThatNeverReadsBlocksOnlyItself) {
  ASSERT_TRUE(front_.Alive());
  const Header header{static_cast<uint32_t>(Request::kGetFeatures), kVersion, 0};
  std::vector<std::byte> many(sizeof header * 1000);
  for (size_t i = 0; i < 1000; ++i) {
    std::memcpy(many.data() + i * sizeof header, &header, sizeof header);
  }
  while (send(front_.fd(), many.data(), many.size(), MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
  }
  server_.reset();
  WaitUntilGone();
}

}  // namespace
}  // namespace virtbay::vhost_user
