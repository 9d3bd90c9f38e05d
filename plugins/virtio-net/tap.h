// Tap: the queues of one TAP interface, opened by name or inherited.
// Owned by the device; made and destroyed on [control]. Its descriptors are read and written by the
// pairs' threads; SetPairs is for the control queue's, SetOffloads [control or queue].
#ifndef VIRTBAY_PLUGINS_VIRTIO_NET_TAP_H_
#define VIRTBAY_PLUGINS_VIRTIO_NET_TAP_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "virtbay/sdk/net_link.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtio_net {

class Tap {
 public:
  Tap() = default;
  ~Tap();
  Tap(const Tap&) = delete;
  Tap& operator=(const Tap&) = delete;

  // One queue per pair of the interface `name`, which is made if there is none and the caller may.
  // The error says what is missing: the driver, a capability, or that it is in use.
  sdk::Status Open(const std::string& name, uint32_t pairs);
  // Takes inherited descriptors, one per pair; keeps duplicates of them.
  sdk::Status Adopt(const std::vector<int>& fds);

  // Takes the queues of an interface that another one had open, one per pair, whatever comes of it.
  sdk::Status Restore(const std::string& name, const std::vector<int>& fds, uint32_t pairs);
  // Whether interfaces of this kernel know segmentation of UDP (Linux 6.2).
  static bool KernelHasUso();
  // An interface's MTU by its name, or 0.
  static uint32_t MtuOf(const std::string& name);

  // What the kernel may give: TUNSETOFFLOAD.
  sdk::Status SetOffloads(const sdk::GuestOffloads& offloads);
  // Whether the kernel knows segmentation of UDP (Linux 6.2).
  bool HasUso() const { return has_uso_; }
  // Uses the first so many queues: TUNSETQUEUE.
  sdk::Status SetPairs(uint32_t pairs);
  bool attached(uint32_t pair) const { return attached_[pair].load(std::memory_order_acquire); }

  // The interface's MTU, or 0 where it is not known (an inherited one may be elsewhere).
  uint32_t Mtu() const;
  // False: not allowed.
  bool SetMtu(uint32_t mtu) const;

  int fd(uint32_t pair) const { return fds_[pair]; }
  uint32_t pairs() const { return static_cast<uint32_t>(fds_.size()); }
  const std::string& name() const { return name_; }

 private:
  sdk::Status OpenQueue(uint16_t flags);
  sdk::Status Prepare(int fd);

  std::string name_;
  bool by_name_ = false;
  bool has_uso_ = false;
  std::vector<int> fds_;
  std::array<std::atomic<bool>, 16> attached_{};
};

}  // namespace virtbay::virtio_net

#endif  // VIRTBAY_PLUGINS_VIRTIO_NET_TAP_H_
