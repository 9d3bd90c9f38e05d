// PollWindow: decides how long a queue thread keeps looking at its rings before it sleeps. Sleeping
// and being woken costs some 60 us, a look 0.1 us: while requests keep arriving within the window
// it grows, when they stop it closes, and what it costs beyond the sleeps that it saves never takes
// more than its share of a core. Owned by one queue thread. Times are MonotonicNs().
#ifndef VIRTBAY_FRAMEWORK_DEVICE_POLL_WINDOW_H_
#define VIRTBAY_FRAMEWORK_DEVICE_POLL_WINDOW_H_

#include <algorithm>
#include <cstdint>

namespace virtbay {

class PollWindow {
 public:
  // max_ns 0: never poll. share_percent: of the last kPeriodNs that may be spent polling in vain,
  // or for longer than a sleep and wake would have cost.
  PollWindow(uint64_t max_ns, uint32_t share_percent)
      // A window longer than the whole budget would never open again.
      : max_ns_(std::min(max_ns, kPeriodNs / 100 * std::min(share_percent, 100u))),
        budget_ns_(kPeriodNs / 100 * std::min(share_percent, 100u)) {}

  // Work has just run out: how long to keep looking, 0 to sleep at once.
  uint64_t Open(uint64_t now_ns) {
    if (now_ns - period_start_ns_ >= kPeriodNs) {
      period_start_ns_ = now_ns;
      spent_ns_ = 0;
    }
    if (now_ns < closed_until_ns_ || spent_ns_ + window_ns_ > budget_ns_) return 0;
    return window_ns_;
  }

  // The window saw work after idle_ns of looking.
  void Hit(uint64_t idle_ns) {
    spent_ns_ += idle_ns - std::min(idle_ns, kSleepCostNs);
    pause_ns_ -= pause_ns_ / 64;
    // Late hits show that the window is only just long enough.
    if (idle_ns > window_ns_ / 2) Grow();
  }

  // The window passed without work.
  void Miss(uint64_t idle_ns) { spent_ns_ += idle_ns; }

  // Another thread had the core while this one was looking. Sleeping is better then: a thread that
  // is woken gets the core at once, one that looks has to wait for its turn.
  void Preempted(uint64_t now_ns, uint64_t idle_ns) {
    spent_ns_ += idle_ns;
    Pause(now_ns);
  }

  // The thread slept and was woken idle_ns after work had run out, of which it had looked for
  // looked_ns.
  void Woke(uint64_t now_ns, uint64_t idle_ns, uint64_t looked_ns) {
    // Work that comes as soon as the thread sleeps, after as long a look as there is, has waited
    // for the core: a scheduler may come back to a thread that yields, time and again.
    if (looked_ns >= max_ns_ && looked_ns > 0 && idle_ns - looked_ns < kAtOnceNs) {
      Pause(now_ns);
    } else if (idle_ns <= max_ns_) {
      Grow();
    } else if (idle_ns > 8 * max_ns_ || window_ns_ <= kSmallestNs) {
      window_ns_ = 0;
    } else {
      window_ns_ /= 2;
    }
  }

  uint64_t window_ns() const { return window_ns_; }

 private:
  static constexpr uint64_t kPeriodNs = 100'000'000;
  static constexpr uint64_t kSleepCostNs = 60'000;
  static constexpr uint64_t kAtOnceNs = 2 * kSleepCostNs;
  static constexpr uint64_t kSmallestNs = 20'000;
  static constexpr uint64_t kShortestPauseNs = 10'000'000;
  static constexpr uint64_t kLongestPauseNs = 640'000'000;

  void Pause(uint64_t now_ns) {
    pause_ns_ = std::clamp(2 * pause_ns_, kShortestPauseNs, kLongestPauseNs);
    closed_until_ns_ = now_ns + pause_ns_;
  }
  void Grow() { window_ns_ = std::min(max_ns_, std::max(kSmallestNs, 2 * window_ns_)); }

  uint64_t max_ns_;
  uint64_t budget_ns_;
  uint64_t window_ns_ = 0;
  uint64_t period_start_ns_ = 0;
  uint64_t spent_ns_ = 0;
  uint64_t pause_ns_ = 0;
  uint64_t closed_until_ns_ = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_POLL_WINDOW_H_
