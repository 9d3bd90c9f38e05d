// A device is stopped where it is, and one of another host goes on with it: state, rings, and the
// requests that were taken and not answered.
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/device_fixture.h"

namespace virtbay::testing {
namespace {

using ::testing::HasSubstr;

constexpr char kFirst[] = VIRTBAY_RELOAD_1_PLUGIN;
constexpr char kSecond[] = VIRTBAY_RELOAD_2_PLUGIN;
constexpr absl::Duration kDeadline = absl::Milliseconds(500);

class DeviceSuspendTest : public DeviceTest {
 protected:
  void Make(std::map<std::string, std::string> options = {}, bool in_order = false) {
    if (in_order) options["in_order"] = "1";
    options_ = std::move(options);
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("a", options_, kFirst)));
    Client::Options driver;
    driver.driver.device_features = 1;
    driver.driver.in_order = in_order;
    driver.driver.queue_size = 16;
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, driver));
    HostOptions other;
    other.log = log_.log();
    ASSERT_OK_AND_ASSIGN(other_, Host::Create(std::move(other)));
  }
  // The device of another host that goes on, up to what can fail.
  absl::Status Prepare(LeftDevice left, std::map<std::string, std::string> options,
                       const char* plugin = kSecond) {
    const DeviceShape shape = left.shape;
    bases_.clear();
    for (const LeftRing& ring : left.rings) bases_.push_back(ring.base);
    VIRTBAY_ASSIGN_OR_RETURN(next_, other_->Stage(Spec("a", std::move(options), plugin), shape));
    EXPECT_FALSE(next_.Attach(nullptr).ok()) << "before its state has come";
    VIRTBAY_RETURN_IF_ERROR(next_.Restore(std::move(left)));
    VIRTBAY_ASSIGN_OR_RETURN(port_, guest::InProcessTransport::Attach(next_));
    VIRTBAY_RETURN_IF_ERROR(port_->SetFeatures(shape.features));
    VIRTBAY_RETURN_IF_ERROR(port_->SetMemory(client_->memory()));
    return port_->port().Prepare();
  }
  void Go() {
    for (uint32_t i = 0; i < 2; ++i) {
      guest::RingStart ring;
      ring.size = client_->queue(i).ring().size();
      ring.addresses = client_->queue(i).ring().addresses();
      ring.base = bases_[i];
      ring.kick_fd = client_->queue(i).kick_fd();
      ring.call_fd = client_->queue(i).call_fd();
      ASSERT_OK(port_->StartQueue(i, ring));
    }
  }
  void Move() {
    ASSERT_OK_AND_ASSIGN(LeftDevice left, device_.Suspend(kDeadline));
    ASSERT_OK(Prepare(std::move(left), options_));
    ASSERT_OK(device_.Release());
    Go();
  }
  struct Answer {
    int64_t count = 0;
    int64_t version = 0;
    bool operator==(const Answer&) const = default;
  };
  static Answer Read(const Reply& reply) { return {reply.result / 10, reply.result % 10}; }
  Answer Ask(uint32_t queue = 0) {
    const absl::StatusOr<Reply> reply = client_->Call({.op = Op::kEcho}, "", 64, queue);
    return reply.ok() ? Read(*reply) : Answer{-1, -1};
  }

  std::map<std::string, std::string> options_;
  std::unique_ptr<Host> other_;
  DeviceHandle device_;
  DeviceHandle next_;
  std::vector<uint32_t> bases_;
  std::unique_ptr<guest::InProcessTransport> port_;
  std::unique_ptr<Client> client_;
};

TEST_F(DeviceSuspendTest, AnotherGoesOnWhereItWas) {
  Make();
  for (int i = 0; i < 20; ++i) ASSERT_EQ(Ask().count, i + 1);
  ASSERT_EQ(Ask(1), (Answer{21, 1}));
  ASSERT_NO_FATAL_FAILURE(Move());
  EXPECT_EQ(Ask(), (Answer{22, 2}));
  EXPECT_EQ(Ask(1), (Answer{23, 2}));
  for (int i = 0; i < 40; ++i) ASSERT_EQ(Ask().count, i + 24);
  EXPECT_EQ(device_.Inspect()->metrics.at("released"), 1u);
  EXPECT_FALSE(device_.Start().ok());
  ASSERT_OK(host_->Remove("a"));
  EXPECT_EQ(Ask(1).version, 2);
  EXPECT_FALSE((port_->port().status() & kStatusNeedsReset) != 0);
}

TEST_F(DeviceSuspendTest, WhatWasHandedBackComesFirst) {
  Make();
  std::vector<uint64_t> kept;
  for (int i = 0; i < 8; ++i) kept.push_back(client_->Send({.op = Op::kPark}, "", 4096));
  kept.push_back(client_->Send({.op = Op::kPark}, "", 4096, 1));
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  ASSERT_EQ(Ask(1), (Answer{2, 1}));
  ASSERT_NO_FATAL_FAILURE(Move());
  for (uint32_t queue = 0; queue < 2; ++queue) {
    ASSERT_OK(client_->Call({.op = Op::kRelease}, "", 64, queue));
  }
  for (size_t i = 0; i < kept.size(); ++i) {
    ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(kept[i], i == 8 ? 1 : 0));
    EXPECT_EQ(Read(reply).version, 2) << i;
  }
  EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
  EXPECT_EQ(next_.Inspect()->queues[0].in_flight, 0u);
}

// VIRTIO_F_IN_ORDER: those behind one that waits have been answered, and are not asked again.
TEST_F(DeviceSuspendTest, AnswersKeepTheirTurn) {
  Make({}, /*in_order=*/true);
  for (int round = 0; round < 3; ++round) {
    const int64_t before = Ask(1).count;
    std::vector<uint64_t> tokens = {client_->Send({.op = Op::kPark})};
    for (int i = 0; i < 3; ++i) tokens.push_back(client_->Send({.op = Op::kEcho}, "x"));
    tokens.push_back(client_->Send({.op = Op::kPark}));
    tokens.push_back(client_->Send({.op = Op::kEcho}, "y"));
    auto& device = round == 0 ? device_ : next_;
    const uint64_t sent = device.Inspect()->queues[0].requests;
    ASSERT_TRUE(Eventually([&] { return Ask(1).count >= before + 5; })) << sent;
    for (const uint64_t token : tokens) EXPECT_FALSE(client_->Has(token));
    if (round == 0) {
      ASSERT_NO_FATAL_FAILURE(Move());
    }
    tokens.push_back(client_->Send({.op = Op::kRelease}));
    std::vector<int64_t> counts;
    for (const uint64_t token : tokens) {
      ASSERT_OK_AND_ASSIGN(const Reply reply, client_->Take(token));
      counts.push_back(Read(reply).version);
    }
    if (round == 0) {
      EXPECT_EQ(counts, (std::vector<int64_t>{2, 1, 1, 1, 2, 1, 2}));
    }
    EXPECT_EQ(client_->queue().ring().device_errors(), 0u);
  }
}

TEST_F(DeviceSuspendTest, ItIsTakenBack) {
  Make();
  const uint64_t kept = client_->Send({.op = Op::kPark});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(device_.Suspend(kDeadline).status());
    EXPECT_THAT(device_.Suspend(kDeadline), StatusIs(absl::StatusCode::kUnavailable, "another"));
    EXPECT_FALSE(device_.Stop().ok());
    EXPECT_FALSE(device_.Save().ok());
    EXPECT_FALSE(host_->Reload("a", {}).ok());
    ASSERT_OK(device_.Resume());
    EXPECT_EQ(Ask(), (Answer{i + 2, 1}));
  }
  EXPECT_FALSE(device_.Resume().ok());
  EXPECT_FALSE(device_.Release().ok());
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  ASSERT_OK(client_->Take(kept).status());
  EXPECT_FALSE(client_->NeedsReset());
}

// Whatever is wrong with the one that is to go on, before it has begun.
TEST_F(DeviceSuspendTest, TheOtherOneFails) {
  Make();
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  int64_t count = 1;
  for (const char* wrong :
       {"init_fails", "init_throws", "fails_early", "queues", "features", "config", "restore_fails",
        "restore_throws", "negotiate_fails", "activate_fails", "start_fails", "start_throws"}) {
    ASSERT_OK_AND_ASSIGN(LeftDevice left, device_.Suspend(kDeadline));
    EXPECT_FALSE(Prepare(std::move(left), {{"next", wrong}}).ok()) << wrong;
    port_.reset();
    other_->Remove("a").IgnoreError();
    ASSERT_OK(device_.Resume());
    EXPECT_EQ(Ask(), (Answer{++count, 1})) << wrong;
  }
  ASSERT_NO_FATAL_FAILURE(Move());
  EXPECT_EQ(Ask(), (Answer{count + 1, 2}));
}

// One that was made ready and then is not needed leaves without having served.
TEST_F(DeviceSuspendTest, NothingComesOfIt) {
  Make();
  ASSERT_OK_AND_ASSIGN(LeftDevice left, device_.Suspend(kDeadline));
  ASSERT_OK(Prepare(std::move(left), options_));
  port_.reset();
  ASSERT_OK(other_->Remove("a"));
  ASSERT_OK(device_.Resume());
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

TEST_F(DeviceSuspendTest, ItCannotBeStopped) {
  Make();
  const uint64_t kept = client_->Send({.op = Op::kHoldStill});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  EXPECT_THAT(device_.Suspend(kDeadline),
              StatusIs(absl::StatusCode::kDeadlineExceeded, "did not end"));
  EXPECT_EQ(Ask(), (Answer{2, 1}));
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  ASSERT_OK(client_->Take(kept).status());
  client_.reset();
  ASSERT_OK(host_->Remove("a"));
  Make({{"first", "save_fails"}});
  EXPECT_FALSE(device_.Suspend(kDeadline).ok());
  EXPECT_EQ(Ask(), (Answer{1, 1}));
}

TEST_F(DeviceSuspendTest, ItIsRefusedBefore) {
  ASSERT_OK_AND_ASSIGN(const DeviceHandle op, host_->Add(Spec("op")));
  EXPECT_THAT(op.Shape(), StatusIs(absl::StatusCode::kFailedPrecondition, "does not save"));
}

// What comes from elsewhere may say anything.
TEST_F(DeviceSuspendTest, NoRingCanHaveBeenLeftSo) {
  Make();
  client_->Send({.op = Op::kPark});
  client_->Send({.op = Op::kPark});
  ASSERT_EQ(Ask(), (Answer{1, 1}));
  const auto refused = [&](auto change) {
    ASSERT_OK_AND_ASSIGN(LeftDevice left, device_.Suspend(kDeadline));
    ASSERT_EQ(left.rings[0].chains.size(), 2u);
    change(left);
    EXPECT_FALSE(Prepare(std::move(left), options_).ok());
    port_.reset();
    other_->Remove("a").IgnoreError();
    ASSERT_OK(device_.Resume());
  };
  using Left = LeftDevice;
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].chains[0].head = 16; }));
  ASSERT_NO_FATAL_FAILURE(
      refused([](Left& l) { l.rings[0].chains[0].head = l.rings[0].chains[1].head; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].chains[0].descriptors = 17; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].chains[0].readable = 100; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].chains[0].turn = 9; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].size = 0; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings[0].size = 32768; }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.rings.resize(3); }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.state.bytes.clear(); }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.state.fds.clear(); }));
  ASSERT_NO_FATAL_FAILURE(refused([](Left& l) { l.state.version = 77; }));
  // Memory that is not there: that chain is refused, the others are not.
  ASSERT_OK_AND_ASSIGN(LeftDevice left, device_.Suspend(kDeadline));
  left.rings[0].chains[0].parts = {{UINT64_MAX - 10, 5}};
  ASSERT_OK(Prepare(std::move(left), options_));
  ASSERT_OK(device_.Release());
  Go();
  ASSERT_OK(client_->Call({.op = Op::kRelease}));
  EXPECT_EQ(next_.Inspect()->dma_violations, 1u);
  EXPECT_EQ(next_.Inspect()->queues[0].in_flight, 0u);
}

}  // namespace
}  // namespace virtbay::testing
