// GuestLink: what the back-end of a network device sees of its guest: frames from it, frames to it,
// and the virtio-net offloads that both agreed on. No virtqueue, vnet header or control command.
// Owned by the NetDevice (net_device.h), which implements it; a test may implement it over plain
// memory. Everything here is [queue], on the thread of the pair named, unless tagged otherwise.
#ifndef VIRTBAY_SDK_NET_LINK_H_
#define VIRTBAY_SDK_NET_LINK_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace virtbay::sdk {

/// How a large frame is to be cut into segments (virtio 1.3 5.1.6).
enum class Gso : uint8_t {
  kNone,
  kTcp4,
  kTcp6,
  kUdp,  ///< into datagrams (USO)
};

/// What is left to do on a frame. Of a frame from the guest: checked, every field true of the
/// frame.
struct Offload {
  /// The checksum at csum_start + csum_offset holds the pseudo header's sum only; the rest, from
  /// csum_start to the end, is to be added (virtio 1.3 5.1.6.2).
  bool needs_csum = false;
  bool data_valid = false;   ///< the checksums are known to be good
  bool ecn = false;          ///< TCP: the first segment may have CWR set
  Gso gso = Gso::kNone;      ///< how it is to be cut into segments
  uint16_t gso_size = 0;     ///< payload bytes of a segment
  uint16_t hdr_len = 0;      ///< with gso: bytes of the headers, Ethernet to TCP or UDP
  uint16_t csum_start = 0;   ///< from the start of the Ethernet header
  uint16_t csum_offset = 0;  ///< from csum_start
};

/// What the guest takes.
struct GuestOffloads {
  bool csum = false;       ///< frames with needs_csum
  bool tso4 = false;       ///< Gso::kTcp4
  bool tso6 = false;       ///< Gso::kTcp6
  bool ecn = false;        ///< segments with CWR
  bool uso4 = false;       ///< Gso::kUdp over IPv4
  bool uso6 = false;       ///< Gso::kUdp over IPv6
  bool mergeable = false;  ///< a frame over several receive buffers

  /// Member by member.
  bool operator==(const GuestOffloads&) const = default;
};

/// Ethernet header bytes.
inline constexpr uint32_t kEthernetHeader = 14;
/// Room for the headers of a frame to the guest.
inline constexpr uint32_t kHeaderRoom = 192;
/// Bytes of a frame from the guest that TxFrame::headers shows, where it has so many.
inline constexpr uint32_t kHeaderView = 256;
/// The largest frame, in either direction: 65535 bytes of IP, Ethernet header, two VLAN tags.
inline constexpr uint32_t kMaxFrame = 65535 + kEthernetHeader + 8;

class GuestLink;
class TxFrame;

/// Bytes [offset, offset + len) of a frame from the guest.
struct TxSlice {
  const TxFrame* frame = nullptr;  ///< whose bytes
  uint32_t offset = 0;             ///< from its Ethernet header
  uint32_t len = 0;                ///< bytes
};

/// What goes with a send.
struct SendOptions {
  std::span<const std::byte> prefix{};   ///< the back-end's own bytes, before the slices
  uint32_t flags = 0;                    ///< MSG_MORE ...; never waits and never raises SIGPIPE
  std::span<const std::byte> name{};     ///< a sockaddr, or empty
  std::span<const std::byte> control{};  ///< ancillary data (UDP_SEGMENT ...), or empty
};

/// What goes with a receive, and what came.
struct ReceiveOptions {
  std::span<std::byte> prefix{};   ///< takes the first bytes: e.g. what was peeked at before
  uint32_t flags = 0;              ///< MSG_PEEK ...
  std::span<std::byte> name{};     ///< room for a sockaddr, or empty; cut to what came
  std::span<std::byte> control{};  ///< room for ancillary data, or empty; cut to what came
  uint32_t result_flags = 0;       ///< set: MSG_TRUNC ...
};

/// A frame from the guest; a move-only hold on the guest's transmit buffer. One that is destroyed
/// is completed. It may be held across calls until OnPairStop; each holds an arena slot.
class TxFrame {
 public:
  /// What a link makes one of.
  struct Parts {
    GuestLink* link = nullptr;           ///< who takes it back
    void* token = nullptr;               ///< the link's own
    uint32_t pair = 0;                   ///< its queue pair
    uint32_t size = 0;                   ///< bytes, Ethernet header included
    std::span<const std::byte> headers;  ///< a copy of its first bytes
    Offload offload;                     ///< checked
  };

  TxFrame() = default;
  /// For links.
  explicit TxFrame(const Parts& parts) : parts_(parts) {}
  /// The other one holds nothing afterwards.
  TxFrame(TxFrame&& other) noexcept : parts_(std::exchange(other.parts_, Parts())) {}
  /// What was held before is completed.
  TxFrame& operator=(TxFrame&& other) noexcept {
    if (this != &other) {
      Complete();
      parts_ = std::exchange(other.parts_, Parts());
    }
    return *this;
  }
  ~TxFrame() { Complete(); }

  /// Whether it still holds a frame; the getters need that.
  explicit operator bool() const { return parts_.link != nullptr; }
  /// Of the queue pair that it came on.
  uint32_t pair() const { return parts_.pair; }
  /// Bytes from the Ethernet header on.
  uint32_t size() const { return parts_.size; }
  /// The first min(size, kHeaderView) bytes or more: a private copy, taken once, that does not
  /// change under the reader.
  std::span<const std::byte> headers() const { return parts_.headers; }
  /// Checked against headers() and size().
  const Offload& offload() const { return parts_.offload; }

  /// Copies bytes [offset, offset + to.size()). What headers() shows comes from there; the rest is
  /// the guest's and may have changed since. False: beyond the frame, or no memory for it now.
  bool Copy(uint32_t offset, std::span<std::byte> to) const;
  /// Sends bytes [offset, offset + len) to a socket: bytes or -errno. See GuestLink::Send.
  int64_t SendTo(int fd, uint32_t offset, uint32_t len, const SendOptions& options = {}) const;
  /// Gives the buffer back to the guest. Nothing when it holds none.
  void Complete();
  /// Leaves the frame to the next start of the queue: for OnPairStop.
  void Requeue();

  /// For links.
  void* token() const { return parts_.token; }

 private:
  // Of no bytes from here on: whoever still looks at it gets an error, and no other frame's bytes.
  void Forget() {
    parts_.link = nullptr;
    parts_.size = 0;
    parts_.headers = {};
  }

  Parts parts_;
};

/// A frame to the guest in the making: receive buffers of the guest, and room for the headers. At
/// most one at a time is open per pair. One that is destroyed uncommitted gives everything back.
class RxFrame {
 public:
  /// None: there was no receive buffer.
  RxFrame() = default;
  /// For links: room for `capacity` bytes in all, headers included.
  RxFrame(GuestLink* link, uint32_t pair, uint32_t capacity)
      : link_(link), pair_(pair), capacity_(capacity) {}
  /// The other one holds nothing afterwards.
  RxFrame(RxFrame&& other) noexcept { *this = std::move(other); }
  /// What was open before is given back.
  RxFrame& operator=(RxFrame&& other) noexcept {
    if (this != &other) {
      Abandon();
      link_ = std::exchange(other.link_, nullptr);
      pair_ = other.pair_;
      capacity_ = other.capacity_;
      header_len_ = other.header_len_;
      payload_len_ = other.payload_len_;
      header_ = other.header_;
    }
    return *this;
  }
  ~RxFrame() { Abandon(); }

  /// Whether there is a frame; everything else needs that.
  explicit operator bool() const { return link_ != nullptr; }
  /// The queue pair.
  uint32_t pair() const { return pair_; }
  /// Bytes that the buffers take, headers included; may be less than was asked for.
  uint32_t capacity() const { return capacity_; }
  /// Headers and payload so far.
  uint32_t size() const { return header_len_ + payload_len_; }
  /// Payload bytes so far.
  uint32_t payload_size() const { return payload_len_; }

  /// The first `len` bytes of the frame, to be written any time before Commit; private memory that
  /// starts as zeroes. len <= min(kHeaderRoom, capacity()); settled by the first call, and before
  /// Receive and Append: later calls give the same span.
  std::span<std::byte> Header(uint32_t len) {
    if (!settled_) {
      header_len_ = len < kHeaderRoom ? len : kHeaderRoom;
      settled_ = true;
    }
    return {header_.data(), header_len_};
  }
  /// The span of Header.
  std::span<std::byte> header() { return {header_.data(), header_len_}; }

  /// Receives at most `max` payload bytes (prefix not counted) from a socket behind what is there:
  /// bytes, options->prefix included, or -errno. Never waits. Cut to the room that is left.
  int64_t Receive(int fd, uint32_t max, ReceiveOptions* options);
  /// Appends bytes of the back-end's own. False: no room.
  bool Append(std::span<const std::byte> bytes);
  /// Gives the frame to the guest. False: dropped, with its reason counted, and the buffers are
  /// back; a back-end need not look. Nothing is open any more in either case.
  bool Commit(const Offload& offload = {});
  /// Gives the buffers back, unused.
  void Abandon();

  /// For links: payload that has been put behind the headers.
  void AddPayload(uint32_t bytes) { payload_len_ += bytes; }

 private:
  GuestLink* link_ = nullptr;
  uint32_t pair_ = 0;
  uint32_t capacity_ = 0;
  uint32_t header_len_ = 0;
  uint32_t payload_len_ = 0;
  bool settled_ = false;
  std::array<std::byte, kHeaderRoom> header_{};
};

/// The guest, as a back-end sees it.
class GuestLink {
 public:
  virtual ~GuestLink() = default;

  /// [any] Queue pairs that the guest uses now, at least 1: frames to it go to pairs below this.
  virtual uint32_t pairs() const = 0;
  /// [any] Bytes of an IP packet that is not segmented.
  virtual uint32_t mtu() const = 0;
  /// [any] What the guest takes now; it may change with OnOffloads.
  virtual GuestOffloads offloads() const = 0;
  /// [any] False: the link is down, frames in either direction are dropped.
  virtual bool link_up() const = 0;

  /// Opens a frame of up to `max_size` bytes, headers included: with mergeable buffers as many as
  /// that takes, else one. Empty when there are none; OnRxBuffers tells when there are again.
  virtual RxFrame BeginFrame(uint32_t pair, uint32_t max_size) = 0;
  /// Whether BeginFrame would give one.
  virtual bool HasRxBuffers(uint32_t pair) const = 0;
  /// A whole frame of the back-end's own bytes. False: no buffers (counted), or dropped.
  bool SendFrame(uint32_t pair, std::span<const std::byte> bytes, const Offload& offload = {});

  /// Sends prefix and slices of one or several frames of the pair to a socket in one call, straight
  /// from the guest's memory, which the guest may have changed since headers() was taken: bytes or
  /// -errno. Never waits: -EAGAIN. -EINVAL: more than 512 slices; -EMSGSIZE: more than 1024 pieces
  /// of guest memory; -ERANGE: a slice beyond its frame.
  virtual int64_t Send(uint32_t pair, int fd, std::span<const TxSlice> slices,
                       const SendOptions& options) = 0;

 protected:
  friend class TxFrame;
  friend class RxFrame;

  /// What the functions of frames do; see there.
  virtual bool CopyFrame(const TxFrame& frame, uint32_t offset, std::span<std::byte> to) = 0;
  /// See CopyFrame.
  virtual void EndFrame(TxFrame& frame, bool requeue) = 0;
  /// See CopyFrame.
  virtual int64_t ReceiveInto(RxFrame& frame, int fd, uint32_t max, ReceiveOptions* options) = 0;
  /// See CopyFrame.
  virtual bool AppendTo(RxFrame& frame, std::span<const std::byte> bytes) = 0;
  /// See CopyFrame.
  virtual bool CommitFrame(RxFrame& frame, const Offload& offload) = 0;
  /// See CopyFrame.
  virtual void AbandonFrame(RxFrame& frame) = 0;
};

inline bool TxFrame::Copy(uint32_t offset, std::span<std::byte> to) const {
  return parts_.link->CopyFrame(*this, offset, to);
}
inline int64_t TxFrame::SendTo(int fd, uint32_t offset, uint32_t len,
                               const SendOptions& options) const {
  const TxSlice slice{this, offset, len};
  return parts_.link->Send(parts_.pair, fd, {&slice, 1}, options);
}
inline void TxFrame::Complete() {
  if (parts_.link == nullptr) return;
  parts_.link->EndFrame(*this, /*requeue=*/false);
  Forget();
}
inline void TxFrame::Requeue() {
  if (parts_.link == nullptr) return;
  parts_.link->EndFrame(*this, /*requeue=*/true);
  Forget();
}

inline int64_t RxFrame::Receive(int fd, uint32_t max, ReceiveOptions* options) {
  settled_ = true;
  return link_->ReceiveInto(*this, fd, max, options);
}
inline bool RxFrame::Append(std::span<const std::byte> bytes) {
  settled_ = true;
  return link_->AppendTo(*this, bytes);
}
inline bool RxFrame::Commit(const Offload& offload) {
  const bool given = link_->CommitFrame(*this, offload);
  link_ = nullptr;
  return given;
}
inline void RxFrame::Abandon() {
  if (link_ == nullptr) return;
  link_->AbandonFrame(*this);
  link_ = nullptr;
}

inline bool GuestLink::SendFrame(uint32_t pair, std::span<const std::byte> bytes,
                                 const Offload& offload) {
  RxFrame frame = BeginFrame(pair, static_cast<uint32_t>(bytes.size()));
  return frame && frame.Append(bytes) && frame.Commit(offload);
}

}  // namespace virtbay::sdk

#endif  // VIRTBAY_SDK_NET_LINK_H_
