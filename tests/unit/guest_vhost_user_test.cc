// The guest library's vhost-user front-end against a scripted back-end on a socket pair.
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <functional>
#include <map>
#include <thread>
#include <vector>

#include "hostif/guest/driver.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/support/status_matchers.h"

namespace virtbay::guest {
namespace {

using ::virtbay::testing::IsOk;
using ::virtbay::testing::StatusIs;
using Request = VhostUserRequest;

constexpr uint64_t kFeatures = kFeatureVersion1 | kFeatureIndirectDesc | kFeatureEventIdx;

// A back-end that records every message and answers as the protocol wants it, except where a test
// puts an answer of its own.
class ScriptedBackend {
 public:
  explicit ScriptedBackend(uint64_t features = kFeatures | kVhostUserFProtocolFeatures,
                           uint64_t protocol = kVhostUserAllProtocolFeatures)
      : features_(features), protocol_(protocol) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
    front_end_.reset(pair[0]);
    channel_.emplace(UniqueFd(pair[1]));
  }
  ~ScriptedBackend() { Join(); }

  // Replaces the answer to one request; false ends the connection.
  using Answer = std::function<bool(VhostUserChannel&, const VhostUserMessage&)>;
  void On(Request request, Answer answer) {
    answers_[static_cast<uint32_t>(request)] = std::move(answer);
  }
  UniqueFd Run() {
    thread_ = std::thread([this] { Loop(); });
    return std::move(front_end_);
  }
  // Waits for the end of the connection; afterwards the messages are the test's.
  std::vector<VhostUserMessage>& Join() {
    if (thread_.joinable()) thread_.join();
    return messages_;
  }
  const VhostUserMessage* Find(Request request, size_t skip = 0) {
    for (const VhostUserMessage& message : Join()) {
      if (message.header.request == static_cast<uint32_t>(request) && skip-- == 0) return &message;
    }
    return nullptr;
  }
  std::vector<uint32_t> Order() {
    std::vector<uint32_t> order;
    for (const VhostUserMessage& message : Join()) order.push_back(message.header.request);
    return order;
  }

  static bool Reply(VhostUserChannel& channel, const VhostUserMessage& message,
                    std::span<const std::byte> payload) {
    return channel.SendMessage(message.header.request, kVhostUserVersion | kVhostUserReply, payload)
        .ok();
  }

 private:
  void Loop() {
    for (;;) {
      auto message = channel_->Receive(absl::Seconds(60));
      if (!message.ok()) break;
      messages_.push_back(*std::move(message));
      if (!Handle(messages_.back())) break;
    }
    channel_.reset();
  }

  bool Handle(const VhostUserMessage& message) {
    const auto custom = answers_.find(message.header.request);
    if (custom != answers_.end()) return custom->second(*channel_, message);
    switch (static_cast<Request>(message.header.request)) {
      case Request::kGetFeatures:
        return Reply(*channel_, message, BytesOf(features_));
      case Request::kGetProtocolFeatures:
        return Reply(*channel_, message, BytesOf(protocol_));
      case Request::kGetQueueNum:
        return Reply(*channel_, message, BytesOf(uint64_t{3}));
      case Request::kGetStatus:
        return Reply(*channel_, message, BytesOf(status_));
      case Request::kGetVringBase: {
        VhostUserVringState state;
        std::memcpy(&state, message.payload.data(), sizeof(state));
        state.num = 40 + state.index;
        return Reply(*channel_, message, BytesOf(state));
      }
      case Request::kGetConfig:
        return Reply(*channel_, message, message.payload);
      case Request::kSetStatus:
        std::memcpy(&status_, message.payload.data(), sizeof(status_));
        break;
      default:
        break;
    }
    if ((message.header.flags & kVhostUserNeedReply) == 0) return true;
    return Reply(*channel_, message, BytesOf(uint64_t{0}));
  }

  uint64_t features_;
  uint64_t protocol_;
  uint64_t status_ = 0;
  UniqueFd front_end_;
  std::optional<VhostUserChannel> channel_;
  std::map<uint32_t, Answer> answers_;
  std::vector<VhostUserMessage> messages_;
  std::thread thread_;
};

std::unique_ptr<GuestMemory> TwoRegions() {
  return GuestMemory::Create(
             {GuestRegionSpec{.address = 0, .size = 1u << 20},
              GuestRegionSpec{.address = 1u << 30, .size = 1u << 20, .file_offset = 4096}})
      .value();
}

bool SameFile(int a, int b) {
  struct stat sa {};
  struct stat sb {};
  return ::fstat(a, &sa) == 0 && ::fstat(b, &sb) == 0 && sa.st_ino == sb.st_ino &&
         sa.st_dev == sb.st_dev;
}

TEST(VhostUserTransportTest, BringsADeviceUpInOrder) {
  ScriptedBackend backend;
  uint64_t ring_host[3] = {};
  uint64_t kick = 0;
  {
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    EXPECT_EQ(transport->queue_count(), 3u);
    EXPECT_EQ(transport->protocol_features(), kVhostUserAllProtocolFeatures);
    DriverOptions options;
    options.queue_count = 1;
    options.queue_size = 64;
    ASSERT_OK_AND_ASSIGN(auto driver, Driver::Create(std::move(transport), TwoRegions(), options));
    EXPECT_EQ(driver->features(), kFeatures);
    const RingAddresses ring = driver->queue(0).ring().addresses();
    const uint64_t parts[] = {ring.descriptors, ring.used, ring.avail};
    for (int i = 0; i < 3; ++i) {
      ring_host[i] = reinterpret_cast<uint64_t>(driver->memory().Translate(parts[i], 1));
    }
    driver->queue(0).Kick();
    EXPECT_OK(driver->Stop());
    EXPECT_OK(driver->Start());
  }
  const VhostUserMessage* const kick_message = backend.Find(Request::kSetVringKick);
  ASSERT_NE(kick_message, nullptr);
  ASSERT_EQ(kick_message->fds.size(), 1u);
  ASSERT_EQ(::read(kick_message->fds[0].get(), &kick, sizeof(kick)), 8);
  EXPECT_EQ(kick, 1u);

  const VhostUserMessage* const address_message = backend.Find(Request::kSetVringAddr);
  ASSERT_NE(address_message, nullptr);
  const auto address = address_message->As<VhostUserVringAddr>();
  EXPECT_EQ(address->descriptors, ring_host[0]);
  EXPECT_EQ(address->used, ring_host[1]);
  EXPECT_EQ(address->avail, ring_host[2]);
  EXPECT_EQ(address->flags, 0u);

  EXPECT_EQ(backend.Find(Request::kSetVringBase, 0)->As<VhostUserVringState>()->num, 0u);
  EXPECT_EQ(backend.Find(Request::kSetVringBase, 1)->As<VhostUserVringState>()->num, 40u)
      << "goes on where the back-end stopped";
  EXPECT_EQ(*backend.Find(Request::kSetFeatures)->As<uint64_t>(),
            kFeatures | kVhostUserFProtocolFeatures);
  const VhostUserMessage* const region = backend.Find(Request::kAddMemReg, 1);
  ASSERT_NE(region, nullptr);
  EXPECT_EQ(region->As<VhostUserMemReg>()->region.guest_address, 1u << 30);
  EXPECT_EQ(region->As<VhostUserMemReg>()->region.mmap_offset, 4096u);
  EXPECT_EQ(region->fds.size(), 1u);

  const std::vector<uint32_t> order = backend.Order();
  const std::vector<uint32_t> start = {3, 1, 15, 16, 17, 21, 39, 39, 39, 1, 2, 39, 40, 37, 37};
  ASSERT_GE(order.size(), start.size());
  EXPECT_EQ(std::vector<uint32_t>(order.begin(), order.begin() + 15), start);
}

TEST(VhostUserTransportTest, WithoutProtocolFeaturesUsesTheTableAndNoEnable) {
  ScriptedBackend backend(kFeatures, 0);
  auto memory = TwoRegions();
  std::vector<uint64_t> inodes;
  {
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    std::byte byte{};
    EXPECT_THAT(transport->ReadConfig(0, {&byte, 1}), StatusIs(absl::StatusCode::kUnimplemented));
    EXPECT_THAT(transport->EnableQueue(0, true), StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_EQ(transport->config_fd(), -1);
    ASSERT_OK(transport->GetFeatures());
    ASSERT_OK(transport->SetMemory(*memory));
    RingStart ring;
    ring.size = 16;
    ring.addresses = {0, 4096, 8192};
    EXPECT_OK(transport->StartQueue(1, ring));
    EXPECT_OK(transport->SetStatus(3));
    EXPECT_THAT(transport->GetStatus(), ::virtbay::testing::IsOkAndHolds(3));
    EXPECT_OK(transport->Reset());
  }
  EXPECT_EQ(backend.Find(Request::kSetVringEnable), nullptr);
  EXPECT_EQ(backend.Find(Request::kSetStatus), nullptr);
  const VhostUserMessage* const table = backend.Find(Request::kSetMemTable);
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->payload.size(), 8u + 2 * sizeof(VhostUserRegion));
  ASSERT_EQ(table->fds.size(), 2u);
  EXPECT_TRUE(SameFile(table->fds[1].get(), memory->regions()[1].fd.get()));
  // No descriptors were given: bit 8 says so.
  EXPECT_EQ(*backend.Find(Request::kSetVringKick)->As<uint64_t>(), 1u | kVhostUserVringNoFd);
  EXPECT_TRUE(backend.Find(Request::kSetVringKick)->fds.empty());
  // A reset without a message for it stops the ring.
  EXPECT_NE(backend.Find(Request::kGetVringBase), nullptr);
}

TEST(VhostUserTransportTest, MemorySlotsFollowTheRegions) {
  ScriptedBackend backend;
  auto memory = TwoRegions();
  {
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    ASSERT_OK(transport->SetMemory(*memory));
    ASSERT_OK(transport->SetMemory(*memory));
    ASSERT_OK(memory->RemoveRegion(0));
    ASSERT_OK(memory->AddRegion({.address = 1u << 31, .size = 4096}));
    ASSERT_OK(transport->SetMemory(*memory));
  }
  EXPECT_EQ(backend.Find(Request::kAddMemReg, 2)->As<VhostUserMemReg>()->region.guest_address,
            1u << 31);
  EXPECT_EQ(backend.Find(Request::kAddMemReg, 3), nullptr);
  const VhostUserMessage* const removed = backend.Find(Request::kRemMemReg);
  ASSERT_NE(removed, nullptr);
  EXPECT_EQ(removed->As<VhostUserMemReg>()->region.guest_address, 0u);
  EXPECT_EQ(removed->As<VhostUserMemReg>()->region.size, 1u << 20);
  EXPECT_EQ(backend.Find(Request::kRemMemReg, 1), nullptr);
}

TEST(VhostUserTransportTest, ConfigSpaceGoesInPartsAndChangesAreCounted) {
  ScriptedBackend backend;
  UniqueFd requests;
  backend.On(Request::kSetBackendReqFd, [&](VhostUserChannel& c, const VhostUserMessage& m) {
    if (m.fds.size() != 1) return false;
    requests = m.fds[0].Duplicate();
    return ScriptedBackend::Reply(c, m, BytesOf(uint64_t{0}));
  });
  ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
  std::vector<std::byte> data(600);
  EXPECT_OK(transport->ReadConfig(4, data));
  EXPECT_OK(transport->WriteConfig(8, std::span(data).first(256)));
  EXPECT_THAT(transport->WriteConfig(8, data), StatusIs(absl::StatusCode::kInvalidArgument));

  EXPECT_THAT(transport->TakeConfigChanges(), ::virtbay::testing::IsOkAndHolds(0u));
  VhostUserChannel peer(std::move(requests));
  ASSERT_OK(peer.SendMessage(kVhostUserBackendConfigChange, kVhostUserVersion, {}));
  ASSERT_OK(
      peer.SendMessage(kVhostUserBackendConfigChange, kVhostUserVersion | kVhostUserNeedReply, {}));
  ASSERT_OK(peer.SendMessage(99, kVhostUserVersion | kVhostUserNeedReply, {}));
  pollfd poll{.fd = transport->config_fd(), .events = POLLIN, .revents = 0};
  EXPECT_EQ(::poll(&poll, 1, 10'000), 1);
  EXPECT_THAT(transport->TakeConfigChanges(), ::virtbay::testing::IsOkAndHolds(2u));
  ASSERT_OK_AND_ASSIGN(const VhostUserMessage known, peer.Receive());
  EXPECT_EQ(*known.As<uint64_t>(), 0u);
  EXPECT_EQ(known.header.flags, 5u);
  ASSERT_OK_AND_ASSIGN(const VhostUserMessage unknown, peer.Receive());
  EXPECT_EQ(unknown.header.request, 99u);
  EXPECT_NE(*unknown.As<uint64_t>(), 0u);

  transport.reset();
  EXPECT_EQ(backend.Find(Request::kGetConfig, 0)->As<VhostUserConfigHeader>()->size, 256u);
  EXPECT_EQ(backend.Find(Request::kGetConfig, 1)->As<VhostUserConfigHeader>()->offset, 260u);
  EXPECT_EQ(backend.Find(Request::kGetConfig, 2)->As<VhostUserConfigHeader>()->size, 88u);
}

TEST(VhostUserTransportTest, ARefusalIsAnError) {
  ScriptedBackend backend;
  backend.On(Request::kSetFeatures, [](VhostUserChannel& c, const VhostUserMessage& m) {
    return ScriptedBackend::Reply(c, m, BytesOf(uint64_t{1}));
  });
  ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
  EXPECT_THAT(transport->SetFeatures(kFeatures), StatusIs(absl::StatusCode::kInternal, "refused"));
}

TEST(VhostUserTransportTest, AnswersThatMakeNoSenseAreErrors) {
  const auto connect = [](Request request, ScriptedBackend::Answer answer) {
    ScriptedBackend backend;
    backend.On(request, std::move(answer));
    return VhostUserTransport::Adopt(backend.Run()).status();
  };
  EXPECT_THAT(connect(Request::kGetFeatures,
                      [](VhostUserChannel& c, const VhostUserMessage&) {
                        return c.SendMessage(2, 5, BytesOf(uint64_t{0})).ok();
                      }),
              StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(connect(Request::kGetFeatures,
                      [](VhostUserChannel& c, const VhostUserMessage&) {
                        return c.SendMessage(1, 0xd, BytesOf(uint64_t{0})).ok();
                      }),
              StatusIs(absl::StatusCode::kInternal, "flags"));
  EXPECT_THAT(connect(Request::kGetFeatures,
                      [](VhostUserChannel& c, const VhostUserMessage& m) {
                        return ScriptedBackend::Reply(c, m, BytesOf(uint32_t{0}));
                      }),
              StatusIs(absl::StatusCode::kInvalidArgument, "short"));
  EXPECT_THAT(connect(Request::kGetFeatures,
                      [](VhostUserChannel& c, const VhostUserMessage&) {
                        const VhostUserHeader huge{.request = 1, .flags = 5, .size = 1u << 30};
                        return c.SendBytes(BytesOf(huge)).ok();
                      }),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(connect(Request::kGetQueueNum,
                      [](VhostUserChannel& c, const VhostUserMessage& m) {
                        return ScriptedBackend::Reply(c, m, BytesOf(uint64_t{1} << 40));
                      }),
              StatusIs(absl::StatusCode::kInvalidArgument, "queues"));
  EXPECT_THAT(connect(Request::kSetProtocolFeatures,
                      [](VhostUserChannel&, const VhostUserMessage&) { return false; }),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(VhostUserTransportTest, ASilentPeerRunsIntoTheTimeout) {
  ScriptedBackend backend;
  backend.On(Request::kGetProtocolFeatures,
             [](VhostUserChannel&, const VhostUserMessage&) { return true; });
  VhostUserOptions options;
  options.reply_timeout = absl::Milliseconds(20);
  EXPECT_THAT(VhostUserTransport::Adopt(backend.Run(), options),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(VhostUserTransportTest, NoSocketNoTransport) {
  EXPECT_THAT(VhostUserTransport::Connect("/nonexistent/socket"),
              StatusIs(absl::StatusCode::kNotFound, "/nonexistent/socket"));
  EXPECT_THAT(VhostUserTransport::Connect(std::string(200, 'x')),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(DriverTest, RefusesWhatIsNotAModernDevice) {
  DriverOptions options;
  {
    ScriptedBackend backend(kFeatureIndirectDesc | kVhostUserFProtocolFeatures);
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    EXPECT_THAT(Driver::Create(std::move(transport), TwoRegions(), options),
                StatusIs(absl::StatusCode::kFailedPrecondition, "VERSION_1"));
  }
  {
    ScriptedBackend backend;
    backend.On(Request::kGetStatus, [](VhostUserChannel& c, const VhostUserMessage& m) {
      return ScriptedBackend::Reply(c, m, BytesOf(uint64_t{3}));
    });
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    EXPECT_THAT(Driver::Create(std::move(transport), TwoRegions(), options),
                StatusIs(absl::StatusCode::kFailedPrecondition, "refused the features"));
  }
  {
    ScriptedBackend backend;
    ASSERT_OK_AND_ASSIGN(auto transport, VhostUserTransport::Adopt(backend.Run()));
    options.queue_count = 4;
    EXPECT_THAT(Driver::Create(std::move(transport), TwoRegions(), options),
                StatusIs(absl::StatusCode::kInvalidArgument, "3 queues"));
  }
}

TEST(VhostUserChannelTest, AwaitCloseDropsWhatStillComes) {
  int pair[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  VhostUserChannel ours{UniqueFd(pair[0])};
  std::optional<VhostUserChannel> theirs{UniqueFd(pair[1])};
  const int fds[] = {0, 1, 2};
  ASSERT_OK(theirs->SendMessage(1, 1, BytesOf(uint64_t{5}), fds));
  EXPECT_THAT(ours.AwaitClose(absl::Milliseconds(5)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  theirs.reset();
  EXPECT_OK(ours.AwaitClose());
  EXPECT_THAT(ours.SendMessage(1, 1, {}), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace virtbay::guest
