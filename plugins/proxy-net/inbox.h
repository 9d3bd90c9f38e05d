// Inbox: what the threads of the other queue pairs send to one pair: buckets of flows, questions
// for them, frames for the gateway. A ring per sender, of bounded size; the receiver is woken by a
// descriptor, once until it looks.
// Owned by the device. Post is [queue] of the sender's pair, the rest [queue] of the receiver's; a
// pair that is not served may be stood in for by a thread that keeps it from being served
// meanwhile. No function takes a lock.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_INBOX_H_
#define VIRTBAY_PLUGINS_PROXY_NET_INBOX_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "plugins/proxy-net/flow/state.h"
#include "virtbay/sdk/net_link.h"

namespace virtbay::proxy_net {

struct Message {
  enum class Kind : uint8_t {
    kWant,    // to the owner of buckets: the guest sends their flows on the sender's pair
    kGive,    // flows of buckets that are the receiver's now
    kAgain,   // to a kWant: the sender does not have the buckets, look again who does
    kLeave,   // the guest does not use the receiver's pair any more: its flows go to pair 0
    kFrame,   // to pair 0: a frame that ends there
    kLearn,   // to pair 0: the headers of a frame, whose source is new
    kStream,  // to pair 0: a stream to the resolver
    kEvict,   // make room for a flow
    kRules,   // the policy has changed
  };
  Kind kind = Kind::kWant;
  uint32_t sender = 0;
  std::vector<uint32_t> buckets;
  SavedFlows flows;
  std::vector<std::byte> frame;
  sdk::Offload offload;
  Room room = Room::kTcpFlow;  // kEvict
  int fd = -1;                 // kStream; kLearn and kFrame: the bytes of the frame
};

class Inbox {
 public:
  // [control] From so many pairs.
  explicit Inbox(uint32_t senders);
  ~Inbox();
  Inbox(const Inbox&) = delete;
  Inbox& operator=(const Inbox&) = delete;

  // Whether Post would find room.
  bool HasRoom(uint32_t sender) const;
  // False: the ring is full, and the message still the caller's.
  bool Post(std::unique_ptr<Message>* message);

  // Readable when there may be messages; -1: there was no descriptor.
  int fd() const { return fd_; }
  // The next message of any sender, those of one in their order; nullptr: there is none.
  std::unique_ptr<Message> Take();
  // Before Take, when fd() was readable.
  void Quiet();
  // False: nothing was sent since the last Quiet.
  bool MayHave() const { return told_.load(std::memory_order_acquire); }

 private:
  static constexpr uint32_t kSlots = 256;
  struct Ring {
    alignas(64) std::atomic<uint32_t> head{0};  // the receiver's
    alignas(64) std::atomic<uint32_t> tail{0};  // the sender's
    std::array<std::unique_ptr<Message>, kSlots> slots;
  };

  std::vector<std::unique_ptr<Ring>> rings_;
  std::atomic<bool> told_{false};
  int fd_ = -1;
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_INBOX_H_
