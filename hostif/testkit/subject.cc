#include "hostif/testkit/subject.h"

#include <unistd.h>

#include <array>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "framework/base/clock.h"
#include "framework/base/sanitized.h"
#include "framework/base/status.h"
#include "hostif/guest/in_process_transport.h"

namespace virtbay::testkit {
namespace {

constexpr uint64_t kTypeBits = 0xffffffull | ~uint64_t{0} << 50;
constexpr absl::Duration kStopDeadline = absl::Seconds(5);
constexpr uint64_t kPatienceNs = 200'000'000;
// Lines of the host's log that are about what a plugin must not do.
constexpr absl::string_view kAccusations[] = {" ended twice",
                                              " ended while its I/O is under way",
                                              " completed with sizes that lie",
                                              " did not end within ",
                                              "on a thread that does not serve",
                                              "dropped without an answer",
                                              "does not return",
                                              "the plugin threw"};

struct Shape {
  std::vector<uint32_t> in;
  std::vector<uint32_t> out;
};
// Pieces of a buffer: none at all on one side, single bytes, many, more than a view.
std::vector<Shape> Shapes() {
  return {{{}, {1}},
          {{1}, {}},
          {{}, {64}},
          {{64}, {}},
          {{16}, {1}},
          {{16}, {513}},
          {{40}, {200}},
          {{1, 1, 1, 13}, {1, 1, 1}},
          {{7, 9, 100}, {3, 70, 1}},
          {{5000}, {5000}},
          {{40000}, {16}},
          {{24}, {300000}},
          {{300000}, {1}},
          {std::vector<uint32_t>(60, 1), std::vector<uint32_t>(60, 7)}};
}

// What a buffer begins with: zeros, ones, anything, or small numbers, as requests have.
std::string Content(uint32_t kind, size_t size, std::minstd_rand* random) {
  std::string content(size, kind == 1 ? '\xff' : '\0');
  for (char& c : content) {
    if (kind == 2) c = static_cast<char>((*random)());
    if (kind == 3 && (*random)() % 4 == 0) c = static_cast<char>((*random)() % 32);
  }
  return content;
}

}  // namespace

const bool kSanitized = ::virtbay::kSanitized;

Subject::Subject(const CheckOptions& options) : options_(options) {
  HostOptions host_options;
  host_options.log = lines_.log();
  auto host = Host::Create(std::move(host_options));
  ready_ = host.status();
  if (host.ok()) host_ = *std::move(host);
}

Subject::~Subject() {
  Disconnect();
  host_.reset();
}

absl::Status Subject::Add(const std::string& name, std::optional<DeviceState> state) {
  DeviceSpec spec;
  spec.name = name;
  spec.plugin = options_.file;
  spec.type = options_.type;
  spec.options = options_.options;
  spec.arena_size = 2u << 20;
  spec.stop_deadline = kStopDeadline;
  spec.poll_window_max = absl::ZeroDuration();
  auto device = state.has_value() ? host_->Add(std::move(spec), *std::move(state))
                                  : host_->Add(std::move(spec));
  if (device.ok()) device_ = *std::move(device);
  return device.status();
}

absl::Status Subject::Connect(uint64_t features, bool packed) {
  Disconnect();
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device_));
  VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(uint64_t{64} << 20));
  guest::DriverOptions how;
  how.queue_size = 128;
  how.packed = packed;
  how.device_features = features & kTypeBits;
  VIRTBAY_ASSIGN_OR_RETURN(driver_,
                           guest::Driver::Create(std::move(transport), std::move(memory), how));
  buffers_.emplace(driver_.get());
  return absl::OkStatus();
}

void Subject::Disconnect() {
  buffers_.reset();
  driver_.reset();
}

uint64_t Subject::Taken() const {
  uint64_t taken = 0;
  const auto info = device_.Inspect();
  if (!info.ok()) return 0;
  for (const QueueStats& queue : info->queues) taken += queue.requests;
  return taken;
}

absl::Status Subject::CheckServes(const DeviceInfo& info) {
  if (!info.needs_reset) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the device needs a reset: ", info.failure));
}

absl::Status Subject::SendAll(uint32_t rounds, std::minstd_rand* random) {
  for (uint32_t round = 0; round < rounds; ++round) {
    for (uint32_t queue = 0; queue < driver_->queue_count(); ++queue) {
      const uint64_t before = Taken();
      uint64_t sent = 0;
      for (const Shape& shape : Shapes()) {
        size_t size = 0;
        for (const uint32_t piece : shape.in) size += piece;
        const std::string content = Content(round % 4, std::min<size_t>(size, 4096), random);
        if (buffers_->Add(queue, content, shape.in, shape.out) != 0) ++sent;
      }
      driver_->queue(queue).Publish();
      // A device that holds requests may leave the rest on the ring.
      const uint64_t limit = MonotonicNs() + kPatienceNs;
      while (Taken() < before + sent && MonotonicNs() < limit) {
        buffers_->Discard();
        usleep(200);
      }
      buffers_->Discard();
      const auto info = device_.Inspect();
      if (!info.ok()) return info.status();
      VIRTBAY_RETURN_IF_ERROR(CheckServes(*info));
    }
    VIRTBAY_RETURN_IF_ERROR(StopAndGo());
    const std::string accusation = Accusation();
    if (!accusation.empty()) return absl::InternalError(accusation);
  }
  return absl::OkStatus();
}

absl::Status Subject::StopAndGo() {
  VIRTBAY_RETURN_IF_ERROR(Annotate(driver_->Stop(), "stop"));
  const auto info = device_.Inspect();
  if (!info.ok()) return info.status();
  VIRTBAY_RETURN_IF_ERROR(CheckServes(*info));
  for (size_t queue = 0; queue < info->queues.size(); ++queue) {
    if (info->queues[queue].in_flight != 0) {
      return absl::InternalError(absl::StrCat("queue ", queue, ": ", info->queues[queue].in_flight,
                                              " requests are still held after the stop"));
    }
  }
  buffers_->Discard();
  return Annotate(driver_->Start(), "start");
}

std::string Subject::Accusation() const {
  for (const std::string& line : lines_.lines()) {
    for (const absl::string_view accusation : kAccusations) {
      if (absl::StrContains(line, accusation)) return line;
    }
  }
  return "";
}

}  // namespace virtbay::testkit
