// NetDevice: what every network device shares (virtio 1.3 5.1): configuration space, offloads, the
// checks of the guest's headers, receive buffers, control queue, capture, counters. A plugin
// derives from it and writes the back-end. In the static library virtbay::sdk_net. Owned by the
// host between create and destroy, as every Device. A queue pair has one thread for both its
// queues; what is tagged [queue] runs on the thread of the pair named. A device type with
// VIRTBAY_DEVICE_QUEUE_PARALLEL has a thread per pair, and a back-end that shares between pairs
// only what may be; without that flag one thread serves them all. The control queue has the first
// pair's thread; with a driver that knows no VIRTIO_NET_F_MQ, whose control queue comes sooner, the
// second pair's, which it does not use.
#ifndef VIRTBAY_SDK_NET_DEVICE_H_
#define VIRTBAY_SDK_NET_DEVICE_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "virtbay/sdk/abi.h"
#include "virtbay/sdk/device.h"
#include "virtbay/sdk/net_link.h"
#include "virtbay/sdk/result.h"

namespace virtbay::sdk {

/// virtio 1.3 5.1.1.
inline constexpr uint32_t kVirtioNetId = 1;
/// The most queue pairs that a NetDevice has.
inline constexpr uint32_t kMaxQueuePairs = 16;

/// A network interface's address.
using MacAddress = std::array<uint8_t, 6>;

/// What a network device is like. The options that every network device has are in it when
/// Configure gets it; the offloads are then all on but for those that were turned off.
struct NetConfig {
  MacAddress mac{};                  ///< all zero: one is made up
  uint32_t mtu = 1500;               ///< 68 to 65535
  uint32_t queue_pairs = 1;          ///< 1 to kMaxQueuePairs
  uint32_t queue_size = 1024;        ///< largest ring, a power of two
  bool link_up = true;               ///< when the guest sees it first
  uint32_t speed_mbps = UINT32_MAX;  ///< unknown
  /// Whether VIRTIO_F_IN_ORDER is offered. Receive buffers are used in order in any case; a
  /// back-end that holds a frame of the guest's for long, and takes later ones meanwhile, turns it
  /// off, since none would go back to the guest before the one that is held.
  bool in_order = true;

  /// What the back-end takes from the guest: frames that need a checksum, and large ones. A
  /// segmentation needs csum, ecn needs a TCP one.
  bool csum = true;
  bool tso4 = true;  ///< large TCP segments over IPv4
  bool tso6 = true;  ///< and over IPv6
  bool ecn = true;   ///< with CWR
  bool uso = true;   ///< large UDP datagrams
  /// What it can give the guest.
  GuestOffloads guest = {true, true, true, true, true, true, true};
};

/// Options that every network device has; a plugin's kOptions begins with them (NetOptions).
inline constexpr std::array kNetOptions = {
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_TEXT, "mac"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_INTEGER, "mtu"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_INTEGER, "queue-pairs"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_TEXT, "link"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_BOOLEAN, "offloads"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_BOOLEAN, "mergeable"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_TEXT, "pcap"},
    virtbay_option{sizeof(virtbay_option), VIRTBAY_OPTION_INTEGER, "pcap-snaplen"},
};

/// kNetOptions and a plugin's own, for its kOptions.
template <size_t N>
constexpr std::array<virtbay_option, kNetOptions.size() + N> NetOptions(
    const std::array<virtbay_option, N>& own) {
  std::array<virtbay_option, kNetOptions.size() + N> all{};
  for (size_t i = 0; i < kNetOptions.size(); ++i) all[i] = kNetOptions[i];
  for (size_t i = 0; i < N; ++i) all[kNetOptions.size() + i] = own[i];
  return all;
}

/// "aa:bb:cc:dd:ee:ff"; an error for anything else, and for a group address.
Result<MacAddress> ParseMac(std::string_view text);
/// The same in reverse.
std::string FormatMac(const MacAddress& mac);

/// A network device without its back-end.
class NetDevice : public Device, public GuestLink {
 public:
  ~NetDevice() override;

  // ---- what a back-end writes -------------------------------------------------------------------

  /// [control & CREATED] Reads the back-end's options and opens what it serves; may change
  /// `config`.
  virtual Status Configure(NetConfig* config) = 0;
  /// [control & READY] A front-end is there.
  virtual Status OnActivate() { return {}; }
  /// [control & ACTIVE] The front-end is gone.
  virtual void OnDeactivate() {}
  /// [control or queue] What the guest takes was settled, or changed at run time by its control
  /// queue (virtio 1.3 5.1.6.5.7). With a failure the guest keeps what it had.
  virtual Status OnOffloads(const GuestOffloads& /*offloads*/) { return {}; }
  /// [control or queue, of any] The guest uses so many pairs (virtio 1.3 5.1.6.5.6), one unless a
  /// device goes on that had more; one call at a time. With
  /// a failure it keeps what it had. Frames to it go to the first so many from now on.
  virtual Status OnPairs(uint32_t /*pairs*/) { return {}; }
  /// [queue, of the control queue] The guest has set another MAC address; [control, before
  /// OnActivate] it had, when this device goes on for another one.
  virtual void OnMac(const MacAddress& /*mac*/) {}
  /// [control] The link was put up or down.
  virtual void OnLink(bool /*up*/) {}

  /// [queue] The pair begins to be served: before the first of the functions below, and again after
  /// OnPairStop.
  virtual void OnPairStart(uint32_t /*pair*/) {}
  /// [queue] The pair stops: complete or requeue every TxFrame held of it. Receive buffers are
  /// requeued by the NetDevice; alarms and Watch are forgotten.
  virtual void OnPairStop(uint32_t /*pair*/) {}
  /// [queue] Last words of the pair before its last OnPairStop, `reason` is VIRTBAY_FAREWELL_*: the
  /// device ends for good, and frames still reach the guest. Not before a pause, nor when another
  /// device goes on with the state.
  virtual void OnFarewell(uint32_t /*pair*/, uint32_t /*reason*/) {}
  /// [queue] Frames from the guest, in order. What is not moved away is completed on return.
  virtual void OnFrames(uint32_t pair, std::span<TxFrame> frames) = 0;
  /// [queue] There are receive buffers again after BeginFrame found too few, and at the start.
  virtual void OnRxBuffers(uint32_t /*pair*/) {}
  /// [queue] The descriptor of Watch is ready: poll events, or -errno.
  virtual void OnReady(uint32_t /*pair*/, int32_t /*events*/) {}
  /// [queue] An alarm of SetAlarm.
  virtual void OnAlarm(uint32_t /*pair*/, uint64_t /*cookie*/) {}
  /// [queue] Work of OffloadWork is done.
  virtual void OnWorkDone(uint32_t /*pair*/, void* /*argument*/, uint64_t /*cookie*/) {}
  /// [control] A command that NetDevice does not know itself ("link", "announce", "show"): as
  /// Device::Control. "show" gives a JSON object; what OnShow returns goes in as its members.
  virtual Result<std::string> OnControl(std::string_view /*command*/, std::string_view /*text*/);
  /// [control] Members of a JSON object, e.g. `"flows": 3`, or nothing.
  virtual std::string OnShow() { return {}; }
  /// [control & QUIESCED|READY] Device::Save for the back-end: tags and roles below 2^31 are its.
  /// MAC address and link are saved already, and what the driver has set by the control queue: that
  /// comes back with the first driver, if it acknowledges the same features.
  virtual Status OnSave(StateWriter* /*state*/) { return {}; }
  /// [control & READY, before the first OnActivate] Device::Restore for the back-end. Descriptors
  /// that it does not take make it fail.
  virtual Status OnRestore(StateReader* /*state*/) { return {}; }
  /// [control & QUIESCED|READY] Device::Release for the back-end.
  virtual void OnRelease() {}

  // ---- what a back-end calls --------------------------------------------------------------------

  /// [queue] OnReady once when the descriptor is ready (poll events). One per pair: an epoll
  /// descriptor serves for more.
  void Watch(uint32_t pair, int fd, uint32_t events);
  /// [queue] OnAlarm(pair, cookie) once, after `delay`; the same cookie again moves it. Cookies are
  /// below 2^63.
  void SetAlarm(uint32_t pair, std::chrono::nanoseconds delay, uint64_t cookie);
  /// [queue] Forgets an alarm.
  void CancelAlarm(uint32_t pair, uint64_t cookie);
  /// [queue] Runs work(argument) on a host thread, then OnWorkDone.
  Status OffloadWork(uint32_t pair, void (*work)(void*), void* argument, uint64_t cookie);

  /// [queue] Sends a frame with its vnet header (12 bytes) to a TAP interface: bytes, header
  /// included, or -errno. Header and headers() go from the private copy.
  int64_t SendToTap(const TxFrame& frame, int fd);
  /// [queue] Receives one frame with its vnet header from a TAP interface and gives it to the
  /// guest: bytes read, or -errno; -ENOBUFS: no receive buffers, nothing was read.
  int64_t ReceiveFromTap(uint32_t pair, int fd);

  /// [any] Counts a frame of the guest's that the back-end could not deliver, under
  /// tx_drops_REASON; `reason` is a literal.
  void CountTxDrop(const char* reason, uint64_t frames = 1);
  /// [any] Counts a frame that could not be given to the guest, under rx_drops_REASON.
  void CountRxDrop(const char* reason, uint64_t frames = 1);

  /// [any] Puts the link up or down; tells the guest.
  void SetLink(bool up);
  /// [any] Asks the guest to announce itself (virtio 1.3 5.1.6.5.4): e.g. after it has moved.
  void Announce();
  /// [control & CREATED] Whether OnRestore will be called: what comes with it is not to be opened.
  bool restores() const;
  /// [control & not CREATED, queue] As it was configured.
  const NetConfig& config() const;

  // ---- GuestLink --------------------------------------------------------------------------------

  uint32_t pairs() const override;
  uint32_t mtu() const override;
  GuestOffloads offloads() const override;
  bool link_up() const override;
  RxFrame BeginFrame(uint32_t pair, uint32_t max_size) override;
  bool HasRxBuffers(uint32_t pair) const override;
  int64_t Send(uint32_t pair, int fd, std::span<const TxSlice> slices,
               const SendOptions& options) override;

  // ---- Device -----------------------------------------------------------------------------------

  Status Init() final;
  Properties GetProperties() const final;
  QueueProperties GetQueueProperties(uint32_t queue) const final;
  Status Negotiate(uint64_t features) final;
  Status Activate() final;
  void Deactivate() final;
  bool ReadConfig(uint32_t offset, std::span<std::byte> data) final;
  void OnRequests(uint32_t queue, std::span<Request> requests) final;
  void OnIo(uint32_t queue, std::span<const virtbay_io_result> results) final;
  void OnTimer(uint32_t queue, uint64_t cookie) final;
  void OnOffload(uint32_t queue, void* argument, uint64_t cookie) final;
  void Quiesce(uint32_t queue) final;
  void Resume(uint32_t queue) final;
  void Farewell(uint32_t queue, uint32_t reason) final;
  Result<std::string> Control(std::string_view command, std::string_view text) final;
  Status Save(StateWriter* state) final;
  Status Restore(StateReader* state) final;
  void Release() final;

 protected:
  NetDevice();

  bool CopyFrame(const TxFrame& frame, uint32_t offset, std::span<std::byte> to) final;
  void EndFrame(TxFrame& frame, bool requeue) final;
  int64_t ReceiveInto(RxFrame& frame, int fd, uint32_t max, ReceiveOptions* options) final;
  bool AppendTo(RxFrame& frame, std::span<const std::byte> bytes) final;
  bool CommitFrame(RxFrame& frame, const Offload& offload) final;
  void AbandonFrame(RxFrame& frame) final;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_NET_DEVICE_H_
