// Pair: one queue pair of the device: its shard of flows, its thread's alarms, and what it has to
// do with the other pairs. The guest chooses on which pair it sends a flow; the flow's bucket goes
// to the pair on which it sends (virtio 1.3 5.1.6.5.5, automatic receive steering), together with
// its sockets and all that is held of it. Frames that come before the bucket has arrived are held,
// in order. Nothing of a frame that stays on its flow's pair is shared but counters. Owned by the
// device; [queue] of the pair unless said otherwise.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_PAIR_H_
#define VIRTBAY_PLUGINS_PROXY_NET_PAIR_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "plugins/proxy-net/copied_frames.h"
#include "plugins/proxy-net/flow/shard.h"
#include "plugins/proxy-net/gateway.h"
#include "plugins/proxy-net/inbox.h"
#include "plugins/proxy-net/mailbox.h"
#include "plugins/proxy-net/policy/policy_store.h"
#include "virtbay/sdk/net_device.h"

namespace virtbay::proxy_net {

class Pair;

// What the pairs of a device have together; constant once all are there, but for what is atomic.
struct Pairs {
  sdk::NetDevice* device = nullptr;
  Gateway* gateway = nullptr;  // the first pair's
  PolicyStore* store = nullptr;
  SharedFlows* shared = nullptr;
  MacAddress gateway_mac;
  std::atomic<uint64_t>* mac = nullptr;  // the guest's
  uint64_t* moved = nullptr;             // metric: buckets of flows that went to another pair
  std::vector<std::unique_ptr<Pair>> all;
};

class Pair final : public FlowHost {
 public:
  enum Alarm : uint64_t { kFlowAlarm, kContinueAlarm, kLanAlarm, kDnsAlarm, kRetryAlarm, kAlarms };

  // [control]
  Pair(Pairs* pairs, uint32_t index, uint32_t count, EventCounters* counters);
  ~Pair() override;
  // [control] Whether it could be made; false: no descriptor or no address space.
  bool ok() const;
  // [control] Watches its own descriptors; false: no.
  bool Open();

  // ---- what happens ---------------------------------------------------------------------------
  void OnStart();
  void OnStop();
  void OnFarewell();
  void OnFrames(std::span<sdk::TxFrame> frames);
  void OnRxBuffers();
  void OnReady();
  void OnAlarm(uint64_t cookie);

  // [control] Has the pair's thread do `work`; false: it did not answer, and will not do it.
  template <typename F>
  bool Run(F&& work) {
    return mailbox_.Run([&] {
      Begin();
      work();
      if (running_) End();
    });
  }
  // By Run: the policy may have changed. Flows that it forbids end.
  void RefreshRules();
  // By Run: the guest is gone, and what was for it.
  void DropAll();
  // By Run, on a stopped pair: takes in the flows and streams that were sent to it.
  void Settle();
  // [any] Tells the pair that the guest does not use it any more.
  void AskToLeave(uint32_t sender);
  // To all others: their rules have changed.
  void TellRules();

  uint32_t index() const { return index_; }
  Shard& shard() { return *shard_; }
  Policy* policy() { return &policy_; }

  // ---- FlowHost -------------------------------------------------------------------------------
  uint64_t NowNs() const override { return device().host().NowNs(); }
  bool TakeDescriptor() override { return device().host().TakeDescriptor(0); }
  void GiveDescriptor() override { device().host().GiveDescriptor(); }
  Route RouteOf(uint8_t protocol, const Endpoint& to) override;
  bool StillAllowed(uint8_t protocol, const Endpoint& to) override;
  std::optional<IpAddress> GuestAddress(bool v6) const override;
  IpAddress GatewayAddress(bool v6) const override { return pairs_->gateway->Address(v6); }
  void WantRoom(Room what) override;
  void TakeGiven() override;
  void ContinueSoon() override { Arm(kContinueAlarm, 0); }
  void Note(const char* text) override { device().host().Log(VIRTBAY_LOG_WARN, "%s", text); }
  void OnOther(uint32_t token) override;

 private:
  enum Token : uint32_t { kMailboxToken = 0, kInboxToken = 1 };

  struct Held {
    uint32_t bucket = 0;
    bool asked = false;
    sdk::TxFrame frame;
  };

  sdk::NetDevice& device() const { return *pairs_->device; }
  SharedFlows& shared() const { return *pairs_->shared; }
  bool first() const { return index_ == 0; }

  // Around every event.
  void Begin();
  void End();
  void Arm(Alarm alarm, uint64_t deadline_ns);

  // Frames. `copied`: one that another pair took, which cannot be held.
  void OnFrame(sdk::TxFrame& frame, bool copied);
  void OnFlowFrame(sdk::TxFrame& frame, const Frame& parsed, bool copied);
  void Learn(const sdk::TxFrame& frame, const Frame& parsed, Bytes headers);
  void HandOver(const sdk::TxFrame& frame, Message::Kind kind, uint32_t size);
  bool IsHeld(uint32_t bucket) const;
  // Goes on with frames whose bucket has come.
  void Replay();
  // Asks for the buckets of frames that are held.
  void Ask();

  // Messages.
  bool Post(uint32_t to, std::unique_ptr<Message> message);
  void ServeInbox();
  // Takes flows in and leaves everything else for later.
  void Drain();
  // By another pair's thread, on a stopped pair: answers for it.
  void TakeIn();
  void Handle(std::unique_ptr<Message> message);
  void OnWant(std::unique_ptr<Message> message);
  void OnCopiedFrame(const Message& message);
  void Take(const Message& given);
  void Give(uint32_t to, std::vector<uint32_t> buckets);
  void LeaveAll();
  int OpenDnsStream();

  Pairs* const pairs_;
  const uint32_t index_;
  Mailbox mailbox_;
  Inbox inbox_;
  std::unique_ptr<Shard> shard_;
  CopiedFrames copied_;
  Policy policy_;
  bool running_ = false;
  bool inbox_ready_ = false;
  bool replays_ = false;  // a bucket has come, or should be asked for again
  uint64_t mac_ = 0;      // that the shard knows
  std::array<uint64_t, kAlarms> armed_{};
  std::vector<Held> held_;
  std::vector<std::unique_ptr<Message>> deferred_;
  // What the gateway was told last.
  uint64_t told_mac_ = 0;
  std::optional<IpAddress> told4_;
  std::optional<IpAddress> told6_;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_PAIR_H_
