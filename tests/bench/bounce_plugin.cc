// The bounce device: a neighbour whose requests hold their whole payload in arena slots for as long
// as they are under way, as a guest's SWIOTLB does for a request's DMA mappings. A request is a
// header of kHeader bytes and the payload behind it; the answer is the payload's length.
// The payload is mapped piece by piece, each as long as the arena has a run for (at most 128 slots,
// halved down to one), in the order of arrival: a full arena makes a queue wait, and it asks again
// when a request of its own has ended, or after a millisecond, as the Linux virtiofs driver does.
// Then the request is held for `hold-us`, and ends.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <utility>

#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Device;
using virtbay::sdk::Error;
using virtbay::sdk::Properties;
using virtbay::sdk::QueueProperties;
using virtbay::sdk::Request;
using virtbay::sdk::Status;

constexpr uint32_t kHeader = 16;
constexpr uint32_t kView = 64;
constexpr uint32_t kSlot = 2048;
constexpr uint32_t kLargestMapping = 128 * kSlot;
constexpr uint32_t kVirtioIdBounce = 32769;  // assigned to no device type
constexpr std::chrono::milliseconds kRetry{1};
constexpr uint64_t kDueTimer = 1;
constexpr uint64_t kRetryTimer = 2;

class Bounce : public Device {
 public:
  Status Init() override {
    if (const auto text = host().Option("hold-us")) {
      char* end = nullptr;
      hold_ns_ = std::strtoull(text->c_str(), &end, 10) * 1000;
      if (text->empty() || *end != '\0') {
        return Error{VIRTBAY_INVALID_ARGUMENT, 0, "hold-us: must be a number of microseconds"};
      }
    }
    return {};
  }
  Properties GetProperties() const override { return {.queue_count = 1}; }
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = 0, .in_view = kView, .out_view = kView};
  }

  void OnRequests(uint32_t /*queue*/, std::span<Request> requests) override {
    for (Request& request : requests) waiting_.push_back(std::move(request));
    MapWaiting();
  }

  void OnTimer(uint32_t /*queue*/, uint64_t cookie) override {
    if (cookie == kDueTimer) {
      due_timer_set_ = false;
      EndDue();
    }
    MapWaiting();
  }

  void Quiesce(uint32_t /*queue*/) override {
    for (Request& request : waiting_) request.Fail();
    for (Held& held : held_) held.request.Fail();
    waiting_.clear();
    held_.clear();
    mapped_ = 0;
  }

 private:
  struct Held {
    uint64_t until_ns;
    Request request;
  };

  void MapWaiting() {
    while (!waiting_.empty() && MapFront()) {
      Request request = std::move(waiting_.front());
      waiting_.pop_front();
      mapped_ = 0;
      if (hold_ns_ == 0) {
        End(std::move(request));
      } else {
        held_.push_back({host().NowNs() + hold_ns_, std::move(request)});
      }
    }
    SetDueTimer();
  }

  // Only the first one that waits holds a part of its payload, so that requests which wait for each
  // other's slots cannot come to be.
  bool MapFront() {
    Request& request = waiting_.front();
    const uint32_t total = std::max(request.in_total(), kHeader);
    for (uint32_t piece = kLargestMapping; kHeader + mapped_ < total;) {
      const uint32_t at = kHeader + mapped_;
      const uint32_t len = std::min(piece, total - at);
      if (!request.Fetch(at, len).empty()) {
        mapped_ += len;
      } else if (piece > kSlot) {
        piece /= 2;
      } else {
        host().SetTimer(0, kRetry, kRetryTimer);
        return false;
      }
    }
    return true;
  }

  void EndDue() {
    const uint64_t now = host().NowNs();
    while (!held_.empty() && held_.front().until_ns <= now) {
      End(std::move(held_.front().request));
      held_.pop_front();
    }
  }

  void SetDueTimer() {
    if (due_timer_set_ || held_.empty()) return;
    const auto left = static_cast<int64_t>(held_.front().until_ns - host().NowNs());
    host().SetTimer(0, std::chrono::nanoseconds(std::max<int64_t>(0, left)), kDueTimer);
    due_timer_set_ = true;
  }

  static void End(Request request) {
    const uint64_t length = std::max(request.in_total(), kHeader) - kHeader;
    if (request.Write(0, length)) {
      request.Complete(sizeof(length));
    } else {
      request.Fail();
    }
  }

  uint64_t hold_ns_ = 0;
  std::deque<Request> waiting_;
  std::deque<Held> held_;  // by the time of their end
  uint32_t mapped_ = 0;    // payload bytes of the first that waits
  bool due_timer_set_ = false;
};

}  // namespace

VIRTBAY_PLUGIN(Bounce, "bounce", kVirtioIdBounce, 0);
