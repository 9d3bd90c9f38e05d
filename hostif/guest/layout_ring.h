// LayoutRing: a SplitRing or a PackedRing, as RingOptions::packed says: the DriverRing of a driver
// whose layout is an option. A value inside a DriverQueue; one thread at a time drives it.
#ifndef VIRTBAY_HOSTIF_GUEST_LAYOUT_RING_H_
#define VIRTBAY_HOSTIF_GUEST_LAYOUT_RING_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <variant>

#include "absl/status/statusor.h"
#include "framework/base/status.h"
#include "hostif/guest/driver_ring.h"
#include "hostif/guest/guest_memory.h"
#include "hostif/guest/packed_ring.h"
#include "hostif/guest/split_ring.h"

namespace virtbay::guest {

class LayoutRing {
 private:
  // First, since what follows needs its return type.
  template <typename F>
  auto With(F f) {
    auto* const split = std::get_if<SplitRing>(&ring_);
    return split != nullptr ? f(*split) : f(*std::get_if<PackedRing>(&ring_));
  }
  template <typename F>
  auto With(F f) const {
    const auto* const split = std::get_if<SplitRing>(&ring_);
    return split != nullptr ? f(*split) : f(*std::get_if<PackedRing>(&ring_));
  }

 public:
  // The errors of the layout's Create. [control]
  static absl::StatusOr<LayoutRing> Create(GuestMemory* memory, const RingOptions& options) {
    if (options.packed) {
      VIRTBAY_ASSIGN_OR_RETURN(PackedRing ring, PackedRing::Create(memory, options));
      return LayoutRing(std::move(ring));
    }
    VIRTBAY_ASSIGN_OR_RETURN(SplitRing ring, SplitRing::Create(memory, options));
    return LayoutRing(std::move(ring));
  }

  bool is_packed() const { return std::holds_alternative<PackedRing>(ring_); }
  // Precondition: it is of that layout.
  SplitRing& split() { return *std::get_if<SplitRing>(&ring_); }
  PackedRing& packed() { return *std::get_if<PackedRing>(&ring_); }

  // The functions of DriverRing.
  void Reset() {
    With([](auto& ring) { ring.Reset(); });
  }
  bool Add(std::span<const Segment> readable, std::span<const Segment> writable, uint64_t token) {
    return With([&](auto& ring) { return ring.Add(readable, writable, token); });
  }
  bool Publish() {
    return With([](auto& ring) { return ring.Publish(); });
  }
  bool HasUsed() const {
    return With([](const auto& ring) { return ring.HasUsed(); });
  }
  size_t TakeUsed(std::span<UsedBuffer> used) {
    return With([&](auto& ring) { return ring.TakeUsed(used); });
  }
  bool ArmCalls() {
    return With([](auto& ring) { return ring.ArmCalls(); });
  }
  void DisarmCalls() {
    With([](auto& ring) { ring.DisarmCalls(); });
  }
  uint32_t first_base() const {
    return With([](const auto& ring) { return ring.first_base(); });
  }
  uint32_t reconnect_base() const {
    return With([](const auto& ring) { return ring.reconnect_base(); });
  }
  RingAddresses addresses() const {
    return With([](const auto& ring) { return ring.addresses(); });
  }
  uint16_t size() const {
    return With([](const auto& ring) { return ring.size(); });
  }
  uint32_t in_flight() const {
    return With([](const auto& ring) { return ring.in_flight(); });
  }
  uint32_t free_descriptors() const {
    return With([](const auto& ring) { return ring.free_descriptors(); });
  }
  uint64_t device_errors() const {
    return With([](const auto& ring) { return ring.device_errors(); });
  }

 private:
  template <typename Ring>
  explicit LayoutRing(Ring ring) : ring_(std::move(ring)) {}

  std::variant<SplitRing, PackedRing> ring_;
};

static_assert(DriverRing<LayoutRing>);

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_LAYOUT_RING_H_
