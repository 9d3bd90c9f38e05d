// Frames from the guest: taken from transmit requests, checked, and sent on.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "sdk/net/net_state.h"

namespace virtbay::sdk {

using net::kLegacyVnetHeader;
using net::kVnetHeader;
using net::TxDrop;
using net::VnetHeader;

namespace {

// Frames on the stack; only as many as there are get made and destroyed, and only when all of them
// are known: a frame that is copied right after its parts were written waits for those writes.
class Batch {
 public:
  static constexpr size_t kMax = 64;

  Batch() = default;
  ~Batch() { Clear(); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Where the next one's parts go, which is one of the frames only after Add.
  TxFrame::Parts& Next() { return *std::construct_at(parts() + count_); }
  void Add() { ++count_; }
  size_t count() const { return count_; }
  std::span<TxFrame> Make() {
    for (; made_ < count_; ++made_) std::construct_at(frames() + made_, parts()[made_]);
    return {frames(), made_};
  }
  // Those that were not moved away are completed.
  void Clear() {
    std::destroy_n(frames(), std::exchange(made_, 0));
    count_ = 0;
  }

 private:
  TxFrame::Parts* parts() { return reinterpret_cast<TxFrame::Parts*>(parts_); }
  TxFrame* frames() { return reinterpret_cast<TxFrame*>(frames_); }

  size_t count_ = 0;
  size_t made_ = 0;
  alignas(TxFrame::Parts) std::byte parts_[kMax * sizeof(TxFrame::Parts)];
  alignas(TxFrame) std::byte frames_[kMax * sizeof(TxFrame)];
};

}  // namespace

inline void NetDevice::State::EndTransmit(Pair* pair, const TxFrame& frame) {
  // Large frames are given back soon: the guest's next ones then find their buffers in the cache.
  constexpr uint32_t kMaxBytes = 64 << 10;
  pair->ended[pair->ended_count++] = {static_cast<virtbay_request*>(frame.token()), 0, 0};
  pair->ended_bytes += frame.size();
  if (pair->ended_count == pair->ended.size() || pair->ended_bytes >= kMaxBytes) {
    GiveBackEnded(pair);
  }
}

void NetDevice::State::GiveBackEnded(Pair* pair) {
  if (pair->ended_count == 0) return;
  host().queue_service().complete_group(pair->ended.data(), std::exchange(pair->ended_count, 0));
  pair->ended_bytes = 0;
}

void NetDevice::State::OnTransmit(uint32_t pair, std::span<Request> requests) {
  Batch frames;
  uint64_t bytes = 0;
  const bool up = link_up.load(std::memory_order_relaxed);
  // A frame above the MTU is one that the driver may not send (virtio 1.3 5.1.4.2).
  const uint32_t longest =
      (features & net_feature::kMtu) != 0 ? config.mtu + kEthernetHeader + 8 : kMaxFrame;
  const auto hand_over = [&] {
    if (frames.count() == 0) return;
    Host::Add(tx_frames, frames.count());
    Host::Add(tx_bytes, std::exchange(bytes, 0));
    Pair& state = pairs[pair];
    state.in_burst = true;
    device->OnFrames(pair, frames.Make());
    frames.Clear();
    state.in_burst = false;
    GiveBackEnded(&state);
  };
  for (Request& request : requests) {
    const std::span<const std::byte> in = request.in();
    TxFrame::Parts& parts = frames.Next();
    TxDrop drop = TxDrop::kShort;
    if (request.in_total() >= header_len + kEthernetHeader && in.size() >= header_len) {
      VnetHeader header;
      std::memcpy(&header, in.data(), std::min(header_len, kVnetHeader));
      parts.size = request.in_total() - header_len;
      // Kept apart from `parts`: read back as a whole, its two halves would be waited for.
      const std::span<const std::byte> headers = in.subspan(header_len);
      parts.headers = headers;
      if (parts.size > (header.gso_type == net::kVnetGsoNone ? longest : kMaxFrame)) {
        drop = TxDrop::kTooLong;
      } else if (!up) {
        drop = TxDrop::kLinkDown;
      } else {
        drop = net::CheckTx(header, host_offloads, headers, parts.size, &parts.offload);
      }
    }
    if (drop != TxDrop::kCount) {
      Drop(drop);
      if (capture_file != nullptr && !parts.headers.empty()) {
        std::array<char, 64> text;
        const int n = std::snprintf(text.data(), text.size(), "dropped: %s", TxDropName(drop));
        Capture(pair, true, parts.headers, {}, parts.size, {text.data(), static_cast<size_t>(n)});
      }
      request.Complete(0);
      continue;
    }
    if (capture_file != nullptr) {
      std::span<std::byte> rest;
      const auto shown = static_cast<uint32_t>(parts.headers.size());
      if (parts.size > shown && snaplen > shown) {
        rest = {pairs[pair].scratch.get(), std::min(parts.size, snaplen) - shown};
        // In pieces that the arena has room for.
        for (size_t done = 0; done < rest.size();) {
          const auto n = static_cast<uint32_t>(std::min<size_t>(rest.size() - done, 65536));
          const auto at = header_len + shown + static_cast<uint32_t>(done);
          const auto piece = request.Fetch(at, n);
          if (piece.empty()) {
            rest = rest.first(done);
            break;
          }
          std::memcpy(rest.data() + done, piece.data(), n);
          done += n;
        }
      }
      std::array<char, 96> text;
      Capture(pair, true, parts.headers, rest, parts.size, net::Describe(parts.offload, text));
    }
    parts.link = device;
    parts.pair = pair;
    bytes += parts.size;
    parts.token = request.Release();
    frames.Add();
    if (frames.count() == Batch::kMax) hand_over();
  }
  hand_over();
}

bool NetDevice::CopyFrame(const TxFrame& frame, uint32_t offset, std::span<std::byte> to) {
  if (offset > frame.size() || frame.size() - offset < to.size()) return false;
  const std::span<const std::byte> headers = frame.headers();
  if (offset < headers.size()) {
    const size_t n = std::min(to.size(), headers.size() - offset);
    std::memcpy(to.data(), headers.data() + offset, n);
    to = to.subspan(n);
    offset += static_cast<uint32_t>(n);
  }
  if (to.empty()) return true;
  Request request(&host(), static_cast<virtbay_request*>(frame.token()));
  const auto bytes = request.Fetch(state_->header_len + offset, static_cast<uint32_t>(to.size()));
  static_cast<void>(request.Release());
  if (bytes.empty()) return false;
  std::memcpy(to.data(), bytes.data(), to.size());
  return true;
}

void NetDevice::EndFrame(TxFrame& frame, bool requeue) {
  State::Pair& pair = state_->pairs[frame.pair()];
  if (!pair.in_burst || requeue) [[unlikely]]
    return state_->EndAlone(frame, requeue);
  state_->EndTransmit(&pair, frame);
}

void NetDevice::State::EndAlone(const TxFrame& frame, bool requeue) {
  Request request(&host(), static_cast<virtbay_request*>(frame.token()));
  requeue ? request.Requeue() : request.Complete(0);
}

int64_t NetDevice::Send(uint32_t pair, int fd, std::span<const TxSlice> slices,
                        const SendOptions& options) {
  if (slices.size() > VIRTBAY_MESSAGE_SLICES_MAX) return -EINVAL;
  std::array<virtbay_slice, VIRTBAY_MESSAGE_SLICES_MAX> raw;
  uint32_t count = 0;
  for (const TxSlice& slice : slices) {
    const TxFrame& frame = *slice.frame;
    if (slice.offset > frame.size() || frame.size() - slice.offset < slice.len) return -ERANGE;
    if (slice.len == 0) continue;
    raw[count++] = {static_cast<virtbay_request*>(frame.token()), state_->header_len + slice.offset,
                    slice.len};
  }
  virtbay_message message{};
  message.struct_size = sizeof(message);
  message.fd = fd;
  message.flags = options.flags;
  message.slices = raw.data();
  message.slice_count = count;
  message.prefix = const_cast<std::byte*>(options.prefix.data());
  message.prefix_len = static_cast<uint32_t>(options.prefix.size());
  message.name = const_cast<std::byte*>(options.name.data());
  message.name_len = static_cast<uint32_t>(options.name.size());
  message.control = const_cast<std::byte*>(options.control.data());
  message.control_len = static_cast<uint32_t>(options.control.size());
  return host().Send(2 * pair + 1, message);
}

int64_t NetDevice::SendToTap(const TxFrame& frame, int fd) {
  std::array<std::byte, kVnetHeader + kHeaderView> head;
  const VnetHeader header = net::Encode(frame.offload(), 0);
  const auto shown = static_cast<uint32_t>(std::min<size_t>(frame.headers().size(), kHeaderView));
  std::memcpy(head.data(), &header, kVnetHeader);
  std::memcpy(head.data() + kVnetHeader, frame.headers().data(), shown);
  const virtbay_slice rest{static_cast<virtbay_request*>(frame.token()), state_->header_len + shown,
                           frame.size() - shown};
  virtbay_message message{};
  message.struct_size = sizeof(message);
  message.fd = fd;
  message.kind = VIRTBAY_MESSAGE_FILE;
  message.slices = &rest;
  message.slice_count = rest.len > 0 ? 1 : 0;
  message.prefix = head.data();
  message.prefix_len = kVnetHeader + shown;
  return host().Send(2 * frame.pair() + 1, message);
}

}  // namespace virtbay::sdk
