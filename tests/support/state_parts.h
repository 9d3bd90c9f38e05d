// StateParts: the state of a device (virtbay.device.state) as its sections, to be looked into and
// changed; and what was open, for whoever restores it.
// A value; one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_STATE_PARTS_H_
#define VIRTBAY_TESTS_SUPPORT_STATE_PARTS_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "virtbay/sdk/state.h"

namespace virtbay::testing {

// A state that can be looked into, and changed.
class StateParts {
 public:
  struct Section {
    uint32_t tag = 0;
    std::vector<std::byte> bytes;
  };
  StateParts() = default;
  // Parts of whole sections; what is behind them is left out.
  explicit StateParts(std::span<const std::byte> bytes) {
    uint64_t length = 0;
    while (bytes.size() >= sizeof(uint32_t) + sizeof(length)) {
      Section& section = sections.emplace_back();
      std::memcpy(&section.tag, bytes.data(), sizeof(section.tag));
      std::memcpy(&length, bytes.data() + sizeof(section.tag), sizeof(length));
      bytes = bytes.subspan(sizeof(section.tag) + sizeof(length));
      if (length > bytes.size()) break;
      section.bytes.assign(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
      bytes = bytes.subspan(length);
    }
  }

  std::vector<std::byte>& Bytes(uint32_t tag) {
    for (Section& section : sections) {
      if (section.tag == tag) return section.bytes;
    }
    return sections.emplace_back(Section{tag, {}}).bytes;
  }
  template <typename T>
  size_t Count(uint32_t tag) {
    return Bytes(tag).size() / sizeof(T);
  }
  template <typename T>
  T Get(uint32_t tag, size_t index = 0) {
    T record;
    std::memcpy(&record, Bytes(tag).data() + index * sizeof(T), sizeof(T));
    return record;
  }
  template <typename T>
  void Set(uint32_t tag, size_t index, const T& record) {
    std::memcpy(Bytes(tag).data() + index * sizeof(T), &record, sizeof(T));
  }
  template <typename T>
  void Append(uint32_t tag, const T& record) {
    const auto* bytes = reinterpret_cast<const std::byte*>(&record);
    Bytes(tag).insert(Bytes(tag).end(), bytes, bytes + sizeof(T));
  }
  void Remove(uint32_t tag) {
    std::erase_if(sections, [&](const Section& section) { return section.tag == tag; });
  }
  std::vector<std::byte> Whole() const {
    sdk::StateWriter writer;
    for (const Section& section : sections) writer.Add(section.tag, section.bytes);
    return {writer.bytes().begin(), writer.bytes().end()};
  }

  std::vector<Section> sections;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_STATE_PARTS_H_
