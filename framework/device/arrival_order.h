// ArrivalOrder: for a ring with VIRTIO_F_IN_ORDER, what was answered before its turn (virtio 1.3
// 2.7.9, 2.8.16). Owned by an InFlightTable; [queue].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_ARRIVAL_ORDER_H_
#define VIRTBAY_FRAMEWORK_DEVICE_ARRIVAL_ORDER_H_

#include <cstdint>
#include <vector>

#include "framework/virtq/ring.h"

namespace virtbay {

class ArrivalOrder {
 public:
  // Room for `size` chains; 0: not used.
  void Resize(uint16_t size) {
    if (entries_.size() != size) entries_.assign(size, Entry());
    Clear();
  }
  bool empty() const { return count_ == 0; }
  void Clear() { first_ = count_ = 0; }

  // A chain has come. Precondition: fewer than `size` are here.
  uint32_t Append() {
    const uint32_t place = (first_ + count_) % static_cast<uint32_t>(entries_.size());
    ++count_;
    entries_[place].done = false;
    return place;
  }
  // The chain at `place` has ended.
  void End(uint32_t place, const UsedEntry& used) { entries_[place] = Entry{used, true}; }
  // How many come before the chain at `place`, and what it ended with.
  uint32_t TurnOf(uint32_t place) const {
    const auto size = static_cast<uint32_t>(entries_.size());
    return (place + size - first_) % size;
  }
  const UsedEntry& At(uint32_t place) const { return entries_[place].used; }
  // Removes the one whose turn it is, if it has ended.
  bool Next(UsedEntry* used) {
    if (count_ == 0 || !entries_[first_].done) return false;
    *used = entries_[first_].used;
    first_ = (first_ + 1) % static_cast<uint32_t>(entries_.size());
    --count_;
    return true;
  }

 private:
  struct Entry {
    UsedEntry used;
    bool done = false;
  };

  std::vector<Entry> entries_;
  uint32_t first_ = 0;
  uint32_t count_ = 0;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_ARRIVAL_ORDER_H_
