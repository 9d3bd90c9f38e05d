#include "framework/device/account.h"

#include <cstdint>

#include "absl/strings/str_format.h"

namespace virtbay {

std::string AccountLine(const DeviceInfo& info) {
  uint64_t waits = 0;
  uint64_t wait_ns = 0;
  uint64_t in = 0;
  uint64_t out = 0;
  uint64_t direct = 0;
  for (const QueueStats& queue : info.queues) {
    waits += queue.slot_waits;
    wait_ns += queue.slot_wait_ns;
    in += queue.bytes_copied_in;
    out += queue.bytes_copied_out;
    direct += queue.bytes_direct;
  }
  return absl::StrFormat(
      "%s arena of %d bytes: %d of %d slots in use, %d at most, %d waits for slots (%.3f ms); "
      "bytes copied in %d, copied out %d, moved without a copy %d; DMA violations %d",
      info.arena_policy, info.arena_size, info.arena_slots_used, info.arena_slots,
      info.arena_slots_high_water, waits, static_cast<double>(wait_ns) / 1e6, in, out, direct,
      info.dma_violations);
}

}  // namespace virtbay
