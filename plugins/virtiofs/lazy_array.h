// LazyArray: a large array of zeros of which only what is used takes memory. The heap promises no
// such thing: a piece of it that was used before is cleared, and so touched, as a whole.
// Owned by value; it adds nothing to the thread safety of its elements.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace virtbay::virtiofs {

// T: all bits zero is a value of it.
template <typename T>
class LazyArray {
  static_assert(std::is_trivially_destructible_v<T>);

 public:
  LazyArray() = default;
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;
  ~LazyArray() {
    if (mapping_ != nullptr) ::munmap(mapping_, bytes_);
  }

  // Once, for more than none. `soon`: much of it is about to be used, so that large pages are worth
  // it: the kernel takes microseconds for each that is touched first. False: no memory.
  bool Init(size_t size, bool soon = false) {
    const bool large = soon && size * sizeof(T) >= kLargePage / 2;
    bytes_ = size * sizeof(T) + (large ? 2 * kLargePage : 0);
    void* const data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return false;
    mapping_ = data;
    auto at = reinterpret_cast<uintptr_t>(data);
    if (large) {
      at = (at + kLargePage - 1) & ~(kLargePage - 1);
      ::madvise(reinterpret_cast<void*>(at), bytes_ - kLargePage, MADV_HUGEPAGE);
    }
    data_ = reinterpret_cast<T*>(at);
    return true;
  }
  explicit operator bool() const { return data_ != nullptr; }
  T& operator[](size_t index) const { return data_[index]; }

 private:
  static constexpr uintptr_t kLargePage = uintptr_t{2} << 20;

  void* mapping_ = nullptr;
  T* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_
