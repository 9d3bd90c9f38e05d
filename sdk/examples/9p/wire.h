// The bytes of 9P2000.L: numbers of messages, and a reader and a writer that never leave their
// bytes. Values inside a call; [queue].
#ifndef VIRTBAY_EXAMPLES_9P_WIRE_H_
#define VIRTBAY_EXAMPLES_9P_WIRE_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace p9 {

static_assert(std::endian::native == std::endian::little, "9P is little-endian");

// T-messages; the R-message of each is one more.
enum Type : uint8_t {
  kRlerror = 7,
  kTstatfs = 8,
  kTlopen = 12,
  kTlcreate = 14,
  kTsymlink = 16,
  kTmknod = 18,
  kTreadlink = 22,
  kTgetattr = 24,
  kTsetattr = 26,
  kTreaddir = 40,
  kTfsync = 50,
  kTlock = 52,
  kTgetlock = 54,
  kTlink = 70,
  kTmkdir = 72,
  kTrenameat = 74,
  kTunlinkat = 76,
  kTversion = 100,
  kTattach = 104,
  kTflush = 108,
  kTwalk = 110,
  kTread = 116,
  kTwrite = 118,
  kTclunk = 120,
  kTremove = 122,
};

inline constexpr uint32_t kHeader = 7;      // size, type, tag
inline constexpr uint32_t kReadData = 11;   // where the data of Rread and Rreaddir begin
inline constexpr uint32_t kWriteData = 23;  // where the data of Twrite begin
inline constexpr uint32_t kMinSize = 4096;  // of a message that both sides must take
inline constexpr uint32_t kMaxWalk = 16;    // names in a Twalk
inline constexpr size_t kMaxName = 255;
inline constexpr char kVersion[] = "9P2000.L";

struct Qid {
  uint8_t type = 0;
  uint32_t version = 0;
  uint64_t path = 0;
};
inline constexpr uint32_t kQidSize = 13;

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  // Whether everything that was asked for was there.
  bool ok() const { return ok_; }

  template <typename T>
  T Get() {
    static_assert(std::is_integral_v<T>);
    T value = 0;
    const auto from = Take(sizeof(T));
    if (!from.empty()) std::memcpy(&value, from.data(), sizeof(T));
    return value;
  }
  uint32_t U32() { return Get<uint32_t>(); }
  uint64_t U64() { return Get<uint64_t>(); }
  // Of any bytes, NUL included.
  std::string_view Text() {
    const auto from = Take(Get<uint16_t>());
    return {reinterpret_cast<const char*>(from.data()), from.size()};
  }

 private:
  std::span<const std::byte> Take(size_t size) {
    ok_ = ok_ && size <= bytes_.size();
    if (!ok_) return {};
    const auto taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }

  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

class Writer {
 public:
  explicit Writer(std::span<std::byte> bytes) : bytes_(bytes) {}
  // Whether everything had room.
  bool ok() const { return ok_; }
  uint32_t size() const { return static_cast<uint32_t>(at_); }
  size_t room() const { return bytes_.size() - at_; }

  template <typename T>
  void Put(T value) {
    static_assert(std::is_integral_v<T>);
    Bytes(&value, sizeof(value));
  }
  void U32(uint32_t value) { Put(value); }
  void U64(uint64_t value) { Put(value); }
  void Text(std::string_view text) {
    Put(static_cast<uint16_t>(text.size()));
    Bytes(text.data(), text.size());
  }
  void Id(const Qid& qid) {
    Put(qid.type);
    Put(qid.version);
    Put(qid.path);
  }
  // A number that was left out before.
  void PutAt(size_t at, uint32_t value) { std::memcpy(bytes_.data() + at, &value, sizeof(value)); }

 private:
  void Bytes(const void* from, size_t size) {
    ok_ = ok_ && size <= room();
    if (!ok_ || size == 0) return;
    std::memcpy(bytes_.data() + at_, from, size);
    at_ += size;
  }

  std::span<std::byte> bytes_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace p9

#endif  // VIRTBAY_EXAMPLES_9P_WIRE_H_
