// Frames to the guest: receive buffers, what is put into them, and how they are handed over.
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "sdk/net/checksum.h"
#include "sdk/net/net_state.h"

namespace virtbay::sdk {

using net::kVnetHeader;
using net::RxDrop;
using net::RxFilter;
using net::VnetHeader;

namespace {

// Slices of the front buffers for bytes [from, from + len) of what they hold together.
template <typename Buffers>
uint32_t Slice(const Buffers& buffers, uint32_t from, uint32_t len, std::span<virtbay_slice> to) {
  uint32_t count = 0;
  for (uint32_t i = 0; i < buffers.count() && len > 0 && count < to.size(); ++i) {
    const uint32_t room = buffers.at(i)->out_total;
    if (from >= room) {
      from -= room;
      continue;
    }
    const uint32_t n = std::min(len, room - from);
    to[count++] = {buffers.at(i), from, n};
    from = 0;
    len -= n;
  }
  return count;
}

}  // namespace

bool NetDevice::State::Stages() const {
  // The checksum of a frame in the guest's memory cannot be computed here, nor can it be captured.
  return (guest_bits.load(std::memory_order_relaxed) & net_feature::kGuestCsum) == 0 ||
         (capture_file != nullptr && snaplen > kHeaderRoom);
}

void NetDevice::State::OnReceiveBuffers(uint32_t index, std::span<Request> requests) {
  Pair& pair = pairs[index];
  for (Request& request : requests) {
    if (pair.buffers.count() == config.queue_size) {
      request.Complete(0);
      continue;
    }
    pair.buffers.Push(request.Release());
  }
  if (!pairs_set.load(std::memory_order_relaxed) && (features & net_feature::kMq) != 0 &&
      index >= active_pairs.load(std::memory_order_relaxed)) {
    UsePairs(index + 1, /*set=*/false);
  }
  StartPair(index);
  if (!pair.started || !std::exchange(pair.starved, false)) return;
  device->OnRxBuffers(index);
}

void NetDevice::State::DropBadBuffers(uint32_t index) {
  Buffers& buffers = pairs[index].buffers;
  const uint32_t least = mergeable() ? header_len : header_len + kEthernetHeader;
  while (buffers.count() > 0 && buffers.at(0)->out_total < least) {
    Request(&host(), buffers.at(0)).Complete(0);
    buffers.Pop(1);
    Host::Add(rx_drops[static_cast<size_t>(RxDrop::kBadBuffer)]);
  }
}

bool NetDevice::HasRxBuffers(uint32_t pair) const {
  return state_->pairs[pair].buffers.count() > 0;
}

RxFrame NetDevice::BeginFrame(uint32_t index, uint32_t max_size) {
  State& state = *state_;
  State::Pair& pair = state.pairs[index];
  if (pair.frame_open) return {};
  state.DropBadBuffers(index);
  max_size = std::min(max_size, kMaxFrame);
  const uint32_t wanted = state.header_len + max_size;
  uint64_t room = 0;
  const uint32_t most = state.mergeable() ? std::min(pair.buffers.count(), State::kMaxBuffers)
                                          : pair.buffers.count() > 0;
  for (uint32_t i = 0; i < most && room < wanted; ++i) room += pair.buffers.at(i)->out_total;
  if (room < wanted) pair.starved = true;
  if (room < state.header_len + kEthernetHeader) return {};
  pair.frame_open = true;
  pair.mode = State::Mode::kUndecided;
  const auto capacity =
      static_cast<uint32_t>(std::min<uint64_t>(room - state.header_len, max_size));
  return RxFrame(this, index, capacity);
}

int64_t NetDevice::ReceiveInto(RxFrame& frame, int fd, uint32_t max, ReceiveOptions* options) {
  State& state = *state_;
  State::Pair& pair = state.pairs[frame.pair()];
  if (pair.mode == State::Mode::kUndecided) {
    pair.mode = state.Stages() ? State::Mode::kStaged : State::Mode::kDirect;
  }
  const uint32_t room = std::min(max, frame.capacity() - frame.size());
  const auto prefix_len = static_cast<uint32_t>(options->prefix.size());
  std::array<virtbay_slice, State::kMaxBuffers> slices;
  virtbay_message message{};
  message.struct_size = sizeof(message);
  message.fd = fd;
  message.flags = options->flags;
  message.prefix = options->prefix.data();
  message.prefix_len = prefix_len;
  message.name = options->name.data();
  message.name_len = static_cast<uint32_t>(options->name.size());
  message.control = options->control.data();
  message.control_len = static_cast<uint32_t>(options->control.size());
  int64_t n = 0;
  if (pair.mode == State::Mode::kDirect) {
    message.slices = slices.data();
    message.slice_count = Slice(pair.buffers, state.header_len + frame.size(), room, slices);
    n = host().Receive(2 * frame.pair(), &message);
    if (n >= 0) {
      options->name = options->name.first(message.name_len);
      options->control = options->control.first(message.control_len);
      options->result_flags = message.result_flags;
    }
  } else {
    // Into our own memory, with the caller's prefix before it: two pieces, so without the service.
    std::array<iovec, 2> pieces{iovec{options->prefix.data(), prefix_len},
                                iovec{pair.scratch.get() + frame.size(), room}};
    msghdr header{};
    header.msg_iov = pieces.data();
    header.msg_iovlen = pieces.size();
    header.msg_name = options->name.data();
    header.msg_namelen = static_cast<socklen_t>(options->name.size());
    header.msg_control = options->control.data();
    header.msg_controllen = options->control.size();
    n = recvmsg(fd, &header, static_cast<int>(options->flags | MSG_DONTWAIT));
    if (n < 0) return -errno;
    options->name = options->name.first(std::min<size_t>(options->name.size(), header.msg_namelen));
    options->control =
        options->control.first(std::min<size_t>(options->control.size(), header.msg_controllen));
    options->result_flags = static_cast<uint32_t>(header.msg_flags);
  }
  if (n > prefix_len) {
    // With MSG_TRUNC it may say more than there is.
    frame.AddPayload(static_cast<uint32_t>(std::min<int64_t>(n - prefix_len, room)));
  }
  return n;
}

bool NetDevice::AppendTo(RxFrame& frame, std::span<const std::byte> bytes) {
  State::Pair& pair = state_->pairs[frame.pair()];
  if (pair.mode == State::Mode::kDirect || frame.capacity() - frame.size() < bytes.size()) {
    return false;
  }
  pair.mode = State::Mode::kStaged;
  std::memcpy(pair.scratch.get() + frame.size(), bytes.data(), bytes.size());
  frame.AddPayload(static_cast<uint32_t>(bytes.size()));
  return true;
}

void NetDevice::AbandonFrame(RxFrame& frame) { state_->pairs[frame.pair()].frame_open = false; }

bool NetDevice::CommitFrame(RxFrame& frame, const Offload& offload) {
  State::Pair& pair = state_->pairs[frame.pair()];
  pair.frame_open = false;
  const std::span<std::byte> headers = frame.header();
  if (pair.mode == State::Mode::kStaged) {
    std::memcpy(pair.scratch.get(), headers.data(), headers.size());
    const std::span<const std::byte> whole(pair.scratch.get(), frame.size());
    return state_->Deliver(frame.pair(), {}, whole, 0, offload);
  }
  return state_->Deliver(frame.pair(), headers, {}, frame.payload_size(), offload);
}

bool NetDevice::State::Refuse(RxDrop drop, uint32_t pair, std::span<const std::byte> first,
                              uint32_t size) {
  Host::Add(rx_drops[static_cast<size_t>(drop)]);
  if (capture_file != nullptr) {
    std::array<char, 64> text;
    const int n = std::snprintf(text.data(), text.size(), "dropped: %s", RxDropName(drop));
    Capture(pair, false, first.first(std::min<size_t>(first.size(), snaplen)), {}, size,
            {text.data(), static_cast<size_t>(n)});
  }
  return false;
}

// The frame is `headers`, then either `staged` or `direct` bytes that are in the buffers already.
bool NetDevice::State::Deliver(uint32_t index, std::span<const std::byte> headers,
                               std::span<const std::byte> staged, uint32_t direct,
                               const Offload& offload) {
  Pair& pair = pairs[index];
  const std::span<const std::byte> first = headers.empty() ? staged : headers;
  const auto own = static_cast<uint32_t>(headers.size() + staged.size());
  const uint32_t size = own + direct;
  const GuestOffloads takes = guest();

  RxDrop drop = net::CheckRx(offload, takes, size);
  if (drop != RxDrop::kCount) return Refuse(drop, index, first, size);
  if (!link_up.load(std::memory_order_relaxed)) {
    return Refuse(RxDrop::kLinkDown, index, first, size);
  }
  if (first.size() >= kEthernetHeader) {
    switch (filter.Judge(first)) {
      case RxFilter::Verdict::kPass:
        break;
      case RxFilter::Verdict::kAddress:
        return Refuse(RxDrop::kFiltered, index, first, size);
      case RxFilter::Verdict::kVlan:
        return Refuse(RxDrop::kVlan, index, first, size);
    }
  }
  Offload left = offload;
  if (!takes.csum) {
    left.data_valid = false;
    if (left.needs_csum) {
      if (direct > 0 || !headers.empty()) return Refuse(RxDrop::kCsumRefused, index, first, size);
      net::FinishChecksum({pair.scratch.get(), staged.size()}, left);
      left.needs_csum = false;
    }
  }

  DropBadBuffers(index);
  const uint32_t total = header_len + size;
  uint32_t count = 0;
  uint64_t room = 0;
  const uint32_t most = mergeable() ? std::min(pair.buffers.count(), kMaxBuffers)
                                    : std::min(pair.buffers.count(), 1u);
  while (room < total && count < most) room += pair.buffers.at(count++)->out_total;
  if (room < total) {
    pair.starved = true;
    const bool never = !mergeable() && count == 1;
    return Refuse(never ? RxDrop::kTooLong : RxDrop::kNoBuffers, index, first, size);
  }

  std::array<std::byte, kVnetHeader + kHeaderRoom> head;
  const VnetHeader header = net::Encode(left, static_cast<uint16_t>(count));
  std::memcpy(head.data(), &header, header_len);
  std::copy(headers.begin(), headers.end(), head.begin() + header_len);
  const auto head_len = static_cast<uint32_t>(header_len + headers.size());
  const uint32_t copied = header_len + own;  // by us, from the start

  std::array<virtbay_completion, kMaxBuffers> completions;
  uint32_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    virtbay_request* const request = pair.buffers.at(i);
    const uint32_t len = std::min(request->out_total, total - at);
    const uint32_t copy = at < copied ? std::min(len, copied - at) : 0;
    if (copy > 0) {
      if (host().memory_service().reserve(request, copy) != VIRTBAY_OK) {
        pair.starved = true;
        return Refuse(RxDrop::kNoMemory, index, first, size);
      }
      uint32_t done = 0;
      if (at < head_len) {
        done = std::min(copy, head_len - at);
        std::memcpy(request->out, head.data() + at, done);
      }
      if (done < copy) {
        std::memcpy(request->out + done, staged.data() + (at + done - head_len), copy - done);
      }
    }
    completions[i] = {request, copy, len};
    at += len;
  }
  pair.buffers.Pop(count);
  if (capture_file != nullptr) {
    std::array<char, 96> text;
    Capture(index, false, first.first(std::min<size_t>(first.size(), snaplen)), {}, size,
            net::Describe(left, text));
  }
  // Counted before the guest can see it.
  Host::Add(rx_frames);
  Host::Add(rx_bytes, size);
  const virtbay_queue_service& queue = host().queue_service();
  if (count == 1) {
    queue.complete(completions[0].request, completions[0].out_bytes, completions[0].written);
  } else {
    Host::Add(rx_merged, count);
    queue.complete_group(completions.data(), count);
  }
  return true;
}

int64_t NetDevice::ReceiveFromTap(uint32_t index, int fd) {
  State& state = *state_;
  State::Pair& pair = state.pairs[index];
  const GuestOffloads takes = state.guest();
  const bool large = takes.tso4 || takes.tso6 || takes.uso4 || takes.uso6;
  const uint32_t longest = large ? kMaxFrame : state.config.mtu + kEthernetHeader + 8;
  RxFrame frame = BeginFrame(index, longest);
  if (!frame) return -ENOBUFS;

  std::array<std::byte, kVnetHeader + kHeaderRoom> head;
  std::array<virtbay_slice, State::kMaxBuffers> slices;
  virtbay_message message{};
  message.struct_size = sizeof(message);
  message.fd = fd;
  message.kind = VIRTBAY_MESSAGE_FILE;
  // A frame that the buffers may not hold, or that has to be seen whole, comes here first: the TAP
  // interface drops what a read leaves.
  const bool direct =
      frame.capacity() == longest && !(state.capture_file != nullptr && state.Stages());
  if (direct) {
    message.prefix = head.data();
    message.prefix_len = head.size();
    message.slices = slices.data();
    message.slice_count =
        Slice(pair.buffers, state.header_len + kHeaderRoom, longest - kHeaderRoom, slices);
  } else {
    message.prefix = pair.scratch.get();
    message.prefix_len = kVnetHeader + kMaxFrame;
  }
  const int64_t n = host().Receive(2 * index, &message);
  frame.Abandon();
  if (n < 0) return n;
  const std::byte* const bytes = direct ? head.data() : pair.scratch.get();
  if (n < kVnetHeader) {
    state.Refuse(RxDrop::kShort, index, {}, 0);
    return n;
  }
  const auto size = static_cast<uint32_t>(n) - kVnetHeader;
  VnetHeader header;
  std::memcpy(&header, bytes, kVnetHeader);
  Offload offload;
  if (!net::Decode(header, &offload)) {
    state.Refuse(RxDrop::kGsoRefused, index, {}, size);
    return n;
  }
  if (direct) {
    const uint32_t shown = std::min(size, kHeaderRoom);
    state.Deliver(index, {head.data() + kVnetHeader, shown}, {}, size - shown, offload);
  } else {
    // The checksum, where it is computed, wants the frame at the start of the scratch.
    std::memmove(pair.scratch.get(), pair.scratch.get() + kVnetHeader, size);
    state.Deliver(index, {}, {pair.scratch.get(), size}, 0, offload);
  }
  return n;
}

}  // namespace virtbay::sdk
