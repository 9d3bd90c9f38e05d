// MappingRegistry: which address ranges are guest memory, readable from inside a signal handler.
// A passive table: it exists in a process only when the embedder installed a SigbusGuard
// (framework/isolation), which owns it; without one, mappings are not recorded anywhere.
// Every function is [any]; Find is async-signal-safe.
#ifndef VIRTBAY_FRAMEWORK_MEMORY_MAPPING_REGISTRY_H_
#define VIRTBAY_FRAMEWORK_MEMORY_MAPPING_REGISTRY_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>

namespace virtbay {

class MappingRegistry {
  struct Slot;

 public:
  // Ranges that can be recorded at once: 32 front-ends with all 509 regions, or thousands of usual
  // ones. With a guard there are no mappings beyond that: an unguarded one would let its front-end
  // end the process.
  static constexpr size_t kCapacity = 16384;

  // What Find copies out of the table.
  struct Range {
    uintptr_t begin = 0;
    uintptr_t end = 0;
    size_t page_size = 0;  // granularity at which the range can be replaced (huge pages)
    std::atomic<bool>* poisoned = nullptr;
  };

  // A place in the table; given back by its destructor. Move-only.
  class Entry {
   public:
    Entry() = default;
    Entry(Entry&& other) noexcept : slot_(std::exchange(other.slot_, nullptr)) {}
    Entry& operator=(Entry&& other) noexcept {
      if (this != &other) {
        Release();
        slot_ = std::exchange(other.slot_, nullptr);
      }
      return *this;
    }
    ~Entry() { Release(); }
    explicit operator bool() const { return slot_ != nullptr; }
    // Takes the range out of the table; call it before the memory is unmapped.
    void Release();

   private:
    friend class MappingRegistry;
    explicit Entry(Slot* slot) : slot_(slot) {}
    Slot* slot_ = nullptr;
  };

  constexpr MappingRegistry() = default;

  // Records a range; an empty Entry when the table is full. The flag and the range must stay until
  // the Entry is released.
  Entry Add(const Range& range);

  // Copies the range that contains `address`; false when there is none. Never waits: a slot that is
  // being changed is skipped, since a thread that faults in a range keeps that range recorded.
  bool Find(uintptr_t address, Range* range) const;

  // The registry that new mappings record themselves in, or nullptr. Set once, by the guard.
  static MappingRegistry* Current();
  static void SetCurrent(MappingRegistry* registry);

 private:
  // A seqlock each: `sequence` is odd while a writer is at work. Every member is atomic because a
  // reader may look at any time.
  struct Slot {
    std::atomic<uint32_t> sequence{0};
    std::atomic<bool> taken{false};
    std::atomic<uintptr_t> begin{0};
    std::atomic<uintptr_t> end{0};
    std::atomic<size_t> page_size{0};
    std::atomic<std::atomic<bool>*> poisoned{nullptr};

    void Write(const Range& range);
  };

  std::array<Slot, kCapacity> slots_{};
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_MEMORY_MAPPING_REGISTRY_H_
