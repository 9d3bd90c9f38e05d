// TapSlot: where whoever looks at a queue from outside leaves a ring, and the queue's thread takes
// it up or lets go of it. Owned by a Queue.
#ifndef VIRTBAY_FRAMEWORK_DEVICE_TAP_SLOT_H_
#define VIRTBAY_FRAMEWORK_DEVICE_TAP_SLOT_H_

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace virtbay {

template <typename Ring>
class TapSlot {
 public:
  // [any] What Take takes next; null: nothing more is to be written.
  void Offer(std::shared_ptr<Ring> ring) {
    absl::MutexLock lock(&mutex_);
    offered_ = std::move(ring);
  }
  // [queue] Requests below `first_id` are not known to a ring that is taken up now.
  void Take(uint64_t first_id) {
    std::shared_ptr<Ring> ring;
    {
      absl::MutexLock lock(&mutex_);
      ring = offered_;
    }
    if (ring.get() == ring_) return;
    if (ring != nullptr) ring->BeginAt(first_id);
    ring_ = ring.get();
    kept_ = std::move(ring);
  }
  // [queue]
  Ring* get() const { return ring_; }
  Ring* operator->() const { return ring_; }
  explicit operator bool() const { return ring_ != nullptr; }

 private:
  absl::Mutex mutex_;
  std::shared_ptr<Ring> offered_ ABSL_GUARDED_BY(mutex_);
  Ring* ring_ = nullptr;  // kept_
  std::shared_ptr<Ring> kept_;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_TAP_SLOT_H_
