#include "framework/memory/slot_pool.h"

#include <algorithm>

#include "framework/base/status.h"

namespace virtbay {
namespace {

constexpr uint64_t kUnit = uint64_t{2} << 20;

}  // namespace

absl::StatusOr<std::shared_ptr<SlotPool>> SlotPool::Create(absl::string_view name, uint64_t size) {
  // What wraps is more than an arena can be anyway.
  const uint64_t rounded = std::max(size, (size + kUnit - 1) / kUnit * kUnit);
  VIRTBAY_ASSIGN_OR_RETURN(Arena arena, Arena::Create(name, rounded));
  return std::shared_ptr<SlotPool>(new SlotPool(std::move(arena)));
}

}  // namespace virtbay
