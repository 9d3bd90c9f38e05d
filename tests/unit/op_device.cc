// A plugin that does what its requests say (op_device.h). Options: queues, in_view, out_view,
// config_size, group_size, in_order. Its counters tell what the host called.
#include "tests/unit/op_device.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/hand_over.h"
#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Error;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Result;
using virtbay::sdk::Status;
using virtbay::testing::Command;
using virtbay::testing::kResultSize;
using virtbay::testing::Op;

class OpDevice : public Device {
 public:
  Status Init() override {
    queues_ = Number("queues", 1);
    in_view_ = Number("in_view", 1024);
    out_view_ = Number("out_view", 1024);
    auxiliary_ = Number("auxiliary", 0) != 0;
    group_size_ = Number("group_size", 0);
    in_order_ = Number("in_order", 0) != 0;
    config_.resize(Number("config_size", 16));
    std::iota(reinterpret_cast<uint8_t*>(config_.data()),
              reinterpret_cast<uint8_t*>(config_.data()) + config_.size(), uint8_t{1});
    kept_.resize(queues_);
    features_ = host().Counter("features", "what the driver acknowledged");
    activates_ = host().Counter("activates", "calls");
    starts_ = host().Counter("starts", "calls");
    stops_ = host().Counter("stops", "calls");
    deactivates_ = host().Counter("deactivates", "calls");
    quiesces_ = host().Counter("quiesces", "calls");
    resumes_ = host().Counter("resumes", "calls");
    requests_ = host().Counter("requests", "seen");
    timers_ = host().Counter("timers", "reports");
    offloaded_ = host().Counter("offloaded", "reports");
    virtbay::sdk::Host::Add(host().Counter("max_mapping", "what the host says; 0: nothing"),
                            Number(VIRTBAY_OPTION_MAX_MAPPING, 0));
    return {};
  }

  Properties GetProperties() const override {
    return {.queue_count = queues_,
            .features = 0x5 | (in_order_ ? uint64_t{1} << 35 : 0),
            .config_size = static_cast<uint32_t>(config_.size())};
  }
  QueueProperties GetQueueProperties(uint32_t queue) const override {
    return {.max_size = 0,
            .in_view = in_view_,
            .out_view = out_view_,
            .auxiliary = queue == 0 && auxiliary_,
            .thread_group = group_size_ == 0 ? 0 : queue / group_size_ + 1};
  }
  Status Negotiate(uint64_t features) override {
    __atomic_store_n(features_, features, __ATOMIC_RELAXED);
    return {};
  }
  Status Activate() override {
    Count(activates_);
    return {};
  }
  Status Start() override {
    Count(starts_);
    return {};
  }
  void Stop() override { Count(stops_); }
  void Deactivate() override { Count(deactivates_); }
  void Resume(uint32_t) override { Count(resumes_); }
  // Says it in the log. Option farewell_waits: after it, for a byte from that descriptor.
  void Farewell(uint32_t queue, uint32_t reason) override {
    host().Log(VIRTBAY_LOG_INFO, "farewell %u on %u%s with %zu held", reason, queue,
               host().OnQueueThread(queue) ? "" : " elsewhere", kept_[queue].size());
    const auto fd = static_cast<int>(Number("farewell_waits", 0));
    char byte = 0;
    if (fd != 0) static_cast<void>(!read(fd, &byte, 1));
  }

  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    std::memcpy(data.data(), config_.data() + offset, data.size());
    return true;
  }
  bool WriteConfig(uint32_t offset, std::span<const std::byte> data) override {
    std::memcpy(config_.data() + offset, data.data(), data.size());
    return true;
  }

  // "echo" gives the text back; "fill" as many bytes as it says; "refuse" and "throw" fail with it;
  // "where" tells on which kind of thread it runs.
  Result<std::string> Control(std::string_view command, std::string_view text) override {
    std::string copy(text);
    if (command == "echo") return copy;
    if (command == "fill") return std::string(std::strtoul(copy.c_str(), nullptr, 10), 'x');
    if (command == "refuse") return Error{VIRTBAY_ALREADY_EXISTS, 0, copy};
    if (command == "throw") throw std::runtime_error(copy);
    if (command == "where") return std::string(host().OnControlThread() ? "control" : "elsewhere");
    return Error{VIRTBAY_UNIMPLEMENTED, 0, "unknown command"};
  }

  void OnRequests(uint32_t queue, std::span<Request> requests) override {
    for (Request& request : requests) {
      Count(requests_);
      Command command;
      if (!request.Read(0, &command)) {
        request.Fail();
        continue;
      }
      Do(queue, command, std::move(request));
    }
  }

  void OnIo(uint32_t, std::span<const virtbay_io_result> results) override {
    for (const virtbay_io_result& result : results) {
      Request request(&host(), result.request);
      const bool moved = result.op <= VIRTBAY_IO_WRITE && result.result > 0;
      const bool read = moved && result.op == VIRTBAY_IO_READ;
      // The payload of a read begins behind the result.
      const uint32_t end =
          read ? AtOf(request) + static_cast<uint32_t>(result.result) : kResultSize;
      Answer(std::move(request), result.result, kResultSize, end);
    }
  }
  void OnTimer(uint32_t, uint64_t cookie) override {
    Count(timers_);
    Answer(Request(&host(), reinterpret_cast<virtbay_request*>(cookie)), 0);
  }
  void OnOffload(uint32_t, void*, uint64_t cookie) override {
    Answer(Request(&host(), reinterpret_cast<virtbay_request*>(cookie)), 0);
    Count(offloaded_);
  }
  void Quiesce(uint32_t queue) override {
    Count(quiesces_);
    std::vector<Kept> left;
    for (Kept& kept : kept_[queue]) {
      if (kept.op == Op::kHold || kept.op == Op::kHoldView) {
        kept.request.Fail();
      } else if (kept.op == Op::kPark || kept.op == Op::kWait) {
        kept.request.Requeue();
      } else {
        left.push_back(std::move(kept));
      }
    }
    kept_[queue] = std::move(left);
  }

  // Requests of a stopped device cannot be ended any more.
  ~OpDevice() override {
    for (auto& queue : kept_) {
      for (Kept& kept : queue) kept.request.Release();
    }
  }

 private:
  struct Kept {
    Op op;
    Request request;
  };
  struct Work {
    int fd;
    bool throws;
  };

  uint32_t Number(const char* option, uint32_t otherwise) const {
    const auto text = host().Option(option);
    return text ? static_cast<uint32_t>(std::strtoul(text->c_str(), nullptr, 0)) : otherwise;
  }
  static void Count(uint64_t* counter) { virtbay::sdk::Host::Add(counter); }
  static uint32_t AtOf(const Request& request) {
    Command command;
    std::memcpy(&command, request.in().data(), sizeof(command));
    return command.a;
  }

  // Ends a request with that result; the first out_bytes of its view and `written` in all count.
  void Answer(Request request, int64_t result, uint32_t out_bytes = kResultSize,
              uint32_t written = kResultSize) {
    if (!request.Write(0, result)) {
      request.Fail();
      return;
    }
    request.Complete(out_bytes, std::max(written, out_bytes));
  }

  void Do(uint32_t queue, const Command& command, Request request) {
    switch (command.op) {
      case Op::kEcho: {
        const auto in = request.in().subspan(sizeof(Command));
        const auto out = request.out();
        if (out.size() < kResultSize) return request.Fail();
        const size_t n = std::min(in.size(), out.size() - kResultSize);
        std::memcpy(out.data() + kResultSize, in.data(), n);
        return Answer(std::move(request), static_cast<int64_t>(n),
                      static_cast<uint32_t>(kResultSize + n));
      }
      case Op::kNothing:
        return request.Complete(0);
      case Op::kHoldView:
        std::memset(request.out().data(), static_cast<int>(command.a), request.out().size());
        [[fallthrough]];
      case Op::kHold:
      case Op::kHoldStill:
      case Op::kPark:
        kept_[queue].push_back({command.op, std::move(request)});
        return;
      case Op::kWait:
        if (!request.Park() || !request.in().empty() || !request.Park()) {
          return Answer(std::move(request), -1);
        }
        // Grows while it waits, if it has to: `a` bytes, which ends the parking.
        if (command.a != 0 && (!request.Reserve(command.a) || !request.Park())) {
          return Answer(std::move(request), -2);
        }
        kept_[queue].push_back({command.op, std::move(request)});
        return;
      case Op::kCheckViews: {
        std::vector<Kept> kept = std::exchange(kept_[queue], {});
        const int64_t result = CheckViews(kept);
        for (Kept& one : kept) Answer(std::move(one.request), 1);
        return Answer(std::move(request), result);
      }
      case Op::kRelease: {
        std::vector<Kept> kept = std::exchange(kept_[command.a], {});
        for (Kept& one : kept) Answer(std::move(one.request), 1);
        return Answer(std::move(request), static_cast<int64_t>(kept.size()));
      }
      case Op::kFetch: {
        const auto bytes = request.Fetch(command.a, command.b);
        int64_t sum = bytes.empty() ? -1 : 0;
        for (const std::byte b : bytes) sum += std::to_integer<int64_t>(b);
        return Answer(std::move(request), sum);
      }
      case Op::kReserve: {
        if (!request.Reserve(command.a)) return Answer(std::move(request), -1);
        std::memset(request.out().data(), static_cast<int>(command.b), command.a);
        return request.Complete(command.a);
      }
      case Op::kReserveHold:
        if (!request.Reserve(command.a)) static_cast<void>(request.Reserve(command.a));
        kept_[queue].push_back({Op::kHold, std::move(request)});
        return;
      case Op::kOverrun:
        // Byte by byte: a sanitizer's memset looks at the whole range before it begins.
        for (uint64_t i = 0; i < command.offset; ++i) {
          const_cast<volatile std::byte&>(request.out().data()[i]) = std::byte{0xee};
        }
        return Answer(std::move(request), 0);
      case Op::kReadNow:
      case Op::kReadBlocking: {
        const bool now = command.op == Op::kReadNow;
        const int64_t n =
            now ? request.ReadNow(command.fd, command.offset, command.a, command.b)
                : request.ReadBlocking(command.fd, command.offset, command.a, command.b);
        const uint32_t end = n > 0 ? command.a + static_cast<uint32_t>(n) : 0;
        return Answer(std::move(request), n, kResultSize, end);
      }
      case Op::kWriteNow:
      case Op::kWriteBlocking: {
        const bool now = command.op == Op::kWriteNow;
        const int64_t n =
            now ? request.WriteNow(command.fd, command.offset, command.a, command.b)
                : request.WriteBlocking(command.fd, command.offset, command.a, command.b);
        return Answer(std::move(request), n);
      }
      case Op::kSubmitRead:
      case Op::kSubmitWrite:
      case Op::kSubmitFsync:
      case Op::kSubmitPoll:
      case Op::kSubmitBad:
        return Submit(queue, command, std::move(request));
      case Op::kCancel:
        host().Cancel(queue, command.offset);
        return Answer(std::move(request), 0);
      case Op::kTimer: {
        const auto delay = std::chrono::nanoseconds(static_cast<int64_t>(command.offset));
        host().SetTimer(queue, delay, reinterpret_cast<uint64_t>(request.Release()));
        return;
      }
      case Op::kOffload:
      case Op::kOffloadThrow: {
        virtbay::testing::TakeOver();
        Work* work = nullptr;
        {
          const std::lock_guard<std::mutex> lock(work_mutex_);
          work = &work_.emplace_back(Work{command.fd, command.op == Op::kOffloadThrow});
        }
        const auto run = [](void* argument) {
          const Work& todo = *static_cast<Work*>(argument);
          char byte = 0;
          while (todo.fd >= 0 && read(todo.fd, &byte, 1) < 0 && errno == EINTR) {
          }
          if (todo.throws) throw std::runtime_error("from the pool");
        };
        virtbay_request* raw = request.Release();
        if (!host().Offload(queue, run, work, reinterpret_cast<uint64_t>(raw)).ok()) {
          Request(&host(), raw).Fail();
        }
        return;
      }
      case Op::kFail:
        host().Fail("a request said so");
        return Answer(std::move(request), 0);
      case Op::kCondemn:
        host().CondemnThread(queue, "a request said so");
        return Answer(std::move(request), 0);
      case Op::kConfigChanged:
        host().ConfigChanged();
        return Answer(std::move(request), 0);
      case Op::kCrash:
        break;
      case Op::kSharesThread:
        return Answer(std::move(request), host().OnQueueThread(command.a) ? 1 : 0);
      case Op::kWhere: {
        const int64_t where =
            (host().OnQueueThread(queue) ? 1 : 0) + (host().OnControlThread() ? 2 : 0);
        return Answer(std::move(request), where);
      }
    }
    request.Fail();
  }

  static int64_t CheckViews(const std::vector<Kept>& kept) {
    constexpr uintptr_t kSlot = 2048;
    std::map<uintptr_t, uintptr_t> views;  // end by begin
    std::set<uintptr_t> places;
    for (const Kept& one : kept) {
      const std::span<const std::byte> in = one.request.in();
      const std::span<const std::byte> out = one.request.out();
      const auto begin = reinterpret_cast<uintptr_t>(in.data());
      const auto out_begin = reinterpret_cast<uintptr_t>(out.data());
      const uintptr_t end = out_begin + out.size();
      if (begin % 64 != 0 || out_begin % 16 != 0) return virtbay::testing::kMisaligned;
      if (in.data() + in.size() > out.data()) return virtbay::testing::kOverlapping;
      const uintptr_t room = (end - begin + kSlot - 1) / kSlot * kSlot;
      if (begin % kSlot + (end - begin) > room) return virtbay::testing::kOutsideSlots;
      views[begin] = end;
      places.insert(begin % kSlot);
      Command command;
      std::memcpy(&command, in.data(), sizeof(command));
      const auto same = [&](std::byte byte) { return byte == static_cast<std::byte>(command.a); };
      if (!std::ranges::all_of(in.subspan(sizeof(command)), same) ||
          !std::ranges::all_of(out, same)) {
        return virtbay::testing::kOverwritten;
      }
    }
    if (views.size() != kept.size()) return virtbay::testing::kOverlapping;
    uintptr_t before = 0;
    for (const auto& [begin, end] : views) {
      if (begin < before) return virtbay::testing::kOverlapping;
      before = end;
    }
    return static_cast<int64_t>(places.size());
  }

  void Submit(uint32_t queue, const Command& command, Request request) {
    virtbay_io io = {};
    io.struct_size = sizeof(io);
    io.op = static_cast<uint16_t>(VIRTBAY_IO_READ + static_cast<uint32_t>(command.op) -
                                  static_cast<uint32_t>(Op::kSubmitRead));
    if (command.op == Op::kSubmitFsync) io.op = VIRTBAY_IO_FSYNC;
    if (command.op == Op::kSubmitPoll) io.op = VIRTBAY_IO_POLL;
    if (command.op == Op::kSubmitBad) io.op = VIRTBAY_IO_READ;
    io.queue = static_cast<uint16_t>(queue);
    io.fd = command.fd;
    io.payload_offset = command.a;
    io.payload_len = command.b;
    io.file_offset = command.offset;
    io.arg = command.op == Op::kSubmitPoll ? command.a : 0;
    io.cookie = command.offset;
    io.request = request.get();
    if (command.op == Op::kSubmitBad) {
      // Each of them is wrong in one way; a list with one wrong operation queues none.
      std::array<virtbay_io, 2> both = {io, io};
      both[0].payload_len = 1;
      int64_t refused = 0;
      const auto expect = [&](const virtbay_io& bad) {
        both[1] = bad;
        if (!host().Submit(both.data(), 2).ok()) ++refused;
      };
      virtbay_io bad = both[0];
      bad.op = 99;
      expect(bad);
      bad = both[0];
      bad.struct_size = 4;
      expect(bad);
      bad = both[0];
      bad.request = nullptr;
      expect(bad);
      bad = both[0];
      bad.queue = 250;
      expect(bad);
      bad = both[0];
      bad.payload_len = 0;
      expect(bad);
      bad.payload_len = UINT32_MAX;
      expect(bad);
      bad.payload_offset = UINT32_MAX;
      bad.payload_len = 1;
      expect(bad);
      Answer(std::move(request), refused);
      return;
    }
    const Status status = host().Submit(&io, 1);
    if (status.ok()) {
      request.Release();
    } else {
      Answer(std::move(request), -status.error().code);
    }
  }

  uint32_t queues_ = 1;
  uint32_t in_view_ = 0;
  uint32_t out_view_ = 0;
  bool auxiliary_ = false;   // queue 0 is of no use by itself
  uint32_t group_size_ = 0;  // so many queues share a thread
  bool in_order_ = false;
  std::vector<std::byte> config_;
  std::vector<std::vector<Kept>> kept_;  // by queue
  // Kept to the end: a report that comes too late is never made.
  std::mutex work_mutex_;
  std::deque<Work> work_;
  uint64_t* features_ = nullptr;
  uint64_t* activates_ = nullptr;
  uint64_t* starts_ = nullptr;
  uint64_t* stops_ = nullptr;
  uint64_t* deactivates_ = nullptr;
  uint64_t* quiesces_ = nullptr;
  uint64_t* resumes_ = nullptr;
  uint64_t* requests_ = nullptr;
  uint64_t* timers_ = nullptr;
  uint64_t* offloaded_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(OpDevice, "op", 4, OP_DEVICE_FLAGS);
