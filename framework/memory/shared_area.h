// SharedArea: a piece of a file that a front-end shares, mapped here for as long as somebody holds
// it. What is in it is the front-end's. A value; [any].
#ifndef VIRTBAY_FRAMEWORK_MEMORY_SHARED_AREA_H_
#define VIRTBAY_FRAMEWORK_MEMORY_SHARED_AREA_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "framework/memory/memory_map.h"

namespace virtbay {

struct SharedArea {
  std::shared_ptr<const GuestMapping> mapping;  // null: there is none
  uint64_t offset = 0;                          // of its first byte in the mapping
  uint64_t size = 0;

  explicit operator bool() const { return mapping != nullptr; }
  std::byte* data() const { return mapping->data() + offset; }
  // GuestMapping::poisoned.
  bool poisoned() const { return mapping != nullptr && mapping->poisoned(); }
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_SHARED_AREA_H_
