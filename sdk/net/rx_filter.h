// RxFilter: which frames the guest wants (virtio 1.3 5.1.6.5.1 to 5.1.6.5.3): modes, MAC tables,
// VLANs. Owned by the NetDevice. The control queue's thread changes it, every pair's thread reads
// it: each word is atomic, and a frame that passes while a table is exchanged may be judged by
// either.
#ifndef VIRTBAY_SDK_NET_RX_FILTER_H_
#define VIRTBAY_SDK_NET_RX_FILTER_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "virtbay/sdk/net_device.h"

namespace virtbay::sdk::net {

// Six bytes of a frame or a command as a number.
inline uint64_t MacKey(const std::byte* mac) {
  uint64_t key = 0;
  for (int i = 0; i < 6; ++i) key = key << 8 | std::to_integer<uint64_t>(mac[i]);
  return key;
}
inline uint64_t MacKey(const MacAddress& mac) {
  return MacKey(reinterpret_cast<const std::byte*>(mac.data()));
}
inline MacAddress MacOf(uint64_t key) {
  MacAddress mac;
  for (size_t i = 0; i < mac.size(); ++i) mac[i] = static_cast<uint8_t>(key >> (40 - 8 * i));
  return mac;
}

class RxFilter {
 public:
  // Modes: the commands of class RX by number.
  enum Mode : uint32_t {
    kPromiscuous = 0,
    kAllMulticast,
    kAllUnicast,
    kNoMulticast,
    kNoUnicast,
    kNoBroadcast,
    kModes,
  };
  static constexpr uint32_t kTableMax = 64;
  enum class Verdict : uint8_t { kPass, kAddress, kVlan };
  // All that can be set, as a value.
  struct Macs {
    bool every = false;
    std::vector<uint64_t> macs;  // at most kTableMax
  };
  struct Settings {
    uint32_t modes = 1u << kPromiscuous;
    uint64_t mac = 0;
    std::array<Macs, 2> tables;  // unicast, multicast
    std::array<uint64_t, 64> vlans{};
  };

  // As after a reset: everything passes, but frames of VLANs when the guest names those it wants.
  void Reset(uint64_t mac, bool filters_vlans) {
    modes_.store(1u << kPromiscuous, std::memory_order_relaxed);
    mac_.store(mac, std::memory_order_relaxed);
    for (Table& table : tables_) table.count.store(0, std::memory_order_relaxed);
    for (auto& word : vlans_)
      word.store(filters_vlans ? 0 : ~uint64_t{0}, std::memory_order_relaxed);
  }
  void SetMode(Mode mode, bool on) {
    const uint32_t bit = 1u << mode;
    on ? modes_.fetch_or(bit, std::memory_order_relaxed)
       : modes_.fetch_and(~bit, std::memory_order_relaxed);
  }
  uint32_t modes() const { return modes_.load(std::memory_order_relaxed); }
  void SetMac(uint64_t mac) { mac_.store(mac, std::memory_order_relaxed); }
  uint64_t mac() const { return mac_.load(std::memory_order_relaxed); }
  // `macs`: six bytes each. More than kTableMax: all of that kind pass.
  void SetTable(bool multicast, std::span<const std::byte> macs) {
    Table& table = tables_[multicast ? 1 : 0];
    const auto count = static_cast<uint32_t>(macs.size() / 6);
    if (count > kTableMax) return table.count.store(kEvery, std::memory_order_relaxed);
    for (uint32_t i = 0; i < count; ++i) {
      table.macs[i].store(MacKey(macs.data() + size_t{6} * i), std::memory_order_relaxed);
    }
    table.count.store(count, std::memory_order_release);
  }
  void SetVlan(uint16_t id, bool wanted) {
    const uint64_t bit = uint64_t{1} << (id % 64);
    std::atomic<uint64_t>& word = vlans_[id / 64];
    wanted ? word.fetch_or(bit, std::memory_order_relaxed)
           : word.fetch_and(~bit, std::memory_order_relaxed);
  }
  // While nobody sets anything.
  Settings Get() const {
    Settings settings;
    settings.modes = modes();
    settings.mac = mac();
    for (size_t i = 0; i < tables_.size(); ++i) {
      const uint32_t count = tables_[i].count.load(std::memory_order_acquire);
      settings.tables[i].every = count == kEvery;
      for (uint32_t n = 0; count != kEvery && n < count; ++n) {
        settings.tables[i].macs.push_back(tables_[i].macs[n].load(std::memory_order_relaxed));
      }
    }
    for (size_t i = 0; i < vlans_.size(); ++i) {
      settings.vlans[i] = vlans_[i].load(std::memory_order_relaxed);
    }
    return settings;
  }
  void Set(const Settings& settings) {
    modes_.store(settings.modes, std::memory_order_relaxed);
    SetMac(settings.mac);
    for (size_t i = 0; i < tables_.size(); ++i) {
      const Macs& from = settings.tables[i];
      const auto count = static_cast<uint32_t>(from.macs.size());
      for (uint32_t n = 0; n < count; ++n) {
        tables_[i].macs[n].store(from.macs[n], std::memory_order_relaxed);
      }
      tables_[i].count.store(from.every ? kEvery : count, std::memory_order_release);
    }
    for (size_t i = 0; i < vlans_.size(); ++i) {
      vlans_[i].store(settings.vlans[i], std::memory_order_relaxed);
    }
  }

  // Of the first bytes of a frame, at least 14; for its VLAN 18.
  Verdict Judge(std::span<const std::byte> frame) const {
    if (frame.size() >= 18 && frame[12] == std::byte{0x81} && frame[13] == std::byte{0}) {
      const uint32_t id =
          (std::to_integer<uint32_t>(frame[14]) << 8 | std::to_integer<uint32_t>(frame[15])) &
          0xfff;
      if ((vlans_[id / 64].load(std::memory_order_relaxed) >> (id % 64) & 1) == 0) {
        return Verdict::kVlan;
      }
    }
    const uint32_t modes = modes_.load(std::memory_order_relaxed);
    if ((modes & 1u << kPromiscuous) != 0) return Verdict::kPass;
    return Wanted(modes, MacKey(frame.data())) ? Verdict::kPass : Verdict::kAddress;
  }

 private:
  static constexpr uint32_t kEvery = UINT32_MAX;
  struct Table {
    std::atomic<uint32_t> count{0};
    std::array<std::atomic<uint64_t>, kTableMax> macs{};
  };

  static bool Has(const Table& table, uint64_t mac) {
    const uint32_t count = table.count.load(std::memory_order_acquire);
    if (count == kEvery) return true;
    for (uint32_t i = 0; i < count; ++i) {
      if (table.macs[i].load(std::memory_order_relaxed) == mac) return true;
    }
    return false;
  }
  bool Wanted(uint32_t modes, uint64_t mac) const {
    const auto has = [modes](Mode mode) { return (modes & 1u << mode) != 0; };
    if (mac == 0xffff'ffff'ffff) return !has(kNoBroadcast);
    if ((mac >> 40 & 1) != 0) {
      return !has(kNoMulticast) && (has(kAllMulticast) || Has(tables_[1], mac));
    }
    if (has(kNoUnicast)) return false;
    return has(kAllUnicast) || mac == mac_.load(std::memory_order_relaxed) || Has(tables_[0], mac);
  }

  std::atomic<uint32_t> modes_{1u << kPromiscuous};
  std::atomic<uint64_t> mac_{0};
  std::array<Table, 2> tables_;
  std::array<std::atomic<uint64_t>, 64> vlans_{};
};

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_RX_FILTER_H_
