// Slab: a fixed number of flows in address space of its own, whose pages exist once they are used.
// Owned by a protocol of a shard; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <type_traits>

#include "plugins/proxy-net/flow/flow.h"

namespace virtbay::proxy_net {

template <typename T>
class Slab {
 public:
  static_assert(std::is_trivially_destructible_v<T> && std::is_base_of_v<Flow, T>);

  // [control] ok() tells whether the address space was there.
  explicit Slab(uint32_t capacity) : bytes_(sizeof(T) * (size_t{capacity} + 1)) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory != MAP_FAILED) items_ = static_cast<T*>(memory);
  }
  ~Slab() {
    if (items_ != nullptr) munmap(items_, bytes_);
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  bool ok() const { return items_ != nullptr; }

  // [queue] The index-th one; begin with Make.
  T* At(uint32_t index) const { return items_ + index; }
  // [queue] A fresh one in that place, with the id and kind. Entries of the lists of flows and
  // events of its predecessor may outlive that: the lists' entries are its own then, the events are
  // not.
  T* Make(uint32_t index, uint32_t id, FlowKind kind) {
    const Flow before = items_[index];
    T* const flow = std::construct_at(items_ + index);
    flow->dirty = before.dirty;
    flow->waits_rx = before.waits_rx;
    flow->generation = before.generation + 1;
    flow->id = id;
    flow->kind = kind;
    return flow;
  }

 private:
  const size_t bytes_;
  T* items_ = nullptr;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_
