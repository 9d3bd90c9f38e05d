#include "tests/bench/bounce_driver.h"

#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/guest/in_process_transport.h"

namespace virtbay::bench {
namespace {

constexpr uint32_t kHeadStride = 64;  // a header of 16 bytes, the answer behind it
constexpr uint32_t kHeader = 16;
constexpr uint32_t kAnswer = 8;

}  // namespace

BounceDriver::~BounceDriver() {
  if (thread_.joinable()) Stop().IgnoreError();
}

absl::Status BounceDriver::Start() {
  thread_ = std::thread([this] { Main(); });
  connected_.wait(false);
  // What went wrong before is told now; the thread has ended then.
  if (driver_ != nullptr) return absl::OkStatus();
  thread_.join();
  return status_;
}

absl::Status BounceDriver::Stop() {
  stop_.store(true, std::memory_order_relaxed);
  Go();
  return Join();
}

absl::Status BounceDriver::Join() {
  thread_.join();
  return status_;
}

void BounceDriver::Main() {
  // Of this thread alone, in Linux, and inherited by those that the device starts from it.
  if (load_.nice != 0 && setpriority(PRIO_PROCESS, 0, load_.nice) != 0) {
    status_ = ErrnoStatus(errno, "setpriority");
  }
  if (status_.ok()) status_ = Connect();
  if (!status_.ok()) driver_.reset();
  connected_.store(true);
  connected_.notify_all();
  if (!status_.ok()) return;
  go_.wait(false);
  status_ = Drive();
  driver_.reset();
}

absl::Status BounceDriver::Connect() {
  const uint64_t stride = (uint64_t{load_.payload} + 4095) / 4096 * 4096;
  VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device_));
  VIRTBAY_ASSIGN_OR_RETURN(auto memory,
                           guest::GuestMemory::Create(load_.depth * stride + (4u << 20)));
  guest::DriverOptions options;
  options.queue_size = 1024;
  options.indirect_max = 4;
  VIRTBAY_ASSIGN_OR_RETURN(driver_,
                           guest::Driver::Create(std::move(transport), std::move(memory), options));
  VIRTBAY_ASSIGN_OR_RETURN(heads_, driver_->memory().Allocate(load_.depth * kHeadStride, 4096));
  VIRTBAY_ASSIGN_OR_RETURN(payload_, driver_->memory().Allocate(load_.depth * stride, 4096));
  std::memset(payload_.host, 0x42, payload_.size);  // touches the pages
  return absl::OkStatus();
}

bool BounceDriver::Add(uint32_t slot) {
  const uint64_t head = heads_.address + uint64_t{slot} * kHeadStride;
  const std::array request = {
      guest::Segment{head, kHeader},
      guest::Segment{payload_.address + slot * (payload_.size / load_.depth), load_.payload}};
  const std::array answer = {guest::Segment{head + kHeader, kAnswer}};
  if (!driver_->queue(0).Add(request, answer, slot)) return false;
  ++added_;
  return true;
}

absl::Status BounceDriver::Collect() {
  std::array<guest::UsedBuffer, 64> used;
  const size_t n = driver_->queue(0).TakeUsed(used);
  const bool over = stop_.load(std::memory_order_relaxed);
  for (size_t i = 0; i < n; ++i) {
    uint64_t length = 0;
    std::memcpy(&length, heads_.host + used[i].token * kHeadStride + kHeader, sizeof(length));
    if (used[i].written != kAnswer || length != load_.payload) {
      return absl::DataLossError(absl::StrCat("a request came back with ", length, " bytes"));
    }
    if (!over && (load_.requests == 0 || added_ < load_.requests) &&
        !Add(static_cast<uint32_t>(used[i].token))) {
      return absl::InternalError("the ring is full");
    }
  }
  completed_.fetch_add(n, std::memory_order_relaxed);
  driver_->queue(0).Publish();
  return absl::OkStatus();
}

absl::Status BounceDriver::Drive() {
  for (uint32_t slot = 0; slot < load_.depth; ++slot) {
    if (load_.requests != 0 && added_ == load_.requests) break;
    if (!Add(slot)) return absl::InternalError("the ring is full");
  }
  driver_->queue(0).Publish();
  while (completed() < added_) {
    VIRTBAY_RETURN_IF_ERROR(driver_->queue(0).Wait(guest::WaitMode::kSleep));
    VIRTBAY_RETURN_IF_ERROR(Collect());
  }
  return absl::OkStatus();
}

}  // namespace virtbay::bench
