// DescriptorBudget: how many file descriptors the devices of a Host may hold for their guests, out
// of what the process may have (RLIMIT_NOFILE) and the rest of it has open. Each device has a part
// that no other can take; what lies beyond is for whoever comes first.
// Owned by the Host and, through their shares, by its devices. Thread tags are at the functions.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_
#define VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace virtbay {

class DescriptorBudget {
 public:
  // The part of one device.
  class Share {
   public:
    // [control] Joins the budget, which looks at the process anew.
    explicit Share(std::shared_ptr<DescriptorBudget> budget);
    // [control] Gives everything back.
    ~Share();
    Share(const Share&) = delete;
    Share& operator=(const Share&) = delete;

    // [any] Counts one that is about to be opened; false: there is none left. `cached`: it can be
    // closed again at any time, so it leaves half of what is common to the others.
    bool Take(bool cached);
    // [any] One that was counted is closed.
    void Give();
    // [any] So many more of those that are counted are not open, so that they do not show in what
    // the process has open.
    void Keep(int32_t change) { kept_.fetch_add(change, std::memory_order_relaxed); }
    // [control] The front-end's own descriptors are there (or gone), so room for them need not be
    // kept any more (or again). Looks at the process anew in any case.
    void SetActive(bool active);

    uint32_t held() const { return Held(word_.load(std::memory_order_relaxed)); }
    uint32_t guaranteed() const { return guaranteed_; }

   private:
    friend class DescriptorBudget;
    static uint32_t Held(uint64_t word) { return static_cast<uint32_t>(word); }
    static uint32_t Common(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

    const std::shared_ptr<DescriptorBudget> budget_;
    uint32_t guaranteed_ = 0;
    bool active_ = false;  // guarded by the budget
    // How many of them come out of the common part << 32 | how many are held.
    std::atomic<uint64_t> word_{0};
    std::atomic<int32_t> kept_{0};  // of those that are held
  };

  // Descriptors that are left to the process beside what it has open: for whatever it does in
  // between, and for each front-end that may still come.
  static constexpr uint32_t kSlack = 6;
  static constexpr uint32_t kPerFrontEnd = 16;
  // What no other device can take away, where there is enough.
  static constexpr uint32_t kGuaranteed = 32;

  // `limit`: RLIMIT_NOFILE and the number of open descriptors come from the process unless it is
  // given. For tests: then they come from the two numbers, which have to live as long.
  struct Process {
    uint32_t limit = 0;
    uint32_t open = 0;  // those of the shares included
  };
  explicit DescriptorBudget(const Process* process = nullptr) : process_(process) {}

  // [any] What is left of the common part; negative when others in the process have taken of it.
  int64_t common_free() const { return common_free_.load(std::memory_order_relaxed); }

 private:
  void Measure() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Process Look() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool TakeCommon(bool cached);

  const Process* const process_;
  absl::Mutex mutex_;
  std::vector<Share*> shares_ ABSL_GUARDED_BY(mutex_);
  uint64_t guaranteed_ ABSL_GUARDED_BY(mutex_) = 0;  // to all shares together
  std::atomic<int64_t> common_total_{0};             // changed under mutex_
  std::atomic<int64_t> common_free_{0};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_
