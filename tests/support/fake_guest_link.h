// FakeGuestLink: a GuestLink over plain memory for tests of network back-ends. Frames to the guest
// land in a list with their offloads; receive buffers are counted, so that a test can run out of
// them. Sockets are real.
// Owned by a test; one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_FAKE_GUEST_LINK_H_
#define VIRTBAY_TESTS_SUPPORT_FAKE_GUEST_LINK_H_

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "virtbay/sdk/net_link.h"

namespace virtbay::tests {

class FakeGuestLink : public sdk::GuestLink {
 public:
  struct Received {
    std::vector<uint8_t> bytes;
    sdk::Offload offload;
  };

  sdk::GuestOffloads guest = {true, true, true, true, true, true, true};
  uint32_t link_mtu = 1500;
  uint32_t buffers = UINT32_MAX;  // of buffer_size bytes each
  uint32_t buffer_size = 1526;
  int64_t send_limit = INT64_MAX;  // bytes that one Send passes on at most; negative: -errno
  size_t slice_limit = SIZE_MAX;   // of one Send
  bool copies_fail = false;
  std::deque<Received> received;
  uint64_t sends = 0;

  // A frame of the guest's; completed frames are forgotten.
  sdk::TxFrame Frame(std::vector<uint8_t> bytes, const sdk::Offload& offload = {}) {
    auto* held = new std::vector<uint8_t>(std::move(bytes));
    ++held_frames;
    sdk::TxFrame::Parts parts;
    parts.link = this;
    parts.token = held;
    parts.size = static_cast<uint32_t>(held->size());
    parts.headers = std::as_bytes(std::span(*held).first(std::min<size_t>(held->size(), 256)));
    parts.offload = offload;
    return sdk::TxFrame(parts);
  }
  uint32_t held_frames = 0;

  uint32_t pairs() const override { return 1; }
  uint32_t mtu() const override { return link_mtu; }
  sdk::GuestOffloads offloads() const override { return guest; }
  bool link_up() const override { return true; }
  bool HasRxBuffers(uint32_t) const override { return buffers > 0; }

  sdk::RxFrame BeginFrame(uint32_t pair, uint32_t max_size) override {
    if (buffers == 0) return {};
    open_.assign(sdk::kHeaderRoom + size_t{sdk::kMaxFrame}, 0);
    payload_ = 0;
    uint64_t room = uint64_t{buffers} * buffer_size;
    if (!guest.mergeable) room = buffer_size;
    return sdk::RxFrame(this, pair, static_cast<uint32_t>(std::min<uint64_t>(room, max_size)));
  }

  int64_t Send(uint32_t, int fd, std::span<const sdk::TxSlice> slices,
               const sdk::SendOptions& options) override {
    ++sends;
    if (send_limit < 0) return send_limit;
    if (send_limit == 0) return -EAGAIN;
    if (slices.size() > slice_limit) return -EMSGSIZE;
    std::vector<iovec> vectors;
    if (!options.prefix.empty()) {
      vectors.push_back({const_cast<std::byte*>(options.prefix.data()), options.prefix.size()});
    }
    int64_t left = send_limit;
    for (const sdk::TxSlice& slice : slices) {
      auto& bytes = *static_cast<std::vector<uint8_t>*>(slice.frame->token());
      if (slice.offset > bytes.size() || slice.len > bytes.size() - slice.offset) return -ERANGE;
      const auto n = static_cast<size_t>(std::min<int64_t>(left, slice.len));
      if (n > 0 || slice.len == 0) vectors.push_back({bytes.data() + slice.offset, n});
      left -= static_cast<int64_t>(n);
    }
    msghdr message = {};
    message.msg_iov = vectors.data();
    message.msg_iovlen = vectors.size();
    message.msg_name = const_cast<std::byte*>(options.name.data());
    message.msg_namelen = static_cast<socklen_t>(options.name.size());
    message.msg_control = const_cast<std::byte*>(options.control.data());
    message.msg_controllen = options.control.size();
    const ssize_t n =
        sendmsg(fd, &message, static_cast<int>(options.flags) | MSG_DONTWAIT | MSG_NOSIGNAL);
    return n < 0 ? -errno : n;
  }

 protected:
  bool CopyFrame(const sdk::TxFrame& frame, uint32_t offset, std::span<std::byte> to) override {
    auto& bytes = *static_cast<std::vector<uint8_t>*>(frame.token());
    if (copies_fail || offset > bytes.size() || to.size() > bytes.size() - offset) return false;
    std::memcpy(to.data(), bytes.data() + offset, to.size());
    return true;
  }
  void EndFrame(sdk::TxFrame& frame, bool) override {
    delete static_cast<std::vector<uint8_t>*>(frame.token());
    --held_frames;
  }
  int64_t ReceiveInto(sdk::RxFrame& frame, int fd, uint32_t max,
                      sdk::ReceiveOptions* options) override {
    max = std::min(max, frame.capacity() - frame.size());
    iovec vectors[2] = {{options->prefix.data(), options->prefix.size()},
                        {open_.data() + frame.size(), max}};
    msghdr message = {};
    message.msg_iov = vectors;
    message.msg_iovlen = 2;
    message.msg_name = options->name.data();
    message.msg_namelen = static_cast<socklen_t>(options->name.size());
    message.msg_control = options->control.data();
    message.msg_controllen = options->control.size();
    const ssize_t n = recvmsg(fd, &message, static_cast<int>(options->flags) | MSG_DONTWAIT);
    if (n < 0) return -errno;
    options->name = options->name.first(message.msg_namelen);
    options->control = options->control.first(message.msg_controllen);
    options->result_flags = static_cast<uint32_t>(message.msg_flags);
    const auto prefix = static_cast<ssize_t>(options->prefix.size());
    const auto room = static_cast<ssize_t>(max);
    if (n > prefix) frame.AddPayload(static_cast<uint32_t>(std::min(n - prefix, room)));
    return n;
  }
  bool AppendTo(sdk::RxFrame& frame, std::span<const std::byte> bytes) override {
    if (bytes.size() > frame.capacity() - frame.size()) return false;
    std::memcpy(open_.data() + frame.size(), bytes.data(), bytes.size());
    frame.AddPayload(static_cast<uint32_t>(bytes.size()));
    return true;
  }
  bool CommitFrame(sdk::RxFrame& frame, const sdk::Offload& offload) override {
    Received out;
    out.bytes.assign(open_.begin(), open_.begin() + frame.size());
    const std::span<std::byte> header = frame.header();
    if (!header.empty()) std::memcpy(out.bytes.data(), header.data(), header.size());
    out.offload = offload;
    received.push_back(std::move(out));
    if (buffers != UINT32_MAX) buffers -= (frame.size() + buffer_size - 1) / buffer_size;
    return true;
  }
  void AbandonFrame(sdk::RxFrame&) override {}

 private:
  std::vector<uint8_t> open_;
  uint32_t payload_ = 0;
};

}  // namespace virtbay::tests

#endif  // VIRTBAY_TESTS_SUPPORT_FAKE_GUEST_LINK_H_
