// Slab: a fixed number of flows in address space of its own, whose pages exist once they are used.
// Owned by a protocol of a shard; [queue].
#ifndef VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_
#define VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_

#include <sys/mman.h>

#include <cstdint>
#include <memory>
#include <type_traits>

namespace virtbay::proxy_net {

template <typename T>
class Slab {
 public:
  static_assert(std::is_trivially_destructible_v<T>);

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
  // [queue] A fresh one in that place.
  T* Make(uint32_t index) { return std::construct_at(items_ + index); }

 private:
  const size_t bytes_;
  T* items_ = nullptr;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_FLOW_SLAB_H_
