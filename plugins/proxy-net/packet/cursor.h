// Reader and Writer: the only way bytes of the network are looked at or made here. Network byte
// order, bounds checked, nothing cast: what runs past the end reads as zero or writes nothing, and
// the cursor stays failed, so that one look at ok() after a header says whether all of it was
// there. Values that refer to the caller's bytes; not to be shared by threads. [any]
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PACKET_CURSOR_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PACKET_CURSOR_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace virtbay::proxy_net {

using Bytes = std::span<const uint8_t>;

// Reads from the front of a span.
class Reader {
 public:
  // [any] Over `bytes`, which outlive the reader.
  explicit Reader(Bytes bytes) : bytes_(bytes) {}

  // [any] The next number in network byte order; 0, and the reader fails, past the end.
  uint8_t U8() { return static_cast<uint8_t>(Number(1)); }
  uint16_t U16() { return static_cast<uint16_t>(Number(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Number(4)); }
  uint64_t U64() { return Number(8); }
  // [any] The next n bytes; none, and the reader fails, when there are fewer.
  Bytes Take(size_t n) {
    if (!Has(n)) return {};
    const Bytes taken = bytes_.subspan(at_, n);
    at_ += n;
    return taken;
  }
  // [any] Passes over n bytes.
  void Skip(size_t n) {
    if (Has(n)) at_ += n;
  }
  // [any] Copies as many bytes as `out` has; zeros when there are fewer.
  void Copy(std::span<uint8_t> out) {
    const Bytes taken = Take(out.size());
    if (taken.size() == out.size()) {
      if (!out.empty()) std::memcpy(out.data(), taken.data(), out.size());
    } else {
      std::memset(out.data(), 0, out.size());
    }
  }
  // [any] What has not been read, without reading it.
  Bytes rest() const { return ok_ ? bytes_.subspan(at_) : Bytes(); }

  // [any] Bytes that are left; 0 after a failure.
  size_t left() const { return ok_ ? bytes_.size() - at_ : 0; }
  // [any] Bytes read.
  size_t position() const { return at_; }
  // [any] Whether everything asked for was there.
  bool ok() const { return ok_; }
  // [any] Makes the reader fail, for what a caller finds wrong.
  void Fail() { ok_ = false; }

 private:
  bool Has(size_t n) {
    const bool has = ok_ && n <= bytes_.size() - at_;
    ok_ = has;
    return has;
  }
  uint64_t Number(size_t n) {
    uint64_t value = 0;
    if (!Has(n)) return 0;
    for (size_t i = 0; i < n; ++i) value = value << 8 | bytes_[at_ + i];
    at_ += n;
    return value;
  }

  Bytes bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

// Writes to the front of a span.
class Writer {
 public:
  // [any] Over `bytes`, which outlive the writer.
  explicit Writer(std::span<uint8_t> bytes) : bytes_(bytes) {}

  // [any] Appends a number in network byte order; nothing, and the writer fails, without room.
  void U8(uint8_t value) { Number(value, 1); }
  void U16(uint16_t value) { Number(value, 2); }
  void U32(uint32_t value) { Number(value, 4); }
  void U64(uint64_t value) { Number(value, 8); }
  // [any] Appends bytes.
  void Put(Bytes bytes) {
    if (!Has(bytes.size()) || bytes.empty()) return;
    std::memcpy(bytes_.data() + at_, bytes.data(), bytes.size());
    at_ += bytes.size();
  }
  // [any] Appends n bytes of the same value.
  void Fill(size_t n, uint8_t value = 0) {
    if (!Has(n) || n == 0) return;
    std::memset(bytes_.data() + at_, value, n);
    at_ += n;
  }
  // [any] Overwrites two bytes that were written, at `position` from the start.
  void PatchU16(size_t position, uint16_t value) {
    if (!ok_ || at_ < 2 || position > at_ - 2) {
      ok_ = false;
      return;
    }
    bytes_[position] = static_cast<uint8_t>(value >> 8);
    bytes_[position + 1] = static_cast<uint8_t>(value);
  }
  // [any] Overwrites one byte that was written.
  void PatchU8(size_t position, uint8_t value) {
    if (!ok_ || position >= at_) {
      ok_ = false;
      return;
    }
    bytes_[position] = value;
  }

  // [any] What was written, from `start` on; none after a failure.
  std::span<uint8_t> written(size_t start = 0) const {
    return ok_ && start <= at_ ? bytes_.subspan(start, at_ - start) : std::span<uint8_t>();
  }
  // [any] Bytes written.
  size_t position() const { return at_; }
  // [any] Room that is left; 0 after a failure.
  size_t left() const { return ok_ ? bytes_.size() - at_ : 0; }
  // [any] Whether everything fitted.
  bool ok() const { return ok_; }
  // [any] Makes the writer fail, for what a caller finds wrong.
  void Fail() { ok_ = false; }

 private:
  bool Has(size_t n) {
    const bool has = ok_ && n <= bytes_.size() - at_;
    ok_ = has;
    return has;
  }
  void Number(uint64_t value, size_t n) {
    if (!Has(n)) return;
    for (size_t i = 0; i < n; ++i) {
      bytes_[at_ + i] = static_cast<uint8_t>(value >> (8 * (n - 1 - i)));
    }
    at_ += n;
  }

  std::span<uint8_t> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PACKET_CURSOR_H_
