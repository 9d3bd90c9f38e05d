// SlotWaits: how often and for how long a queue has waited for arena slots, the waits that go on
// included. Nothing is measured but when a wait happens.
// Owned by a Queue; Begin and End are [queue], Read is [any].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_SLOT_WAITS_H_
#define VIRTBAY_FRAMEWORK_DEVICE_SLOT_WAITS_H_

#include <atomic>
#include <cstdint>

#include "framework/base/clock.h"

namespace virtbay {

class SlotWaits {
 public:
  struct Totals {
    uint64_t times = 0;
    uint64_t ns = 0;
  };

  // A wait begins; End takes what this returns.
  uint64_t Begin() {
    const uint64_t now = Open();
    Add(&times_, 1);
    Add(&waiting_, 1);
    Add(&since_sum_, now);
    Close();
    return now;
  }
  void End(uint64_t since) {
    const uint64_t now = Open();
    // Sums wrap, which subtracts.
    Add(&waiting_, uint64_t{0} - 1);
    Add(&since_sum_, uint64_t{0} - since);
    Add(&ended_ns_, now - since);
    Close();
  }

  Totals Read() const {
    for (;;) {
      const uint32_t before = sequence_.load(std::memory_order_acquire);
      const uint64_t now = MonotonicNs();
      const uint64_t times = times_.load(std::memory_order_acquire);
      const uint64_t waiting = waiting_.load(std::memory_order_acquire);
      const uint64_t since = since_sum_.load(std::memory_order_acquire);
      const uint64_t ended = ended_ns_.load(std::memory_order_acquire);
      // Acquired loads above stay before this one, and the writer's released stores behind its odd
      // number: what is torn is seen.
      if (before % 2 == 0 && sequence_.load(std::memory_order_acquire) == before) {
        return Totals{times, ended + waiting * now - since};
      }
      CpuRelax();
    }
  }

 private:
  // The time of the change is taken inside it: a reader that does not see it has taken its own
  // earlier, so that no sum of its goes back.
  uint64_t Open() {
    sequence_.store(sequence_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    return MonotonicNs();
  }
  void Close() {
    sequence_.store(sequence_.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  }
  static void Add(std::atomic<uint64_t>* sum, uint64_t n) {
    sum->store(sum->load(std::memory_order_relaxed) + n, std::memory_order_release);
  }

  std::atomic<uint32_t> sequence_{0};  // odd while the queue's thread changes the rest
  std::atomic<uint64_t> times_{0};
  std::atomic<uint64_t> waiting_{0};    // waits that go on
  std::atomic<uint64_t> since_sum_{0};  // of their beginnings
  std::atomic<uint64_t> ended_ns_{0};   // of the others
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_SLOT_WAITS_H_
