#include "framework/virtq/segment_list.h"

#include <algorithm>
#include <utility>

namespace virtbay {

void SegmentList::Grow() {
  auto larger = std::make_unique_for_overwrite<iovec[]>(size_t{capacity_} * 2);
  std::copy_n(data(), size_, larger.get());
  more_ = std::move(larger);
  capacity_ *= 2;
}

}  // namespace virtbay
