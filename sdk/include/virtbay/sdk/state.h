// StateWriter and StateReader: a device's state as sections of bytes with a tag each, and file
// descriptors by role: what the extension virtbay.device.state/1 carries. A section that a reader
// does not know it passes over, so that a later version may add some.
// Plain values; [control].
#ifndef VIRTBAY_SDK_STATE_H_
#define VIRTBAY_SDK_STATE_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "virtbay/sdk/abi.h"

namespace virtbay::sdk {

/// @cond INTERNAL

/// Memory for what may be large and is filled at once: on large pages then, because the kernel
/// takes microseconds for each page that is touched first.
template <typename T>
struct StateAllocator {
  using value_type = T;
  StateAllocator() = default;
  template <typename U>
  explicit StateAllocator(const StateAllocator<U>& /*other*/) {}
  T* allocate(size_t n) {
    const size_t bytes = n * sizeof(T);
    if (bytes < kLargePage / 2) return static_cast<T*>(::operator new(bytes));
    const size_t rounded = (bytes + kLargePage - 1) & ~(kLargePage - 1);
    void* const data = std::aligned_alloc(kLargePage, rounded);
    if (data == nullptr) throw std::bad_alloc();
    ::madvise(data, rounded, MADV_HUGEPAGE);
    return static_cast<T*>(data);
  }
  void deallocate(T* data, size_t n) {
    n * sizeof(T) < kLargePage / 2 ? ::operator delete(data) : std::free(data);
  }
  bool operator==(const StateAllocator&) const = default;

 private:
  static constexpr size_t kLargePage = size_t{2} << 20;
};

/// @endcond

/// What Device::Save fills.
class StateWriter {
 public:
  /// Room for so many more bytes, headers of sections included: where that is much and known.
  void Reserve(size_t bytes) { bytes_.reserve(bytes_.size() + bytes); }
  /// A section of these bytes; a tag may come several times.
  void Add(uint32_t tag, std::span<const std::byte> bytes) {
    Append(&tag, sizeof(tag));
    const auto length = static_cast<uint64_t>(bytes.size());
    Append(&length, sizeof(length));
    Append(bytes.data(), bytes.size());
  }
  /// The same with any bytes.
  void Add(uint32_t tag, const void* data, size_t size) {
    Add(tag, {static_cast<const std::byte*>(data), size});
  }
  /// A descriptor, which stays the device's; the order of those with one role is kept.
  void AddFd(uint32_t role, int fd) { fds_.push_back({role, fd}); }

  /// For the host's side.
  std::span<const std::byte> bytes() const { return bytes_; }
  /// For the host's side.
  std::span<const virtbay_state_fd> fds() const { return fds_; }

 private:
  void Append(const void* data, size_t size) {
    if (size == 0) return;
    const auto* bytes = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
  }

  std::vector<std::byte, StateAllocator<std::byte>> bytes_;
  std::vector<virtbay_state_fd> fds_;
};

/// What Device::Restore gets. Descriptors that it does not take are closed with it.
class StateReader {
 public:
  /// For the host's side: takes the descriptors.
  StateReader(uint32_t version, std::span<const std::byte> bytes,
              std::span<const virtbay_state_fd> fds)
      : version_(version), bytes_(bytes), fds_(fds.begin(), fds.end()) {}
  StateReader(const StateReader&) = delete;
  StateReader& operator=(const StateReader&) = delete;
  ~StateReader() {
    for (const virtbay_state_fd& fd : fds_) close(fd.fd);
  }

  /// Of the device type that saved it.
  uint32_t version() const { return version_; }
  /// Whether it consists of whole sections.
  bool ok() const {
    std::span<const std::byte> rest = bytes_;
    Section section;
    while (Next(&rest, &section)) continue;
    return rest.empty();
  }
  /// The first section with that tag, or nothing.
  std::optional<std::span<const std::byte>> Find(uint32_t tag) const {
    std::span<const std::byte> rest = bytes_;
    Section section;
    while (Next(&rest, &section)) {
      if (section.tag == tag) return section.bytes;
    }
    return std::nullopt;
  }
  /// Whether none is left of a role that was not asked for.
  bool all_fds_taken() const { return fds_.empty(); }
  /// The descriptors of that role, in their order; they are the caller's from now on.
  std::vector<int> TakeFds(uint32_t role) {
    std::vector<int> taken;
    std::vector<virtbay_state_fd> others;
    for (const virtbay_state_fd& fd : fds_) {
      if (fd.role == role) {
        taken.push_back(fd.fd);
      } else {
        others.push_back(fd);
      }
    }
    fds_ = std::move(others);
    return taken;
  }

 private:
  struct Section {
    uint32_t tag = 0;
    std::span<const std::byte> bytes;
  };
  static bool Next(std::span<const std::byte>* rest, Section* section) {
    uint64_t length = 0;
    if (rest->size() < sizeof(section->tag) + sizeof(length)) return false;
    std::memcpy(&section->tag, rest->data(), sizeof(section->tag));
    std::memcpy(&length, rest->data() + sizeof(section->tag), sizeof(length));
    const auto after = rest->subspan(sizeof(section->tag) + sizeof(length));
    if (length > after.size()) return false;
    section->bytes = after.first(length);
    *rest = after.subspan(length);
    return true;
  }

  const uint32_t version_;
  const std::span<const std::byte> bytes_;
  std::vector<virtbay_state_fd> fds_;
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_STATE_H_
