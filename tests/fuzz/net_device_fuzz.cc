// Fuzz target: a guest's driver in front of a network device of a Host (the sdk's NetDevice, with a
// socket of this process as its back-end): headers that lie, chains of any shape, receive buffers
// of any size, commands of the control queue, and frames from the other side.
//
// Input: three bytes of what is negotiated, then steps. A byte says which, what it needs follows:
//   0  a transmit chain: pair and pieces, header, frame (made or raw), where it is cut off
//   1  receive buffers: pair and how many, then pieces and a size each
//   2  a command: how long, room for the answer, its bytes
//   3  a frame for the guest: net_relay.h's record, and a size
//   4  the guest takes what there is
//   5  the queues stop and go on
//   6  the host: link down, link up, announce
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "hostif/guest/driver.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/guest/net_client.h"
#include "tests/support/net_frames.h"
#include "tests/support/process_state.h"
#include "tests/unit/net_relay.h"
#include "virtbay/host.h"

namespace {

using virtbay::DeviceHandle;
using virtbay::Host;
using virtbay::UniqueFd;
using virtbay::guest::Driver;
using virtbay::guest::DriverOptions;
using virtbay::guest::DriverQueue;
using virtbay::guest::GuestMemory;
using virtbay::guest::GuestRange;
using virtbay::guest::NetHeader;
using virtbay::guest::Segment;
using virtbay::guest::UsedBuffer;
using virtbay::guest::WaitMode;
using virtbay::testing::FrameSpec;
using virtbay::testing::MakeFrame;
using virtbay::testing::RelayRecord;
using virtbay::testing::TestFrame;

constexpr uint32_t kPairs = 2;
constexpr uint64_t kMemory = 8u << 20;
constexpr uint64_t kRoom = 4u << 20;  // of it, for buffers
constexpr uint8_t kUnwritten = 0xa5;
constexpr uint32_t kNoQueue = UINT32_MAX;

[[noreturn]] void Finding(const char* what) {
  std::fprintf(stderr, "net_device_fuzz: %s\n", what);
  abort();
}

void Expect(bool holds, const char* what) {
  if (!holds) Finding(what);
}

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  bool empty() const { return at_ == end_; }
  uint8_t U8() { return empty() ? uint8_t{0} : *at_++; }
  uint32_t U16() {
    const uint32_t low = U8();
    return low | uint32_t{U8()} << 8;
  }
  std::string Take(size_t size) {
    const size_t n = std::min(size, static_cast<size_t>(end_ - at_));
    std::string bytes(reinterpret_cast<const char*>(at_), n);
    at_ += n;
    bytes.resize(size);
    return bytes;
  }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

// A driver and its buffers, for one input.
class Guest {
 public:
  Guest(const DeviceHandle& device, Reader* in) {
    const uint8_t ring = in->U8();
    const uint8_t off = in->U8();
    const uint8_t control = in->U8();
    DriverOptions options;
    options.queue_size = 64;
    options.indirect_max = (ring & 1) != 0 ? 128 : 0;
    options.event_idx = (ring & 2) != 0;
    options.packed = (ring & 4) != 0;
    options.in_order = (ring & 8) != 0;
    options.device_features = virtbay::guest::kNetAllFeatures;
    const auto leave_out = [&](bool without, std::initializer_list<uint32_t> features) {
      for (const uint32_t feature : features) {
        if (without) options.device_features &= ~(uint64_t{1} << feature);
      }
    };
    using namespace virtbay::guest;
    leave_out((off & 1) != 0, {kNetMrgRxbuf});
    leave_out((off & 2) != 0,
              {1, kNetGuestTso4, kNetGuestTso6, kNetGuestEcn, kNetGuestUso4, kNetGuestUso6, 2});
    leave_out((off & 4) != 0, {0, kNetHostTso4, kNetHostTso6, kNetHostEcn, kNetHostUso});
    leave_out((off & 8) != 0, {kNetGuestTso4, kNetHostTso6});
    leave_out((control & 1) != 0, {kNetMq});
    leave_out((control & 2) != 0, {kNetCtrlVq, kNetCtrlRx, kNetCtrlVlan, kNetCtrlRxExtra,
                                   kNetGuestAnnounce, kNetMq, kNetCtrlMacAddr, 2});
    auto transport = virtbay::guest::InProcessTransport::Attach(device);
    auto memory = GuestMemory::Create(kMemory);
    if (!transport.ok() || !memory.ok()) Finding("no front-end");
    auto driver = Driver::Create(*std::move(transport), *std::move(memory), options);
    if (!driver.ok()) return;  // what was negotiated makes no sense
    driver_ = *std::move(driver);
    auto room = driver_->memory().Allocate(kRoom);
    if (!room.ok()) Finding("no memory");
    room_ = *room;
    mergeable_ = (driver_->features() & uint64_t{1} << kNetMrgRxbuf) != 0;
    const bool many = (driver_->features() & uint64_t{1} << kNetMq) != 0;
    if ((driver_->features() & uint64_t{1} << kNetCtrlVq) != 0) control_ = many ? 2 * kPairs : 2;
    pairs_ = many ? kPairs : 1;
  }
  bool ok() const { return driver_ != nullptr; }

  void Transmit(Reader* in) {
    const uint8_t how = in->U8();
    const std::string header = in->Take(sizeof(NetHeader));
    const uint8_t kind = in->U8();
    std::string frame;
    if ((kind & 1) != 0) {
      FrameSpec spec;
      spec.ipv6 = (kind & 2) != 0;
      spec.udp = (kind & 4) != 0;
      spec.vlans = kind >> 4 & 3;
      spec.payload = in->U16() & 0x7fff;
      frame = MakeFrame(spec).bytes;
    } else {
      frame = in->Take(kind >> 1);
    }
    std::string bytes = header + frame;
    if (const uint32_t cut = in->U8(); cut != 0) bytes.resize(bytes.size() * cut / 256);
    Chain chain;
    chain.readable = Cut(in, static_cast<uint32_t>(bytes.size()), 1 + (how >> 1 & 7));
    if ((how & 16) != 0) chain.writable = Cut(in, in->U8(), 2);
    Write(chain, bytes);
    Put(2 * (how & 1 & (pairs_ - 1)) + 1, std::move(chain));
  }

  void Post(Reader* in) {
    const uint8_t how = in->U8();
    const uint32_t size = in->U16();
    for (uint32_t i = 0; i < 1u + (how >> 1 & 7); ++i) {
      Chain chain;
      if ((how & 128) != 0) chain.readable = Cut(in, in->U8(), 2);
      chain.writable = Cut(in, size, 1 + (how >> 4 & 7));
      Put(2 * (how & 1 & (pairs_ - 1)), std::move(chain));
    }
  }

  void Command(Reader* in) {
    const uint32_t length = in->U8();
    const uint8_t room = in->U8();
    const std::string bytes = in->Take(length);
    if (control_ == kNoQueue) return;
    Chain chain;
    chain.readable = Cut(in, length, 1 + (room >> 4 & 3));
    chain.writable = Cut(in, room & 3, 2);
    Write(chain, bytes);
    Put(control_, std::move(chain));
  }

  void TakeAll() {
    for (uint32_t q = 0; q < driver_->queue_count(); ++q) TakeUsed(q);
  }

  // What the guest sent or asked comes back, whatever it was.
  void AwaitSent() {
    for (uint32_t q = 0; q < driver_->queue_count(); ++q) {
      if (!IsReceive(q)) {
        while (TakeUsed(q), driver_->queue(q).ring().in_flight() > 0) {
          if (!driver_->queue(q).Wait(WaitMode::kSleep, absl::Seconds(30)).ok()) {
            Finding("what the guest sent did not come back");
          }
        }
      }
      TakeUsed(q);
      if (driver_->queue(q).TakeError()) Finding("a ring was given up");
    }
  }

  void Pause() {
    if (!driver_->Stop().ok() || !driver_->Start().ok()) Finding("the queues do not go on");
  }

 private:
  struct Chain {
    std::vector<Segment> readable;
    std::vector<Segment> writable;
  };

  bool IsReceive(uint32_t queue) const {
    return queue != control_ && queue % 2 == 0 && queue / 2 < pairs_;
  }

  // Pieces of `size` bytes in all, at most `most` of them, some of them empty.
  std::vector<Segment> Cut(Reader* in, uint32_t size, uint32_t most) {
    std::vector<Segment> pieces;
    while (size > 0 && at_ + size + most < kRoom) {
      const uint32_t piece = pieces.size() + 1 >= most ? size : std::min<uint32_t>(size, in->U8());
      if (piece == 0 && pieces.size() > 8) break;
      if (piece > 0) {
        std::memset(room_.host + at_, kUnwritten, piece);
        pieces.push_back({room_.address + at_, piece});
        at_ += piece + 1;
      } else {
        most = std::max(1u, most - 1);
      }
      size -= piece;
    }
    return pieces;
  }
  std::byte* At(const Segment& segment) { return room_.host + (segment.address - room_.address); }
  void Write(const Chain& chain, const std::string& bytes) {
    size_t done = 0;
    for (const Segment& segment : chain.readable) {
      std::memcpy(At(segment), bytes.data() + done, segment.length);
      done += segment.length;
    }
  }
  std::string Read(const std::vector<Segment>& segments) {
    std::string bytes;
    for (const Segment& segment : segments) {
      bytes.append(reinterpret_cast<const char*>(At(segment)), segment.length);
    }
    return bytes;
  }

  void Put(uint32_t queue, Chain chain) {
    if (chain.readable.empty() && chain.writable.empty()) return;
    DriverQueue& q = driver_->queue(queue);
    const uint64_t token = ++last_token_;
    if (!q.Add(chain.readable, chain.writable, token)) return;
    Sent sent{std::move(chain), ""};
    sent.bytes = Read(sent.chain.readable);
    sent_.emplace(token, std::move(sent));
    q.Publish();
  }

  void TakeUsed(uint32_t queue) {
    std::array<UsedBuffer, 64> used;
    for (size_t n = 0; (n = driver_->queue(queue).TakeUsed(used)) > 0;) {
      for (size_t i = 0; i < n; ++i) Check(queue, used[i]);
    }
    Expect(owed_[queue] == 0, "a frame came without all of its buffers");
  }

  void Check(uint32_t queue, const UsedBuffer& used) {
    const auto found = sent_.find(used.token);
    Expect(found != sent_.end(), "a buffer came back twice");
    const Chain& chain = found->second.chain;
    const std::string out = Read(chain.writable);
    Expect(used.written <= out.size(), "more was written than there is room for");
    Expect(Read(chain.readable) == found->second.bytes, "what is readable was written to");
    if (!IsReceive(queue)) {
      // Nothing to say of a frame, one byte of a command.
      Expect(used.written <= (queue == control_ ? 1u : 0u), "an answer that nobody asked for");
      for (size_t i = used.written; i < out.size(); ++i) {
        Expect(static_cast<uint8_t>(out[i]) == kUnwritten, "bytes behind the answer were written");
      }
    } else if (owed_[queue] > 0) {
      --owed_[queue];
    } else if (used.written > 0) {
      NetHeader header;
      Expect(used.written >= sizeof(header), "a frame without a header");
      std::memcpy(&header, out.data(), sizeof(header));
      Expect(header.num_buffers >= 1 && (mergeable_ || header.num_buffers == 1),
             "a number of buffers that cannot be");
      owed_[queue] = header.num_buffers - 1u;
    }
    sent_.erase(found);
  }

  struct Sent {
    Chain chain;
    std::string bytes;  // the readable ones
  };

  std::unique_ptr<Driver> driver_;
  GuestRange room_;
  uint64_t at_ = 0;
  bool mergeable_ = false;
  uint32_t control_ = kNoQueue;
  uint32_t pairs_ = 1;
  uint64_t last_token_ = 0;
  std::map<uint64_t, Sent> sent_;
  std::array<uint32_t, 2 * kPairs + 1> owed_{};  // buffers of a frame that are to come
};

// One device for all inputs, so that what one leaves behind is met by the next.
class Subject {
 public:
  Subject() {
    int fds[2] = {-1, -1};
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) Finding("no sockets");
    device_end_.reset(fds[0]);
    peer_.reset(fds[1]);
    const int large = 4 << 20;
    for (const int fd : fds) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof(large));
    auto host = Host::Create({});
    if (!host.ok()) Finding("no host");
    host_ = *std::move(host);
    virtbay::DeviceSpec spec;
    spec.name = "fuzzed";
    spec.plugin = VIRTBAY_NET_RELAY;
    spec.arena_size = 2u << 20;
    spec.options = {{"fd", absl::StrCat(device_end_.get())}, {"queue-pairs", absl::StrCat(kPairs)}};
    auto device = host_->Add(std::move(spec));
    if (!device.ok()) Finding("no device");
    device_ = *std::move(device);
  }

  void Run(Reader in) {
    {
      Guest guest(device_, &in);
      while (guest.ok() && !in.empty()) Step(&guest, &in);
      if (guest.ok()) guest.AwaitSent();
    }
    LookAtFrames();
    static_cast<void>(device_.Control("link", "up"));
    std::array<char, 1> byte;
    while (recv(device_end_.get(), byte.data(), byte.size(), MSG_DONTWAIT) >= 0) {
    }
    const auto info = device_.Inspect();
    if (!info.ok() || info->state != "ready" || info->connected || info->needs_reset ||
        info->arena_slots_used != 0) {
      Finding("the device is not as new after its front-end has gone");
    }
    for (const auto& queue : info->queues) {
      if (queue.in_flight != 0) Finding("a buffer stayed behind");
    }
  }

  // That reached the back-end.
  uint64_t frames() const { return frames_; }
  // That it gave the guest.
  uint64_t given() const {
    const auto info = device_.Inspect();
    return info.ok() ? info->metrics.at("committed") : 0;
  }

 private:
  void Step(Guest* guest, Reader* in) {
    switch (in->U8() % 7) {
      case 0:
        return guest->Transmit(in);
      case 1:
        return guest->Post(in);
      case 2:
        return guest->Command(in);
      case 3:
        return Give(in);
      case 4:
        return guest->TakeAll();
      case 5:
        return guest->Pause();
      default: {
        static constexpr std::array<std::pair<const char*, const char*>, 3> kCommands = {
            {{"link", "down"}, {"link", "up"}, {"announce", ""}}};
        const auto& [command, text] = kCommands[in->U8() % kCommands.size()];
        static_cast<void>(device_.Control(command, text));
      }
    }
  }

  void Give(Reader* in) {
    RelayRecord record;
    const std::string given = in->Take(sizeof(record));
    std::memcpy(&record, given.data(), sizeof(record));
    record.pair %= kPairs;
    const uint8_t kind = in->U8();
    FrameSpec spec;
    spec.ipv6 = (kind & 1) != 0;
    spec.udp = (kind & 2) != 0;
    spec.vlans = kind >> 2 & 3;
    spec.payload = in->U16();
    std::string bytes = MakeFrame(spec).bytes;
    if ((kind & 128) != 0) bytes.resize(in->U8());
    bytes.insert(0, reinterpret_cast<const char*>(&record), sizeof(record));
    static_cast<void>(send(peer_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT));
    if ((kind & 64) != 0) LookAtFrames();
  }

  // A back-end may believe what it is told of a frame.
  void LookAtFrames() {
    std::vector<uint8_t> bytes(80'000);
    for (;;) {
      const ssize_t n = recv(peer_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
      if (n < 0) return;
      RelayRecord record;
      Expect(n >= static_cast<ssize_t>(sizeof(record) + 14), "a frame without a header");
      std::memcpy(&record, bytes.data(), sizeof(record));
      const auto size = static_cast<uint32_t>(n) - static_cast<uint32_t>(sizeof(record));
      ++frames_;
      Expect(record.header_len <= size, "more was shown of a frame than it has");
      if (record.needs_csum != 0) {
        Expect(record.csum_start >= 14 && record.csum_start + record.csum_offset + 2u <= size,
               "a checksum beyond the frame");
      }
      if (record.gso != 0) {
        Expect(record.needs_csum != 0 && record.gso_size > 0, "segments of nothing");
        Expect(record.hdr_len > record.csum_start && record.hdr_len < size,
               "headers beyond the frame");
      }
    }
  }

  UniqueFd device_end_;
  UniqueFd peer_;
  std::unique_ptr<Host> host_;
  DeviceHandle device_;
  uint64_t frames_ = 0;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Subject subject;
  static const size_t before = virtbay::testing::CountEntries("/proc/self/fd");
  static uint64_t inputs = 0;
  subject.Run(Reader(data, size));
  if (virtbay::testing::CountEntries("/proc/self/fd") != before) {
    Finding("a descriptor stayed behind");
  }
  // Inputs that no frame comes of, either way, try little.
  if (++inputs == 1000 && (subject.frames() == 0 || subject.given() == 0)) {
    Finding("no frame ever went through");
  }
  return 0;
}
