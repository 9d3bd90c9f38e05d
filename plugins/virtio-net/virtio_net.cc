// The virtio-net device (virtio 1.3 5.1) over a TAP interface, or over none for measurements.
#include <poll.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "plugins/virtio-net/options.h"
#include "plugins/virtio-net/rate_limit.h"
#include "plugins/virtio-net/tap.h"
#include "virtbay/sdk/net_device.h"
#include "virtbay/sdk/plugin.h"

namespace {

namespace sdk = virtbay::sdk;
using sdk::NetConfig;
using sdk::NetDevice;
using sdk::Status;
using sdk::TxFrame;
using virtbay::virtio_net::BackEnd;
using virtbay::virtio_net::Options;
using virtbay::virtio_net::RateLimit;
using virtbay::virtio_net::Tap;

// Frames from the interface before others on the same thread have their turn.
constexpr uint32_t kReceiveBurst = 64;
// A queue that the guest turned off is looked at again so often.
constexpr std::chrono::milliseconds kDetachedLook{200};

class VirtioNet final : public NetDevice {
 public:
  static constexpr auto& kOptions = virtbay::virtio_net::kOptionList;

  Status Configure(NetConfig* config) override {
    sdk::Result<Options> options = virtbay::virtio_net::ReadOptions(host());
    if (!options.ok()) return options.error();
    options_ = *std::move(options);
    tx_limit_.Set(options_.tx.rate, options_.tx.burst);
    rx_limit_.Set(options_.rx.rate, options_.rx.burst);
    tx_waits_ =
        host().Counter("tx_rate_waits", "Times frames from the guest waited for their rate");
    rx_waits_ = host().Counter("rx_rate_waits", "Times the interface waited for its rate");
    if (options_.back_end == BackEnd::kTap) {
      const Status status = OpenTap(config);
      if (!status.ok()) return status;
    }
    pairs_ = std::vector<Pair>(config->queue_pairs);
    for (Pair& pair : pairs_) {
      pair.held.resize(config->queue_size);
      if (options_.back_end == BackEnd::kLoop) {
        pair.copy = std::make_unique<std::byte[]>(sdk::kMaxFrame);
      }
    }
    return {};
  }

  Status OnOffloads(const sdk::GuestOffloads& offloads) override {
    return tap_.pairs() == 0 ? Status() : tap_.SetOffloads(offloads);
  }
  Status OnPairs(uint32_t count) override { return tap_.SetPairs(count); }

  void OnPairStart(uint32_t index) override { pairs_[index].watched = 0; }

  void OnPairStop(uint32_t index) override {
    Pair& pair = pairs_[index];
    // They come again, in this order, when the guest's queue goes on.
    while (pair.count > 0) Pop(pair).Requeue();
    pair.paid = false;
  }

  void OnFrames(uint32_t index, std::span<TxFrame> frames) override {
    Pair& pair = pairs_[index];
    for (TxFrame& frame : frames) {
      if (pair.count > 0 || !TrySend(index, frame)) Hold(pair, std::move(frame));
    }
  }

  void OnRxBuffers(uint32_t index) override {
    if (options_.back_end == BackEnd::kTap) Receive(index);
  }

  void OnReady(uint32_t index, int32_t events) override {
    Pair& pair = pairs_[index];
    const uint32_t watched = std::exchange(pair.watched, 0);
    if ((watched & POLLOUT) != 0) SendHeld(index);
    if ((watched & POLLIN) == 0) return;
    if (events < 0 || (events & (POLLERR | POLLHUP | POLLNVAL)) != 0) {
      // A detached queue says POLLERR for as long as it is: it must not be watched.
      if (!tap_.attached(index)) return SetAlarm(index, kDetachedLook, kRxAlarm);
    }
    Receive(index);
  }

  void OnAlarm(uint32_t index, uint64_t cookie) override {
    cookie == kTxAlarm ? SendHeld(index) : Receive(index);
  }

  // The interface's queues, with the frames that wait in them.
  Status OnSave(sdk::StateWriter* state) override {
    for (uint32_t i = 0; i < tap_.pairs(); ++i) state->AddFd(kTapRole, tap_.fd(i));
    state->Add(kTapSection, tap_.name().data(), tap_.name().size());
    return {};
  }
  Status OnRestore(sdk::StateReader* state) override {
    if (options_.back_end != BackEnd::kTap) return {};
    const auto name = state->Find(kTapSection);
    if (!name.has_value()) return sdk::InvalidArgument("the state has no TAP interface");
    Status status =
        tap_.Restore(std::string(reinterpret_cast<const char*>(name->data()), name->size()),
                     state->TakeFds(kTapRole), config().queue_pairs);
    if (status.ok() && config().uso && !tap_.HasUso()) {
      return sdk::InvalidArgument("the kernel's interface has no segmentation of UDP");
    }
    return status;
  }

  std::string OnShow() override {
    static constexpr std::array kNames = {"tap", "null", "loop"};
    std::string text =
        absl::StrCat("\"backend\": \"", kNames[static_cast<size_t>(options_.back_end)], "\"");
    if (tap_.pairs() > 0) absl::StrAppend(&text, ", \"tap\": \"", tap_.name(), "\"");
    return text;
  }

 private:
  static constexpr uint32_t kTapSection = 1;
  static constexpr uint32_t kTapRole = 1;
  static constexpr uint64_t kTxAlarm = 1;
  static constexpr uint64_t kRxAlarm = 2;

  struct Pair {
    // Frames that wait for their rate, or for the interface: a ring of as many as the queue has.
    std::vector<TxFrame> held;
    uint32_t first = 0;
    uint32_t count = 0;
    bool paid = false;     // the first of them, for its rate
    uint32_t watched = 0;  // poll events
    std::unique_ptr<std::byte[]> copy;
  };

  Status OpenTap(NetConfig* config) {
    const bool by_name = options_.tap_fds.empty();
    if (!by_name && host().Option("queue-pairs") &&
        config->queue_pairs != options_.tap_fds.size()) {
      return sdk::InvalidArgument("option queue-pairs: is not the number of descriptors in tap-fd");
    }
    if (!by_name) config->queue_pairs = static_cast<uint32_t>(options_.tap_fds.size());
    if (restores()) {
      // The interface comes with the state, and is somebody else's until then.
      if (!Tap::KernelHasUso()) config->uso = config->guest.uso4 = config->guest.uso6 = false;
      const uint32_t mtu = by_name ? Tap::MtuOf(options_.tap) : 0;
      if (!host().Option("mtu") && mtu >= 68 && mtu <= 65535) config->mtu = mtu;
      return {};
    }
    Status status =
        by_name ? tap_.Open(options_.tap, config->queue_pairs) : tap_.Adopt(options_.tap_fds);
    if (!status.ok()) return status;
    if (!tap_.HasUso()) config->uso = config->guest.uso4 = config->guest.uso6 = false;
    const uint32_t mtu = tap_.Mtu();
    if (!host().Option("mtu")) {
      if (mtu >= 68 && mtu <= 65535) config->mtu = mtu;
    } else if (mtu != 0 && mtu != config->mtu && !tap_.SetMtu(config->mtu)) {
      host().Log(VIRTBAY_LOG_WARN,
                 "interface %s has an MTU of %u, not %u, and cannot be changed: %s",
                 tap_.name().c_str(), mtu, config->mtu, std::strerror(errno));
    }
    return {};
  }

  // ---- from the guest

  static TxFrame Pop(Pair& pair) {
    TxFrame frame = std::move(pair.held[pair.first]);
    pair.first = (pair.first + 1) % static_cast<uint32_t>(pair.held.size());
    --pair.count;
    return frame;
  }
  void Hold(Pair& pair, TxFrame frame) {
    // No guest has more in flight than its queue has entries.
    if (pair.count == pair.held.size()) return CountTxDrop("held");
    const auto at = (pair.first + pair.count) % static_cast<uint32_t>(pair.held.size());
    pair.held[at] = std::move(frame);
    ++pair.count;
  }

  bool Pay(uint32_t index, const TxFrame& frame) {
    const uint64_t wait = tx_limit_.Take(frame.size(), host().NowNs());
    if (wait == 0) return true;
    sdk::Host::Add(tx_waits_);
    SetAlarm(index, std::chrono::nanoseconds(wait), kTxAlarm);
    return false;
  }

  // False: it has to wait, and an alarm or a watch will tell when to try again.
  bool TrySend(uint32_t index, TxFrame& frame) {
    Pair& pair = pairs_[index];
    if (tx_limit_.limits() && !pair.paid && !Pay(index, frame)) return false;
    switch (options_.back_end) {
      case BackEnd::kNull:
        break;
      case BackEnd::kLoop:
        Reflect(pair, frame);
        break;
      case BackEnd::kTap:
        if (!TrySendToTap(index, frame)) return false;
        break;
    }
    pair.paid = false;
    frame.Complete();
    return true;
  }
  bool TrySendToTap(uint32_t index, const TxFrame& frame) {
    const int64_t n = SendToTap(frame, tap_.fd(index));
    if (n == -EAGAIN) {
      pairs_[index].paid = true;
      Look(index, POLLOUT);
      return false;
    }
    if (n < 0) CountTxDrop(ReasonOf(n));
    return true;
  }

  void SendHeld(uint32_t index) {
    Pair& pair = pairs_[index];
    while (pair.count > 0) {
      if (!TrySend(index, pair.held[pair.first])) return;
      Pop(pair);
    }
  }

  void Reflect(Pair& pair, const TxFrame& frame) {
    std::span<const std::byte> bytes = frame.headers();
    if (frame.size() > bytes.size()) {
      const std::span<std::byte> copy(pair.copy.get(), frame.size());
      if (!frame.Copy(0, copy)) return CountTxDrop("no_memory");
      bytes = copy;
    }
    const uint32_t index = frame.pair();
    if (!HasRxBuffers(index)) return CountRxDrop("no_buffers");
    SendFrame(index, bytes.first(frame.size()), frame.offload());
  }

  static const char* ReasonOf(int64_t error) {
    switch (error) {
      case -EIO:
        return "tap_down";
      case -EFAULT:
        return "memory_gone";
      case -EINVAL:
        return "tap_refused";
      case -EMSGSIZE:
        return "too_many_pieces";
      case -ENOBUFS:
      case -ENOMEM:
        return "tap_no_memory";
      default:
        return "tap_error";
    }
  }

  // ---- to the guest

  void Receive(uint32_t index) {
    const int fd = tap_.fd(index);
    for (uint32_t i = 0; i < kReceiveBurst; ++i) {
      if (rx_limit_.limits()) {
        // What waits stays in the interface's queue.
        const uint64_t wait = rx_limit_.Wait(host().NowNs());
        if (wait > 0) {
          sdk::Host::Add(rx_waits_);
          return SetAlarm(index, std::chrono::nanoseconds(wait), kRxAlarm);
        }
      }
      const int64_t n = ReceiveFromTap(index, fd);
      if (n == -ENOBUFS) return;  // OnRxBuffers
      if (n == -EAGAIN) break;
      if (n < 0) {
        if (!tap_.attached(index)) return SetAlarm(index, kDetachedLook, kRxAlarm);
        CountRxDrop(n == -EFAULT ? "memory_gone" : "tap_error");
        if (n == -EFAULT || n == -EMSGSIZE) continue;
        // The interface has gone; its frames come no more.
        return host().Log(VIRTBAY_LOG_ERROR, "interface %s: %s", tap_.name().c_str(),
                          std::strerror(static_cast<int>(-n)));
      }
      if (rx_limit_.limits()) rx_limit_.Charge(static_cast<uint64_t>(n), host().NowNs());
    }
    Look(index, POLLIN);
  }

  // One watch serves both directions.
  void Look(uint32_t index, uint32_t events) {
    Pair& pair = pairs_[index];
    pair.watched |= events;
    Watch(index, tap_.fd(index), pair.watched);
  }

  Options options_;
  Tap tap_;
  RateLimit tx_limit_;
  RateLimit rx_limit_;
  std::vector<Pair> pairs_;
  uint64_t* tx_waits_ = nullptr;
  uint64_t* rx_waits_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(VirtioNet, "virtio-net", sdk::kVirtioNetId, VIRTBAY_DEVICE_QUEUE_PARALLEL);
