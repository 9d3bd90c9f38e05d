// Buffers: what a driver has on its queues: buffers of any shape, sent, and taken back with all
// that the device wrote. Owned beside the Driver that it uses; one thread at a time.
#ifndef VIRTBAY_HOSTIF_TESTKIT_BUFFERS_H_
#define VIRTBAY_HOSTIF_TESTKIT_BUFFERS_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hostif/guest/driver.h"

namespace virtbay::testkit {

class Buffers {
 public:
  static constexpr int kUntouched = 0xEE;

  struct Taken {
    uint32_t written = 0;
    std::string bytes;  // the writable ones
  };

  explicit Buffers(guest::Driver* driver) : driver_(driver) {}

  // Puts a buffer of these pieces on the queue; `readable` fills the first ones. Not shown to the
  // device until Publish. A token; 0: no room.
  uint64_t Add(uint32_t queue, std::string_view readable, std::span<const uint32_t> in,
               std::span<const uint32_t> out) {
    uint64_t in_size = 0;
    uint64_t out_size = 0;
    for (const uint32_t piece : in) in_size += piece;
    for (const uint32_t piece : out) out_size += piece;
    const auto range = driver_->memory().Allocate(in_size + out_size + 1);
    if (!range.ok()) return 0;
    std::memcpy(range->host, readable.data(), std::min<size_t>(readable.size(), in_size));
    std::memset(range->host + in_size, kUntouched, out_size);
    uint64_t at = range->address;
    const auto pieces = [&at](std::span<const uint32_t> sizes) {
      std::vector<guest::Segment> segments;
      for (const uint32_t size : sizes) {
        segments.push_back({at, size});
        at += size;
      }
      return segments;
    };
    const std::vector<guest::Segment> readable_pieces = pieces(in);
    const std::vector<guest::Segment> writable_pieces = pieces(out);
    const uint64_t token = ++last_;
    if (!driver_->queue(queue).Add(readable_pieces, writable_pieces, token)) {
      driver_->memory().Free(*range);
      return 0;
    }
    sent_.emplace(token, Sent{*range, in_size, out_size});
    return token;
  }

  // Whether it has come back.
  bool Has(uint64_t token, uint32_t queue) {
    std::array<guest::UsedBuffer, 64> used;
    for (size_t n = 0; (n = driver_->queue(queue).TakeUsed(used)) > 0;) {
      for (size_t i = 0; i < n; ++i) Collect(used[i]);
    }
    return taken_.contains(token);
  }
  // Precondition: Has.
  Taken Take(uint64_t token) {
    Taken taken = std::move(taken_.at(token));
    taken_.erase(token);
    return taken;
  }
  // Takes up what has come back on any queue, and throws it away.
  void Discard() {
    for (uint32_t queue = 0; queue < driver_->queue_count(); ++queue) Has(0, queue);
    taken_.clear();
  }
  // After a reset: nothing is the device's any more.
  void Forget() {
    for (const auto& [token, sent] : sent_) driver_->memory().Free(sent.range);
    sent_.clear();
    taken_.clear();
  }

 private:
  struct Sent {
    guest::GuestRange range;
    uint64_t in_size;
    uint64_t out_size;
  };
  void Collect(const guest::UsedBuffer& used) {
    const auto sent = sent_.find(used.token);
    if (sent == sent_.end()) return;
    const auto* bytes = reinterpret_cast<const char*>(sent->second.range.host);
    taken_[used.token] = {used.written, {bytes + sent->second.in_size, sent->second.out_size}};
    driver_->memory().Free(sent->second.range);
    sent_.erase(sent);
  }

  guest::Driver* const driver_;
  uint64_t last_ = 0;
  std::map<uint64_t, Sent> sent_;
  std::map<uint64_t, Taken> taken_;
};

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_BUFFERS_H_
