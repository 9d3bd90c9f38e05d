#include "sdk/net/driver_state.h"

#include <cstring>
#include <type_traits>

#include "sdk/net/net_state.h"

namespace virtbay::sdk::net {
namespace {

constexpr uint8_t kPairsSet = 1;
constexpr uint8_t kAnnounce = 2;
constexpr uint64_t kGroupBit = uint64_t{1} << 40;  // of an address as a number
constexpr uint64_t kAddressEnd = uint64_t{1} << 48;

class Out {
 public:
  template <typename T>
  void Put(T value) {
    static_assert(std::is_unsigned_v<T>);
    const size_t at = bytes_.size();
    bytes_.resize(at + sizeof(value));
    std::memcpy(bytes_.data() + at, &value, sizeof(value));
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class In {
 public:
  explicit In(std::span<const std::byte> bytes) : bytes_(bytes) {}
  // Past the end zero, and not ok any more.
  template <typename T>
  T Get() {
    static_assert(std::is_unsigned_v<T>);
    T value{};
    ok_ = ok_ && bytes_.size() >= sizeof(T);
    if (!ok_) return value;
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return value;
  }
  bool ok() const { return ok_; }
  bool at_end() const { return ok_ && bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

bool IsInterface(uint64_t mac) { return mac != 0 && mac < kAddressEnd && (mac & kGroupBit) == 0; }

}  // namespace

std::vector<std::byte> DriverState::Serialize() const {
  Out out;
  out.Put(kVersion);
  out.Put(features);
  out.Put(queue_pairs);
  out.Put(active_pairs);
  out.Put(static_cast<uint8_t>((pairs_set ? kPairsSet : 0) | (announce ? kAnnounce : 0)));
  out.Put(guest_bits);
  out.Put(filter.modes);
  out.Put(filter.mac);
  for (const RxFilter::Macs& table : filter.tables) {
    out.Put(static_cast<uint8_t>(table.every ? 1 : 0));
    out.Put(static_cast<uint32_t>(table.macs.size()));
    for (const uint64_t mac : table.macs) out.Put(mac);
  }
  for (const uint64_t word : filter.vlans) out.Put(word);
  return out.Take();
}

std::optional<DriverState> DriverState::Parse(std::span<const std::byte> section) {
  In in(section);
  DriverState state;
  if (in.Get<uint32_t>() != kVersion) return std::nullopt;
  state.features = in.Get<uint64_t>();
  state.queue_pairs = in.Get<uint32_t>();
  state.active_pairs = in.Get<uint32_t>();
  const auto flags = in.Get<uint8_t>();
  state.pairs_set = (flags & kPairsSet) != 0;
  state.announce = (flags & kAnnounce) != 0;
  state.guest_bits = in.Get<uint64_t>();
  RxFilter::Settings& filter = state.filter;
  filter.modes = in.Get<uint32_t>();
  filter.mac = in.Get<uint64_t>();
  bool sane = flags <= (kPairsSet | kAnnounce) && filter.modes < 1u << RxFilter::kModes &&
              IsInterface(filter.mac) && state.queue_pairs >= 1 &&
              state.queue_pairs <= kMaxQueuePairs && state.active_pairs >= 1 &&
              state.active_pairs <= state.queue_pairs &&
              (state.guest_bits & ~(state.features & net_feature::kGuestOffloadBits)) == 0;
  for (RxFilter::Macs& table : filter.tables) {
    const auto every = in.Get<uint8_t>();
    const auto count = in.Get<uint32_t>();
    sane = sane && every <= 1 && count <= (every == 1 ? 0 : RxFilter::kTableMax);
    for (uint32_t i = 0; sane && in.ok() && i < count; ++i) {
      table.macs.push_back(in.Get<uint64_t>());
      sane = table.macs.back() < kAddressEnd;
    }
    table.every = every == 1;
  }
  for (uint64_t& word : filter.vlans) word = in.Get<uint64_t>();
  if (!sane || !in.at_end()) return std::nullopt;
  return state;
}

}  // namespace virtbay::sdk::net
