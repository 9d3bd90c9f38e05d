// The device of the reload tests, built twice: RELOAD_VERSION says which. It counts its requests,
// which is its state, with a descriptor. Options say what the second build does wrong ("next") and
// what the first one does ("first"); "crash_in_PLACE" crashes there, by option "how"
// (crash_here.h).
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/crash_here.h"
#include "tests/unit/op_device.h"
#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Error;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::StateReader;
using virtbay::sdk::StateWriter;
using virtbay::sdk::Status;
using virtbay::testing::Command;
using virtbay::testing::CrashHere;
using virtbay::testing::Crashing;
using virtbay::testing::Op;

constexpr uint32_t kCountTag = 1;
constexpr uint32_t kFileRole = 7;
constexpr uint64_t kInOrder = uint64_t{1} << 35;

// Not trivially destroyed, so that it stays with its thread until that ends.
thread_local std::string t_name;

// For what has no device at hand.
int g_gate = -1;

class Counting : public Device {
 public:
#if RELOAD_VERSION > 1
  static constexpr uint32_t kStateVersion = 2;
#endif

  ~Counting() override {
    if (file_ >= 0) close(file_);
  }

  Status Init() override {
    wrong_ = host().Option(RELOAD_VERSION > 1 ? "next" : "first").value_or("");
    how_ = std::stoul(host().Option("how").value_or("0"));
    CrashIfAsked("init");
    if (wrong_ == "hangs_in_init") WaitForGate();
    g_gate = wrong_ == "hangs_in_may_repeat" ? std::stoi(host().Option("gate").value()) : -1;
    if (wrong_ == "init_fails") return Error{VIRTBAY_UNAVAILABLE, 0, "not today"};
    if (wrong_ == "init_throws") throw std::runtime_error("out of init");
    if (wrong_ == "fails_early") host().Fail("too early");
    in_order_ = host().Option("in_order").has_value();
    restores_ = host().Option(VIRTBAY_OPTION_RESTORES) == "true";
    if (!restores_) file_ = memfd_create("reload", MFD_CLOEXEC);
    served_ = host().Counter("served", "requests answered");
    return {};
  }

  Properties GetProperties() const override {
    return {.queue_count = wrong_ == "queues" ? 3u : 2u,
            .features = wrong_ == "features" ? 0u
                        : in_order_          ? kInOrder | 1u
                                             : 1u,
            .config_size = wrong_ == "config" ? 16u : 8u};
  }
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    QueueProperties queue{.in_view = 64 * RELOAD_VERSION, .out_view = 4096 * RELOAD_VERSION};
    if (wrong_ == "small_ring") queue.max_size = 16;
    return queue;
  }
  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    CrashIfAsked("config_read");
    if (wrong_ == "hangs_in_config_read") WaitForGate();
    const uint64_t config = wrong_ == "other_config" ? 2 : 1;
    std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config) + offset, data.size());
    return true;
  }

  Status Negotiate(uint64_t features) override {
    CrashIfAsked("negotiate");
    if (wrong_ == "negotiate_fails") return Error{VIRTBAY_INVALID_ARGUMENT, 0, "no such bits"};
    features_ = features;
    return {};
  }
  Status Activate() override {
    CrashIfAsked("activate");
    if (wrong_ == "activate_fails") return Error{VIRTBAY_UNAVAILABLE, 0, "not active"};
    return {};
  }
  static bool MayRepeat(uint32_t /*queue*/, std::span<const std::byte> in, uint32_t in_total,
                        uint32_t out_total) noexcept {
    if (g_gate >= 0) WaitFor(g_gate);
    Command command;
    if (in.size() < sizeof(command) || in.size() > in_total || out_total == 0) return false;
    std::memcpy(&command, in.data(), sizeof(command));
    if (command.offset == virtbay::testing::kCrashInMayRepeat) {
      if (RELOAD_VERSION == 2) CrashHere(Crashing::kSegv);
      return false;
    }
    return command.op == Op::kCrash && command.offset >= virtbay::testing::kCrashAgain;
  }

  Status Start() override {
    CrashIfAsked("start");
    if (wrong_ == "start_fails") return Error{VIRTBAY_UNAVAILABLE, 0, "no start"};
    if (wrong_ == "start_throws") throw std::runtime_error("out of start");
    return {};
  }

  void Stop() override { CrashIfAsked("stop"); }

  void OnRequests(uint32_t queue, std::span<Request> requests) override {
    CrashIfAsked("requests");
    t_name = "a text that is too long to be kept in the string itself";
    if (wrong_ == "throws_first") throw std::runtime_error("out of the first requests");
    for (Request& request : requests) {
      Command command;
      if (request.in().empty()) {  // a buffer to be filled some time
        Keep(&held_, std::move(request));
        continue;
      }
      std::memcpy(&command, request.in().data(), sizeof(command));
      switch (command.op) {
        case Op::kPark:
          Keep(&parked_, std::move(request));
          break;
        case Op::kHoldStill:
          Keep(&held_, std::move(request));
          break;
        case Op::kRelease: {
          for (auto* list : {&parked_, &held_}) {
            for (Request& one : TakeOf(queue, list)) Answer(one);
          }
          Answer(request);
          break;
        }
        case Op::kFail:
          if (RELOAD_VERSION == 1) throw std::runtime_error("as asked");
          Answer(request);
          break;
        case Op::kCrash:
          if (RELOAD_VERSION == 2 && command.offset == virtbay::testing::kCrashMended) {
            Answer(request);
            break;
          }
          Crash(queue, command, std::move(request));
          break;
        default:
          Answer(request);
      }
    }
  }
  void OnTimer(uint32_t, uint64_t cookie) override { CrashHere(static_cast<Crashing>(cookie)); }
  void OnIo(uint32_t, std::span<const virtbay_io_result> results) override {
    CrashHere(static_cast<Crashing>(results.front().cookie));
  }

  void Quiesce(uint32_t queue) override {
    CrashIfAsked("quiesce");
    if (wrong_ == "hangs_in_quiesce") WaitForGate();
    for (Request& request : TakeOf(queue, &parked_)) request.Requeue();
  }
  void Resume(uint32_t /*queue*/) override {
    host().Add(host().Counter("resumed", "calls of resume"), 1);
  }

  Status Save(StateWriter* state) override {
    CrashIfAsked("save");
    if (wrong_ == "hangs_in_save") WaitForGate();
    if (wrong_ == "save_fails") return Error{VIRTBAY_UNAVAILABLE, 0, "cannot be saved"};
    if (wrong_ == "save_throws") throw std::runtime_error("out of save");
    const uint64_t count = count_.load();
    state->Add(kCountTag, &count, sizeof(count));
    state->AddFd(kFileRole, file_);
    return {};
  }
  Status Restore(StateReader* state) override {
    CrashIfAsked("restore");
    if (wrong_ == "hangs_in_restore") WaitForGate();
    if (wrong_ == "restore_fails") return Error{VIRTBAY_INVALID_ARGUMENT, 0, "unreadable"};
    if (wrong_ == "restore_throws") throw std::runtime_error("out of restore");
    const auto count = state->Find(kCountTag);
    const std::vector<int> files = state->TakeFds(kFileRole);
    if (!count || count->size() != sizeof(uint64_t) || files.size() != 1) {
      return Error{VIRTBAY_INVALID_ARGUMENT, 0, "not a count and a file"};
    }
    uint64_t value = 0;
    std::memcpy(&value, count->data(), sizeof(value));
    count_ = value;
    file_ = files.front();
    return {};
  }
  void Release() override { host().Add(host().Counter("released", "calls of release"), 1); }

 private:
  // Until the test closes the other end.
  void WaitForGate() const { WaitFor(std::stoi(host().Option("gate").value())); }
  static void WaitFor(int gate) {
    char byte = 0;
    while (read(gate, &byte, 1) > 0) continue;
  }
  void CrashIfAsked(const char* place) const {
    if (wrong_ == std::string("crash_in_") + place) CrashHere(static_cast<Crashing>(how_));
  }
  void Crash(uint32_t queue, const Command& command, Request request) {
    const auto how = static_cast<Crashing>(command.a);
    // As a plugin that is worked on would leave it.
    virtbay_request* const raw = request.Release();
    switch (command.b) {
      case virtbay::testing::kInTimer:
        host().SetTimer(queue, std::chrono::nanoseconds(1), command.a);
        break;
      case virtbay::testing::kInOffload:
        static_cast<void>(host().Offload(
            queue, [](void* argument) { CrashHere(*static_cast<Crashing*>(argument)); },
            new Crashing(how), 0));
        break;
      case virtbay::testing::kInIo: {
        virtbay_io io{};
        io.struct_size = sizeof(io);
        io.op = VIRTBAY_IO_FSYNC;
        io.queue = static_cast<uint16_t>(queue);
        io.request = raw;
        io.fd = file_;
        io.cookie = command.a;
        static_cast<void>(host().Submit(&io, 1));
        break;
      }
      default:
        CrashHere(how);
    }
  }
  void Keep(std::vector<Request>* list, Request request) {
    const std::lock_guard lock(mutex_);
    list->push_back(std::move(request));
  }
  std::vector<Request> TakeOf(uint32_t queue, std::vector<Request>* list) {
    const std::lock_guard lock(mutex_);
    std::vector<Request> taken, others;
    for (Request& request : *list) {
      (request.queue() == queue ? taken : others).push_back(std::move(request));
    }
    *list = std::move(others);
    return taken;
  }
  // The count, behind which comes the version.
  void Answer(Request& request) {
    const uint64_t answer = ++count_ * 10 + RELOAD_VERSION;
    host().Add(served_, 1);
    std::memcpy(request.out().data(), &answer, sizeof(answer));
    request.Complete(sizeof(answer));
  }

  std::string wrong_;
  unsigned long how_ = 0;
  bool in_order_ = false;
  bool restores_ = false;
  int file_ = -1;
  uint64_t features_ = 0;
  uint64_t* served_ = nullptr;
  std::atomic<uint64_t> count_{0};
  std::mutex mutex_;
  std::vector<Request> parked_, held_;
};

}  // namespace

VIRTBAY_PLUGIN(Counting, "counting", 32769, VIRTBAY_DEVICE_QUEUE_PARALLEL);
