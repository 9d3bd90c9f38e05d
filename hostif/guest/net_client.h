// NetClient: a virtio-net driver for tests and measurements (virtio 1.3 5.1): frames with their
// header either way, mergeable buffers, queue pairs, the control queue.
// Owned by a test. Making it is [control]; after that one thread at a time uses a pair or the
// control queue.
#ifndef VIRTBAY_HOSTIF_GUEST_NET_CLIENT_H_
#define VIRTBAY_HOSTIF_GUEST_NET_CLIENT_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "hostif/guest/driver.h"

namespace virtbay::guest {

// Numbers of feature bits (virtio 1.3 5.1.3); <linux/virtio_net.h> is not C++.
enum NetFeature : uint32_t {
  kNetCsum = 0,
  kNetGuestCsum = 1,
  kNetCtrlGuestOffloads = 2,
  kNetMtu = 3,
  kNetMac = 5,
  kNetGuestTso4 = 7,
  kNetGuestTso6 = 8,
  kNetGuestEcn = 9,
  kNetGuestUfo = 10,
  kNetHostTso4 = 11,
  kNetHostTso6 = 12,
  kNetHostEcn = 13,
  kNetHostUfo = 14,
  kNetMrgRxbuf = 15,
  kNetStatus = 16,
  kNetCtrlVq = 17,
  kNetCtrlRx = 18,
  kNetCtrlVlan = 19,
  kNetCtrlRxExtra = 20,
  kNetGuestAnnounce = 21,
  kNetMq = 22,
  kNetCtrlMacAddr = 23,
  kNetGuestUso4 = 54,
  kNetGuestUso6 = 55,
  kNetHostUso = 56,
  kNetStandby = 62,
  kNetSpeedDuplex = 63,
};
// Flags and GSO types of a header (virtio 1.3 5.1.6).
inline constexpr uint8_t kNetHdrNeedsCsum = 1;
inline constexpr uint8_t kNetHdrDataValid = 2;
inline constexpr uint8_t kNetHdrGsoNone = 0;
inline constexpr uint8_t kNetHdrGsoTcp4 = 1;
inline constexpr uint8_t kNetHdrGsoUfo = 3;
inline constexpr uint8_t kNetHdrGsoTcp6 = 4;
inline constexpr uint8_t kNetHdrGsoUdp = 5;
// Every bit of the device type.
inline constexpr uint64_t kNetAllFeatures = 0xfffc'0000'00ff'ffff;

// virtio 1.3 5.1.6, little endian.
struct NetHeader {
  uint8_t flags = 0;
  uint8_t gso_type = 0;
  uint16_t hdr_len = 0;
  uint16_t gso_size = 0;
  uint16_t csum_start = 0;
  uint16_t csum_offset = 0;
  uint16_t num_buffers = 0;
};
static_assert(sizeof(NetHeader) == 12);

struct NetFrame {
  NetHeader header;
  std::string data;
  uint32_t buffers = 0;  // that it took
};

// The driver's view of the configuration space (virtio 1.3 5.1.4).
struct NetConfigSpace {
  uint8_t mac[6] = {};
  uint16_t status = 0;
  uint16_t max_pairs = 0;
  uint16_t mtu = 0;
  uint32_t speed = 0;
  uint8_t duplex = 0;
  uint8_t rss[7] = {};
};
static_assert(sizeof(NetConfigSpace) == 24);

struct NetClientOptions {
  uint64_t features = kNetAllFeatures;  // accepted where offered
  uint16_t queue_size = 256;
  bool indirect = true;
  bool event_idx = true;
  bool packed = false;
  bool in_order = false;
  uint32_t rx_buffer = 2048;            // bytes of a receive buffer, header included
  uint32_t rx_buffers = 64;             // posted per pair; 0: none
  uint32_t rx_pairs = 1;                // pairs that get any
  std::unique_ptr<GuestMemory> memory;  // default: one region of 64 MiB
};

class NetClient {
 public:
  // The errors of Driver::Create.
  static absl::StatusOr<std::unique_ptr<NetClient>> Create(std::unique_ptr<Transport> transport,
                                                           NetClientOptions options);

  // Sends a frame behind its header; readable pieces of at most `piece` bytes, the header's
  // included. ResourceExhausted when the ring is full. Send tells the device at once.
  absl::Status Send(uint32_t pair, const NetHeader& header, absl::string_view frame,
                    uint32_t piece = UINT32_MAX);
  // Any bytes as a transmit request.
  absl::Status SendRaw(uint32_t pair, absl::string_view bytes, uint32_t piece = UINT32_MAX);
  // Waits until the device has given every transmit request of the pair back.
  absl::Status WaitSent(uint32_t pair, absl::Duration timeout = absl::Seconds(60));
  // Transmit requests that it has not given back.
  uint32_t Unsent(uint32_t pair);

  // The next frame; its buffers are posted again. DeadlineExceeded; DataLoss for one that breaks
  // the rules of mergeable buffers, or of which not all buffers were there at once.
  absl::StatusOr<NetFrame> Receive(uint32_t pair, absl::Duration timeout = absl::Seconds(60));
  // Whether one is there now.
  bool HasFrame(uint32_t pair);
  // Posts `count` more receive buffers of `size` bytes, in pieces of at most `piece` bytes.
  absl::Status Post(uint32_t pair, uint32_t count, uint32_t size, uint32_t piece = UINT32_MAX);
  // Receive buffers that the device has.
  uint32_t Posted(uint32_t pair) { return rx(pair).ring().in_flight(); }

  // A command of the control queue (virtio 1.3 5.1.6.5): its ack, 0 or 1.
  absl::StatusOr<uint8_t> Command(uint8_t group, uint8_t command, absl::string_view data);
  // The same with any readable bytes and room for the ack; the ack, or -1 for none.
  absl::StatusOr<int> CommandRaw(absl::string_view bytes, uint32_t room);

  absl::StatusOr<NetConfigSpace> ReadConfig();

  DriverQueue& rx(uint32_t pair) { return driver_->queue(2 * pair); }
  DriverQueue& tx(uint32_t pair) { return driver_->queue(2 * pair + 1); }
  DriverQueue& control() { return driver_->queue(control_queue_); }
  Driver& driver() { return *driver_; }
  uint64_t features() const { return driver_->features(); }

 private:
  struct Buffer {
    GuestRange range;
    uint32_t size = 0;
    uint32_t piece = 0;
  };

  NetClient() = default;
  static std::vector<Segment> Cut(uint64_t address, uint64_t size, uint32_t piece);
  absl::Status Repost(uint32_t pair, uint64_t token);
  void CollectSent(uint32_t pair);

  std::unique_ptr<Driver> driver_;
  uint32_t control_queue_ = 2;
  uint64_t last_token_ = 0;
  std::map<uint64_t, Buffer> posted_;
  std::map<uint64_t, GuestRange> sent_;
  // Used receive buffers that were taken off their ring.
  std::map<uint32_t, std::deque<UsedBuffer>> ready_;
};

}  // namespace virtbay::guest

#endif  // VIRTBAY_HOSTIF_GUEST_NET_CLIENT_H_
