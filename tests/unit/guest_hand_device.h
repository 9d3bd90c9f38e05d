// HandDevice: the device's side of a split ring written from virtio 1.3 2.7 for the guest library's
// tests; shares no code with the driver side. Owned by the test; one thread at a time.
#ifndef VIRTBAY_TESTS_UNIT_GUEST_HAND_DEVICE_H_
#define VIRTBAY_TESTS_UNIT_GUEST_HAND_DEVICE_H_

#include <atomic>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hostif/guest/guest_memory.h"
#include "hostif/guest/split_ring.h"

namespace virtbay::guest {

class HandDevice {
 public:
  struct Piece {
    std::byte* data = nullptr;
    uint32_t length = 0;
  };
  struct Chain {
    uint16_t head = 0;
    bool indirect = false;
    std::vector<Piece> readable;
    std::vector<Piece> writable;

    std::string Text() const {
      std::string text;
      for (const Piece& piece : readable) {
        text.append(reinterpret_cast<const char*>(piece.data), piece.length);
      }
      return text;
    }
  };

  HandDevice(const GuestMemory& memory, RingAddresses ring, uint16_t size, bool event_idx)
      : memory_(memory), ring_(ring), size_(size), event_idx_(event_idx) {}

  uint16_t AvailIndex() const { return U16(ring_.avail + 2)->load(std::memory_order_acquire); }
  bool HasAvail() const { return AvailIndex() != next_; }

  std::optional<Chain> Pop() {
    if (!HasAvail()) return std::nullopt;
    Chain chain;
    chain.head = U16(ring_.avail + 4 + 2 * (next_ % size_))->load();
    ++next_;
    Descriptor d = ReadDescriptor(ring_.descriptors, chain.head);
    uint64_t table = ring_.descriptors;
    if ((d.flags & 4) != 0) {
      chain.indirect = true;
      table = d.address;
      d = ReadDescriptor(table, 0);
    }
    for (;;) {
      std::byte* const data = memory_.Translate(d.address, d.length);
      ((d.flags & 2) != 0 ? chain.writable : chain.readable).push_back({data, d.length});
      if ((d.flags & 1) == 0) return chain;
      d = ReadDescriptor(table, d.next);
    }
  }

  // Puts a used entry in place and shows it at once.
  void Push(uint32_t head, uint32_t written) {
    std::byte* const entry = memory_.Translate(ring_.used + 4 + 8 * (used_ % size_), 8);
    std::memcpy(entry, &head, 4);
    std::memcpy(entry + 4, &written, 4);
    ++used_;
    U16(ring_.used + 2)->store(used_, std::memory_order_seq_cst);
  }

  // Whether the driver wants a call for the last `count` used entries.
  bool WantsCall(uint16_t count = 1) const {
    if (!event_idx_) return (U16(ring_.avail)->load() & 1) == 0;
    const uint16_t event = U16(ring_.avail + 4 + 2 * size_)->load(std::memory_order_seq_cst);
    return static_cast<uint16_t>(used_ - event - 1) < count;
  }

  // Asks for a kick when the driver publishes index `event`, or (without event-idx) for none.
  void SetAvailEvent(uint16_t event) { U16(ring_.used + 4 + 8 * size_)->store(event); }
  void SetNoKick(bool none) { U16(ring_.used)->store(none ? 1 : 0); }

  uint16_t next() const { return next_; }

 private:
  struct Descriptor {
    uint64_t address = 0;
    uint32_t length = 0;
    uint16_t flags = 0;
    uint16_t next = 0;
  };
  static_assert(sizeof(Descriptor) == 16);

  std::atomic<uint16_t>* U16(uint64_t address) const {
    return reinterpret_cast<std::atomic<uint16_t>*>(memory_.Translate(address, 2));
  }
  Descriptor ReadDescriptor(uint64_t table, uint16_t index) const {
    Descriptor d;
    std::memcpy(&d, memory_.Translate(table + 16u * index, 16), 16);
    return d;
  }

  const GuestMemory& memory_;
  RingAddresses ring_;
  uint16_t size_;
  bool event_idx_;
  uint16_t next_ = 0;
  uint16_t used_ = 0;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_TESTS_UNIT_GUEST_HAND_DEVICE_H_
