// NetDevice::State: what a NetDevice keeps: per pair its receive buffers and counters, per device
// what was negotiated and what the control queue has set.
// Owned by the NetDevice. A Pair is its pair's thread's; what is atomic, [any]; the rest is
// constant while queues run.
#ifndef VIRTBAY_SDK_NET_NET_STATE_H_
#define VIRTBAY_SDK_NET_NET_STATE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "sdk/net/capture.h"
#include "sdk/net/driver_state.h"
#include "sdk/net/rx_filter.h"
#include "sdk/net/vnet_header.h"
#include "virtbay/sdk/net_device.h"

namespace virtbay::sdk {

// Feature bits (virtio 1.3 5.1.3, 6).
namespace net_feature {
inline constexpr uint64_t kCsum = uint64_t{1} << 0;
inline constexpr uint64_t kGuestCsum = uint64_t{1} << 1;
inline constexpr uint64_t kCtrlGuestOffloads = uint64_t{1} << 2;
inline constexpr uint64_t kMtu = uint64_t{1} << 3;
inline constexpr uint64_t kMac = uint64_t{1} << 5;
inline constexpr uint64_t kGuestTso4 = uint64_t{1} << 7;
inline constexpr uint64_t kGuestTso6 = uint64_t{1} << 8;
inline constexpr uint64_t kGuestEcn = uint64_t{1} << 9;
inline constexpr uint64_t kHostTso4 = uint64_t{1} << 11;
inline constexpr uint64_t kHostTso6 = uint64_t{1} << 12;
inline constexpr uint64_t kHostEcn = uint64_t{1} << 13;
inline constexpr uint64_t kMergeable = uint64_t{1} << 15;
inline constexpr uint64_t kStatus = uint64_t{1} << 16;
inline constexpr uint64_t kCtrlVq = uint64_t{1} << 17;
inline constexpr uint64_t kCtrlRx = uint64_t{1} << 18;
inline constexpr uint64_t kCtrlVlan = uint64_t{1} << 19;
inline constexpr uint64_t kCtrlRxExtra = uint64_t{1} << 20;
inline constexpr uint64_t kGuestAnnounce = uint64_t{1} << 21;
inline constexpr uint64_t kMq = uint64_t{1} << 22;
inline constexpr uint64_t kCtrlMacAddr = uint64_t{1} << 23;
inline constexpr uint64_t kVersion1 = uint64_t{1} << 32;
inline constexpr uint64_t kInOrder = uint64_t{1} << 35;
inline constexpr uint64_t kGuestUso4 = uint64_t{1} << 54;
inline constexpr uint64_t kGuestUso6 = uint64_t{1} << 55;
inline constexpr uint64_t kHostUso = uint64_t{1} << 56;
inline constexpr uint64_t kSpeedDuplex = uint64_t{1} << 63;
inline constexpr uint64_t kGuestOffloadBits =
    kGuestCsum | kGuestTso4 | kGuestTso6 | kGuestEcn | kGuestUso4 | kGuestUso6;
}  // namespace net_feature

// What the guest takes, by feature bits; a segmentation without checksums is none.
GuestOffloads OffloadsOf(uint64_t features);

struct NetDevice::State {
  static constexpr uint64_t kWatchCookie = uint64_t{1} << 63;
  static constexpr uint64_t kCaptureCookie = (uint64_t{1} << 63) + 1;
  // Slices of one receive; a frame of 64 KiB takes 44 buffers of 1526 bytes.
  static constexpr uint32_t kMaxBuffers = VIRTBAY_MESSAGE_SLICES_MAX;

  // The guest's receive buffers, oldest first.
  class Buffers {
   public:
    void Reserve(uint32_t count) {
      uint32_t size = 1;
      while (size < count) size *= 2;
      ring_.resize(size);
    }
    uint32_t count() const { return tail_ - head_; }
    virtbay_request* at(uint32_t index) const { return ring_[(head_ + index) & mask()]; }
    // The host holds no more requests than the ring has entries.
    bool Push(virtbay_request* request) {
      if (count() == ring_.size()) return false;
      ring_[tail_++ & mask()] = request;
      return true;
    }
    void Pop(uint32_t count) { head_ += count; }
    void Clear() { head_ = tail_; }

   private:
    uint32_t mask() const { return static_cast<uint32_t>(ring_.size()) - 1; }
    std::vector<virtbay_request*> ring_;
    uint32_t head_ = 0;
    uint32_t tail_ = 0;
  };

  // How the payload of the open frame comes: into the guest's buffers, or into `scratch` first.
  enum class Mode : uint8_t { kUndecided, kDirect, kStaged };

  // In cache lines of its own: pairs may have a thread each.
  struct alignas(64) Pair {
    Buffers buffers;
    std::unique_ptr<std::byte[]> scratch;  // a whole frame
    bool started = false;
    bool tx_quiesced = false;
    bool starved = true;  // OnRxBuffers is due at the next buffer
    bool frame_open = false;
    Mode mode = Mode::kUndecided;

    int watch_fd = -1;
    uint32_t watch_events = 0;
    bool watch_wanted = false;
    bool watch_armed = false;

    std::unique_ptr<net::CaptureBuffer> capture;

    // Transmit requests that ended during the burst at hand; they go back to the guest together,
    // because telling it costs more than a small frame does.
    bool in_burst = false;
    uint32_t ended_count = 0;
    uint32_t ended_bytes = 0;
    std::array<virtbay_completion, 64> ended;
  };

  struct BackEndDrop {
    std::atomic<const char*> reason{nullptr};
    std::atomic<uint64_t*> cell{nullptr};
  };

  explicit State(NetDevice* owner) : device(owner) {}

  NetDevice* const device;
  NetConfig config;
  uint64_t offered = 0;
  std::vector<Pair> pairs;

  // Settled by Negotiate.
  uint64_t features = 0;
  uint32_t header_len = net::kVnetHeader;
  uint32_t control_queue = 0;
  bool has_control = false;
  net::HostOffloads host_offloads;

  // Changed while queues run.
  std::atomic<uint64_t> guest_bits{0};  // of kGuestOffloadBits
  std::atomic<uint32_t> active_pairs{1};
  std::atomic<bool> pairs_set{false};  // by the control queue; else as the buffers show
  std::mutex pairs_mutex;              // held while their number changes
  std::atomic<bool> link_up{true};
  std::atomic<bool> announce{false};
  net::RxFilter filter;

  bool active = false;  // what the driver has set is in force
  // What the driver of the device that this one goes on for had set; until the first Activate.
  std::optional<net::DriverState> restored;

  // Capture.
  std::unique_ptr<net::CaptureFile> capture_file;
  std::atomic<bool> capture_fails{false};
  uint32_t snaplen = kMaxFrame;

  uint64_t* tx_frames = nullptr;
  uint64_t* tx_bytes = nullptr;
  uint64_t* rx_frames = nullptr;
  uint64_t* rx_bytes = nullptr;
  uint64_t* rx_merged = nullptr;
  uint64_t* capture_drops = nullptr;
  uint64_t* control_commands = nullptr;
  uint64_t* control_errors = nullptr;
  uint64_t* link_changes = nullptr;
  std::array<uint64_t*, static_cast<size_t>(net::TxDrop::kCount)> tx_drops{};
  std::array<uint64_t*, static_cast<size_t>(net::RxDrop::kCount)> rx_drops{};
  using BackEndDrops = std::array<BackEndDrop, 32>;
  BackEndDrops tx_back_end_drops;
  BackEndDrops rx_back_end_drops;

  // ---- net_device.cc
  Status ReadOptions();
  Status OpenCapture(const std::string& path);
  void MakeCounters();
  net::DriverState Driver() const;
  const Host& host() const { return device->host(); }
  // Whose thread's events a pair's are.
  uint32_t event_queue(uint32_t pair) const { return 2 * pair + 1; }
  bool IsControl(uint32_t queue) const { return has_control && queue == control_queue; }
  bool mergeable() const { return (features & net_feature::kMergeable) != 0; }
  GuestOffloads guest() const {
    return OffloadsOf(guest_bits.load(std::memory_order_relaxed) |
                      (features & net_feature::kMergeable));
  }
  // The guest uses so many pairs. False: it keeps what it had.
  bool UsePairs(uint32_t count, bool set);
  void StartPair(uint32_t pair);
  void StopPair(uint32_t pair);
  void ArmWatch(uint32_t pair);
  void CountBackEndDrop(BackEndDrops* drops, const char* prefix, const char* reason,
                        uint64_t frames);
  uint16_t StatusBits() const;
  void FillConfig(std::span<std::byte, 24> out) const;

  // ---- net_tx.cc
  void OnTransmit(uint32_t pair, std::span<Request> requests);
  inline void EndTransmit(Pair* pair, const TxFrame& frame);
  // One that does not end in the burst it came with.
  void EndAlone(const TxFrame& frame, bool requeue);
  void GiveBackEnded(Pair* pair);
  void Drop(net::TxDrop drop) { Host::Add(tx_drops[static_cast<size_t>(drop)]); }

  // ---- net_rx.cc
  void OnReceiveBuffers(uint32_t pair, std::span<Request> requests);
  // Drops buffers from the front that hold not even a header.
  void DropBadBuffers(uint32_t pair);
  bool Deliver(uint32_t pair, std::span<const std::byte> headers, std::span<const std::byte> staged,
               uint32_t direct, const Offload& offload);
  bool Refuse(net::RxDrop drop, uint32_t pair, std::span<const std::byte> headers, uint32_t size);
  // Whether a frame's payload has to pass through our memory.
  bool Stages() const;

  // ---- net_control.cc
  void OnControl(std::span<Request> requests);
  bool Execute(uint8_t group, uint8_t command, std::span<const std::byte> data);

  // ---- capture, in net_device.cc
  void Capture(uint32_t pair, bool from_guest, std::span<const std::byte> bytes,
               std::span<const std::byte> more, uint32_t size, std::string_view comment);
  void FlushCapture(uint32_t pair);
  // What came of writing: 0 or an errno.
  void CaptureOutcome(int error);
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_NET_NET_STATE_H_
