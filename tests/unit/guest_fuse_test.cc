// The guest library's FUSE client against a device that answers what each test tells it to.
#include <poll.h>
#include <sys/eventfd.h>

#include <array>
#include <cerrno>
#include <deque>
#include <functional>
#include <map>
#include <thread>

#include "hostif/guest/fuse_session.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/guest_hand_device.h"

namespace virtbay::guest {
namespace {

using ::virtbay::testing::IsOk;
using ::virtbay::testing::StatusIs;

// A request as the device sees it.
struct Seen {
  fuse_in_header header{};
  std::string body;                // behind the header
  std::vector<uint32_t> readable;  // descriptor lengths
  std::vector<uint32_t> writable;
};

// What the device does with it: a reply (error and payload), raw bytes, or nothing for now.
struct Answer {
  int error = 0;
  std::string payload{};
  std::function<void(fuse_out_header*)> spoil{};
  std::optional<uint32_t> written{};
  bool hold = false;  // until Release
};

template <typename T>
std::string Bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// A transport with the device in a thread of its own behind the kick eventfds.
class FakeFs final : public Transport {
 public:
  using Handler = std::function<Answer(const Seen&)>;
  explicit FakeFs(Handler handler)
      : handler_(std::move(handler)), stop_(::eventfd(0, EFD_CLOEXEC)) {}
  ~FakeFs() override { Halt(); }

  absl::StatusOr<uint64_t> GetFeatures() override {
    return kFeatureVersion1 | kFeatureEventIdx | kFeatureIndirectDesc;
  }
  absl::Status SetFeatures(uint64_t) override { return absl::OkStatus(); }
  uint32_t queue_count() const override { return 2; }
  uint16_t max_queue_size(uint32_t) const override { return 0; }
  absl::Status SetMemory(const GuestMemory& memory) override {
    memory_ = &memory;
    return absl::OkStatus();
  }
  absl::Status StartQueue(uint32_t queue, const RingStart& ring) override {
    queues_.push_back(Queue{
        HandDevice(*memory_, ring.addresses, ring.size, true), ring.kick_fd, ring.call_fd, {}});
    if (queue == 1) thread_ = std::thread([this] { Loop(); });
    return absl::OkStatus();
  }
  absl::StatusOr<uint32_t> StopQueue(uint32_t) override { return 0u; }
  absl::Status ResetQueue(uint32_t) override { return absl::UnimplementedError("no reset"); }
  absl::Status EnableQueue(uint32_t, bool) override { return absl::OkStatus(); }
  absl::Status ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    VirtioFsConfig config;
    std::memcpy(config.tag, "share", 5);
    config.num_request_queues = 1;
    if (offset + data.size() > sizeof(config)) return absl::OutOfRangeError("config");
    std::memcpy(data.data(), reinterpret_cast<const char*>(&config) + offset, data.size());
    return absl::OkStatus();
  }
  absl::Status WriteConfig(uint32_t, std::span<const std::byte>) override {
    return absl::UnimplementedError("config");
  }
  absl::StatusOr<uint8_t> GetStatus() override { return status_; }
  absl::Status SetStatus(uint8_t status) override {
    status_ = status;
    return absl::OkStatus();
  }
  absl::Status Reset() override {
    Halt();
    queues_.clear();
    return absl::OkStatus();
  }
  int config_fd() const override { return -1; }
  absl::StatusOr<uint32_t> TakeConfigChanges() override { return 0u; }
  int hangup_fd() const override { return -1; }

 private:
  struct Held {
    HandDevice::Chain chain;
    Answer answer;
    uint64_t unique;
  };
  struct Queue {
    HandDevice device;
    int kick;
    int call;
    std::deque<Held> held;
  };

  void Halt() {
    if (!thread_.joinable()) return;
    const uint64_t one = 1;
    EXPECT_EQ(::write(stop_.get(), &one, sizeof(one)), 8);
    thread_.join();
    uint64_t count = 0;
    EXPECT_EQ(::read(stop_.get(), &count, sizeof(count)), 8);
  }

  void Loop() {
    for (;;) {
      for (Queue& queue : queues_) {
        queue.device.SetAvailEvent(queue.device.next());
        while (auto chain = queue.device.Pop()) Serve(queue, std::move(*chain));
        queue.device.SetAvailEvent(queue.device.next());
      }
      bool more = false;
      for (const Queue& queue : queues_) more = more || queue.device.HasAvail();
      if (more) continue;
      pollfd fds[3] = {
          {queues_[0].kick, POLLIN, 0}, {queues_[1].kick, POLLIN, 0}, {stop_.get(), POLLIN, 0}};
      ::poll(fds, 3, -1);
      if (fds[2].revents != 0) return;
      uint64_t count = 0;
      for (int i = 0; i < 2; ++i) {
        if (fds[i].revents == 0) continue;
        EXPECT_EQ(::read(fds[i].fd, &count, sizeof(count)), 8);
      }
    }
  }

  void Serve(Queue& queue, HandDevice::Chain chain) {
    Seen seen;
    const std::string text = chain.Text();
    std::memcpy(&seen.header, text.data(), std::min(text.size(), sizeof(seen.header)));
    if (text.size() > sizeof(seen.header)) seen.body = text.substr(sizeof(seen.header));
    for (const auto& piece : chain.readable) seen.readable.push_back(piece.length);
    for (const auto& piece : chain.writable) seen.writable.push_back(piece.length);
    Answer answer = handler_(seen);
    if (answer.hold) {
      queue.held.push_back({std::move(chain), std::move(answer), seen.header.unique});
      return;
    }
    Complete(queue, chain, answer, seen.header.unique);
    // Whatever was held is let go in reverse order by the next request that is not.
    while (!queue.held.empty()) {
      Complete(queue, queue.held.back().chain, queue.held.back().answer, queue.held.back().unique);
      queue.held.pop_back();
    }
  }

  static void Complete(Queue& queue, const HandDevice::Chain& chain, const Answer& answer,
                       uint64_t unique) {
    uint32_t written = 0;
    if (!chain.writable.empty()) {
      fuse_out_header header{};
      header.len = static_cast<uint32_t>(sizeof(header) + answer.payload.size());
      header.error = -answer.error;
      header.unique = unique;
      if (answer.spoil) answer.spoil(&header);
      const std::string reply = Bytes(header) + answer.payload;
      for (const auto& piece : chain.writable) {
        const size_t n = std::min<size_t>(piece.length, reply.size() - written);
        std::memcpy(piece.data, reply.data() + written, n);
        written += static_cast<uint32_t>(n);
      }
    }
    queue.device.Push(chain.head, answer.written.value_or(written));
    if (queue.device.WantsCall()) {
      const uint64_t one = 1;
      EXPECT_EQ(::write(queue.call, &one, sizeof(one)), 8);
    }
  }

  Handler handler_;
  const GuestMemory* memory_ = nullptr;
  std::deque<Queue> queues_;
  uint8_t status_ = 0;
  UniqueFd stop_;
  std::thread thread_;
};

fuse_init_out InitReply() {
  fuse_init_out out{};
  out.major = 7;
  out.minor = 38;
  out.max_write = 1u << 20;
  out.max_pages = 256;
  out.flags = FUSE_INIT_EXT | FUSE_SETXATTR_EXT | FUSE_MAX_PAGES;
  out.flags2 = static_cast<uint32_t>(kFuseCreateSuppGroup >> 32);
  return out;
}

class FuseClientTest : public ::testing::TestWithParam<WaitMode> {
 protected:
  // Starts a session with that answer for everything but INIT.
  void Start(FakeFs::Handler handler, uint32_t depth = 8) {
    auto transport = std::make_unique<FakeFs>([this, handler](const Seen& seen) {
      seen_ = seen;
      if (seen.header.opcode == FUSE_INIT) return Answer{.payload = Bytes(InitReply())};
      return handler(seen);
    });
    FuseSessionOptions options;
    options.queue.depth = depth;
    options.queue.wait = GetParam();
    ASSERT_OK_AND_ASSIGN(session_, FuseSession::Create(std::move(transport), std::move(options)));
  }
  FuseClient& client() { return session_->client(); }

  // Of the last request; safe to look at once its answer is there.
  Seen seen_;
  std::unique_ptr<FuseSession> session_;
};

INSTANTIATE_TEST_SUITE_P(Waits, FuseClientTest,
                         ::testing::Values(WaitMode::kSleep, WaitMode::kPoll),
                         [](const auto& mode) {
                           return mode.param == WaitMode::kSleep ? "Sleeping" : "Polling";
                         });

TEST_P(FuseClientTest, StartsASession) {
  Start([](const Seen&) { return Answer{}; });
  EXPECT_EQ(session_->tag(), "share");
  EXPECT_EQ(session_->configured_request_queues(), 1u);
  EXPECT_EQ(session_->init().out.max_write, 1u << 20);
  EXPECT_EQ(session_->init().flags,
            FUSE_INIT_EXT | FUSE_SETXATTR_EXT | FUSE_MAX_PAGES | kFuseCreateSuppGroup);
  EXPECT_EQ(seen_.header.opcode, static_cast<uint32_t>(FUSE_INIT));
  fuse_init_in in{};
  ASSERT_EQ(seen_.body.size(), sizeof(in));
  std::memcpy(&in, seen_.body.data(), sizeof(in));
  EXPECT_EQ(in.flags2, static_cast<uint32_t>(kFuseLinuxInitFlags >> 32));
}

TEST_P(FuseClientTest, LaysDescriptorsOutAsTheKernelDoes) {
  Start([](const Seen& seen) { return Answer{.payload = std::string(seen.writable.size(), 'x')}; });
  (void)client().Read(2, 3, 4, 10'000);
  EXPECT_EQ(seen_.readable, (std::vector<uint32_t>{40, sizeof(fuse_read_in)}));
  EXPECT_EQ(seen_.writable, (std::vector<uint32_t>{16, 4096, 4096, 10'000 - 8192}));
  (void)client().Write(2, 3, 4, std::vector<std::byte>(5000));
  EXPECT_EQ(seen_.readable, (std::vector<uint32_t>{40, sizeof(fuse_write_in), 4096, 904}));
  EXPECT_EQ(seen_.writable, (std::vector<uint32_t>{16, sizeof(fuse_write_out)}));
  EXPECT_EQ(seen_.header.len, 40 + sizeof(fuse_write_in) + 5000);
  (void)client().ReadLink(2);
  EXPECT_EQ(seen_.readable, (std::vector<uint32_t>{40}));
  (void)client().Write(2, 3, 4, std::vector<std::byte>(1u << 20));
  EXPECT_EQ(seen_.readable.size(), 2u + 256);
  EXPECT_EQ(seen_.readable.back(), 4096u) << "a short last page is not remembered";
}

TEST_P(FuseClientTest, PassesErrorsAndValuesThrough) {
  Start([](const Seen& seen) {
    if (seen.header.opcode == FUSE_LOOKUP) return Answer{.error = ENOENT};
    fuse_attr_out out{};
    out.attr.ino = seen.header.nodeid;
    return Answer{.payload = Bytes(out)};
  });
  EXPECT_EQ(client().Lookup(1, "name").error, ENOENT);
  EXPECT_EQ(seen_.body, std::string("name\0", 5));
  const auto attr = client().GetAttr(99);
  ASSERT_TRUE(attr.ok());
  EXPECT_EQ(attr.value.attr.ino, 99u);
}

TEST_P(FuseClientTest, AMalformedReplyIsNotBelieved) {
  const std::vector<Answer> bad = {
      {.payload = std::string(sizeof(fuse_attr_out), 0),
       .spoil = [](fuse_out_header* h) { h->unique ^= 2; }},
      {.payload = std::string(sizeof(fuse_attr_out), 0),
       .spoil = [](fuse_out_header* h) { h->len += 1; }},
      {.payload = std::string(sizeof(fuse_attr_out), 0),
       .spoil = [](fuse_out_header* h) { h->len = 15; }},
      {.payload = std::string(sizeof(fuse_attr_out), 0),
       .spoil = [](fuse_out_header* h) { h->error = 5; }},
      {.payload = "too short for the structure"},
      {.payload = {}, .written = 0},
      {.payload = std::string(sizeof(fuse_attr_out), 0), .written = 1u << 30},
  };
  size_t next = 0;
  Start([&](const Seen&) { return bad[next]; });
  for (; next < bad.size(); ++next) EXPECT_EQ(client().GetAttr(1).error, -EPROTO) << next;
}

TEST_P(FuseClientTest, ReadsTheBytesThatCame) {
  Start([](const Seen&) { return Answer{.payload = "0123456789"}; });
  const auto read = client().Read(2, 3, 0, 8192);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(read.value.data()), read.value.size()),
            "0123456789");
}

TEST_P(FuseClientTest, FinishesInAnyOrder) {
  // Every request but each fourth is held until a fourth comes.
  int count = 0;
  Start([&count](const Seen& seen) {
    fuse_attr_out out{};
    out.attr.ino = seen.header.nodeid;
    return Answer{.payload = Bytes(out), .hold = ++count % 4 != 0};
  });
  FuseQueue& queue = session_->queue();
  for (uint64_t node = 1; node <= 8; ++node) {
    FuseSlot* const slot = queue.Acquire();
    ASSERT_NE(slot, nullptr);
    slot->Begin(FUSE_GETATTR, node).Put(fuse_getattr_in{}).Expect(sizeof(fuse_attr_out));
    slot->user = node;
    ASSERT_OK(queue.Submit(slot));
  }
  EXPECT_EQ(queue.Acquire(), nullptr);
  queue.Flush();
  EXPECT_EQ(queue.driver_queue().stats().published, 2u) << "INIT and one batch";
  std::vector<uint64_t> finished;
  while (finished.size() < 8) {
    std::array<FuseSlot*, 3> slots;
    const size_t n = queue.Reap(slots);
    if (n == 0) {
      ASSERT_OK(queue.Wait());
    }
    for (size_t i = 0; i < n; ++i) {
      fuse_attr_out out{};
      ASSERT_EQ(slots[i]->error(), 0);
      ASSERT_TRUE(slots[i]->Get(&out));
      EXPECT_EQ(out.attr.ino, slots[i]->user);
      finished.push_back(slots[i]->user);
      queue.Release(slots[i]);
    }
  }
  EXPECT_EQ(finished, (std::vector<uint64_t>{4, 3, 2, 1, 8, 7, 6, 5}));
  EXPECT_THAT(queue.Wait(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_P(FuseClientTest, ASynchronousCallLeavesOthersForReap) {
  Start([](const Seen& seen) {
    if (seen.header.opcode == FUSE_SETLKW) return Answer{.hold = true};
    return Answer{.payload = std::string(sizeof(fuse_attr_out), 0)};
  });
  FuseSlot* const lock = client().StartLkw(2, 3, 4, {});
  ASSERT_NE(lock, nullptr);
  EXPECT_EQ(client().GetAttr(1).error, 0);  // which lets the lock go
  EXPECT_EQ(client().FinishLk(lock), 0);
}

TEST_P(FuseClientTest, ARequestWithoutAnAnswerTimesOutAndKeepsItsSlot) {
  Start(
      [](const Seen& seen) {
        return Answer{.payload = std::string(sizeof(fuse_attr_out), 0),
                      .hold = seen.header.nodeid == 7};
      },
      2);
  session_->queue().set_timeout(absl::Milliseconds(20));
  EXPECT_EQ(client().GetAttr(7).error, -ETIMEDOUT);
  session_->queue().set_timeout(absl::Seconds(30));
  EXPECT_EQ(client().GetAttr(1).error, 0);
  // The late answer frees the slot by itself: both are there again.
  while (session_->queue().in_flight() != 0) {
    std::array<FuseSlot*, 1> none;
    EXPECT_EQ(session_->queue().Reap(none), 0u);
    if (session_->queue().in_flight() != 0) {
      ASSERT_OK(session_->queue().Wait());
    }
  }
  FuseSlot* const first = session_->queue().Acquire();
  FuseSlot* const second = session_->queue().Acquire();
  EXPECT_NE(first, nullptr);
  EXPECT_NE(second, nullptr);
  session_->queue().Release(first);
  session_->queue().Release(second);
  // A restart gives every slot back.
  ASSERT_OK(session_->Restart());
  EXPECT_EQ(client().GetAttr(1).error, 0);
}

TEST_P(FuseClientTest, SendsTheCallerAndItsGroups) {
  Start([](const Seen&) { return Answer{.payload = std::string(sizeof(fuse_entry_out), 0)}; });
  session_->queue().set_caller({.uid = 1000, .gid = 1001, .pid = 55, .groups = {7, 8, 9}});
  EXPECT_EQ(client().Mkdir(1, "dir", 0755).error, 0);
  EXPECT_EQ(seen_.header.uid, 1000u);
  EXPECT_EQ(seen_.header.gid, 1001u);
  EXPECT_EQ(seen_.header.pid, 55u);
  ASSERT_EQ(seen_.header.total_extlen, 3u);
  ASSERT_EQ(seen_.body.size(), sizeof(fuse_mkdir_in) + sizeof("dir") + 24)
      << "right behind the name";
  std::array<uint32_t, 6> extension;
  std::memcpy(extension.data(), seen_.body.data() + seen_.body.size() - 24, 24);
  EXPECT_EQ(extension, (std::array<uint32_t, 6>{24, kFuseExtGroups, 3, 7, 8, 9}));
  EXPECT_EQ(client().Lookup(1, "dir").error, 0);
  EXPECT_EQ(seen_.header.total_extlen, 0u) << "only what creates carries groups";
}

TEST_P(FuseClientTest, ForgetHasNoReply) {
  Start([](const Seen&) { return Answer{}; });
  EXPECT_EQ(session_->hiprio().Forget(5, 3), 0);
  EXPECT_TRUE(seen_.writable.empty());
  const std::array items = {fuse_forget_one{.nodeid = 1, .nlookup = 2},
                            fuse_forget_one{.nodeid = 3, .nlookup = 4}};
  EXPECT_EQ(session_->hiprio().BatchForget(items), 0);
  EXPECT_EQ(seen_.body.size(), sizeof(fuse_batch_forget_in) + sizeof(items));
}

TEST_P(FuseClientTest, RawChainsAreCutAsTold) {
  Start([](const Seen&) { return Answer{.error = 0, .payload = "abc"}; });
  const auto reply = client().Raw(std::vector<std::byte>(50), 30, 20, 16);
  EXPECT_EQ(reply.error, 0);
  EXPECT_EQ(seen_.readable, (std::vector<uint32_t>{20, 20, 10}));
  EXPECT_EQ(seen_.writable, (std::vector<uint32_t>{16, 14}));
  EXPECT_EQ(reply.written, 19u);
  ASSERT_EQ(reply.bytes.size(), 30u);
  EXPECT_EQ(reply.bytes[16], std::byte{'a'});
  EXPECT_EQ(client().Raw(std::vector<std::byte>(1u << 20), 1).error, -EMSGSIZE);
}

TEST_P(FuseClientTest, WhatIsTooLongIsRefusedHere) {
  Start([](const Seen&) { return Answer{}; });
  EXPECT_EQ(client().Lookup(1, std::string(9000, 'x')).error, -EMSGSIZE);
  EXPECT_EQ(client().Write(1, 2, 0, std::vector<std::byte>((1u << 20) + 1)).error, -EMSGSIZE);
  EXPECT_EQ(client().Read(1, 2, 0, (1u << 20) + 1).error, -EMSGSIZE);
}

TEST(ParseDirEntriesTest, TakesGoodAndRefusesBad) {
  const auto dirent = [](const std::string& name, uint32_t claimed) {
    fuse_dirent d{};
    d.ino = 5;
    d.off = 6;
    d.namelen = claimed;
    d.type = 8;
    std::string bytes(reinterpret_cast<const char*>(&d), offsetof(fuse_dirent, name));
    bytes += name;
    bytes.resize((bytes.size() + 7) / 8 * 8);
    return bytes;
  };
  const auto parse = [](const std::string& bytes, bool plus) {
    return ParseDirEntries(std::as_bytes(std::span(bytes)), plus);
  };
  const auto good = parse(dirent("a", 1) + dirent("eightxxx", 8), false);
  ASSERT_TRUE(good.ok());
  ASSERT_EQ(good.value.size(), 2u);
  EXPECT_EQ(good.value[1].name, "eightxxx");
  EXPECT_EQ(good.value[1].next_offset, 6u);
  EXPECT_TRUE(parse("", true).ok());
  EXPECT_EQ(parse(dirent("a", 0), false).error, -EPROTO);
  EXPECT_EQ(parse(dirent("a", 1000), false).error, -EPROTO);
  EXPECT_EQ(parse("short", false).error, -EPROTO);
  EXPECT_EQ(parse(dirent("a", 1), true).error, -EPROTO);
  const auto plus = parse(std::string(sizeof(fuse_entry_out), 1) + dirent("abc", 3), true);
  ASSERT_TRUE(plus.ok());
  EXPECT_EQ(plus.value[0].entry.nodeid, 0x0101010101010101u);
}

}  // namespace
}  // namespace virtbay::guest
