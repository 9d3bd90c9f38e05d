// The control queue (virtio 1.3 5.1.6.5): what the guest's driver sets at run time. A command that
// breaks a rule changes nothing and gets an error.
#include <algorithm>
#include <array>
#include <cstring>

#include "sdk/net/net_state.h"

namespace virtbay::sdk {

namespace {

constexpr uint8_t kClassRx = 0;
constexpr uint8_t kClassMac = 1;
constexpr uint8_t kClassVlan = 2;
constexpr uint8_t kClassAnnounce = 3;
constexpr uint8_t kClassMq = 4;
constexpr uint8_t kClassGuestOffloads = 5;
// Two tables of MAC addresses are the longest command there is; what does not fit in this is
// thousands of addresses.
constexpr uint32_t kLongest = 32 * 1024;

template <typename T>
bool Take(std::span<const std::byte>* data, T* value) {
  if (data->size() < sizeof(T)) return false;
  std::memcpy(value, data->data(), sizeof(T));
  *data = data->subspan(sizeof(T));
  return true;
}

// A table: a count, then so many addresses.
bool TakeMacs(std::span<const std::byte>* data, std::span<const std::byte>* macs) {
  uint32_t count = 0;
  if (!Take(data, &count) || count > data->size() / 6) return false;
  *macs = data->first(size_t{6} * count);
  *data = data->subspan(size_t{6} * count);
  return true;
}

}  // namespace

void NetDevice::State::OnControl(std::span<Request> requests) {
  for (Request& request : requests) {
    Host::Add(control_commands);
    bool done = false;
    const uint32_t total = request.in_total();
    const bool answers = request.Reserve(1);
    // Where there is no room for the answer nothing is done either (virtio 1.3 5.1.6.5).
    if (answers && total >= 2 && total <= kLongest) {
      const auto bytes = request.Fetch(0, total);
      // The bytes may be the guest's own, which may change under us.
      std::vector<std::byte> copy(bytes.begin(), bytes.end());
      if (copy.size() >= 2) {
        done = Execute(std::to_integer<uint8_t>(copy[0]), std::to_integer<uint8_t>(copy[1]),
                       std::span<const std::byte>(copy).subspan(2));
      }
    }
    if (!done) Host::Add(control_errors);
    if (!request.Write(0, static_cast<uint8_t>(done ? 0 : 1))) {
      request.Fail();
      continue;
    }
    request.Complete(1);
  }
}

bool NetDevice::State::Execute(uint8_t group, uint8_t command, std::span<const std::byte> data) {
  const auto negotiated = [this](uint64_t feature) { return (features & feature) != 0; };
  switch (group) {
    case kClassRx: {
      uint8_t on = 0;
      if (command >= net::RxFilter::kModes || data.size() != 1 || !Take(&data, &on)) return false;
      const bool extra = command > net::RxFilter::kAllMulticast;
      if (!negotiated(extra ? net_feature::kCtrlRxExtra : net_feature::kCtrlRx)) return false;
      filter.SetMode(static_cast<net::RxFilter::Mode>(command), on != 0);
      return true;
    }
    case kClassMac: {
      if (command == 1) {
        if (!negotiated(net_feature::kCtrlMacAddr) || data.size() != 6) return false;
        const uint64_t mac = net::MacKey(data.data());
        if ((mac >> 40 & 1) != 0 || mac == 0) return false;
        filter.SetMac(mac);
        device->OnMac(net::MacOf(mac));
        return true;
      }
      std::span<const std::byte> unicast, multicast;
      if (command != 0 || !negotiated(net_feature::kCtrlRx) || !TakeMacs(&data, &unicast) ||
          !TakeMacs(&data, &multicast) || !data.empty()) {
        return false;
      }
      filter.SetTable(false, unicast);
      filter.SetTable(true, multicast);
      return true;
    }
    case kClassVlan: {
      uint16_t id = 0;
      if (command > 1 || !negotiated(net_feature::kCtrlVlan) || data.size() != 2 ||
          !Take(&data, &id) || id > 4095) {
        return false;
      }
      filter.SetVlan(id, command == 0);
      return true;
    }
    case kClassAnnounce:
      if (command != 0 || !negotiated(net_feature::kGuestAnnounce) || !data.empty()) return false;
      announce.store(false, std::memory_order_relaxed);
      return true;
    case kClassMq: {
      uint16_t count = 0;
      if (command != 0 || !negotiated(net_feature::kMq) || data.size() != 2 ||
          !Take(&data, &count) || count < 1 || count > config.queue_pairs) {
        return false;
      }
      return UsePairs(count, /*set=*/true);
    }
    case kClassGuestOffloads: {
      uint64_t bits = 0;
      if (command != 0 || !negotiated(net_feature::kCtrlGuestOffloads) || data.size() != 8 ||
          !Take(&data, &bits) || (bits & ~(features & net_feature::kGuestOffloadBits)) != 0) {
        return false;
      }
      if (!device->OnOffloads(OffloadsOf(bits | (features & net_feature::kMergeable))).ok()) {
        return false;
      }
      guest_bits.store(bits, std::memory_order_relaxed);
      return true;
    }
    default:
      return false;
  }
}

}  // namespace virtbay::sdk
