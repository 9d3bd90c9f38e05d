// CopiedFrames: frames of the guest's that were copied, as the link's own frames look: for those
// that another pair took and that end on this one.
// Owned by the pair that they end on; [queue] of that.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_COPIED_FRAMES_H_
#define VIRTBAY_PLUGINS_PROXY_NET_COPIED_FRAMES_H_

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>

#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

class CopiedFrames final : public sdk::GuestLink {
 public:
  // Everything but their own bytes is the other link's.
  explicit CopiedFrames(const sdk::GuestLink* link) : link_(link) {}

  // A frame of bytes that stay where they are for as long as it is there.
  sdk::TxFrame Make(uint32_t pair, std::span<const std::byte> bytes, const sdk::Offload& offload) {
    sdk::TxFrame::Parts parts;
    parts.link = this;
    parts.token = const_cast<std::byte*>(bytes.data());
    parts.pair = pair;
    parts.size = static_cast<uint32_t>(bytes.size());
    parts.headers = bytes.first(std::min<size_t>(bytes.size(), sdk::kHeaderView));
    parts.offload = offload;
    return sdk::TxFrame(parts);
  }

  uint32_t pairs() const override { return link_->pairs(); }
  uint32_t mtu() const override { return link_->mtu(); }
  sdk::GuestOffloads offloads() const override { return link_->offloads(); }
  bool link_up() const override { return link_->link_up(); }
  sdk::RxFrame BeginFrame(uint32_t /*pair*/, uint32_t /*max_size*/) override { return {}; }
  bool HasRxBuffers(uint32_t /*pair*/) const override { return false; }

  // One slice at a time: datagrams.
  int64_t Send(uint32_t /*pair*/, int fd, std::span<const sdk::TxSlice> slices,
               const sdk::SendOptions& options) override {
    if (slices.size() != 1) return -EINVAL;
    const sdk::TxSlice& slice = slices[0];
    const uint32_t size = slice.frame->size();
    if (slice.offset > size || slice.len > size - slice.offset) return -ERANGE;
    std::array<iovec, 2> pieces{
        iovec{const_cast<std::byte*>(options.prefix.data()), options.prefix.size()},
        iovec{static_cast<std::byte*>(slice.frame->token()) + slice.offset, slice.len}};
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size();
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
    if (offset > frame.size() || to.size() > frame.size() - offset) return false;
    std::memcpy(to.data(), static_cast<const std::byte*>(frame.token()) + offset, to.size());
    return true;
  }
  void EndFrame(sdk::TxFrame& /*frame*/, bool /*requeue*/) override {}
  int64_t ReceiveInto(sdk::RxFrame& /*frame*/, int /*fd*/, uint32_t /*max*/,
                      sdk::ReceiveOptions* /*options*/) override {
    return -EINVAL;
  }
  bool AppendTo(sdk::RxFrame& /*frame*/, std::span<const std::byte> /*bytes*/) override {
    return false;
  }
  bool CommitFrame(sdk::RxFrame& /*frame*/, const sdk::Offload& /*offload*/) override {
    return false;
  }
  void AbandonFrame(sdk::RxFrame& /*frame*/) override {}

 private:
  const sdk::GuestLink* const link_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_COPIED_FRAMES_H_
