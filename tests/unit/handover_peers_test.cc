// A handover that comes to nothing: whoever asks or answers says too little, too much, something
// else, or ends in the middle. The process that serves serves on, with everything that it has; the
// one that would take over ends with a word.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cstddef>
#include <cstring>

#include "hostif/device_host/handover_server.h"
#include "hostif/handover/channel.h"
#include "hostif/handover/format.h"
#include "tests/unit/restart_fixture.h"

namespace virtbay {
namespace {

using guest::FuseSlot;
using handover::Channel;
using handover::Kind;
using testing::Bytes;
using testing::Contents;

constexpr uint64_t kRoot = guest::kFuseRootId;

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

// Until there is something to read, or the end.
void AwaitReadable(int fd) {
  pollfd entry{fd, POLLIN, 0};
  poll(&entry, 1, 20'000);
}

absl::StatusOr<UniqueFd> OpenDir(const std::filesystem::path& dir) {
  UniqueFd fd(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return absl::NotFoundError(dir.string());
  return fd;
}

// ---- the last word -----------------------------------------------------------------------------

// Who serves is decided by it, so that both have to agree on whether it was said.
TEST(HandoverChannelTest, NothingCanBeSaidAfterTheClose) {
  for (const bool before : {false, true}) {
    int ends[2] = {-1, -1};
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    Channel old{UniqueFd(ends[0])};
    Channel fresh{UniqueFd(ends[1])};
    if (before) {
      ASSERT_OK(fresh.Send(Kind::kTaken, "", {}, Soon()));
    }
    old.Close();
    EXPECT_FALSE(fresh.Send(Kind::kTaken, "", {}, Soon()).ok());
    EXPECT_EQ(old.Receive(Kind::kTaken, absl::Now()).ok(), before);
    EXPECT_FALSE(old.Receive(Kind::kTaken, absl::Now()).ok());
  }
}

TEST(HandoverChannelTest, ManyBytesAndDescriptors) {
  int ends[2] = {-1, -1};
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
  Channel from{UniqueFd(ends[0])};
  Channel to{UniqueFd(ends[1])};
  std::string bytes(3'000'000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i % 251);
  const UniqueFd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
  const std::vector<int> fds(600, file.get());
  std::thread sender([&] { EXPECT_OK(from.Send(Kind::kDevices, bytes, fds, Soon())); });
  const auto message = to.Receive(Kind::kDevices, Soon());
  sender.join();
  ASSERT_OK(message.status());
  EXPECT_EQ(message->bytes, bytes);
  EXPECT_EQ(message->fds.size(), fds.size());
}

// ---- the one that serves ------------------------------------------------------------------------

class HandoverServesOnTest : public testing::RestartTest {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(Begin());
    const auto never = [] { return absl::InternalError("the connection has ended"); };
    for (uint32_t i = 0; i < 2; ++i) session_->queue(i).set_reconnect(never);
    const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
    ASSERT_EQ(made.error, 0);
    node_ = made.value.entry.nodeid;
    fh_ = made.value.open.fh;
    ASSERT_EQ(client().Unlink(kRoot, "f"), 0);
    fuse_file_lock lock{};
    lock.end = 9;
    lock.type = F_WRLCK;
    ASSERT_EQ(client().SetLk(node_, fh_, 1, lock, false), 0);
    waits_ = client().StartLkw(node_, fh_, 2, lock);
    ASSERT_NE(waits_, nullptr);
    // The server listens for handovers when the devices are there.
    while (!std::filesystem::exists(host_->state() / device_host::kHandoverSocket)) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    ASSERT_OK_AND_ASSIGN(dir_, OpenDir(host_->state()));
  }
  absl::StatusOr<Channel> Ask() {
    VIRTBAY_ASSIGN_OR_RETURN(Channel channel,
                             Channel::Connect(dir_.get(), device_host::kHandoverSocket));
    VIRTBAY_RETURN_IF_ERROR(channel.Send(Kind::kHello, "", {}, Soon()));
    return channel;
  }
  absl::StatusOr<handover::Offer> Offer(Channel* channel) {
    VIRTBAY_ASSIGN_OR_RETURN(const handover::Message message,
                             channel->Receive(Kind::kOffer, Soon()));
    return handover::UnpackOffer(message.bytes);
  }
  // Up to the devices, which are stopped then.
  absl::StatusOr<handover::Message> Devices(Channel* channel) {
    VIRTBAY_RETURN_IF_ERROR(Offer(channel).status());
    VIRTBAY_RETURN_IF_ERROR(
        channel->Send(Kind::kStaged, handover::PackNames({"virtiofs"}), {}, Soon()));
    return channel->Receive(Kind::kDevices, Soon());
  }
  void AwaitLine(const std::string& text, int times) {
    const absl::Time end = Soon();
    for (;;) {
      const std::string log = Contents(host_->log());
      int seen = 0;
      for (size_t at = log.find(text); at != log.npos; at = log.find(text, at + 1)) ++seen;
      if (seen >= times) return;
      ASSERT_LT(absl::Now(), end) << "no line: " << text;
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  void ServesOn() {
    ++asked_;
    ASSERT_NO_FATAL_FAILURE(AwaitLine("the devices are served on", asked_));
    const std::string text = absl::StrCat("round ", asked_);
    ASSERT_EQ(client().Write(node_, fh_, 0, Bytes(text)).value, text.size());
    const auto read = client().Read(node_, fh_, 0, 100);
    ASSERT_EQ(std::string(reinterpret_cast<const char*>(read.value.data()), read.value.size()),
              text);
    ASSERT_FALSE(host_->Ended());
  }
  void TearDown() override {
    if (waits_ == nullptr || HasFatalFailure()) return;
    // It has waited all the time, once.
    fuse_file_lock lock{};
    lock.end = 9;
    lock.type = F_UNLCK;
    EXPECT_EQ(client().SetLk(node_, fh_, 1, lock, false), 0);
    EXPECT_EQ(client().FinishLk(waits_), 0);
    // And a real one works after all that.
    if (asked_ == 0) return;
    std::optional<int> refused;
    const int status = host_->Replace(&refused);
    EXPECT_FALSE(refused.has_value());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT_EQ(client().GetAttrOfHandle(node_, fh_).error, 0);
  }

  UniqueFd dir_;
  uint64_t node_ = 0;
  uint64_t fh_ = 0;
  FuseSlot* waits_ = nullptr;
  int asked_ = 0;
};

TEST_P(HandoverServesOnTest, WhoAsksEndsAtEachStep) {
  {
    ASSERT_OK_AND_ASSIGN(Channel channel,
                         Channel::Connect(dir_.get(), device_host::kHandoverSocket));
  }
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  { ASSERT_OK_AND_ASSIGN(Channel channel, Ask()); }
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  {
    ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
    ASSERT_OK(Offer(&channel).status());
  }
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  {
    ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
    ASSERT_OK(Offer(&channel).status());
    ASSERT_OK(channel.Send(Kind::kStaged, handover::PackNames({"virtiofs"}), {}, Soon()));
  }
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  {
    ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
    ASSERT_OK(Devices(&channel).status());
  }
  ASSERT_NO_FATAL_FAILURE(ServesOn());
}

TEST_P(HandoverServesOnTest, WhoAsksRefuses) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
  ASSERT_OK(Devices(&channel).status());
  ASSERT_OK(channel.Send(Kind::kRefuse, "no room", {}, Soon()));
  ASSERT_NO_FATAL_FAILURE(AwaitLine("the other process refuses: no room", 1));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
}

TEST_P(HandoverServesOnTest, TheWordComesTooLate) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
  ASSERT_OK(Devices(&channel).status());
  // Not said in time: it cannot be said any more.
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  EXPECT_FALSE(channel.Send(Kind::kTaken, "", {}, Soon()).ok());
}

TEST_P(HandoverServesOnTest, HostileWords) {
  const auto raw = [&](const void* data, size_t size) {
    auto channel = Channel::Connect(dir_.get(), device_host::kHandoverSocket);
    ASSERT_OK(channel.status());
    ASSERT_EQ(send(channel->fd(), data, size, MSG_NOSIGNAL), static_cast<ssize_t>(size));
    // What it says to that, or its end.
    std::array<char, 4096> answer;
    AwaitReadable(channel->fd());
    static_cast<void>(recv(channel->fd(), answer.data(), answer.size(), 0));
  };
  struct Header {
    uint32_t magic = 0x6f686276;
    uint16_t version = handover::kVersion;
    uint16_t kind = 1;
    uint64_t bytes = 0;
    uint64_t fds = 0;
  };
  Header header;
  header.magic = 1;
  ASSERT_NO_FATAL_FAILURE(raw(&header, sizeof header));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  ASSERT_NO_FATAL_FAILURE(raw("x", 1));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  header = {};
  header.version = 77;
  ASSERT_NO_FATAL_FAILURE(raw(&header, sizeof header));
  ASSERT_NO_FATAL_FAILURE(AwaitLine("speaks version 77", 1));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  header = {};
  header.bytes = UINT64_MAX;
  ASSERT_NO_FATAL_FAILURE(raw(&header, sizeof header));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  header = {};
  header.kind = 5;  // taken, before there was anything
  ASSERT_NO_FATAL_FAILURE(raw(&header, sizeof header));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  const std::vector<char> large(100'000, 'x');
  ASSERT_NO_FATAL_FAILURE(raw(large.data(), large.size()));
  ASSERT_NO_FATAL_FAILURE(ServesOn());

  // Names that are none, the same device twice, one that is not there.
  const std::string lists[] = {"", std::string(8, '\xff'), handover::PackNames({"other"}),
                               handover::PackNames({"virtiofs", "virtiofs"})};
  for (const std::string& names : lists) {
    ASSERT_OK_AND_ASSIGN(Channel channel, Ask());
    ASSERT_OK(Offer(&channel).status());
    ASSERT_OK(channel.Send(Kind::kStaged, names, {}, Soon()));
    EXPECT_FALSE(channel.Receive(Kind::kDevices, Soon()).ok());
    ASSERT_NO_FATAL_FAILURE(ServesOn());
  }
}

TEST_P(HandoverServesOnTest, AnotherBuildOrConfiguration) {
  const auto refused = [&](std::vector<std::string> words) {
    std::optional<int> status;
    testing::RestartedHost* const host = host_.get();
    host->set_more(std::move(words));
    host->Replace(&status);
    host->set_more({});
    ASSERT_TRUE(status.has_value()) << "the old one ended";
    EXPECT_TRUE(WIFEXITED(*status) && WEXITSTATUS(*status) != 0);
  };
  // Another number of queues is another device.
  host_->set_request_queues(1);
  ASSERT_NO_FATAL_FAILURE(refused({}));
  host_->set_request_queues(2);
  ASSERT_NO_FATAL_FAILURE(AwaitLine("which serves on", 1));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
  // Which does not take what the driver has acknowledged, or cannot be made.
  if (GetParam()) {
    ASSERT_NO_FATAL_FAILURE(refused({"--no-packed-ring"}));
    ASSERT_NO_FATAL_FAILURE(ServesOn());
  }
  ASSERT_NO_FATAL_FAILURE(refused({"--option=no-such-option=1"}));
  ASSERT_NO_FATAL_FAILURE(ServesOn());
}

INSTANTIATE_TEST_SUITE_P(Rings, HandoverServesOnTest, ::testing::Bool(),
                         [](const auto& i) { return i.param ? "Packed" : "Split"; });

// ---- the one that would take over ---------------------------------------------------------------

// The test has the state directory, as a process that serves.
class HandoverTakerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_NO_FATAL_FAILURE(Listen());
    host_.Start();
  }
  void Listen() {
    std::filesystem::create_directory(host_.state());
    std::filesystem::permissions(host_.state(), std::filesystem::perms::owner_all);
    ASSERT_OK_AND_ASSIGN(dir_, OpenDir(host_.state()));
    lock_.reset(openat(dir_.get(), "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(flock(lock_.get(), LOCK_EX | LOCK_NB), 0);
    ASSERT_OK_AND_ASSIGN(listener_, handover::Listen(dir_.get(), device_host::kHandoverSocket));
  }
  absl::StatusOr<Channel> Accept() {
    AwaitReadable(listener_.get());
    UniqueFd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) return absl::UnavailableError("nobody asks");
    Channel channel(std::move(fd));
    VIRTBAY_RETURN_IF_ERROR(channel.Receive(Kind::kHello, Soon()).status());
    return channel;
  }
  // It ends by itself, says so, and has never served.
  void EndsWith(const std::string& text) {
    const int status = host_.Wait();
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) != 0) << status;
    const std::string log = Contents(host_.log());
    EXPECT_NE(log.find(text), log.npos) << log;
    EXPECT_EQ(log.find("taken over"), log.npos) << log;
    EXPECT_FALSE(std::filesystem::exists(host_.socket()));
  }

  testing::RestartedHost host_;
  UniqueFd dir_;
  UniqueFd lock_;
  UniqueFd listener_;
};

TEST_F(HandoverTakerTest, IsRefused) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  ASSERT_OK(channel.Send(Kind::kRefuse, "not today", {}, Soon()));
  EndsWith("refuses: not today");
}

TEST_F(HandoverTakerTest, AnotherVersion) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  const struct {
    uint32_t magic = 0x6f686276;
    uint16_t version = 9;
    uint16_t kind = 2;
    uint64_t bytes = 0, fds = 0;
  } header;
  ASSERT_EQ(send(channel.fd(), &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
  EndsWith("speaks version 9");
}

TEST_F(HandoverTakerTest, AnOfferThatMakesNoSense) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  ASSERT_OK(channel.Send(Kind::kOffer, std::string(64, '\x7f'), {}, Soon()));
  EndsWith("makes no sense");
}

TEST_F(HandoverTakerTest, ADeviceOfAnotherShape) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  handover::Offer offer;
  auto& device = offer.devices.emplace_back();
  device.name = "virtiofs";
  device.shape.type = "other";
  ASSERT_OK(channel.Send(Kind::kOffer, handover::PackOffer(offer).bytes, {}, Soon()));
  EndsWith("this one is of type other");
}

TEST_F(HandoverTakerTest, ADeviceThatCannotBeHandedOver) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  handover::Offer offer;
  auto& device = offer.devices.emplace_back();
  device.name = "virtiofs";
  device.refusal = "it is glued";
  ASSERT_OK(channel.Send(Kind::kOffer, handover::PackOffer(offer).bytes, {}, Soon()));
  EndsWith("cannot be handed over: it is glued");
}

// It has everything, and is told to stop before it has said that it serves: the other one serves
// on.
TEST_F(HandoverTakerTest, IsToldToStop) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  ASSERT_OK(channel.Send(Kind::kOffer, handover::PackOffer({}).bytes, {}, Soon()));
  ASSERT_OK(channel.Receive(Kind::kStaged, Soon()).status());
  ASSERT_TRUE(host_.Signal(SIGTERM));
  const UniqueFd withdrawn(eventfd(0, EFD_CLOEXEC));
  const handover::Packed devices = handover::PackDevices({}, lock_.get(), withdrawn.get());
  ASSERT_OK(channel.Send(Kind::kDevices, devices.bytes, devices.fds, Soon()));
  EXPECT_THAT(channel.Receive(Kind::kTaken, Soon()).status(),
              testing::StatusIs(absl::StatusCode::kFailedPrecondition, "stopping on signal 15"));
  EndsWith("which serves on");
}

// The other one has handed everything over, and given up before it could hear the last word.
TEST_F(HandoverTakerTest, RefusedAtTheEndByOneThatLives) {
  ASSERT_OK_AND_ASSIGN(Channel channel, Accept());
  ASSERT_OK(channel.Send(Kind::kOffer, handover::PackOffer({}).bytes, {}, Soon()));
  ASSERT_OK(channel.Receive(Kind::kStaged, Soon()).status());
  const UniqueFd withdrawn(eventfd(0, EFD_CLOEXEC));
  const handover::Packed devices = handover::PackDevices({}, lock_.get(), withdrawn.get());
  channel.Close();
  ASSERT_OK(channel.Send(Kind::kDevices, devices.bytes, devices.fds, Soon()));
  ASSERT_OK(channel.Send(Kind::kRefuse, "too late", {}, Soon()));
  EndsWith("refuses: too late");
}

// One that has handed everything over dies before it hears of it: what it handed over is gone on
// with, unless it has served on since.
class HandoverFromTheDeadTest : public HandoverTakerTest {
 protected:
  void SetUp() override {}
  // A process that serves, does that, and ends.
  void HandOver(bool serves_on) {
    const pid_t server = fork();
    ASSERT_GE(server, 0);
    if (server == 0) {
      Listen();
      auto channel = Accept();
      if (!channel.ok()) _exit(1);
      const UniqueFd withdrawn(eventfd(serves_on ? 1 : 0, EFD_CLOEXEC));
      const handover::Packed devices = handover::PackDevices({}, lock_.get(), withdrawn.get());
      channel->Send(Kind::kOffer, handover::PackOffer({}).bytes, {}, Soon()).IgnoreError();
      static_cast<void>(channel->Receive(Kind::kStaged, Soon()));
      // It cannot hear the last word, and is dead when that is looked at.
      channel->Close();
      channel->Send(Kind::kDevices, devices.bytes, devices.fds, Soon()).IgnoreError();
      _exit(0);
    }
    while (!std::filesystem::exists(host_.state() / device_host::kHandoverSocket)) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    host_.Start();
    int status = -1;
    ASSERT_EQ(waitpid(server, &status, 0), server);
    ASSERT_EQ(status, 0);
    while (Contents(host_.log()).find("serving 1 device") == std::string::npos && !host_.Ended()) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    EXPECT_EQ(host_.Stop(SIGTERM), 0) << Contents(host_.log());
    const bool anew = Contents(host_.log()).find("going on as after a kill") != std::string::npos;
    EXPECT_EQ(anew, serves_on) << Contents(host_.log());
  }
};

TEST_F(HandoverFromTheDeadTest, IsGoneOnWith) { HandOver(/*serves_on=*/false); }
TEST_F(HandoverFromTheDeadTest, NotWithWhatWasServedSince) { HandOver(/*serves_on=*/true); }

TEST_F(HandoverTakerTest, NobodyAnswers) {
  // It has asked, and heard nothing: whoever that is will not be asked again, but waited for.
  AwaitReadable(listener_.get());
  listener_.reset();
  lock_.reset();
  while (!std::filesystem::exists(host_.socket())) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(host_.Stop(SIGTERM), 0);
}

}  // namespace
}  // namespace virtbay
