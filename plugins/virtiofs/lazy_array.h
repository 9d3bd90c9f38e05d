// LazyArray: a large array of zeros of which only what is used takes memory. The heap promises no
// such thing: a piece of it that was used before is cleared, and so touched, as a whole.
// Owned by value; it adds nothing to the thread safety of its elements.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_

#include <sys/mman.h>

#include <cstddef>
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
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }

  // Once. False: no memory.
  bool Init(size_t size) {
    bytes_ = size * sizeof(T);
    void* const data = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) return false;
    data_ = static_cast<T*>(data);
    return true;
  }
  explicit operator bool() const { return data_ != nullptr; }
  T& operator[](size_t index) const { return data_[index]; }

 private:
  T* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_LAZY_ARRAY_H_
