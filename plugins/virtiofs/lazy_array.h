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
  ~LazyArray() { Reset(); }

  // Once, for more than none. `soon`: so many are about to be used, for which memory is taken at
  // once, in large pages where it is worth that: the kernel takes a microsecond for each page that
  // is touched first, and a hundred for a large one. False: no memory.
  bool Init(size_t size, size_t soon = 0) {
    const bool large = soon * sizeof(T) >= kLargePage / 2;
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
    // A kernel that does not know it takes the pages when they are touched.
    if (soon > 0) ::madvise(reinterpret_cast<void*>(at), soon * sizeof(T), kPopulateWrite);
    data_ = reinterpret_cast<T*>(at);
    return true;
  }
  // Back to how it was before Init.
  void Reset() {
    if (mapping_ != nullptr) ::munmap(mapping_, bytes_);
    mapping_ = nullptr;
    data_ = nullptr;
  }
  explicit operator bool() const { return data_ != nullptr; }
  T& operator[](size_t index) const { return data_[index]; }

 private:
  static constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  static constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14

  void* mapping_ = nullptr;
  T* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_
