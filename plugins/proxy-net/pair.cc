#include "plugins/proxy-net/pair.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kNoAlarm = UINT64_MAX;
constexpr uint64_t kMillisecond = 1'000'000;
// What is not answered, because it was lost with a pair that stopped, is asked again.
constexpr uint64_t kRetry = 10 * kMillisecond;
constexpr uint16_t kDnsPort = 53;

Bytes AsBytes(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

Protocol ProtocolOf(uint8_t protocol) {
  if (protocol == kProtocolTcp) return Protocol::kTcp;
  return protocol == kProtocolUdp ? Protocol::kUdp : Protocol::kIcmp;
}

std::unique_ptr<Message> Make(Message::Kind kind) {
  auto message = std::make_unique<Message>();
  message->kind = kind;
  return message;
}

}  // namespace

Pair::Pair(Pairs* pairs, uint32_t index, uint32_t count, EventCounters* counters)
    : pairs_(pairs),
      index_(index),
      inbox_(count),
      shard_(std::make_unique<Shard>(pairs->device, index, this, counters, pairs->shared)),
      copied_(pairs->device) {
  armed_.fill(kNoAlarm);
}

Pair::~Pair() { DropAll(); }

bool Pair::ok() const { return shard_->ok() && mailbox_.fd() >= 0 && inbox_.fd() >= 0; }

bool Pair::Open() {
  Begin();
  return shard_->WatchOther(mailbox_.fd(), EPOLLIN, kMailboxToken) &&
         shard_->WatchOther(inbox_.fd(), EPOLLIN, kInboxToken);
}

// ---- what happens -------------------------------------------------------------------------------

void Pair::Begin() {
  const uint64_t mac = pairs_->mac->load(std::memory_order_relaxed);
  if (mac == mac_) return;
  mac_ = mac;
  shard_->SetMacs(MacOf(mac), pairs_->gateway_mac);
}

void Pair::End() {
  if (!first() && index_ >= device().pairs()) LeaveAll();
  if (!held_.empty()) Ask();
  if (first()) {
    pairs_->gateway->UpdateMetrics();
    Arm(kLanAlarm, pairs_->gateway->NextLanDeadline());
    Arm(kDnsAlarm, pairs_->gateway->NextDnsDeadline());
  }
  Arm(kFlowAlarm, shard_->NextTimer());
}

void Pair::Arm(Alarm alarm, uint64_t deadline_ns) {
  if (!running_ || deadline_ns >= armed_[alarm]) return;
  armed_[alarm] = deadline_ns;
  const uint64_t now = NowNs();
  device().SetAlarm(index_, std::chrono::nanoseconds(deadline_ns > now ? deadline_ns - now : 0),
                    alarm);
}

void Pair::OnStart() {
  // First: the control plane looks at a pair that nobody serves.
  mailbox_.SetServing(true);
  armed_.fill(kNoAlarm);
  running_ = true;
  device().Watch(index_, shard_->epoll_fd(), POLLIN);
  Begin();
  if (first()) pairs_->gateway->Start();
  RefreshRules();
  ServeInbox();
  shard_->OnTimer();
  End();
}

void Pair::OnStop() {
  ServeInbox();
  if (!first() && pairs_->all[0]->mailbox_.serving()) LeaveAll();
  // They come again, in this order, when the guest's queue goes on.
  for (Held& held : held_) held.frame.Requeue();
  held_.clear();
  running_ = false;
  if (first()) pairs_->gateway->Stop();
  mailbox_.SetServing(false);
}

void Pair::OnFarewell() {
  if (!first()) return;
  Begin();
  pairs_->gateway->TakeBack();
  End();
}

void Pair::OnFrames(std::span<sdk::TxFrame> frames) {
  Begin();
  if (replays_) Replay();
  shard_->BeginBurst();
  for (sdk::TxFrame& frame : frames) OnFrame(frame, /*copied=*/false);
  shard_->EndBurst();
  End();
}

void Pair::OnRxBuffers() {
  Begin();
  shard_->OnRxBuffers();
  End();
}

void Pair::OnReady() {
  Begin();
  shard_->OnReady();
  if (inbox_ready_) ServeInbox();
  device().Watch(index_, shard_->epoll_fd(), POLLIN);
  End();
}

void Pair::OnAlarm(uint64_t cookie) {
  Begin();
  armed_[cookie] = kNoAlarm;
  switch (cookie) {
    case kFlowAlarm:
      shard_->OnTimer();
      break;
    case kContinueAlarm:
      if (!deferred_.empty()) ServeInbox();
      if (replays_) Replay();
      shard_->Continue();
      break;
    case kLanAlarm:
      pairs_->gateway->OnLanTime();
      break;
    case kDnsAlarm:
      pairs_->gateway->OnDnsTime();
      break;
    case kRetryAlarm:
      for (Held& held : held_) held.asked = false;
      ServeInbox();
      break;
    default:
      break;
  }
  End();
}

void Pair::OnOther(uint32_t token) {
  switch (token) {
    case kMailboxToken:
      return mailbox_.OnReady();
    case kInboxToken:
      // After the events of flows: it takes some of them away.
      inbox_ready_ = true;
      return;
    default:
      return pairs_->gateway->OnOther(token);
  }
}

void Pair::RefreshRules() {
  if (pairs_->store->Refresh(&policy_)) shard_->Recheck();
}

void Pair::DropAll() {
  shard_->DropFlows();
  held_.clear();
  replays_ = false;
  told_mac_ = 0;
  told4_.reset();
  told6_.reset();
  std::vector<std::unique_ptr<Message>> messages = std::move(deferred_);
  deferred_.clear();
  while (auto message = inbox_.Take()) messages.push_back(std::move(message));
  const auto drop = [this](int fd) {
    close(fd);
    GiveDescriptor();
  };
  for (const auto& message : messages) {
    for (const int fd : message->flows.fds) drop(fd);
    if (message->kind == Message::Kind::kStream) close(message->fd);
    if (message->kind != Message::Kind::kGive) continue;
    for (const uint32_t bucket : message->buckets) shared().PassTo(bucket, SharedFlows::kNobody);
  }
}

void Pair::Settle() {
  Drain();
  // The other end of a stream is a flow's, which would hear that it was closed.
  std::vector<std::unique_ptr<Message>> messages = std::move(deferred_);
  deferred_.clear();
  for (auto& message : messages) {
    if (message->kind == Message::Kind::kStream) {
      Handle(std::move(message));
    } else {
      deferred_.push_back(std::move(message));
    }
  }
}

// ---- frames -------------------------------------------------------------------------------------

void Pair::OnFrame(sdk::TxFrame& frame, bool copied) {
  const Bytes headers = AsBytes(frame.headers());
  const Parsed<Frame> parsed =
      ParseFrame(headers, frame.size(), frame.offload().gso != sdk::Gso::kNone);
  if (!parsed.ok()) return device().CountTxDrop(RefusalName(parsed.refusal()));
  if (!pairs_->gateway->IsForUs(*parsed)) return device().CountTxDrop("not_for_gateway");
  Learn(frame, *parsed, headers);
  if (pairs_->gateway->Wants(*parsed)) {
    if (first()) return pairs_->gateway->OnFrame(frame, *parsed);
    return HandOver(frame, Message::Kind::kFrame, frame.size());
  }
  if (!parsed->ip.has_value()) return device().CountTxDrop("other_ethertype");
  OnFlowFrame(frame, *parsed, copied);
}

void Pair::OnFlowFrame(sdk::TxFrame& frame, const Frame& parsed, bool copied) {
  const std::optional<Shard::Place> place = shard_->PlaceOf(parsed);
  if (!place.has_value()) return shard_->OnPacket(frame, parsed);
  if (!shared().sharded()) return shard_->OnPacket(frame, parsed, *place);
  const uint32_t bucket = SharedFlows::BucketOf(place->hash);
  const bool had = shared().OwnerOf(bucket) == index_;
  if ((held_.empty() || !IsHeld(bucket)) && shard_->core().Claim(place->hash)) {
    shard_->OnPacket(frame, parsed, *place);
    // What makes no flow leaves no bucket behind.
    if (!had) shard_->core().Unclaim(place->hash);
    return;
  }
  if (copied) return device().CountTxDrop("pair_changed");
  if (shared().IsPinned(bucket) && shared().OwnerOf(bucket) != index_) {
    // Of a datagram's flow nothing but its socket is there; another that fell into the same bucket
    // would have to be copied for as long as it lasts.
    if (parsed.udp() == nullptr) return device().CountTxDrop("pair_pinned");
    return HandOver(frame, Message::Kind::kFrame, frame.size());
  }
  held_.push_back({bucket, false, std::move(frame)});
}

// The gateway has to know where the guest is, wherever it sends.
void Pair::Learn(const sdk::TxFrame& frame, const Frame& parsed, Bytes headers) {
  if (first()) return pairs_->gateway->Note(parsed, headers);
  const uint64_t mac = NumberOf(parsed.ethernet.source);
  const std::optional<IpAddress> mine = OwnAddress(parsed, headers);
  std::optional<IpAddress>* const told = !mine.has_value() ? nullptr
                                         : mine->is_v4()   ? &told4_
                                                           : &told6_;
  if (mac == told_mac_ && (told == nullptr || *told == mine)) return;
  told_mac_ = mac;
  if (told != nullptr) *told = mine;
  HandOver(frame, Message::Kind::kLearn,
           static_cast<uint32_t>(std::min<size_t>(headers.size(), frame.size())));
}

void Pair::HandOver(const sdk::TxFrame& frame, Message::Kind kind, uint32_t size) {
  std::unique_ptr<Message> message = Make(kind);
  message->frame.resize(size);
  message->offload = frame.offload();
  message->fd = static_cast<int>(frame.size());
  if (!frame.Copy(0, message->frame)) return device().CountTxDrop("copy");
  if (!Post(0, std::move(message)) && kind == Message::Kind::kFrame) {
    device().CountTxDrop("handover_full");
  }
}

bool Pair::IsHeld(uint32_t bucket) const {
  return std::any_of(held_.rbegin(), held_.rend(),
                     [bucket](const Held& held) { return held.bucket == bucket; });
}

void Pair::Replay() {
  replays_ = false;
  std::vector<Held> ready;
  std::vector<Held> others;
  for (Held& held : held_) {
    const uint8_t owner = shared().OwnerOf(held.bucket);
    const bool goes_on = owner == index_ || owner == SharedFlows::kNobody;
    (goes_on ? ready : others).push_back(std::move(held));
  }
  held_ = std::move(others);
  shard_->BeginBurst();
  for (Held& held : ready) OnFrame(held.frame, /*copied=*/false);
  shard_->EndBurst();
  for (const Held& held : ready) shard_->core().Unclaim(held.bucket);
}

void Pair::Ask() {
  std::map<uint8_t, std::vector<uint32_t>> wanted;
  bool pinned = false;
  for (Held& held : held_) {
    const uint8_t owner = shared().OwnerOf(held.bucket);
    if (owner == index_ || owner == SharedFlows::kNobody) {
      replays_ = true;
      continue;
    }
    pinned = pinned || shared().IsPinned(held.bucket);
    if (std::exchange(held.asked, true)) continue;
    wanted[owner].push_back(held.bucket);
  }
  for (auto& [owner, buckets] : wanted) {
    std::sort(buckets.begin(), buckets.end());
    buckets.erase(std::unique(buckets.begin(), buckets.end()), buckets.end());
    std::unique_ptr<Message> message = Make(Message::Kind::kWant);
    message->buckets = std::move(buckets);
    Post(owner, std::move(message));  // what finds no room is asked again
  }
  if (pinned) {
    // It was not when the frame came.
    std::erase_if(held_, [this](const Held& held) {
      const uint8_t owner = shared().OwnerOf(held.bucket);
      if (owner == index_ || !shared().IsPinned(held.bucket)) return false;
      HandOver(held.frame, Message::Kind::kFrame, held.frame.size());
      return true;
    });
  }
  if (replays_) ContinueSoon();
  Arm(kRetryAlarm, NowNs() + kRetry);
}

// ---- messages -----------------------------------------------------------------------------------

bool Pair::Post(uint32_t to, std::unique_ptr<Message> message) {
  message->sender = index_;
  const bool wants = message->kind == Message::Kind::kWant;
  Pair& other = *pairs_->all[to];
  if (!other.inbox_.Post(&message)) return false;
  // A pair that is not served cannot answer; while it is not, this thread can.
  if (wants && !other.mailbox_.serving()) {
    other.mailbox_.RunIfIdle([&other] { other.TakeIn(); });
  }
  return true;
}

void Pair::TakeIn() {
  Drain();
  std::vector<std::unique_ptr<Message>> messages = std::move(deferred_);
  deferred_.clear();
  for (auto& message : messages) {
    if (message->kind == Message::Kind::kWant) {
      OnWant(std::move(message));
    } else {
      deferred_.push_back(std::move(message));
    }
  }
}

void Pair::TakeGiven() {
  if (!inbox_.MayHave()) return;
  Drain();
  if (!deferred_.empty() || replays_) ContinueSoon();
}

void Pair::Drain() {
  while (auto message = inbox_.Take()) {
    if (message->kind == Message::Kind::kGive) {
      Take(*message);
    } else {
      deferred_.push_back(std::move(message));
    }
  }
}

void Pair::ServeInbox() {
  inbox_ready_ = false;
  inbox_.Quiet();
  // All of it, since there is nothing any more that tells of what is left: flows first.
  Drain();
  std::vector<std::unique_ptr<Message>> messages = std::move(deferred_);
  deferred_.clear();
  for (auto& message : messages) Handle(std::move(message));
  if (replays_) Replay();
  shard_->Continue();
}

void Pair::Handle(std::unique_ptr<Message> message) {
  switch (message->kind) {
    case Message::Kind::kWant:
      return OnWant(std::move(message));
    case Message::Kind::kGive:
      return;  // Drain took it
    case Message::Kind::kAgain:
      for (Held& held : held_) {
        held.asked = held.asked && !std::binary_search(message->buckets.begin(),
                                                       message->buckets.end(), held.bucket);
      }
      return;
    case Message::Kind::kLeave:
      return;  // End does it
    case Message::Kind::kFrame:
    case Message::Kind::kLearn:
      return OnCopiedFrame(*message);
    case Message::Kind::kStream:
      // Without room it is closed, and so is the guest's connection.
      static_cast<void>(pairs_->gateway->AddStream(message->fd));
      return;
    case Message::Kind::kEvict:
      shard_->core().Refresh();
      static_cast<void>(shard_->MakeRoom(message->room));
      return;
    case Message::Kind::kRules:
      return RefreshRules();
  }
}

void Pair::OnCopiedFrame(const Message& message) {
  sdk::TxFrame frame = copied_.Make(index_, message.frame, message.offload);
  if (message.kind == Message::Kind::kFrame) {
    shard_->BeginBurst();
    OnFrame(frame, /*copied=*/true);
    shard_->EndBurst();
    return;
  }
  const Bytes headers = AsBytes(message.frame);
  const Parsed<Frame> parsed =
      ParseFrame(headers, static_cast<size_t>(message.fd), message.offload.gso != sdk::Gso::kNone);
  if (parsed.ok()) pairs_->gateway->Note(*parsed, headers);
}

void Pair::OnWant(std::unique_ptr<Message> message) {
  const uint32_t to = message->sender;
  Pair& other = *pairs_->all[to];
  if (!other.inbox_.HasRoom(index_)) {
    deferred_.push_back(std::move(message));
    return Arm(kRetryAlarm, NowNs() + kRetry);
  }
  std::vector<uint32_t> given;
  std::unique_ptr<Message> again = Make(Message::Kind::kAgain);
  for (const uint32_t bucket : message->buckets) {
    const bool mine = shared().OwnerOf(bucket) == index_ && !shared().IsPinned(bucket);
    (mine ? given : again->buckets).push_back(bucket);
  }
  if (!given.empty()) {
    // What came for them first has its turn first.
    TakeGiven();
    if (running_ && !held_.empty()) Replay();
    std::erase_if(given, [this](uint32_t bucket) {
      return shared().OwnerOf(bucket) != index_ || shared().IsPinned(bucket);
    });
    Give(to, std::move(given));
  }
  if (!again->buckets.empty()) Post(to, std::move(again));
}

void Pair::Give(uint32_t to, std::vector<uint32_t> buckets) {
  if (buckets.empty() || !pairs_->all[to]->inbox_.HasRoom(index_)) return;
  std::unique_ptr<Message> message = Make(Message::Kind::kGive);
  message->flows = TakeOut(shard_.get(), buckets);
  message->buckets = buckets;
  sdk::Host::Add(pairs_->moved, buckets.size());
  Post(to, std::move(message));
  // Only then: who sees that it is the other's finds the flows in its inbox.
  for (const uint32_t bucket : buckets) shared().PassTo(bucket, static_cast<uint8_t>(to));
}

void Pair::Take(const Message& given) {
  Adopt(shard_.get(), given.flows);
  replays_ = true;
  // Those without a flow, unless a frame waits for them.
  for (const uint32_t bucket : given.buckets) {
    if (!IsHeld(bucket)) shard_->core().Unclaim(bucket);
  }
}

void Pair::LeaveAll() {
  const Shard::Totals totals = shard_->totals();
  if (totals.tcp + totals.datagram == 0) return;
  if (!pairs_->all[0]->inbox_.HasRoom(index_)) return Arm(kRetryAlarm, NowNs() + kRetry);
  Give(0, BucketsOf(shard_.get()));
}

void Pair::AskToLeave(uint32_t sender) {
  if (!mailbox_.serving()) return;
  std::unique_ptr<Message> message = Make(Message::Kind::kLeave);
  message->sender = sender;
  // Without room there are others that make it look.
  static_cast<void>(inbox_.Post(&message));
}

void Pair::TellRules() {
  for (uint32_t i = 0; i < pairs_->all.size(); ++i) {
    if (i != index_) Post(i, Make(Message::Kind::kRules));
  }
}

// ---- FlowHost -----------------------------------------------------------------------------------

Route Pair::RouteOf(uint8_t protocol, const Endpoint& to) {
  if (pairs_->gateway->IsGateway(to.address)) {
    if (protocol != kProtocolTcp || to.port != kDnsPort) return {};
    const int service = OpenDnsStream();
    return {service >= 0, to, service};
  }
  const Decision decision = policy_.Judge(to.address, to.port, ProtocolOf(protocol));
  return {decision.allowed(), {decision.target, to.port}, -1};
}

bool Pair::StillAllowed(uint8_t protocol, const Endpoint& to) {
  return pairs_->gateway->IsGateway(to.address) ||
         policy_.Judge(to.address, to.port, ProtocolOf(protocol)).allowed();
}

std::optional<IpAddress> Pair::GuestAddress(bool v6) const {
  // Only the first pair has listeners, and asks.
  if (!first()) return std::nullopt;
  return pairs_->gateway->GuestAddress(v6);
}

void Pair::WantRoom(Room what) {
  for (uint32_t i = 0; i < pairs_->all.size(); ++i) {
    if (i == index_) continue;
    std::unique_ptr<Message> message = Make(Message::Kind::kEvict);
    message->room = what;
    Post(i, std::move(message));
  }
}

// One end of a pair whose other end the resolver serves; -1: there was no room, and the guest's
// connection is refused.
int Pair::OpenDnsStream() {
  if (!shard_->core().TakeDescriptor()) return -1;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) != 0) {
    GiveDescriptor();
    return -1;
  }
  if (first()) {
    if (pairs_->gateway->AddStream(ends[1])) return ends[0];
  } else {
    std::unique_ptr<Message> message = Make(Message::Kind::kStream);
    message->fd = ends[1];
    if (Post(0, std::move(message))) return ends[0];
    close(ends[1]);
  }
  close(ends[0]);
  GiveDescriptor();
  return -1;
}

}  // namespace virtbay::proxy_net
