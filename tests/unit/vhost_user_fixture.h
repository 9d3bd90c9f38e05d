// VhostUserTest: a server with a fake device behind it and a connection that the test speaks on.
// Owned by GoogleTest; the test's thread, while the server has its own.
#ifndef VIRTBAY_TESTS_UNIT_VHOST_USER_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_VHOST_USER_FIXTURE_H_

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "hostif/vhost_user/server.h"
#include "tests/support/fake_device_port.h"
#include "tests/support/log_capture.h"
#include "tests/support/status_matchers.h"
#include "tests/support/vhost_user_front_end.h"

namespace virtbay::vhost_user {

using testing::CountFds;
using testing::FakeDevice;
using testing::FrontEnd;
using testing::MakeEventFd;
using testing::MakeMemory;

inline constexpr uint64_t kMiB = 1u << 20;
inline constexpr uint64_t kGuest = 0x1000'0000;
inline constexpr uint64_t kUser = 0x7f00'0000'0000;
inline constexpr uint64_t kDescriptors = kUser;
inline constexpr uint64_t kAvail = kUser + 0x1000;
inline constexpr uint64_t kUsed = kUser + 0x2000;

struct OneRegionTable {
  MemTableHeader header{1, 0};
  RegionDescription region{kGuest, kMiB, kUser, 0};
};

inline VringAddress Addresses(uint32_t index, uint64_t offset = 0) {
  return {index, 0, kDescriptors + offset, kUsed + offset, kAvail + offset, 0};
}

class VhostUserTest : public ::testing::Test {
 protected:
  VhostUserTest() : VhostUserTest(2, 16) {}
  VhostUserTest(uint32_t queues, size_t config_size) : device_(queues, config_size) {
    Connect();
    memory_ = MakeMemory(kMiB);
  }

  // A new server with one connection of its own.
  void Connect() {
    server_.reset();
    {
      const std::lock_guard lock(mutex_);
      connected_ = true;
    }
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    front_ = FrontEnd(UniqueFd(pair[0]));
    ServerOptions options;
    options.socket = UniqueFd(pair[1]);
    options.log = log_.log();
    options.on_disconnect = [this] {
      const std::lock_guard lock(mutex_);
      connected_ = false;
      gone_.notify_all();
    };
    auto server = Server::Create([this](DevicePortEvents* e) { return device_.Attach(e); },
                                 std::move(options));
    ASSERT_OK(server);
    server_ = *std::move(server);
  }

  // Until the server has let go of the front-end, fds and all.
  void WaitUntilGone() {
    std::unique_lock lock(mutex_);
    gone_.wait(lock, [this] { return !connected_; });
  }

  // The usual beginning: everything acknowledged, one region.
  void Negotiate() {
    ASSERT_EQ(front_.Get(Request::kGetProtocolFeatures), kOfferedProtocolFeatures);
    ASSERT_EQ(front_.Ack(Request::kSetProtocolFeatures, kOfferedProtocolFeatures), 0);
    ASSERT_EQ(front_.Ack(Request::kSetFeatures, FakeDevice::kFeatures | kProtocolFeaturesBit), 0);
  }
  void ShareMemory() {
    ASSERT_EQ(front_.Ack(Request::kSetMemTable, OneRegionTable(), {memory_.get()}), 0);
  }
  // A ring up to and including SET_VRING_KICK.
  void StartRing(uint32_t index, uint32_t base = 0) {
    ASSERT_EQ(front_.Ack(Request::kSetVringNum, VringState{index, 64}), 0);
    ASSERT_EQ(front_.Ack(Request::kSetVringBase, VringState{index, base}), 0);
    ASSERT_EQ(front_.Ack(Request::kSetVringAddr, Addresses(index)), 0);
    const UniqueFd kick = MakeEventFd();
    ASSERT_EQ(front_.Ack(Request::kSetVringKick, uint64_t{index}, {kick.get()}), 0);
    ASSERT_TRUE(device_.queue(index).running);
  }

  testing::LogCapture log_;
  FakeDevice device_;
  FrontEnd front_;
  UniqueFd memory_;
  // Not absl's: the distribution's library is not built for the thread sanitizer.
  std::mutex mutex_;
  std::condition_variable gone_;
  bool connected_ = false;
  std::unique_ptr<Server> server_;
};

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_TESTS_UNIT_VHOST_USER_FIXTURE_H_
