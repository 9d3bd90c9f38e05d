// How the parts of a state are read, none of which is believed: whole records, bytes in their
// order, descriptors of a role. Owned by the restoring function; [control].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_STATE_READING_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_STATE_READING_H_

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "virtbay/sdk/state.h"

namespace virtbay::virtiofs {

// Whole records, or nothing.
template <typename T>
class Records {
 public:
  Records(const sdk::StateReader& in, uint32_t tag) {
    const auto bytes = in.Find(tag);
    ok_ = bytes.has_value() && bytes->size() % sizeof(T) == 0 &&
          bytes->size() / sizeof(T) <= UINT32_MAX;
    if (ok_) bytes_ = *bytes;
  }
  bool ok() const { return ok_; }
  uint32_t size() const { return static_cast<uint32_t>(bytes_.size() / sizeof(T)); }
  T operator[](size_t i) const {
    T record;
    std::memcpy(&record, bytes_.data() + i * sizeof(T), sizeof(T));
    return record;
  }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = false;
};

// Bytes in their order, each read once.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : rest_(bytes) {}
  bool Take(size_t size, std::span<const std::byte>* out) {
    if (size > rest_.size()) return false;
    *out = rest_.first(size);
    rest_ = rest_.subspan(size);
    return true;
  }
  bool Take(size_t size, std::string* out) {
    std::span<const std::byte> bytes;
    if (!Take(size, &bytes)) return false;
    out->assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return true;
  }
  template <typename T>
  bool Take(T* record) {
    std::span<const std::byte> bytes;
    if (!Take(sizeof(T), &bytes)) return false;
    std::memcpy(record, bytes.data(), sizeof(T));
    return true;
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::span<const std::byte> rest_;
};

// The descriptors of a role, in their order; closes those that nobody took.
class Fds {
 public:
  Fds(sdk::StateReader* in, uint32_t role) : fds_(in->TakeFds(role)) {}
  Fds(const Fds&) = delete;
  Fds& operator=(const Fds&) = delete;
  ~Fds() {
    for (; next_ < fds_.size(); ++next_) ::close(fds_[next_]);
  }
  // The next one, which stays here until Taken; -1: there is none.
  int Peek() const { return next_ < fds_.size() ? fds_[next_] : -1; }
  int Taken() { return fds_[next_++]; }
  size_t left() const { return fds_.size() - next_; }

 private:
  const std::vector<int> fds_;
  size_t next_ = 0;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_STATE_READING_H_
