// SegmentList: the host iovecs of one chain. The first two lie in the object itself, which is what
// most chains have, so that they share a cache line with the rest of the chain; more are on the
// heap, and that room is kept for the chains that follow.
// Owned by a Chain; [queue].
#ifndef VIRTBAY_FRAMEWORK_VIRTQ_SEGMENT_LIST_H_
#define VIRTBAY_FRAMEWORK_VIRTQ_SEGMENT_LIST_H_

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace virtbay {

class SegmentList {
 public:
  const iovec* data() const { return more_ == nullptr ? own_.data() : more_.get(); }
  size_t size() const { return size_; }
  iovec& back() { return Data()[size_ - 1]; }

  void clear() { size_ = 0; }
  void push_back(const iovec& segment) {
    if (size_ == capacity_) [[unlikely]]
      Grow();
    Data()[size_++] = segment;
  }

 private:
  static constexpr uint32_t kOwn = 2;

  iovec* Data() { return more_ == nullptr ? own_.data() : more_.get(); }
  void Grow();

  std::array<iovec, kOwn> own_;
  std::unique_ptr<iovec[]> more_;
  uint32_t size_ = 0;
  uint32_t capacity_ = kOwn;
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_VIRTQ_SEGMENT_LIST_H_
