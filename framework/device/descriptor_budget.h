// DescriptorBudget: how many file descriptors the devices of a Host may hold for their guests, out
// of what the process may have (RLIMIT_NOFILE) and the rest of it has open. Each device has a part
// that no other can take, the smaller the more devices there are; what lies beyond is common, but
// for whom it is common depends: one device never takes all of it, and some is left for devices
// that are still to come. Owned by the Host and, through their shares, by its devices. Thread tags
// are at the functions.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_
#define VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>
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

    // What a descriptor is for.
    enum class Use : uint8_t {
      kCached,   // can be closed again at any time: leaves half of what is common to others
      kGuest,    // stays as long as the guest likes: leaves some to devices that are to come
      kOwn,      // comes out of its own part or not at all
      kControl,  // what the device itself needs to serve
    };
    // [any] Counts one that is about to be opened; false: there is none left.
    bool Take(Use use);
    // [any] One that was counted is closed. `use`: what it was for, as far as that is known.
    void Give(Use use = Use::kGuest);
    // [any] So many more of those that are counted are not open, so that they do not show in what
    // the process has open.
    void Keep(int32_t change) { kept_.fetch_add(change, std::memory_order_relaxed); }
    // [control] Keeps room for so many descriptors that the framework and the front-end of this
    // device will still open beside those that are counted here. Looks at the process anew.
    void SetRoom(uint32_t room);

    uint32_t held() const { return Held(word_.load(std::memory_order_relaxed)); }
    // What no other device can take away. [any]
    uint32_t guaranteed() const { return guaranteed_.load(std::memory_order_relaxed); }
    // There is enough for its guest, beside its front-end and those of all others. [control]
    bool suffices() const { return guaranteed() >= kNeeded; }
    // The device itself has asked for more than there was. [control]
    bool refused() const { return refused_.load(std::memory_order_relaxed); }
    // With which limit on open files it would have enough of both; beside other devices, which keep
    // what they have, it may take a little more. [control]
    uint32_t LimitNeeded() const;

   private:
    friend class DescriptorBudget;
    static uint32_t Held(uint64_t word) { return static_cast<uint32_t>(word); }
    static uint32_t Common(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

    // What the common part is smaller by.
    uint32_t Counted() const;

    const std::shared_ptr<DescriptorBudget> budget_;
    std::atomic<uint32_t> guaranteed_{0};  // what there was for it; changed under the budget's lock
    uint32_t room_ = kFirstRoom;           // guarded by the budget
    // How many of them come out of the common part << 32 | how many are held.
    std::atomic<uint64_t> word_{0};
    // Of those out of the common part: for the device itself. An estimate, since who gives does not
    // always know: too high while a guest holds as many for it.
    std::atomic<uint32_t> control_{0};
    std::atomic<int32_t> kept_{0};  // of those that are held
    std::atomic<bool> refused_{false};
  };

  // Descriptors that are left to a process with that limit for whatever it does in between: control
  // connections, front-ends' messages, libraries that are loaded.
  static constexpr uint32_t Slack(uint32_t limit) { return std::clamp(limit / 16, 6u, 64u); }
  // Those of the common part that only devices take that are still to come, one or two, and what is
  // added to those that there are. Where the latter have taken most, half of the rest.
  static constexpr uint32_t Growth(uint32_t limit) {
    return limit < 128 ? 0 : std::min((limit - 128) / 8 * 3, std::max(128u, limit / 32));
  }
  // Descriptors that come in with front-ends' messages, memory regions above all, and are closed or
  // become the devices' own: room for one such message, for all devices together.
  static constexpr uint32_t kOfMessages = 8;
  // What a device may need before it says so with SetRoom.
  static constexpr uint32_t kFirstRoom = 16;
  // What no other device can take away: half of an equal part of all, within these bounds where
  // there is enough. With the least a device can list its directories, find its files and open
  // some.
  static constexpr uint32_t kLeastGuaranteed = 8;
  // Without so much a device is of no use to its guest.
  static constexpr uint32_t kNeeded = 4;
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
  // Of what is left of the common part, its own up to `each`.
  void Raise(Share* share, uint32_t each) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The descriptors that are for devices' guests with that limit. `others`: open beside those.
  static int64_t ForDevices(uint32_t limit, int64_t others, int64_t room) {
    return limit - std::max<int64_t>(others, 0) - Slack(limit) - kOfMessages - room;
  }
  void Measure() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Process Look() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Descriptors that are open beside those of the shares, and the room that is kept for these.
  std::pair<int64_t, int64_t> Others(const Process& now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `has`: what the device has of the common part.
  bool TakeCommon(Share::Use use, uint32_t has);
  // What guests leave of the common part.
  int64_t KeptFromGuests() const;

  const Process* const process_;
  absl::Mutex mutex_;
  std::vector<Share*> shares_ ABSL_GUARDED_BY(mutex_);
  std::atomic<int64_t> common_total_{0};  // changed under mutex_
  std::atomic<int64_t> common_free_{0};
  std::atomic<int64_t> growth_{0};
  std::atomic<int64_t> control_{0};   // of the common part, for the devices themselves
  std::atomic<bool> several_{false};  // there are other devices
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_DESCRIPTOR_BUDGET_H_
