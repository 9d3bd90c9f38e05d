// How TCP flows begin and end.
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "plugins/proxy-net/flow/sequence.h"
#include "plugins/proxy-net/flow/tcp.h"
#include "plugins/proxy-net/packet/socket_address.h"

namespace virtbay::proxy_net {
namespace {

constexpr uint64_t kSecond = 1'000'000'000;
constexpr uint32_t kSocketEvents = EPOLLIN | EPOLLOUT | EPOLLRDHUP;
// Without SO_PEEK_OFF a peek passes over everything in flight, so that there is less of it.
constexpr uint32_t kSkip = 256 * 1024;
constexpr size_t kPieces = 4096;

// RFC 6528: a secret function of the tuple, and a clock of 4 us.
uint32_t InitialSequence(const SipKey& key, const Tuple& tuple, uint64_t now_ns) {
  return static_cast<uint32_t>(SipHash(key, tuple.Serialize())) +
         static_cast<uint32_t>(now_ns >> 12);
}

}  // namespace

Tcp::Tcp(FlowCore* core) : core_(core), flows_(core->limits.tcp_flows) {
  pieces_.reserve(kPieces);
  slices_.reserve(kPieces);
}

Tcp::~Tcp() = default;

TcpFlow* Tcp::Create(const Tuple& tuple) {
  uint32_t id = core_->TakeId(&core_->tcp_ids);
  if (id == kNoFlow && core_->MakeRoom(Room::kTcpFlow)) id = core_->TakeId(&core_->tcp_ids);
  if (id == kNoFlow) {
    core_->Count(Event::kTooManyFlows);
    return nullptr;
  }
  // Every flow that has memory has at least as much.
  const uint32_t chunks = Spill::ChunksFor(kFirstWindow);
  if (!core_->pool.Reserve(chunks) &&
      !(core_->MakeRoom(Room::kMemory) && core_->pool.Reserve(chunks))) {
    core_->Count(Event::kNoBufferMemory);
    core_->GiveId(&core_->tcp_ids, id);
    return nullptr;
  }
  const uint32_t hash = core_->index.HashOf(tuple);
  // What made room, or had the tuple before, may have been the last of the bucket.
  if (!core_->moving && !core_->Reclaim(hash)) {
    core_->pool.Unreserve(chunks);
    core_->GiveId(&core_->tcp_ids, id);
    return nullptr;
  }
  TcpFlow* flow = flows_.Make(id - core_->tcp_ids.first, id, FlowKind::kTcp);
  flow->tuple = tuple;
  flow->hash = hash;
  flow->created_ns = flow->active_ns = core_->now_ns;
  flow->reserved = chunks;
  flow->receive_window = kFirstWindow;
  const uint64_t secret = SipHash(core_->shared->isn_key, tuple.Serialize());
  flow->iss = InitialSequence(core_->shared->isn_key, tuple, core_->now_ns);
  flow->ts_offset = static_cast<uint32_t>(secret >> 32);
  flow->una = flow->next = flow->max = flow->recover = flow->discarded = flow->iss;
  core_->Enter(*flow);
  if (!core_->moving) core_->Count(Event::kTcpOpened);
  return flow;
}

// What the guest's SYN offers, against what we take.
void Tcp::Settle(TcpFlow* flow, const TcpHeader& syn) {
  const TcpOptions& options = syn.options;
  const bool v4 = flow->tuple.guest.address.is_v4();
  flow->irs = syn.sequence;
  flow->received = flow->to_host = flow->released = flow->grown_at = syn.sequence + 1;
  flow->right_edge = flow->received + flow->receive_window;
  flow->last_ack_sent = flow->received;
  flow->told_edge = flow->right_edge;
  flow->scaling = options.window_scale.has_value();
  flow->send_scale = std::min<uint8_t>(options.window_scale.value_or(0), 14);
  flow->sack = options.sack_permitted;
  flow->timestamps = options.timestamps.has_value();
  if (flow->timestamps) flow->ts_recent = options.timestamps->value;
  // RFC 9293 3.7.1: 536 or 1220 unless told; never more than the link takes, never so little that
  // headers are all that moves.
  const uint32_t headers = static_cast<uint32_t>((v4 ? kIpv4Size : kIpv6Size) + kTcpSize);
  const uint32_t link = core_->mtu() > headers + 64 ? core_->mtu() - headers : 64;
  uint32_t mss = std::min<uint32_t>(options.mss.value_or(v4 ? 536 : 1220), link);
  mss = std::max<uint32_t>(mss, 64);
  if (flow->timestamps) mss -= 12;
  flow->mss = static_cast<uint16_t>(mss);
}

// The guest's SYN: the host connects first, and the guest gets its answer when that has ended.
void Tcp::Open(const TcpSegment& segment) {
  if (!core_->shared->new_flows.Take(core_->now_ns)) return core_->Count(Event::kNewFlowRate);
  if (core_->HalfOpen() >= core_->limits.half_open) {
    // The oldest gives way only when it has had time to be answered: a flood would end every
    // connection that is being made.
    if (!core_->MakeRoom(Room::kHalfOpen)) return core_->Count(Event::kTooManyHalfOpen);
  }
  const Route route = core_->host->RouteOf(kProtocolTcp, segment.tuple.remote);
  if (!route.allowed) {
    core_->Count(Event::kPolicyDenied);
    return SendResetFor(segment);
  }
  TcpFlow* flow = Create(segment.tuple);
  if (flow == nullptr) {
    Flow closing;
    closing.fd = route.service;
    return core_->CloseSocket(&closing, /*reset=*/false);
  }
  flow->host = route.host;
  flow->phase = TcpPhase::kConnecting;
  Settle(flow, segment.header);
  core_->Age(flow, AgeList::kHalfOpen);
  if (route.service >= 0) {
    flow->fd = route.service;
    flow->service = true;
    if (!core_->Watch(*flow, kSocketEvents)) return OnConnectFailed(flow, errno);
    return OnConnected(flow);
  }

  const int family = route.host.address.is_v4() ? AF_INET : AF_INET6;
  const int fd = core_->OpenSocket(family, SOCK_STREAM, 0);
  if (fd < 0) return Remove(flow);  // silence: the guest asks again
  flow->fd = fd;
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  const SocketAddress to = SocketAddress::Of(route.host);
  if (connect(fd, to.get(), to.size) != 0 && errno != EINPROGRESS) {
    return OnConnectFailed(flow, errno);
  }
  if (!core_->Watch(*flow, kSocketEvents)) return OnConnectFailed(flow, errno);
  // One on this machine is connected by now; the event would say so a turn of the loop later.
  sockaddr_storage peer;
  socklen_t size = sizeof(peer);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0) return OnConnected(flow);
  flow->life_at = core_->now_ns + core_->limits.connect_s * kSecond;
  Rearm(flow);
}

// The socket's side of a flow that is about to move bytes.
void Tcp::Prepare(TcpFlow* flow) {
  const int zero = 0;
  flow->peek_offset = core_->limits.peek_offset &&
                      setsockopt(flow->fd, SOL_SOCKET, SO_PEEK_OFF, &zero, sizeof(zero)) == 0;
  flow->peek_known = flow->peek_offset;
  flow->writable = flow->readable = true;
  if (flow->peek_offset || !skip_.empty()) return;
  skip_.resize(kSkip);
  if (!noted_peek_) {
    core_->host->Note("the host's kernel has no SO_PEEK_OFF for TCP: downloads cost more");
    noted_peek_ = true;
  }
}

void Tcp::OnConnected(TcpFlow* flow) {
  Prepare(flow);
  flow->phase = TcpPhase::kSynReceived;
  flow->max = flow->next = flow->iss + 1;
  flow->discarded = flow->peek_at = flow->iss + 1;
  flow->life_at = UINT64_MAX;
  flow->retransmit_at = core_->now_ns + Rto(*flow);
  SendSyn(flow);
  Rearm(flow);
}

void Tcp::OnConnectFailed(TcpFlow* flow, int error) {
  switch (error) {
    case ECONNREFUSED:
    case ECONNRESET:
      core_->Count(Event::kTcpRefused);
      break;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    case EACCES:
    case EPERM:
    case EADDRNOTAVAIL:
    case EINVAL:
      core_->Count(Event::kTcpUnreachable);
      SendUnreachable(flow, error);
      break;
    case ETIMEDOUT:
      // Silence, as it was: the guest's own time-out has come or comes.
      core_->Count(Event::kTcpUnreachable);
      return Remove(flow);
    default:
      core_->Count(Event::kHostError);
      break;
  }
  flow->next = flow->iss;  // RFC 9293 3.10.7.1: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
  SendSegment(flow, TcpHeader::kRst | TcpHeader::kAck, 0);
  Remove(flow);
}

bool Tcp::Accept(int fd, const Tuple& tuple, const Endpoint& peer, uint32_t listener) {
  TcpFlow* flow = nullptr;
  if (core_->shared->new_flows.Take(core_->now_ns)) {
    flow = Create(tuple);
  } else {
    core_->Count(Event::kNewFlowRate);
  }
  if (flow == nullptr) {
    core_->Unclaim(core_->index.HashOf(tuple));
    Flow closing;
    closing.fd = fd;
    core_->CloseSocket(&closing, /*reset=*/true);
    return false;
  }
  flow->fd = fd;
  flow->host = peer;
  flow->inbound = true;
  flow->listener = listener;
  flow->phase = TcpPhase::kSynSent;
  flow->scaling = flow->sack = flow->timestamps = true;  // offered
  const int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
  Prepare(flow);
  flow->max = flow->next = flow->iss + 1;
  flow->discarded = flow->peek_at = flow->iss + 1;
  core_->Age(flow, AgeList::kHalfOpen);
  if (!core_->Watch(*flow, kSocketEvents)) {
    core_->Count(Event::kHostError);
    Drop(flow);
    return false;
  }
  flow->retransmit_at = core_->now_ns + Rto(*flow);
  SendSyn(flow);
  Rearm(flow);
  return true;
}

void Tcp::Remove(TcpFlow* flow) {
  if (flow->phase == TcpPhase::kClosed) return;
  core_->CloseSocket(flow, /*reset=*/false);
  flow->spill.Clear(core_->pool);
  core_->pool.Unreserve(flow->reserved);
  flow->reserved = 0;
  core_->Unlist(flow);
  core_->Disarm(flow);
  core_->Leave(*flow);
  flow->phase = TcpPhase::kClosed;
  flow->kind = FlowKind::kNone;
  ++flow->generation;
  if (!core_->moving) core_->Count(Event::kFlowsClosed);
  core_->GiveId(&core_->tcp_ids, flow->id);
}

void Tcp::Drop(TcpFlow* flow) {
  core_->CloseSocket(flow, /*reset=*/true);
  Remove(flow);
}

void Tcp::Abort(TcpFlow* flow) {
  if (flow->phase == TcpPhase::kConnecting) {
    SendSegment(flow, TcpHeader::kRst | TcpHeader::kAck, 0);
  } else if (flow->phase != TcpPhase::kTimeWait && flow->phase != TcpPhase::kClosed) {
    const bool acks = flow->phase != TcpPhase::kSynSent;
    SendSegment(flow, acks ? TcpHeader::kRst | TcpHeader::kAck : TcpHeader::kRst, flow->next);
  }
  Drop(flow);
}

AgeList Tcp::ListOf(const TcpFlow& flow) {
  return flow.eof || flow.fin_received ? AgeList::kHalfClosed : AgeList::kEstablished;
}

bool Tcp::IsQuiet(const TcpFlow& flow) const {
  const bool from_guest = flow.to_host == flow.data_end() && flow.range_count == 0 &&
                          flow.shut == flow.fin_received && flow.fin_seen == flow.fin_received;
  const bool to_guest = flow.una == flow.max && (flow.eof || !flow.readable);
  if (flow.phase != TcpPhase::kOpen || flow.dirty || !from_guest || !to_guest) return false;
  // What the other end has not acknowledged, or has sent and no event has told of yet.
  int out = 0;
  int in = 0;
  return ioctl(flow.fd, SIOCOUTQ, &out) == 0 && out == 0 && ioctl(flow.fd, SIOCINQ, &in) == 0 &&
         in == 0;
}

void Tcp::EnterTimeWait(TcpFlow* flow) {
  core_->CloseSocket(flow, /*reset=*/false);
  flow->spill.Clear(core_->pool);
  core_->pool.Unreserve(flow->reserved);
  flow->reserved = 0;
  flow->phase = TcpPhase::kTimeWait;
  flow->retransmit_at = flow->ack_at = UINT64_MAX;
  flow->life_at = core_->now_ns + core_->limits.time_wait_s * kSecond;
  core_->Age(flow, AgeList::kTimeWait);
  core_->Disarm(flow);
  Rearm(flow);
}

// Both ends may be through: the guest has acknowledged our FIN, and the host has all of the guest's
// bytes and its end.
void Tcp::Finish(TcpFlow* flow) {
  if (flow->phase != TcpPhase::kOpen || !flow->fin_acked() || !flow->shut) return;
  if (flow->ack_now || flow->ack_later) {
    if (!SendSegment(flow, TcpHeader::kAck, flow->next)) {
      return core_->WaitForRx(flow);
    }
  }
  // Who closed first waits: when that was the guest, it does.
  if (flow->guest_first) return Remove(flow);
  EnterTimeWait(flow);
}

}  // namespace virtbay::proxy_net
