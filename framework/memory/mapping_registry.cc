#include "framework/memory/mapping_registry.h"

namespace virtbay {
namespace {

// The one process-wide word of the framework: a signal handler has no other way to find its data.
// Null unless the embedder asked for the guard.
constinit std::atomic<MappingRegistry*> g_current{nullptr};

}  // namespace

static_assert(std::atomic<uintptr_t>::is_always_lock_free, "read in a signal handler");

MappingRegistry* MappingRegistry::Current() { return g_current.load(std::memory_order_acquire); }

void MappingRegistry::SetCurrent(MappingRegistry* registry) {
  g_current.store(registry, std::memory_order_release);
}

void MappingRegistry::Slot::Write(const Range& range) {
  // The acquire half of the first add keeps the stores below it, the release of the second above.
  sequence.fetch_add(1, std::memory_order_acq_rel);
  begin.store(range.begin, std::memory_order_release);
  end.store(range.end, std::memory_order_release);
  page_size.store(range.page_size, std::memory_order_release);
  poisoned.store(range.poisoned, std::memory_order_release);
  sequence.fetch_add(1, std::memory_order_release);
}

MappingRegistry::Entry MappingRegistry::Add(const Range& range) {
  for (Slot& slot : slots_) {
    if (slot.taken.load(std::memory_order_relaxed)) continue;
    if (slot.taken.exchange(true, std::memory_order_acq_rel)) continue;
    slot.Write(range);
    return Entry(&slot);
  }
  return Entry();
}

void MappingRegistry::Entry::Release() {
  if (slot_ == nullptr) return;
  slot_->Write(Range{});
  slot_->taken.store(false, std::memory_order_release);
  slot_ = nullptr;
}

bool MappingRegistry::Find(uintptr_t address, Range* range) const {
  for (const Slot& slot : slots_) {
    const uint32_t before = slot.sequence.load(std::memory_order_acquire);
    if ((before & 1) != 0) continue;
    const Range copy{slot.begin.load(std::memory_order_acquire),
                     slot.end.load(std::memory_order_acquire),
                     slot.page_size.load(std::memory_order_acquire),
                     slot.poisoned.load(std::memory_order_acquire)};
    // Acquire loads above: the second look at the sequence cannot move before them.
    if (slot.sequence.load(std::memory_order_relaxed) != before) continue;
    if (copy.poisoned == nullptr || address < copy.begin || address >= copy.end) continue;
    *range = copy;
    return true;
  }
  return false;
}

}  // namespace virtbay
