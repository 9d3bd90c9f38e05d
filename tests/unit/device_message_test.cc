// The message service: payload to and from sockets and files in one call, and everything that a
// message can get wrong.
#include <netinet/in.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "tests/support/hand_over.h"
#include "tests/unit/device_fixture.h"
#include "tests/unit/message_device.h"
#include "virtbay/sdk/abi.h"

namespace virtbay::testing {
namespace {

// A pair of connected sockets: the plugin's and the test's.
struct Sockets {
  explicit Sockets(int type) {
    int fds[2] = {-1, -1};
    if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds) != 0) return;
    device.reset(fds[0]);
    peer.reset(fds[1]);
  }
  std::string Take() {
    std::string text(200'000, '\0');
    const ssize_t n = recv(peer.get(), text.data(), text.size(), MSG_DONTWAIT);
    text.resize(n < 0 ? 0 : static_cast<size_t>(n));
    return text;
  }
  void Give(const std::string& text) {
    ASSERT_EQ(send(peer.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()));
  }
  UniqueFd device, peer;
};

struct Answer {
  MessageReply head;
  std::string prefix;   // received
  std::string rest;     // name and control bytes
  std::string payload;  // the writable bytes that slices may address
};

class MessageTest : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    Connect(VIRTBAY_MESSAGE_PLUGIN);
  }
  void Connect(const char* plugin) {
    client_.reset();
    static int count = 0;
    ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec(absl::StrCat("m", ++count), {}, plugin)));
    ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_));
  }

  // Sends a command with what belongs to it. The readable bytes that slices may address are
  // `payload`, from the offset that it gives back in `at`.
  struct Call {
    MessageCommand command;
    std::vector<MessageSlice> slices = {};
    std::string own = {};  // prefix, name and control bytes
    std::string payload = {};
    uint32_t room = 64;  // writable bytes that slices may address
    uint32_t queue = 0;
  };
  static uint32_t PayloadAt(const Call& call) {
    return static_cast<uint32_t>(sizeof(MessageCommand) +
                                 call.slices.size() * sizeof(MessageSlice) + call.own.size());
  }
  // Readable bytes of a call that are in pieces of `piece` bytes.
  uint64_t Start(Call call, uint32_t piece = UINT32_MAX, uint32_t room_piece = UINT32_MAX) {
    call.command.slice_count = static_cast<uint32_t>(call.slices.size());
    std::string bytes(reinterpret_cast<const char*>(&call.command), sizeof(call.command));
    bytes.append(reinterpret_cast<const char*>(call.slices.data()),
                 call.slices.size() * sizeof(MessageSlice));
    bytes += call.own + call.payload;
    const uint32_t room = kMessageReplyRoom + call.room;
    absl::StatusOr<guest::GuestRange> range =
        client_->memory().Allocate(uint64_t{2} * (bytes.size() + room) + 64);
    EXPECT_OK(range);
    std::vector<guest::Segment> in, out;
    uint64_t at = range->address;
    // A gap between two pieces keeps them apart.
    const auto cut = [&](std::vector<guest::Segment>* to, uint64_t len, uint32_t step) {
      const uint64_t first = to->size();
      for (uint64_t done = 0; done < len;) {
        const auto n = static_cast<uint32_t>(std::min<uint64_t>(step, len - done));
        to->push_back({at, n});
        at += n + (n == step && len > step ? 1 : 0);
        done += n;
      }
      return first;
    };
    cut(&in, bytes.size() - call.payload.size(), UINT32_MAX);
    if (!call.payload.empty()) cut(&in, call.payload.size(), piece);
    cut(&out, kMessageReplyRoom, UINT32_MAX);
    if (call.room > 0) cut(&out, call.room, room_piece);
    size_t done = 0;
    for (const guest::Segment& segment : in) {
      std::memcpy(range->host + (segment.address - range->address), bytes.data() + done,
                  segment.length);
      done += segment.length;
    }
    const uint64_t token = ++last_token_;
    EXPECT_TRUE(client_->queue(call.queue).Add(in, out, token));
    sent_[token] = Sent{*range, out, call};
    HandOver();
    client_->queue(call.queue).Publish();
    return token;
  }
  Answer Finish(uint64_t token) {
    const Sent sent = sent_.at(token);
    guest::DriverQueue& queue = client_->queue(sent.call.queue);
    std::array<guest::UsedBuffer, 16> used;
    while (!done_.contains(token)) {
      for (size_t n = queue.TakeUsed(used), i = 0; i < n; ++i) done_.insert(used[i].token);
      if (done_.contains(token)) break;
      const absl::Status status = queue.Wait(guest::WaitMode::kSleep);
      EXPECT_OK(status);
      if (!status.ok()) return {};
    }
    std::string all;
    for (const guest::Segment& segment : sent.out) {
      all.append(
          reinterpret_cast<const char*>(sent.range.host) + (segment.address - sent.range.address),
          segment.length);
    }
    Answer answer;
    std::memcpy(&answer.head, all.data(), sizeof(answer.head));
    if (sent.call.command.op == MessageOp::kReceive && answer.head.result >= 0) {
      answer.prefix = all.substr(sizeof(MessageReply), sent.call.command.prefix_len);
      answer.rest = all.substr(sizeof(MessageReply) + sent.call.command.prefix_len,
                               sent.call.command.name_len + sent.call.command.control_len);
    }
    answer.payload = all.substr(kMessageReplyRoom);
    return answer;
  }
  Answer Do(const Call& call) {
    Answer answer = Finish(Start(call));
    TakeOver();  // the descriptor, back
    return answer;
  }
  int64_t Result(const Call& call) { return Do(call).head.result; }
  // Every request that is held ends; what was received into them is in the answers.
  void Release() { Do({.command = {.op = MessageOp::kRelease}}); }
  QueueStats Stats() { return device_.Inspect()->queues[0]; }

  struct Sent {
    guest::GuestRange range;
    std::vector<guest::Segment> out;
    Call call;
  };
  DeviceHandle device_;
  std::unique_ptr<Client> client_;
  uint64_t last_token_ = 0;
  std::map<uint64_t, Sent> sent_;
  std::set<uint64_t> done_;
};

std::string Numbers(size_t n) {
  std::string text(n, '\0');
  for (size_t i = 0; i < n; ++i) text[i] = static_cast<char>(i * 7 + i / 251);
  return text;
}

TEST_F(MessageTest, SendsThePrefixAndSlicesOfSeveralRequests) {
  Sockets sockets(SOCK_SEQPACKET);
  Call held{.command = {.op = MessageOp::kHold}, .payload = Numbers(3000)};
  const uint32_t at = PayloadAt(held);
  Start(held, /*piece=*/700);
  const uint64_t direct = Stats().bytes_direct;
  const uint64_t syscalls = Stats().syscalls;
  Call call{.command = {.op = MessageOp::kSend, .fd = sockets.device.get(), .prefix_len = 6},
            .slices = {{0, at + 100, 2000}, {MessageSlice::kSelf, 0, 2}, {0, at + 5, 0}, {}},
            .own = "prefix",
            .payload = "own"};
  call.slices[1].offset = PayloadAt(call);
  call.slices[3] = {0, at + 2999, 1};
  EXPECT_EQ(Result(call), 6 + 2000 + 2 + 1);
  EXPECT_EQ(sockets.Take(),
            "prefix" + Numbers(3000).substr(100, 2000) + "ow" + Numbers(3000).substr(2999));
  EXPECT_EQ(Stats().bytes_direct - direct, 2003u);
  EXPECT_GE(Stats().syscalls - syscalls, 1u);
  Release();
}

TEST_F(MessageTest, ReceivesOneFrameOverSeveralRequests) {
  Sockets sockets(SOCK_SEQPACKET);
  const uint64_t first =
      Start({.command = {.op = MessageOp::kHold}, .room = 1000}, UINT32_MAX, 300);
  const uint64_t second = Start({.command = {.op = MessageOp::kHold}, .room = 1000});
  const std::string frame = Numbers(1500);
  sockets.Give(frame);
  const uint32_t at = kMessageReplyRoom;
  const Call call{
      .command = {.op = MessageOp::kReceive, .fd = sockets.device.get(), .prefix_len = 14},
      .slices = {{0, at + 12, 988}, {1, at, 1000}}};
  const Answer peek = [&] {
    Call look = call;
    look.command.flags = MSG_PEEK;
    return Do(look);
  }();
  EXPECT_EQ(peek.head.result, 1500);
  const Answer answer = Do(call);
  EXPECT_EQ(answer.head.result, 1500);
  EXPECT_EQ(answer.prefix, frame.substr(0, 14));
  EXPECT_EQ(answer.head.result_flags & MSG_TRUNC, 0u);
  // Nothing is left, and nobody waits for it.
  EXPECT_EQ(Result(call), -EAGAIN);
  // One that is too long says so.
  sockets.Give(Numbers(2100));
  const Answer cut = Do(call);
  EXPECT_EQ(cut.head.result, 14 + 988 + 1000);
  EXPECT_NE(cut.head.result_flags & MSG_TRUNC, 0u);
  sockets.Give(frame);
  EXPECT_EQ(Result(call), 1500);
  Release();
  EXPECT_EQ(Finish(first).payload.substr(12), frame.substr(14, 988));
  EXPECT_EQ(Finish(second).payload.substr(0, 498), frame.substr(14 + 988));
}

TEST_F(MessageTest, NamesAndControlBytesGoBothWays) {
  // Two UDP sockets; the plugin's sends two datagrams in one call and learns what address the
  // answer was sent to.
  const auto udp = [](sockaddr_in* where) {
    UniqueFd fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    where->sin_family = AF_INET;
    where->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    where->sin_port = 0;
    socklen_t len = sizeof(*where);
    EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(where), len), 0);
    EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(where), &len), 0);
    return fd;
  };
  sockaddr_in here{}, there{};
  const UniqueFd device = udp(&here);
  const UniqueFd peer = udp(&there);
  const int on = 1;
  ASSERT_EQ(setsockopt(device.get(), IPPROTO_IP, IP_PKTINFO, &on, sizeof(on)), 0);

  // UDP_SEGMENT (103 of SOL_UDP 17): 1000 bytes as datagrams of 400.
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))] = {};
  auto* const head = reinterpret_cast<cmsghdr*>(control);
  head->cmsg_level = 17;
  head->cmsg_type = 103;
  head->cmsg_len = CMSG_LEN(sizeof(uint16_t));
  const uint16_t segment = 400;
  std::memcpy(CMSG_DATA(head), &segment, sizeof(segment));
  Call call{.command = {.op = MessageOp::kSend,
                        .fd = device.get(),
                        .name_len = sizeof(there),
                        .control_len = sizeof(control)},
            .slices = {{MessageSlice::kSelf, 0, 1000}},
            .own = std::string(reinterpret_cast<char*>(&there), sizeof(there)) +
                   std::string(control, sizeof(control)),
            .payload = Numbers(1000)};
  call.slices[0].offset = PayloadAt(call);
  EXPECT_EQ(Result(call), 1000);
  char buffer[2000];
  EXPECT_EQ(recv(peer.get(), buffer, sizeof(buffer), 0), 400);
  EXPECT_EQ(recv(peer.get(), buffer, sizeof(buffer), 0), 400);
  EXPECT_EQ(recv(peer.get(), buffer, sizeof(buffer), 0), 200);

  ASSERT_EQ(sendto(peer.get(), "back", 4, 0, reinterpret_cast<sockaddr*>(&here), sizeof(here)), 4);
  pollfd look{.fd = device.get(), .events = POLLIN, .revents = 0};
  ASSERT_EQ(poll(&look, 1, 60'000), 1);
  const Answer answer = Do({.command = {.op = MessageOp::kReceive,
                                        .fd = device.get(),
                                        .name_len = 128,
                                        .control_len = 256},
                            .slices = {{MessageSlice::kSelf, kMessageReplyRoom, 64}}});
  EXPECT_EQ(answer.head.result, 4);
  EXPECT_EQ(answer.payload.substr(0, 4), "back");
  ASSERT_EQ(answer.head.name_len, sizeof(there));
  EXPECT_EQ(answer.rest.substr(0, 8), std::string(reinterpret_cast<char*>(&there), 8));
  EXPECT_EQ(answer.head.control_len, CMSG_SPACE(sizeof(in_pktinfo)));
}

TEST_F(MessageTest, FilesAreReadAndWrittenWithoutWaiting) {
  Pipe pipe(O_NONBLOCK);
  const Call receive{.command = {.op = MessageOp::kReceive,
                                 .fd = pipe.reader.get(),
                                 .kind = VIRTBAY_MESSAGE_FILE,
                                 .prefix_len = 3},
                     .slices = {{MessageSlice::kSelf, kMessageReplyRoom, 10}}};
  EXPECT_EQ(Result(receive), -EAGAIN);
  Call send{.command = {.op = MessageOp::kSend,
                        .fd = pipe.writer.get(),
                        .kind = VIRTBAY_MESSAGE_FILE,
                        .prefix_len = 4},
            .slices = {{MessageSlice::kSelf, 0, 4}},
            .own = "abcd",
            .payload = "efgh"};
  send.slices[0].offset = PayloadAt(send);
  EXPECT_EQ(Result(send), 8);
  const Answer answer = Do(receive);
  EXPECT_EQ(answer.head.result, 8);
  EXPECT_EQ(answer.prefix, "abc");
  EXPECT_EQ(answer.payload.substr(0, 5), "defgh");
  // A full pipe, then one that nobody reads: no wait and no signal.
  send.payload = Numbers(60'000);
  send.slices[0].len = 60'000;
  int64_t result = 0;
  for (int i = 0; i < 100 && result >= 0; ++i) result = Result(send);
  EXPECT_EQ(result, -EAGAIN);
  pipe.reader.reset();
  EXPECT_EQ(Result(send), -EPIPE);
  // The same of a socket.
  Sockets sockets(SOCK_STREAM);
  sockets.peer.reset();
  Call socket = send;
  socket.command.fd = sockets.device.get();
  socket.command.kind = 0;
  EXPECT_EQ(Result(socket), -EPIPE);
}

TEST_F(MessageTest, MessagesThatBreakTheRulesAreRefused) {
  Sockets sockets(SOCK_SEQPACKET);
  const int fd = sockets.device.get();
  Start({.command = {.op = MessageOp::kHold}, .payload = Numbers(100), .room = 100});
  const MessageCommand send{.op = MessageOp::kSend, .fd = fd};
  const MessageCommand receive{.op = MessageOp::kReceive, .fd = fd};
  const auto with = [](MessageCommand command, auto change) {
    change(command);
    return command;
  };
  for (const MessageCommand& base : {send, receive}) {
    SCOPED_TRACE(base.op == MessageOp::kSend ? "send" : "receive");
    const auto refused = [&](auto change) { return Result({.command = with(base, change)}); };
    EXPECT_EQ(refused([](MessageCommand& c) { c.struct_size = 8; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.kind = 2; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.queue = 2; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.queue = UINT32_MAX; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.flags = MSG_WAITALL; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.flags = MSG_OOB; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.flags = MSG_ZEROCOPY; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.slices_claim = 513; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.slices_claim = UINT32_MAX; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.prefix_len = 32u << 20 | 1; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.control_len = 4097; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.slices_claim = c.no_pointers = 1; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.prefix_len = c.no_pointers = 1; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.name_len = c.no_pointers = 1; }), -EINVAL);
    EXPECT_EQ(refused([](MessageCommand& c) { c.control_len = c.no_pointers = 1; }), -EINVAL);
    // What only a socket has.
    EXPECT_EQ(refused([](MessageCommand& c) {
                c.kind = VIRTBAY_MESSAGE_FILE;
                c.flags = MSG_NOSIGNAL;
              }),
              -EINVAL);
    // Slices: no request, and ranges beyond theirs in every way.
    const auto sliced = [&](MessageSlice slice) {
      return Result({.command = base, .slices = {{0, 0, 1}, slice}});
    };
    EXPECT_EQ(sliced({MessageSlice::kNull, 0, 1}), -EINVAL);
    const uint32_t total = base.op == MessageOp::kSend ? uint32_t{sizeof(MessageCommand)} + 100
                                                       : kMessageReplyRoom + 100;
    for (const auto& [offset, len] : {std::pair<uint32_t, uint32_t>{0, total + 1},
                                      {total, 1},
                                      {total + 1, 0},
                                      {UINT32_MAX, 1},
                                      {1, UINT32_MAX},
                                      {UINT32_MAX, UINT32_MAX}}) {
      EXPECT_EQ(sliced({0, offset, len}), -ERANGE) << offset << "+" << len;
    }
    EXPECT_EQ(refused([](MessageCommand& c) { c.fd = -1; }), -EBADF);
  }
  EXPECT_EQ(Result({.command = with(send, [](MessageCommand& c) { c.flags = MSG_PEEK; })}),
            -EINVAL);
  EXPECT_EQ(Result({.command = with(receive, [](MessageCommand& c) { c.flags = MSG_MORE; })}),
            -EINVAL);
  // No socket: the kernel's own word, and nothing was sent.
  Pipe pipe;
  EXPECT_EQ(Result({.command = with(send, [&](MessageCommand& c) { c.fd = pipe.writer.get(); }),
                    .slices = {{0, 0, 1}}}),
            -ENOTSOCK);
  EXPECT_EQ(sockets.Take(), "");
  Release();
}

TEST_F(MessageTest, AMessageInTooManyPiecesIsRefusedWhole) {
  Sockets sockets(SOCK_SEQPACKET);
  // 100 pieces of the request's: ten times they fit in a message, eleven times they do not.
  const Call held{.command = {.op = MessageOp::kHold}, .payload = Numbers(100), .room = 100};
  const uint32_t at = PayloadAt(held);
  Start(held, 1, 1);
  const auto times = [](uint32_t offset, uint32_t rest) {
    std::vector<MessageSlice> slices(10, {0, offset, 100});
    slices.push_back({0, offset, rest});
    return slices;
  };
  const MessageCommand send{.op = MessageOp::kSend, .fd = sockets.device.get()};
  const MessageCommand receive{.op = MessageOp::kReceive, .fd = sockets.device.get()};
  EXPECT_EQ(Result({.command = send, .slices = times(at, 24)}), 1024);
  EXPECT_EQ(sockets.Take().size(), 1024u);
  EXPECT_EQ(Result({.command = send, .slices = times(at, 25)}), -EMSGSIZE);
  std::vector<MessageSlice> one_more = times(at, 24);
  one_more.push_back({0, at, 1});
  EXPECT_EQ(Result({.command = send, .slices = one_more}), -EMSGSIZE);
  sockets.Give("x");
  EXPECT_EQ(Result({.command = receive, .slices = times(kMessageReplyRoom, 25)}), -EMSGSIZE);
  // It is still there.
  EXPECT_EQ(Result({.command = receive, .slices = times(kMessageReplyRoom, 24)}), 1);
  EXPECT_EQ(sockets.Take(), "");
  Release();
}

TEST_F(MessageTest, RequestsOfAnotherThreadAreRefused) {
  Connect(VIRTBAY_MESSAGE_PARALLEL_PLUGIN);
  Sockets sockets(SOCK_SEQPACKET);
  Start({.command = {.op = MessageOp::kHold}, .payload = "data", .queue = 0});
  const MessageCommand send{.op = MessageOp::kSend, .fd = sockets.device.get(), .queue = 1};
  EXPECT_EQ(Result({.command = send, .slices = {{0, 0, 4}}, .queue = 1}), -EINVAL);
  // Nor may it speak for another queue.
  EXPECT_EQ(Result({.command = send, .queue = 0}), -EINVAL);
  EXPECT_EQ(sockets.Take(), "");
  Release();
}

TEST_F(MessageTest, AGroupOfRequestsEndsAsOne) {
  const MessageCommand group{.op = MessageOp::kGroup};
  EXPECT_EQ(Result({.command = group}), VIRTBAY_OK);
  std::vector<uint64_t> held;
  for (int i = 0; i < 20; ++i) held.push_back(Start({.command = {.op = MessageOp::kHold}}));
  EXPECT_EQ(Result({.command = group}), VIRTBAY_OK);
  for (const uint64_t token : held) EXPECT_EQ(Finish(token).head.result, 0);
  // One that is in it twice ends once, and so does one with sizes that lie, and the rest with them.
  held.clear();
  for (int i = 0; i < 3; ++i) held.push_back(Start({.command = {.op = MessageOp::kHold}}));
  EXPECT_EQ(Result({.command = {.op = MessageOp::kGroupTwice}}), VIRTBAY_FAILED_PRECONDITION);
  for (const uint64_t token : held) Finish(token);
  EXPECT_EQ(Stats().in_flight, 0u);
  // Of two queues: none has ended.
  Start({.command = {.op = MessageOp::kHold}});
  Start({.command = {.op = MessageOp::kHold}, .queue = 1});
  // The other queue's is there when it has answered one that came later.
  Finish(Start({.command = {.op = MessageOp::kSend, .queue = 1}, .queue = 1}));
  EXPECT_EQ(Result({.command = group}), VIRTBAY_INVALID_ARGUMENT);
  EXPECT_EQ(Result({.command = {.op = MessageOp::kRelease}}), 2);
}

// As CVE-2022-2132 and its like ask for: memory that goes while the device uses it.
TEST_F(MessageTest, MemoryThatHasGoneIsAnErrorOfThatCall) {
  client_.reset();
  ASSERT_OK_AND_ASSIGN(device_, host_->Add(Spec("gone", {}, VIRTBAY_MESSAGE_PLUGIN)));
  ASSERT_OK_AND_ASSIGN(
      auto memory, guest::GuestMemory::Create({{guest::GuestMemory::kDefaultAddress, 4u << 20, 0},
                                               {uint64_t{1} << 40, 64u << 10, 0}}));
  guest::GuestMemory* const regions = memory.get();
  ASSERT_OK_AND_ASSIGN(client_, Client::Create(device_, std::move(memory), {}));
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange data,
                       regions->AllocateIn(uint64_t{1} << 40, 32 << 10));
  ASSERT_OK_AND_ASSIGN(const guest::GuestRange head, regions->Allocate(8192));
  // A request whose command is in memory that stays, its payload in memory that goes.
  new (head.host) MessageCommand{.op = MessageOp::kHold};
  const guest::Segment in[] = {{head.address, sizeof(MessageCommand)}, {data.address, 16 << 10}};
  const guest::Segment out[] = {{data.address + (16 << 10), 16 << 10}};
  ASSERT_TRUE(client_->queue().Add(in, out, 77));
  client_->queue().Publish();
  Sockets sockets(SOCK_SEQPACKET);
  const MessageCommand send{.op = MessageOp::kSend, .fd = sockets.device.get()};
  const MessageCommand receive{.op = MessageOp::kReceive, .fd = sockets.device.get()};
  const uint32_t at = sizeof(MessageCommand);
  EXPECT_EQ(Result({.command = send, .slices = {{0, at, 8192}}}), 8192);
  sockets.Take();
  const int file = regions->regions()[1].fd.get();
  ASSERT_EQ(ftruncate(file, 0), 0);
  EXPECT_EQ(Result({.command = send, .slices = {{0, at, 8192}}}), -EFAULT);
  sockets.Give("data");
  EXPECT_EQ(Result({.command = receive, .slices = {{0, 0, 8192}}}), -EFAULT);
  // Others are served as before.
  Call own{.command = send, .slices = {{MessageSlice::kSelf, 0, 5}}, .payload = "still"};
  own.slices[0].offset = PayloadAt(own);
  EXPECT_EQ(Result(own), 5);
  EXPECT_EQ(sockets.Take(), "still");
  ASSERT_EQ(ftruncate(file, 64 << 10), 0);
  Release();
}

}  // namespace
}  // namespace virtbay::testing
